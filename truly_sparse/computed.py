"""Weights of dense layers, also those that ``torch.nn.utils.prune`` and ``weight_norm`` compute before each call."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.weight_norm import WeightNorm

CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
Layer = TypeVar("Layer", bound=nn.Module)


def has_known_weight(layer: nn.Module) -> bool:
    """Tell whether the layer stores its weight, or computes it by ``prune`` or ``weight_norm`` only."""
    if is_parametrized(layer, "weight"):
        steps: Any = layer.parametrizations
        return all(isinstance(step, _WeightNorm) for step in steps["weight"])
    return "weight" in layer._parameters or _hook(layer, "weight") is not None


def tensor_of(layer: nn.Module, name: str) -> Any:
    """Return the ``"weight"`` or ``"bias"`` of the layer's next call, detached; None if it has none."""
    hook = _hook(layer, name)
    if isinstance(hook, BasePruningMethod):
        tensor = hook.apply_mask(layer)
    else:
        tensor = getattr(layer, name) if hook is None else hook.compute_weight(layer)
    return None if tensor is None else tensor.detach()


def is_trained(layer: nn.Module, name: str) -> bool:
    """Tell whether the ``"weight"`` or ``"bias"``, or what it is computed from, requires a gradient."""
    return any(parameter.requires_grad for own, parameter in layer.named_parameters() if name in own)


def pruning_mask(layer: nn.Module) -> torch.Tensor | None:
    """Return the boolean mask that ``torch.nn.utils.prune`` applies to the weight; None if it applies none."""
    return layer.get_buffer("weight_mask").bool() if isinstance(_hook(layer, "weight"), BasePruningMethod) else None


def with_tensors_of(layer: nn.Module, kind: type[Layer]) -> Layer:
    """Return a layer of class ``kind`` with the sizes of a Linear or convolution, and copies of its weight and bias.

    Nothing is drawn, so torch's random state stays.
    """
    sizes = ("in_features", "out_features") if isinstance(layer, nn.Linear) else CONV
    weight, bias = tensor_of(layer, "weight"), tensor_of(layer, "bias")
    made = kind(**{name: getattr(layer, name) for name in sizes}, bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.clone(), is_trained(layer, "weight"))
    made.register_parameter("bias", None if bias is None else nn.Parameter(bias.clone(), is_trained(layer, "bias")))
    return made


def _hook(layer: nn.Module, name: str) -> Any:
    """Return the pruning method or weight norm that computes the tensor of this name, or None."""
    hooks: list[Any] = list(layer._forward_pre_hooks.values())
    for hook in hooks:
        computed = hook._tensor_name if isinstance(hook, BasePruningMethod) else getattr(hook, "name", None)
        if computed == name and isinstance(hook, (BasePruningMethod, WeightNorm)):
            return hook
    return None
