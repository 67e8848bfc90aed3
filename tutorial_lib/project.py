"""Where the project's folders are, which profile runs, and on which device."""

from __future__ import annotations

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
        epochs: passes over the training images.
    """

    name: str
    train_size: int | None
    epochs: int


PROFILES = {
    "quick": Profile("quick", train_size=6_000, epochs=4),
    "full": Profile("full", train_size=None, epochs=10),
}


def profile() -> Profile:
    """Return the profile that the environment variable ``TUTORIAL_PROFILE`` selects (``quick`` if unset).

    Raises:
        InvalidArgumentError: the variable holds another word.
    """
    name = os.environ.get("TUTORIAL_PROFILE", "quick")
    if name not in PROFILES:
        raise InvalidArgumentError(f"TUTORIAL_PROFILE is {name!r}; set it to one of {', '.join(PROFILES)}")
    return PROFILES[name]


def default_device() -> str:
    """Return ``"cuda"`` where torch sees a GPU, else ``"cpu"``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_path(name: str, path: str | Path) -> Path:
    """Return a path if it is one that the system can be asked about.

    Raises:
        InvalidArgumentError: it holds what no file name can, such as a zero byte.
    """
    try:
        possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        possible = False
    require(possible, name, str(path), "use a path without zero bytes and broken characters")
    return Path(path)
