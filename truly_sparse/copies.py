"""Copies of models, with other modules in some places."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn

from .errors import InvalidArgumentError


def copied(model: nn.Module, layers: Mapping[str, nn.Module] | None = None, share: bool = False) -> nn.Module:
    """Return a copy of ``model`` that shares no tensors with it.

    Args:
        model: is not changed.
        layers: by name, modules that take the place of the model's own in the copy. The model's are not copied.
        share: whether the copy holds the model's own parameters and buffers instead.

    Raises:
        InvalidArgumentError: the model holds something that cannot be copied.
    """
    memo: dict[int, Any] = {id(model.get_submodule(name)): layer for name, layer in (layers or {}).items()}
    if share:
        memo |= {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    for module in model.modules():  # weights that are computed from parameters before each call, as weight_norm does
        held = [value for value in vars(module).values() if isinstance(value, torch.Tensor)]
        memo |= {id(tensor): tensor.detach().clone() for tensor in held if not tensor.is_leaf}
    try:
        return copy.deepcopy(model, memo)  # deepcopy inserts what the memo holds
    except (RuntimeError, TypeError) as error:  # an open file, a lock
        why = " ".join(str(error).split())[:200]
        raise InvalidArgumentError(
            f"model={type(model).__name__} cannot be copied ({why}); "
            "use one that stores its tensors as parameters or buffers"
        ) from error
