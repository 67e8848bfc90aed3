"""Averages of weights over steps between which the topology changes."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from typing_extensions import override

from .interface import sparse_layers
from .positions import contained


class AveragedSparseModel(AveragedModel):
    """``torch.optim.swa_utils.AveragedModel`` that averages weights by connection, for masked and truly sparse layers.

    torch's own class averages by position in memory, where another connection stands after a rewiring. Here the
    average has the topology of the model. Before each update it is brought to it: the average of a pruned connection
    is dropped, and that of a grown connection starts at the weight that the model has now.

    The arguments are torch's: ``multi_avg_fn=get_ema_multi_avg_fn(0.999)`` makes an exponential moving average.
    """

    @override
    def update_parameters(self, model: nn.Module) -> None:
        """Add the weights of ``model`` to the average."""
        for ours, theirs in zip(sparse_layers(self.module).values(), sparse_layers(model).values(), strict=True):
            before, after = ours.active().cpu(), theirs.active().cpu()
            if not torch.equal(before, after):
                kept, is_new = before[contained(before, after)], ~contained(after, before)
                device = ours.weight_parameter.device
                values = theirs.active_values()[is_new.to(theirs.weight_parameter.device)]
                ours.rewire(kept.to(device), after[is_new].to(device), values.to(device))
        super().update_parameters(model)
