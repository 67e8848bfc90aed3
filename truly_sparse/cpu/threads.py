"""numba's threads: they are started once, as many as torch's, and Python threads take turns where numba requires it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numba
import torch

P = ParamSpec("P")
R = TypeVar("R")
_applied = threading.local()  # numba's number of threads belongs to the thread that set it
_turn = threading.Lock()


def use_threads() -> int:
    """Apply ``torch.set_num_threads`` to these kernels, and return the number of threads."""
    threads: int = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    if threads != getattr(_applied, "threads", 0):
        numba.set_num_threads(threads)
        _applied.threads = threads
    return threads


def in_turn(run: Callable[P, R]) -> Callable[P, R]:
    """Return a function like ``run``, which starts parallel work, that several Python threads can call at once.

    numba's "workqueue" layer, which it uses where there is neither OpenMP nor TBB, ends the process if a second thread
    starts parallel work. There the threads wait for each other. With the other layers this is ``run`` itself.
    """
    if numba.threading_layer() != "workqueue":  # type: ignore[attr-defined]
        return run

    @functools.wraps(run)
    def one_at_a_time(*args: P.args, **kwargs: P.kwargs) -> R:
        with _turn:
            return run(*args, **kwargs)

    return one_at_a_time


def _launch() -> None:
    """Start numba's threads and keep torch's number of threads, which starting them would change."""
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    torch.set_num_threads(threads)


_launch()
