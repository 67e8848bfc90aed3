"""Ctrl-C is delayed until a change is complete."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class _Waiting(list[tuple[Any, ...]]):
    """A signal handler that keeps what it was called with."""

    def __call__(self, *event: Any) -> None:
        self.append(event)


@contextlib.contextmanager
def undivided() -> Iterator[None]:
    """Delay Ctrl-C until the end of the ``with`` block, so that a change is made completely or not at all.

    A block within another one ends with that one.
    """
    before = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()  # only this one receives Ctrl-C
    if isinstance(before, _Waiting) or not callable(before) or not in_main_thread:
        yield
        return
    waiting = _Waiting()
    signal.signal(signal.SIGINT, waiting)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if waiting:
        before(*waiting[0])
