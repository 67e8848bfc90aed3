"""The networks that a comparison trains: dense, small dense, sparse, gradually pruned."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from typing_extensions import override

from truly_sparse.arguments import check_choice, require
from truly_sparse.convert import sparsify
from truly_sparse.errors import InvalidArgumentError
from truly_sparse.fuse import fuse
from truly_sparse.init import sparse_init
from truly_sparse.interface import weight_layers, weight_shape
from truly_sparse.recipes import GradualMagnitudePruning, Recipe
from truly_sparse.structure import StructureLike
from truly_sparse.topology import layer_nnz

from .cost import multiply_adds
from .masked import mask_model
from .models import TutorialCNN
from .train import OPTIMIZERS, SCHEDULES

IMAGE = (1, 28, 28)
WIDTH_STEPS = 1000


def weight_count(model: nn.Module) -> int:
    """Return the number of entries of all Linear and Conv2d weights, without biases."""
    return sum(math.prod(weight_shape(layer)) for layer in weight_layers(model).values())


def multiply_add_count(model: nn.Module) -> int:
    """Return the number of multiply-adds for one image."""
    return int(multiply_adds(model, IMAGE).loc["total", "executed"])


def small_dense(limit: int, measure: Callable[[nn.Module], int] = weight_count) -> TutorialCNN:
    """Return the widest narrow :class:`TutorialCNN` that stays within ``limit``. All layers shrink by the same factor.

    Args:
        limit: largest accepted value of ``measure``.
        measure: :func:`weight_count` or :func:`multiply_add_count`.

    Raises:
        InvalidArgumentError: even the narrowest network exceeds the limit.
    """

    def fits(steps: int) -> bool:
        with torch.device("meta"):  # sizes only: nothing is allocated
            return measure(TutorialCNN(steps / WIDTH_STEPS)) <= limit

    low, high = 1, WIDTH_STEPS
    if not fits(low):
        raise InvalidArgumentError(f"limit={limit} is less than the narrowest network needs; raise it")
    while low < high:  # binary search: if a width does not fit, no larger one does
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
        """Return how the topology changes; None for a dense network."""
        return None

    @property
    def is_dense(self) -> bool:
        """Whether the network is the same at every sparsity."""
        return False


@dataclass(frozen=True)
class Dense(Contender):
    """The full network, the baseline."""

    @property
    @override
    def is_dense(self) -> bool:
        return True

    @override
    def build(self, sparsity: float, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return TutorialCNN()


@dataclass(frozen=True)
class SmallDense(Contender):
    """A narrow dense network with as many weights, or as many multiply-adds, as the sparse one with ERK densities.

    Attributes:
        same: ``"weights"`` or ``"multiply-adds"``.
    """

    same: str = "weights"

    @override
    def build(self, sparsity: float, seed: int) -> nn.Module:
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
        init: ``"dense"``: the initial weights of the dense network; ``"sparse-aware"``: :func:`sparse_init`.
        structure: the blocks in which weights exist, see :func:`sparsify`.
    """

    how: Recipe
    scheme: str = "erk"
    init: str = "sparse-aware"
    structure: StructureLike = (1, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(isinstance(self.how, Recipe), "how", self.how, "give a recipe such as RigL()")

    @override
    def build(self, sparsity: float, seed: int) -> nn.Module:
        if self.init not in ("dense", "sparse-aware"):
            raise InvalidArgumentError(f"init={self.init!r}; use dense or sparse-aware")
        torch.manual_seed(seed)
        masked = mask_model(TutorialCNN(), sparsity, self.scheme, seed=seed, structure=self.structure)
        return fuse(sparsify(sparse_init(masked, seed) if self.init == "sparse-aware" else masked))

    @override
    def recipe(self, sparsity: float) -> Recipe:
        return self.how


@dataclass(frozen=True)
class Gradual(Contender):
    """Gradual magnitude pruning: a masked network that starts dense, so it is as large and slow as a dense one."""

    scheme: str = "erk"

    @override
    def build(self, sparsity: float, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return mask_model(TutorialCNN(), 0.0)

    @override
    def recipe(self, sparsity: float) -> Recipe:
        return GradualMagnitudePruning(sparsity, self.scheme)
