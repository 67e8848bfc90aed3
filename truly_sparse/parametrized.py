"""Values of sparse layers that ``torch.nn.utils.parametrize`` computes from another parameter, their original."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from typing_extensions import override

from .errors import InvalidArgumentError

NAME = "values"
ROUNDING = 8  # times the precision of the type: what two computations of one number may differ by


class Parametrizations(nn.ModuleDict):
    """torch's dictionary of a module's parametrizations, which also takes one that is called ``values``.

    A dictionary of torch's has a method of that name, and refuses a module that is called like a method. Here
    ``parametrizations.values`` is that module, if there is one, as ``parametrizations.bias`` is.
    """

    @override
    def __setitem__(self, key: str, module: nn.Module) -> None:
        if key == NAME:
            self._modules.setdefault(key, module)  # what is there already may be set
        super().__setitem__(key, module)

    @property
    def values(self) -> Any:
        """The parametrization of the values; if they have none, the dictionary's method."""
        method: Callable[[], Any] = super().values
        return self._modules.get(NAME, method)


def steps_of(layer: nn.Module) -> Any:
    """Return what computes the layer's values: torch's list of parametrizations; None if nothing does."""
    return layer.get_submodule("parametrizations")._modules[NAME] if is_parametrized(layer, NAME) else None


def parameter_of(layer: nn.Module) -> nn.Parameter:
    """Return the parameter that an optimizer changes: the values, or the (first) original that they come from."""
    own: Any = layer._parameters.get(NAME)
    found: nn.Parameter = own if own is not None else next(steps_of(layer).parameters(recurse=False))
    return found


def originals_of(layer: nn.Module, values: torch.Tensor) -> torch.Tensor:
    """Return the originals from which the layer computes these values: without parametrization, the values.

    Args:
        layer: whose values may be parametrized.
        values: weights of any of its connections, ``[n]``.

    Raises:
        InvalidArgumentError: each value is not computed from one number, or the parametrization computes other values.
    """
    steps = steps_of(layer)
    if steps is None:
        return values
    if not steps.is_tensor or parameter_of(layer).shape != getattr(layer, NAME).shape:
        raise refusal(layer, "does not compute each weight from one number")
    original = values
    try:
        with torch.no_grad():
            for step in reversed(steps):
                original = step.right_inverse(original) if hasattr(step, "right_inverse") else original
        check_computed(layer, original, values)
    except RuntimeError as error:  # tensors of its own that have the size of all weights, as a mask has
        raise refusal(layer, f"does not take some of its weights ({str(error)[:100]})") from error
    return original


def check_computed(layer: nn.Module, original: torch.Tensor, values: torch.Tensor) -> None:
    """Refuse a parametrization that does not compute these values, ``[n]``, from these originals, ``[n]``.

    Raises:
        InvalidArgumentError: see above.
    """
    found = original
    with torch.no_grad():
        for step in steps_of(layer):
            found = step(found)
    tolerance = ROUNDING * torch.finfo(values.dtype).eps
    if found.shape != values.shape or not torch.allclose(found, values, rtol=tolerance, atol=tolerance / 100):
        raise refusal(layer, "would compute other weights than those asked for")


def refusal(layer: nn.Module, why: str) -> InvalidArgumentError:
    """Return the error that the parametrization does not let the layer's weights be set or moved."""
    names = ", ".join(type(step).__name__ for step in steps_of(layer))
    return InvalidArgumentError(
        f"the parametrization {names} of a layer's values {why}; use one that computes each weight from its own "
        "original alone and has a right_inverse, or call remove_parametrizations(layer, 'values')"
    )
