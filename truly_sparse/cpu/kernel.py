"""Kernels: compiled loops that are called by their address.

``kernel(call, plan, first, last, thread)`` does pieces ``first`` to ``last`` of a layer's work in one thread. A program
lists the addresses of its kernels (``program.py``). Each kernel is therefore compiled by itself, once, and not before a
program needs it. ``run`` calls a kernel in the calling thread, ``run_by_all`` divides its pieces among all threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import cfunc, from_dtype, njit, prange
from numba.core import types
from numba.core.compiler import Compiler
from numba.extending import intrinsic

from ..progress import progress_stream
from .records import CALL, PASS, PHASE, PLAN, STEP, WEIGHTS
from .simd import OPTIONS, compiled

_INT = ir.IntType(64)
_compiling = threading.Lock()
made: list[Kernel] = []  # all kernels of this process


class Kernel:
    """A loop that is compiled when its address is first asked for.

    Args:
        function: takes ``call``, ``plan``, ``first``, ``last`` and ``thread``; numba can compile it.
        call: dtype of the record that the first argument is; None for a number.
        plan: dtype of the record that the second argument is.
    """

    def __init__(self, function: Callable[..., None], call: np.dtype[Any] | None, plan: np.dtype[Any]) -> None:
        self.function = function
        self._kinds = [types.intp if kind is None else from_dtype(kind) for kind in (call, plan)]
        self._loop: Any = None
        made.append(self)

    @cached_property
    def address(self) -> int:
        """The address of the compiled loop."""
        signature = types.void(*self._kinds, types.intp, types.intp, types.intp)
        with _compiling:  # a second loop would take the place of the first, whose address may be in use
            if self._loop is None:
                self._loop = cfunc(signature, cache=True, pipeline_class=_Announced, **OPTIONS)(self.function)
        return cast(int, self._loop.address)


def kernel(call: np.dtype[Any] | None, plan: np.dtype[Any]) -> Callable[[Callable[..., None]], Kernel]:
    """Return a decorator that makes a :class:`Kernel` of a function."""
    return lambda function: Kernel(function, call, plan)


class _Announced(Compiler):
    """numba's compiler, which is asked only for code that the cache does not hold. It says so the first time."""

    announced = False

    def define_pipelines(self) -> Any:
        """Return numba's usual passes."""
        if not _Announced.announced:
            _Announced.announced = True
            print(
                "Compiling kernels of sparse layers (once on this machine, some seconds for each new kind of layer).",
                file=progress_stream(),
                flush=True,
            )
        return super().define_pipelines()


def _record(dtype: np.dtype[Any]) -> Any:
    kind = from_dtype(dtype)

    @intrinsic
    def at(context: Any, address: Any) -> Any:
        def emit(context: Any, b: Any, signature: Any, v: list[Any]) -> Any:
            return b.inttoptr(v[0], context.get_value_type(kind))

        return kind(types.intp), emit

    return at


# ``call_at(address)``: the record at this address; its fields can be read and written.
call_at, plan_at, phase_at, pass_at, step_at, weights_at = map(_record, (CALL, PLAN, PHASE, PASS, STEP, WEIGHTS))


@intrinsic
def _enter(context: Any, address: Any, call: Any, plan: Any, first: Any, last: Any, thread: Any) -> Any:
    """Call the kernel at ``address``."""

    def emit(context: Any, b: Any, signature: Any, v: list[Any]) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_INT] * 5)
        b.call(b.inttoptr(v[0], kind.as_pointer()), v[1:])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6), emit


@compiled
def run(address: int, call: int, plan: int, first: int, last: int, thread: int) -> None:
    """Run pieces ``first`` to ``last`` of the kernel at an address, in the calling thread."""
    _enter(address, call, plan, first, last, thread)  # type: ignore[call-arg]


# Parallel functions do not write to memory themselves: numba removes writes through pointers made there as dead code.
@njit(parallel=True, **OPTIONS)
def run_by_all(address: int, call: int, plan: int, pieces: int, threads: int) -> None:
    """Run the kernel at an address, its pieces divided among the threads."""
    for thread in prange(threads):
        run(address, call, plan, pieces * thread // threads, pieces * (thread + 1) // threads, thread)
