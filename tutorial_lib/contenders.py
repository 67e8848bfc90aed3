"""The networks that a comparison trains: dense, small dense, sparse, gradually pruned."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from truly_sparse.arguments import check_choice, require
from truly_sparse.convert import sparsify
from truly_sparse.errors import InvalidArgumentError
from truly_sparse.fuse import fuse
from truly_sparse.init import sparse_init
from truly_sparse.interface import weight_layers
from truly_sparse.recipes import DynamicRecipe, GradualMagnitudePruning, Recipe
from truly_sparse.topology import layer_nnz

from .cost import multiply_adds
from .masked import mask_model
from .models import TutorialCNN
from .train import OPTIMIZERS, SCHEDULES

IMAGE = (1, 28, 28)


WIDTH_STEPS = 1000


def weight_count(model: nn.Module) -> int:
    """Return the number of entries of all Linear and Conv2d weights, biases left out."""
    return sum(layer.weight.numel() for layer in weight_layers(model).values())


def multiply_add_count(model: nn.Module) -> int:
    """Return the multiply-adds that one image takes."""
    return int(multiply_adds(model, IMAGE).loc["total", "executed"])


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


@dataclass(frozen=True, kw_only=True)
class Contender(ABC):
    """A way to build and train the tutorial's network.

    Attributes:
        lr: see :func:`fit`.
        schedule: see :func:`fit`.
        optimizer: see :func:`fit`.
    """

    lr: float = 3e-3
    schedule: str = "onecycle"
    optimizer: str = "adam"

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, "lr", self.lr, "use a positive number such as 1e-3")
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("schedule", self.schedule, SCHEDULES)

    @abstractmethod
    def build(self, sparsity: float, seed: int) -> nn.Module:
        """Return the network, drawn from ``seed``."""

    def recipe(self, sparsity: float) -> Recipe | None:
        """Return how its topology changes."""
        return None

    @property
    def is_dense(self) -> bool:
        """Whether it is the same at every sparsity."""
        return False


@dataclass(frozen=True)
class Dense(Contender):
    """The full network: what the others are measured against."""

    @property
    def is_dense(self) -> bool:
        """See :class:`Contender`."""
        return True

    def build(self, sparsity: float, seed: int) -> nn.Module:
        """See :class:`Contender`."""
        torch.manual_seed(seed)
        return TutorialCNN()


@dataclass(frozen=True)
class SmallDense(Contender):
    """A narrow dense network with as many weights, or as many multiply-adds, as the sparse one with ERK densities.

    Attributes:
        same: ``"weights"`` or ``"multiply-adds"``.
    """

    same: str = "weights"

    def build(self, sparsity: float, seed: int) -> nn.Module:
        """See :class:`Contender`."""
        with torch.device("meta"):
            full = TutorialCNN()
            counts = layer_nnz(full, sparsity, "erk")
            places = {"conv1": 28 * 28, "conv2": 14 * 14}  # where a convolution applies each of its weights
        limits = {
            "weights": (sum(counts.values()), weight_count),
            "multiply-adds": (sum(nnz * places.get(name, 1) for name, nnz in counts.items()), multiply_add_count),
        }
        if self.same not in limits:
            raise InvalidArgumentError(f"same={self.same!r}; use one of {', '.join(limits)}")
        torch.manual_seed(seed)
        return small_dense(*limits[self.same])


@dataclass(frozen=True)
class Sparse(Contender):
    """A truly sparse network from the first step on.

    Attributes:
        how: how its topology changes.
        scheme: how its layers share the weights, see :func:`layer_nnz`.
        init: ``"dense"``: the weights that the dense network would have there; ``"sparse-aware"``: :func:`sparse_init`.
    """

    how: DynamicRecipe
    scheme: str = "erk"
    init: str = "sparse-aware"

    def build(self, sparsity: float, seed: int) -> nn.Module:
        """See :class:`Contender`."""
        if self.init not in ("dense", "sparse-aware"):
            raise InvalidArgumentError(f"init={self.init!r}; use dense or sparse-aware")
        torch.manual_seed(seed)
        masked = mask_model(TutorialCNN(), sparsity, self.scheme, seed=seed)
        return fuse(sparsify(sparse_init(masked, seed) if self.init == "sparse-aware" else masked))

    def recipe(self, sparsity: float) -> Recipe:
        """See :class:`Contender`."""
        return self.how


@dataclass(frozen=True)
class Gradual(Contender):
    """Gradual magnitude pruning: a masked network that starts dense, so it is as large and slow as the dense one."""

    scheme: str = "erk"

    def build(self, sparsity: float, seed: int) -> nn.Module:
        """See :class:`Contender`."""
        torch.manual_seed(seed)
        return mask_model(TutorialCNN(), 0.0)

    def recipe(self, sparsity: float) -> Recipe:
        """See :class:`Contender`."""
        return GradualMagnitudePruning(sparsity, self.scheme)
