"""When to rewire and how much: times in steps or epochs, and the decay of the prune fraction."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .arguments import check_count, require
from .errors import InvalidArgumentError

# Each maps the progress of the rewiring period, 0 to 1, to a factor on the prune fraction.
DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,  # Evci et al., 2020, section 3
}


@dataclass(frozen=True)
class Epochs:
    """A time in epochs, where a plain number means optimizer steps: ``every=Epochs(2)``."""

    count: float

    def __post_init__(self) -> None:
        require(math.isfinite(self.count), "count", self.count, "use a finite number of epochs")

    def in_steps(self, steps_per_epoch: int | None) -> int:
        """Return this time in optimizer steps, rounded.

        Raises:
            InvalidArgumentError: ``steps_per_epoch`` is None or below 1.
        """
        if steps_per_epoch is None:
            raise InvalidArgumentError(f"{self} and {steps_per_epoch=}; pass it, or give the time in steps")
        check_count("steps_per_epoch", steps_per_epoch, least=1)
        steps = float(self.count) * steps_per_epoch
        require(math.isfinite(steps), "count", self.count, f"with {steps_per_epoch} steps each use fewer epochs")
        return round(steps)


def in_steps(name: str, time: int | Epochs, steps_per_epoch: int | None, least: int) -> int:
    """Return a time in optimizer steps.

    Args:
        name: the argument that the time comes from.
        time: steps or :class:`Epochs`.
        steps_per_epoch: needed for :class:`Epochs`.
        least: smallest number of steps that is accepted.

    Raises:
        InvalidArgumentError: not a whole number of steps, or too few.
    """
    steps = time.in_steps(steps_per_epoch) if isinstance(time, Epochs) else time
    remedy = f"use a whole number of steps, at least {least}, or Epochs(n) of at least one step"
    whole = isinstance(steps, (int, np.integer)) and not isinstance(steps, bool)
    require(whole and least <= steps < 2**63, name, time, remedy)
    return int(steps)
