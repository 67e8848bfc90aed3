"""The control that the field skips: a dense network that is simply smaller."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .cost import multiply_adds
from .errors import InvalidArgumentError
from .models import TutorialCNN
from .topology import weight_layers
from .validate import checked

IMAGE = (1, 28, 28)
WIDTH_STEPS = 1000


@checked
def weight_count(model: nn.Module) -> int:
    """Return the number of entries of all Linear and Conv2d weights, biases left out."""
    return sum(layer.weight.numel() for layer in weight_layers(model).values())


@checked
def multiply_add_count(model: nn.Module) -> int:
    """Return the multiply-adds that one image takes."""
    return int(multiply_adds(model, IMAGE).loc["total", "executed"])


@checked
def small_dense(limit: int, measure: Callable[[nn.Module], int] = weight_count) -> TutorialCNN:
    """Return the widest narrow :class:`TutorialCNN` that stays within ``limit``; all layers shrink alike.

    Args:
        limit: the most that ``measure`` may say.
        measure: :func:`weight_count` or :func:`multiply_add_count`.

    Raises:
        InvalidArgumentError: even the narrowest network exceeds the limit.
    """

    def fits(steps: int) -> bool:
        with torch.device("meta"):  # sizes only: nothing is drawn, nothing allocated
            return measure(TutorialCNN(steps / WIDTH_STEPS)) <= limit

    low, high = 1, WIDTH_STEPS
    if not fits(low):
        raise InvalidArgumentError(f"limit={limit} is less than the narrowest network needs; raise it")
    while low < high:  # the largest width that fits: a width never fits where a smaller one does not
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return TutorialCNN(low / WIDTH_STEPS)
