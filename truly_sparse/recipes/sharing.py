"""Layers that exchange weights: DSR, and the second half of sparse momentum (SNFS). The total never changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from ..arguments import require
from ..driver_checks import check_sizes_may_change
from ..dst import DynamicSparsity
from ..errors import TrainingError
from ..interface import SparsifiableLayer, Units
from ..rules import GROW_RULES, GrowChoice, GrowRule, over_all_ranks
from ..schedule import Epochs
from ..topology import share_out
from .base import DynamicRecipe


def shared_out(total: int, demand: Mapping[str, float], rooms: Mapping[str, int]) -> dict[str, int]:
    """Share out a number of units over layers in proportion to their demand; the shares add up exactly.

    What does not fit into a layer goes to the others. Rounding is by the method of largest remainders.

    Args:
        total: at most the sum of all rooms.
        demand: not negative, by layer; without any, all layers are alike.
        rooms: the most that each layer takes.
    """
    wanted = np.array([demand[name] for name in rooms])
    wanted = np.maximum(wanted, 1e-12 * (wanted.max() or 1.0))  # no layer is left out once the others are full
    ideal = share_out(wanted, np.array(list(rooms.values())), total)
    counts = np.floor(ideal).astype(np.int64)
    counts[np.argsort(counts - ideal, kind="stable")[: total - counts.sum()]] += 1
    return dict(zip(rooms, counts.tolist(), strict=True))


def check_exchange(layers: Mapping[str, SparsifiableLayer]) -> None:
    """Refuse layers that cannot exchange weights.

    Raises:
        InvalidArgumentError: blocks of different sizes, or truly sparse layers in one of several processes.
    """
    check_sizes_may_change(layers)
    areas = {str(layer.structure): layer.structure.area for layer in layers.values()}
    one_size = len(set(areas.values())) == 1
    require(one_size, "structure", list(areas), "layers exchange blocks of one size only; use the same in all layers")


class AdaptiveThreshold(DynamicSparsity):
    """The driver of :class:`DSR`; ``prune_fraction`` is the share that the threshold aims at.

    Attributes:
        threshold: magnitude below which the next rewiring prunes.
    """

    def __init__(self, *on: Any, threshold: float, **settings: Any) -> None:
        super().__init__(*on, **settings)
        check_exchange(self.layers)
        require(self.scope == "layer", "scope", self.scope, "the threshold is that of all layers; leave it out")
        require(threshold > 0, "threshold", threshold, "use a number above 0")
        self.threshold, self._factor = float(threshold), 1.0

    @override
    def _counts(self, scores: dict[str, torch.Tensor], rooms: dict[str, int]) -> dict[str, int]:
        below = {name: min(int((score < self.threshold).sum()), rooms[name]) for name, score in scores.items()}
        pruned, aim = sum(below.values()), self.fraction() * sum(map(len, scores.values()))
        self._factor = 2.0 if pruned < 0.9 * aim else 0.5 if pruned > 1.1 * aim else 1.0
        return below

    @override
    def _grown(
        self, layers: Mapping[str, Units], active: dict[str, torch.Tensor], pruned: dict[str, torch.Tensor]
    ) -> dict[str, int]:
        survivors = {name: float(len(active[name]) - len(pruned[name])) for name in pruned}
        return shared_out(sum(map(len, pruned.values())), survivors, rooms_of(layers, active))

    @override
    def rewire(self) -> None:
        self._factor = 1.0
        super().rewire()
        self.threshold *= self._factor

    @override
    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"threshold": self.threshold}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        threshold = state.get("threshold")
        fits = isinstance(threshold, float) and threshold > 0
        require(fits, "state['threshold']", threshold, "give what state_dict() returned")
        super().load_state_dict(state)
        self.threshold = state["threshold"]


def rooms_of(layers: Mapping[str, Units], active: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Return how many units of each layer are inactive."""
    return {name: int(np.prod(layer.dense_shape)) - len(active[name]) for name, layer in layers.items()}


@dataclass(frozen=True)
class DSR(DynamicRecipe):
    """Dynamic sparse reparameterization: one threshold for all layers that adapts (Mostafa & Wang, 2019).

    All weights with ``|w| < H`` are pruned. If that was less than 0.9 times the aim ``prune_fraction · nnz``, ``H``
    doubles; if more than 1.1 times, it halves. The ``K`` pruned weights grow at random, with value zero, in layer ``l``
    as ``K · R_l / Σ R``, where ``R_l`` weights of the layer have survived; what does not fit into a layer goes to the
    others. ``prune_fraction`` is the aim as a share.

    The first threshold and the aim are those of public code that follows the paper (``pruning_threshold=1e-3`` and
    ``target_fraction_to_prune=1e-2`` of its class ``DSModel``). Published trainings rewire less and less often; here
    the interval stays.
    """

    prune_fraction: float = 0.01
    every: int | Epochs = 100
    until: float = 0.75
    grow: str | GrowChoice | GrowRule = field(default=GrowRule(GROW_RULES["random"].choose, gradient_steps=0))
    decay: str = "constant"
    threshold: float = 1e-3

    @override
    def _driver(self, *on: Any, **settings: Any) -> DynamicSparsity:
        return AdaptiveThreshold(*on, threshold=self.threshold, **settings)


class MomentumSharing(DynamicSparsity):
    """The driver of :class:`SparseMomentum`."""

    def __init__(self, *on: Any, **settings: Any) -> None:
        super().__init__(*on, **settings)
        check_exchange(self.layers)

    @override
    def _may_read_gradient(self, layer: SparsifiableLayer) -> bool:
        return True  # that of a full layer decides on its share

    @override
    def _grown(
        self, layers: Mapping[str, Units], active: dict[str, torch.Tensor], pruned: dict[str, torch.Tensor]
    ) -> dict[str, int]:
        momenta = {name: over_all_ranks(layer.gradient_at(active[name])).abs() for name, layer in layers.items()}
        means = {name: float(momentum.double().mean()) if len(momentum) else 0.0 for name, momentum in momenta.items()}
        if not np.isfinite(list(means.values())).all():
            raise TrainingError("a gradient is not finite, so layers cannot share weights; lower the learning rate")
        return shared_out(sum(map(len, pruned.values())), means, rooms_of(layers, active))


@dataclass(frozen=True)
class SparseMomentum(DynamicRecipe):
    """SNFS as published, with sharing over layers (Dettmers & Zettlemoyer, 2019): compare :class:`SNFS`.

    Each layer prunes the same share of its smallest weights. The ``K`` pruned weights grow where the momentum of the
    gradient is largest, in layer ``l`` as ``K · m_l / Σ m``, with the mean magnitude ``m_l`` of the momentum of the
    layer's active weights. What does not fit into a layer goes to the others, in the same proportion.

    The share, its cosine decay and once an epoch are those of the authors' code. Momentum is that of :class:`SNFS`.
    """

    prune_fraction: float = 0.5
    every: int | Epochs = field(default=Epochs(1))
    until: float = 1.0
    grow: str | GrowChoice | GrowRule = "momentum"
    decay: str = "cosine"

    @override
    def _driver(self, *on: Any, **settings: Any) -> DynamicSparsity:
        return MomentumSharing(*on, **settings)
