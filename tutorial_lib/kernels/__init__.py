"""The arithmetic of true sparsity: ``reference.py`` for any device and dtype, ``cpu.py`` for float32, fast."""

from __future__ import annotations

import functools
import warnings
from types import ModuleType

import torch

from ..errors import InvalidArgumentError
from ..validate import shown
from . import reference
from .index import ConvIndex, LinearIndex
from .stage import Stage

__all__ = ["ConvIndex", "LinearIndex", "Stage", "kernels_and_input", "warmup"]


def kernels_and_input(x: torch.Tensor) -> tuple[ModuleType, torch.Tensor]:
    """Return the module that computes on tensors like ``x``, and ``x`` in the format that it reads.

    For float32 on a CPU that is ``cpu`` and the batch-innermost format (the conversion, if there is one to do, is done
    here, once for forward and backward); for everything else ``reference`` and ``x`` itself.
    """
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise InvalidArgumentError(f"x={shown(x)}; give activations of floating numbers")
    fast = _compiled() if x.is_cpu and x.dtype == torch.float32 else None
    return (reference, x) if fast is None else (fast, fast.innermost(x))


@functools.cache
def _compiled() -> ModuleType | None:
    """Return the compiled kernels, compiled on the first call; None, and a warning once, where that is impossible."""
    try:
        from . import cpu

        cpu.warmup()
    except Exception as error:
        warnings.warn(f"the fast sparse kernels cannot be compiled ({error}); using plain torch, slower", stacklevel=3)
        return None
    return cpu


def warmup() -> None:
    """Compile the fast kernels now, so that no timing holds it; where they are cached on disk this takes a second."""
    _compiled()
