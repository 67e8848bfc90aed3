"""The project's folders, the profile of the notebooks, and the default device."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from truly_sparse.arguments import require
from truly_sparse.errors import InvalidArgumentError

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "figures"


@dataclass(frozen=True)
class Profile:
    """How much training a notebook does.

    Attributes:
        name: ``"quick"`` or ``"full"``.
        train_size: number of training images, or None for all of them.
        steps: optimizer steps of a training, with batches of 64 images, on any data set.
    """

    name: str
    train_size: int | None
    steps: int

    def epochs(self, images: int) -> int:
        """Return how many passes over so many training images take about ``steps`` steps; at least one."""
        return max(1, round(self.steps / math.ceil(images / 64)))


PROFILES = {
    "quick": Profile("quick", train_size=6_000, steps=846),
    "full": Profile("full", train_size=None, steps=9_380),  # ten passes over MNIST, as published
}


def profile() -> Profile:
    """Return the profile that the environment variable ``TUTORIAL_PROFILE`` selects (``quick`` if unset).

    Raises:
        InvalidArgumentError: the variable has another value.
    """
    name = os.environ.get("TUTORIAL_PROFILE", "quick")
    if name not in PROFILES:
        raise InvalidArgumentError(f"TUTORIAL_PROFILE is {name!r}; set it to one of {', '.join(PROFILES)}")
    return PROFILES[name]


def default_device() -> str:
    """Return ``"cuda"`` if a GPU is available to torch, else ``"cpu"``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_path(name: str, path: str | Path) -> Path:
    """Return ``path`` as a Path, so that an impossible one is refused before any work is done.

    Raises:
        InvalidArgumentError: the path contains a zero byte or a character that cannot be encoded.
    """
    try:
        possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        possible = False
    require(possible, name, str(path), "use a path without zero bytes and characters that cannot be encoded")
    return Path(path)
