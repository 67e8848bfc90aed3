"""Prune and grow as plain functions, and the named rules that the drivers use."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from .arguments import check_count, is_dense, require, shown
from .errors import InvalidArgumentError, TrainingError
from .interface import Units
from .positions import LARGEST, Largest, check_connections, contained, largest, one_in_each_part, unranked
from .topology import sample_distinct

LARGE = 2**21  # numbers of a gradient that is sampled first, so that most of it need not be ranked
SAMPLE = 2**13
CANDIDATES = 4  # random candidates per connection to grow, in sampled gradient growth

PruneScore: TypeAlias = Callable[[Units], torch.Tensor]
GrowChoice: TypeAlias = Callable[[Units, torch.Tensor, int, torch.Generator], torch.Tensor]


def magnitude_prune(values: torch.Tensor, count: int) -> torch.Tensor:
    """Choose the ``count`` weights of smallest magnitude.

    Mocanu et al. (2018) rank positive and negative weights separately; ranking all by magnitude is the usual
    simplification (Evci et al., 2020).

    Args:
        values: weights of the active connections, ``[nnz]``.
        count: how many to prune, 0 to nnz.

    Returns:
        Positions in ``values``, int64 ``[count]``, sorted. Of equal magnitudes the lowest positions are chosen.

    Raises:
        InvalidArgumentError: count is outside 0..nnz.
        TrainingError: a weight is NaN.
    """
    require(values.dim() == 1, "values", values, "give a tensor of one dimension")
    return smallest(values.abs(), count)


def smallest(score: torch.Tensor, count: int) -> torch.Tensor:
    """Return the sorted positions of the ``count`` smallest scores; of equal scores the lowest positions.

    Raises:
        InvalidArgumentError: count is negative or above the number of scores.
        TrainingError: a score is NaN.
    """
    _check_count(count, len(score), "active weights")
    if len(score) and math.isnan(score.max().item()):  # NaN is the largest of all
        raise TrainingError("a weight's score is NaN, so weights cannot be ranked; lower the learning rate")
    return largest(-score, count)


def random_grow(active: torch.Tensor, size: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Choose ``count`` inactive connections uniformly at random (SET; Mocanu et al., 2018).

    Args:
        active: active connections, int64 ``[nnz]``, sorted.
        size: number of entries of the dense weight.
        count: how many to grow, 0 to size − nnz.
        generator: source of randomness; on the CPU, so that all devices draw the same.

    Returns:
        Flat indices, int64 ``[count]``, sorted, none of them active. Memory is proportional to nnz and count,
        never to size.

    Raises:
        InvalidArgumentError: count is outside 0..size − nnz.
    """
    check_count("size", size, least=0)
    check_connections("active", active, (size,))
    _check_count(count, size - len(active), "inactive connections")
    ranks = sample_distinct(size - len(active), count, generator).to(active.device)
    return unranked(active, ranks)


def gradient_grow(gradient_rows: Iterable[torch.Tensor], active: torch.Tensor, count: int) -> torch.Tensor:
    """Choose the ``count`` inactive connections of largest gradient magnitude (Evci et al., 2020, algorithm 1).

    Args:
        gradient_rows: the dense weight's gradient in consecutive blocks of rows, as ``gradient.split(1024)`` or
            :meth:`SparsifiableLayer.gradient_rows` yields it. Memory holds one block and ``2 · count`` candidates.
        active: active connections, int64 ``[nnz]``, sorted.
        count: how many to grow, at most the number of inactive connections.

    Returns:
        Flat indices, int64 ``[count]``, sorted, none of them active. Of equal magnitudes the lowest index is chosen.

    Raises:
        InvalidArgumentError: there are fewer than ``count`` inactive connections.
        TrainingError: a gradient is not finite.
    """
    check_count("count", count, least=0)
    check_connections("active", active, (LARGEST,))
    best = _largest_outside(gradient_rows, active, count)
    _check_count(count, best.start - len(active), "inactive connections")
    return torch.from_numpy(best.places).to(active.device)


def _largest_outside(
    gradient_rows: Iterable[torch.Tensor], active: torch.Tensor, count: int, least: float = 0.0
) -> Largest:
    """Look for the ``count`` largest magnitudes of inactive connections among those that are not below ``least``."""
    best = Largest(count, active, least)
    for block in gradient_rows:
        if not is_dense(block) or not block.is_floating_point() or block.is_meta:
            raise InvalidArgumentError(f"gradient_rows yields {shown(block)}; give dense blocks of floating numbers")
        _refuse(best.add(block))
    require(
        not len(active) or active[-1] < best.start,
        "active",
        active,
        f"gradient_rows has {best.start} places; use lower ones",
    )
    return best


def _refuse(not_finite: float | None) -> None:
    if not_finite is not None:
        raise TrainingError(
            f"a gradient is not finite ({not_finite}), so connections cannot be ranked; lower the learning rate"
        )


def _check_count(count: int, available: int, what: str) -> None:
    check_count("count", count, least=0)
    require(count <= available, "count", count, f"there are {available} {what}, use 0 to {available}")


@dataclass(frozen=True)
class GrowRule:
    """How new connections are chosen, and the weights they start with.

    Attributes:
        choose: function of a layer's :class:`Units`, the active ones, a count and a generator that returns sorted flat
            indices of inactive ones, int64 ``[count]``.
        gradient_steps: number of steps before a rewiring whose gradients are recorded, for ``choose`` to read with
            ``layer.gradient_rows()`` or ``layer.gradient_at(connections)``; 0 for none.
        momentum: factor on the gradient recorded so far, before each further recorded step adds its own.
        initial_std: standard deviation of a new weight; 0 starts it at zero.
    """

    choose: GrowChoice
    gradient_steps: int = 1
    momentum: float = 0.0
    initial_std: float = 0.0

    def __post_init__(self) -> None:
        require(self.gradient_steps >= 0, "gradient_steps", self.gradient_steps, "use 0 or more")
        require(0 <= self.momentum < math.inf, "momentum", self.momentum, "use a finite number of at least 0")
        require(0 <= self.initial_std < math.inf, "initial_std", self.initial_std, "use a finite number of at least 0")


def _choose_at_random(layer: Units, active: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    return random_grow(active, math.prod(layer.dense_shape), count, generator)


def _choose_by_gradient(layer: Units, active: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    size = math.prod(layer.dense_shape)
    least = _estimated_bound(layer, active, size, count) if size > LARGE else 0.0
    if least > 0:
        best = _largest_above(layer, active, count, least)
        if len(best) == count:  # otherwise the estimate was too high
            return best
    return gradient_grow(map(over_all_ranks, layer.gradient_rows()), active, count)


def _largest_above(layer: Units, active: torch.Tensor, count: int, least: float) -> torch.Tensor:
    """Return the ``count`` inactive connections of largest gradient, or fewer if not so many reach ``least``."""
    found = None if is_distributed() else layer.gradient_above(least, active, 2 * count)
    if found is None:
        best = _largest_outside(map(over_all_ranks, layer.gradient_rows()), active, count, least)
        return torch.from_numpy(best.places).to(active.device)
    places, score = found[0], found[1].abs()
    if len(score) and not score.max().isfinite():  # NaN is the largest of all
        _refuse(float(found[1][~score.isfinite()][0]))
    return places[largest(score, min(count, len(places)))]


def _estimated_bound(layer: Units, active: torch.Tensor, size: int, count: int) -> float:
    """Return a magnitude that somewhat more than ``count`` inactive connections reach, estimated at some of them.

    Returns 0 if there is none, or an estimate would be unsure.
    """
    places = torch.arange(0, size, size // SAMPLE | 1, device=active.device)  # odd steps, so that all columns are met
    score = over_all_ranks(layer.gradient_at(places[~contained(places, active)])).abs()
    wanted = int(1.25 * count / max(1, size - len(active)) * len(score)) + 16
    if 2 * wanted > len(score) or not score.max().isfinite():
        return 0.0
    return score.topk(wanted).values[-1].item()


def _choose_by_sampled_gradient(
    layer: Units, active: torch.Tensor, count: int, generator: torch.Generator
) -> torch.Tensor:
    candidates = _one_in_each_part(active, math.prod(layer.dense_shape), CANDIDATES * count, generator)
    score = over_all_ranks(layer.gradient_at(candidates)).abs()
    if len(score) and not score.max().isfinite():  # NaN is the largest of all
        _refuse(float(score[~score.isfinite()][0]))
    return candidates[largest(score, count)]


def _one_in_each_part(active: torch.Tensor, size: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Divide the inactive connections into ``count`` parts of nearly equal size, and draw one of each.

    Unlike a draw without replacement it needs no sorting. Where the first part begins is random, so that each
    connection is as likely as any other. With fewer connections than ``count``, all are returned.
    """
    inactive = size - len(active)
    drawn = torch.rand(min(count, inactive), generator=generator, dtype=torch.float64)
    shift = int(torch.randint(max(1, inactive), (), generator=generator))
    ranks = one_in_each_part(drawn, inactive, shift)
    del drawn  # of a large layer it is large
    return unranked(active, ranks.to(active.device))


def over_all_ranks(gradient: torch.Tensor) -> torch.Tensor:
    """Sum a gradient over the processes of data-parallel training, so that all grow the same connections."""
    if is_distributed():
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # the recorded gradient must not change
        torch.distributed.all_reduce(gradient)
    return gradient


def is_distributed() -> bool:
    """Tell whether torch's data-parallel training is in use, also with one process."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


GROW_RULES = {
    "random": GrowRule(_choose_at_random, gradient_steps=0, initial_std=0.01),
    "gradient": GrowRule(_choose_by_gradient),
    "sampled gradient": GrowRule(_choose_by_sampled_gradient),
    # Dettmers & Zettlemoyer (2019) smooth the dense gradient over all steps; the last 20 hold 88% of that sum.
    "momentum": GrowRule(_choose_by_gradient, gradient_steps=20, momentum=0.9),
}
OWN_CHOICES = {rule.choose for rule in GROW_RULES.values()}  # these return what a layer can grow

PRUNE_SCORES: dict[str, PruneScore] = {"magnitude": lambda layer: layer.active_values().abs()}


def grow_rule(grow: str | GrowChoice | GrowRule) -> GrowRule:
    """Return the rule that a name, a function or a rule stands for."""
    if isinstance(grow, str):
        return GROW_RULES[grow]
    return grow if isinstance(grow, GrowRule) else GrowRule(grow)
