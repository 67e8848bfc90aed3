"""One step of training a classifier: a single compiled call where that is possible, else torch's loop."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .errors import InvalidArgumentError
from .fuse import chain_of
from .kernels import kernels_for, reference
from .sparse import SparseLinear, can_run_at_once, has_hooks, stages_of
from .validate import checked, is_dense, shown

Trained = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@checked
class TrainingStep:
    """A step of training, to be called with inputs and their classes: forward, cross-entropy, backward, optimizer.

    Python, autograd and an optimizer take as long as all the arithmetic of a small truly sparse network. Where the
    model is nothing but a chain of sparse layers (``fuse(sparsify(model))``), float32 on a CPU, and the optimizer
    torch's Adam or AdamW, a step is therefore one compiled call. It does the same to the same parameters, their
    ``.grad`` (overwritten by the next step) and the optimizer's state, equal to rounding.

    torch's own loop does the rest: the first step, in which the optimizer makes its state; steps whose gradients a
    layer records; everything where somebody has hooks; labels that are no class; a loss that is not finite.

    Args:
        model: maps inputs to logits ``[B, classes]``.
        optimizer: holds its parameters.

    Raises:
        InvalidArgumentError: it holds none of them.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if held.isdisjoint(map(id, model.parameters())):
            raise InvalidArgumentError(
                f"optimizer={type(optimizer).__name__} holds no parameter of model={type(model).__name__}; "
                "build it from this model's parameters, after sparsify and fuse, which return copies"
            )
        self.model, self.optimizer = model, optimizer
        names = chain_of(model)
        self._layers = operator.attrgetter(*names) if names else None
        self._trainer: Any = None  # made when the kernels are first needed

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> tuple[float, int]:
        """Take one step with inputs ``x`` of the classes ``y``, int64 ``[B]``.

        Returns:
            The loss before the step, and how many samples were right. Where the loss is not finite, nothing is
            updated.

        Raises:
            InvalidArgumentError: not such tensors.
        """
        if not is_dense(x) or x.dim() == 0:
            raise InvalidArgumentError(f"x={shown(x)}; give a dense tensor of inputs, [B, ...]")
        if not is_dense(y) or y.dtype is not torch.int64 or y.shape != x.shape[:1]:
            raise InvalidArgumentError(f"y={shown(y)}; give a class for each input, int64 [{x.shape[0]}]")
        return self._at_once(x, y) or self._by_torch(x, y)

    def _by_torch(self, x: torch.Tensor, y: torch.Tensor) -> tuple[float, int]:
        self.optimizer.zero_grad()
        logits = self.model(x)
        loss = F.cross_entropy(logits, y)
        loss.backward()
        value = loss.item()
        if math.isfinite(value):
            self.optimizer.step()
        return value, (logits.argmax(1) == y).sum().item()

    def _at_once(self, x: torch.Tensor, y: torch.Tensor) -> tuple[float, int] | None:
        """Return the same after one compiled call; None, and nothing has happened, if it takes torch's loop."""
        settings = _adam_settings(self.optimizer)
        if self._layers is None or settings is None or has_hooks(self.model) or not _is_plain(x, y):
            return None
        layers = self._layers(self.model)
        if not can_run_at_once(x, layers) or not isinstance(layers[-1], SparseLinear):
            return None
        parameters = [parameter for layer in layers for parameter in (layer.values, layer.bias)]
        weights = [None if parameter is None else self._trained(parameter) for parameter in parameters]
        each = [id(parameter) for parameter in parameters if parameter is not None]
        held = {id(parameter) for parameter in self.optimizer.param_groups[0]["params"]}
        if len(set(each) & held) < len(each) or len(each) > sum(state is not None for state in weights):
            return None
        kernels = kernels_for(x)
        if kernels is reference or any(layer.record_gradient for layer in layers):
            return None
        self._trainer = self._trainer or kernels.Trainer()
        done = self._trainer.step(x, y, stages_of(layers), weights, settings)
        if done is not None:
            for parameter, gradient in zip(parameters, self._trainer.gradients, strict=True):
                if parameter is not None:
                    parameter.grad = gradient
        return done

    def _trained(self, parameter: nn.Parameter) -> Trained | None:
        """Return a parameter with Adam's state; None where there is none yet, or somebody watches its gradient."""
        state = self.optimizer.state.get(parameter)
        watched = parameter._backward_hooks or parameter._post_accumulate_grad_hooks
        if not state or watched or not parameter.requires_grad:
            return None
        return parameter, state["exp_avg"], state["exp_avg_sq"], state["step"]


def _is_plain(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether compiled code could take the batch, and nobody wants the gradient of it."""
    ours = x.dtype is torch.float32 and x.is_cpu and y.is_cpu and x.dim() in (2, 4) and y.numel() > 0
    return ours and torch.is_grad_enabled() and not x.requires_grad


def _adam_settings(optimizer: torch.optim.Optimizer) -> tuple[float, float, float, float, float] | None:
    """Return learning rate, β₁, β₂, ε and the factor of AdamW's decay; None for what is not plain Adam."""
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW) or len(optimizer.param_groups) != 1:
        return None
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return None
    group = optimizer.param_groups[0]
    numbers, decay = (group["lr"], *group["betas"], group["eps"]), group["weight_decay"]
    if group["amsgrad"] or group["maximize"] or group["capturable"] or group["differentiable"]:
        return None
    if not all(isinstance(number, float) for number in numbers) or (decay and type(optimizer) is torch.optim.Adam):
        return None
    return *numbers, 1 - group["lr"] * decay
