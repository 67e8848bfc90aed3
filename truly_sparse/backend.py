"""Which module computes: ``cpu/chain.py``, compiled, for float32 on a CPU; ``reference.py`` for everything else."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from types import ModuleType

import torch

from . import reference
from .arguments import shown
from .errors import InvalidArgumentError
from .interrupt import undivided


def kernels_for(x: torch.Tensor) -> ModuleType:
    """Return the module that computes on tensors like ``x``.

    Raises:
        InvalidArgumentError: ``x`` is no tensor of floating numbers.
    """
    if isinstance(x, torch.Tensor) and x.dtype is torch.float32 and x.is_cpu:
        return _compiled() or reference
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise InvalidArgumentError(f"x={shown(x)}; give activations of floating numbers")
    return reference


@functools.cache
def _compiled() -> ModuleType | None:
    """Return the compiled kernels, compiled on the first call. Where that is impossible: None, and one warning."""
    try:
        if _threads_lost:
            torch.set_num_threads(
                1
            )  # a forked process has none of torch's threads either, and would wait for them forever
            raise RuntimeError("this process was forked from one that used the kernels; start it with 'spawn'")
        with undivided():  # an interrupted import would leave half a module behind
            import numba

            if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
                raise RuntimeError("NUMBA_DISABLE_JIT is set, so nothing can be compiled; unset it")
            from .cpu import chain
        chain.start()
    except Exception as error:
        warnings.warn(f"the fast sparse kernels cannot be used ({error}); using plain torch, slower", stacklevel=3)
        return None
    return chain


def warmup() -> None:
    """Compile the kernels now, so that no timing includes it. Loading them from the cache on disk takes a second.

    Those of layers with a ``structure`` are compiled when they are first used.
    """
    kernels = _compiled()
    if kernels is not None:
        kernels.warmup()


_threads_lost = False


def _after_fork() -> None:
    """Note in a forked process that it has no threads: GNU OpenMP ends a process that starts them again."""
    global _threads_lost
    if f"{__package__}.cpu.chain" in sys.modules:
        _threads_lost = True
        _compiled.cache_clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
