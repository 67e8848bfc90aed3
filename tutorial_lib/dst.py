"""Dynamic sparse training: prune and grow as plain functions, a schedule, and one object that drives them.

Everything here speaks to layers through ``interface.py`` only, so simulated and truly sparse layers are alike.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from .errors import InvalidArgumentError, TrainingError
from .interface import Carry, SparsifiableLayer, sparse_layers
from .topology import sample_distinct

# ---------------------------------------------------------------------------------------------- prune and grow


def magnitude_prune(values: torch.Tensor, count: int) -> torch.Tensor:
    """Choose the ``count`` weights of smallest magnitude.

    Mocanu et al. (2018) take the smallest positive and the largest negative weights apart; ranking all by magnitude
    is the usual simplification, and what Evci et al. (2020) do.

    Args:
        values: weights of the active connections, ``[nnz]``.
        count: how many to prune, 0 to nnz.

    Returns:
        Positions in ``values``, int64 ``[count]``, sorted. Of equal magnitudes the first in line go first.

    Raises:
        InvalidArgumentError: count is outside 0..nnz.
        TrainingError: a weight is NaN.
    """
    _check_count(count, len(values), "active weights")
    if values.isnan().any():
        raise TrainingError("a weight is NaN, so magnitudes cannot be ranked; lower the learning rate")
    return _top(-values.abs(), count)


def random_grow(active: torch.Tensor, size: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Choose ``count`` inactive connections uniformly at random (SET; Mocanu et al., 2018).

    Args:
        active: active connections, int64 ``[nnz]``, sorted.
        size: number of entries of the dense weight.
        count: how many to grow, 0 to size − nnz.
        generator: source of randomness; always on the CPU, so that every device draws alike.

    Returns:
        Flat indices, int64 ``[count]``, sorted, none of them active. Memory is proportional to nnz and count,
        never to size.

    Raises:
        InvalidArgumentError: count is outside 0..size − nnz.
    """
    _check_count(count, size - len(active), "inactive connections")
    ranks = sample_distinct(size - len(active), count, generator).to(active.device)
    # The inactive connection of rank r stands behind as many active ones as have fewer than r + 1 gaps before them.
    gaps_before = active - torch.arange(len(active), device=active.device)
    return ranks + torch.searchsorted(gaps_before, ranks, right=True)


def gradient_grow(gradient_rows: Iterable[torch.Tensor], active: torch.Tensor, count: int) -> torch.Tensor:
    """Choose the ``count`` inactive connections of largest gradient magnitude (Evci et al., 2020, algorithm 1).

    Args:
        gradient_rows: the dense weight's gradient in consecutive blocks of rows, as ``gradient.split(1024)`` or
            :meth:`SparsifiableLayer.gradient_rows` gives it. Only one block and ``2 · count`` candidates are held
            at a time.
        active: active connections, int64 ``[nnz]``, sorted.
        count: how many to grow, at most the number of inactive connections.

    Returns:
        Flat indices, int64 ``[count]``, sorted, none of them active. Of equal magnitudes the lowest index wins.

    Raises:
        InvalidArgumentError: there are fewer than ``count`` inactive connections.
        TrainingError: a gradient is not finite.
    """
    if count < 0:
        raise InvalidArgumentError(f"count={count}; use 0 or more")
    best_score = torch.empty(0, device=active.device)
    best_place = torch.empty(0, dtype=torch.int64, device=active.device)
    start = 0
    for block in gradient_rows:
        score = block.detach().abs().reshape(-1)
        _check_finite(score)
        first, last = torch.searchsorted(active, torch.tensor([start, start + len(score)], device=active.device))
        score[active[first:last] - start] = -1  # below every magnitude: never grown
        places = _top(score, min(count, len(score)))
        # Candidates of earlier blocks stand first and stay sorted by place, so ties still go to the lowest index.
        best_score = torch.cat([best_score.to(score.dtype), score[places]])
        best_place = torch.cat([best_place, places + start])
        chosen = _top(best_score, min(count, len(best_score)))
        best_score, best_place = best_score[chosen], best_place[chosen]
        start += len(score)
    _check_count(count, int((best_score >= 0).sum()), "inactive connections")
    return best_place


def _top(score: torch.Tensor, count: int) -> torch.Tensor:
    """Return the sorted positions of the ``count`` largest scores; of equals the first in line (topk does not say)."""
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=score.device)
    threshold = score.topk(count, sorted=False).values.min()
    above = (score > threshold).nonzero().squeeze(1)
    equal = (score == threshold).nonzero().squeeze(1)[: count - len(above)]
    return torch.cat([above, equal]).sort().values


def _check_finite(score: torch.Tensor) -> None:
    if not score.isfinite().all():
        raise TrainingError("a gradient is not finite, so connections cannot be ranked; lower the learning rate")


def _check_count(count: int, available: int, what: str) -> None:
    if not 0 <= count <= available:
        raise InvalidArgumentError(f"count={count}, but there are {available} {what}; use 0 to {available}")


# ---------------------------------------------------------------------------------------------- rules and schedule


@dataclass(frozen=True)
class GrowRule:
    """How new connections are chosen and what weight they start with.

    Attributes:
        choose: function of a layer, its active connections, a count and a generator that returns sorted flat
            indices of inactive connections, int64 ``[count]``.
        needs_gradient: whether ``choose`` reads the layer's recorded gradient.
        initial_std: standard deviation of a new weight; 0 starts it at zero.
    """

    choose: Callable[[SparsifiableLayer, torch.Tensor, int, torch.Generator], torch.Tensor]
    needs_gradient: bool
    initial_std: float


def _choose_at_random(
    layer: SparsifiableLayer, active: torch.Tensor, count: int, generator: torch.Generator
) -> torch.Tensor:
    return random_grow(active, math.prod(layer.dense_shape), count, generator)


def _choose_by_gradient(
    layer: SparsifiableLayer, active: torch.Tensor, count: int, generator: torch.Generator
) -> torch.Tensor:
    return gradient_grow(layer.gradient_rows(), active, count)


def _choose_by_sampled_gradient(
    layer: SparsifiableLayer, active: torch.Tensor, count: int, generator: torch.Generator
) -> torch.Tensor:
    size = math.prod(layer.dense_shape)
    candidates = random_grow(active, size, min(CANDIDATES * count, size - len(active)), generator)
    score = layer.gradient_at(candidates).abs()
    _check_finite(score)
    return candidates[_top(score, count)]


CANDIDATES = 4  # of sampled gradient growth, for each connection to grow
GROW_RULES = {
    "random": GrowRule(_choose_at_random, needs_gradient=False, initial_std=0.01),
    "gradient": GrowRule(_choose_by_gradient, needs_gradient=True, initial_std=0.0),
    "sampled gradient": GrowRule(_choose_by_sampled_gradient, needs_gradient=True, initial_std=0.0),
}
DECAYS = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,  # Evci et al., 2020, section 3
}


@dataclass(frozen=True)
class Epochs:
    """A time in epochs where otherwise optimizer steps are meant: ``every=Epochs(2)``."""

    count: float

    def in_steps(self, steps_per_epoch: int | None) -> int:
        """Return the same time in optimizer steps.

        Raises:
            InvalidArgumentError: ``steps_per_epoch`` is None.
        """
        if steps_per_epoch is None:
            raise InvalidArgumentError(f"{self} needs steps_per_epoch; pass it, or give the time in steps")
        if not isinstance(self.count, numbers.Real) or not math.isfinite(self.count):
            raise InvalidArgumentError(f"{self}; use a finite number of epochs")
        return round(self.count * steps_per_epoch)


# ---------------------------------------------------------------------------------------------- the driver


class DynamicSparsity:
    """Prunes and regrows a model's sparse layers while an optimizer trains it. Call ``step()`` after each
    ``optimizer.step()``.

    Every ``every`` steps, in every sparse layer: the ``int(fraction · nnz)`` active weights of smallest magnitude
    are pruned and as many inactive connections grown, so that nnz never changes. What was pruned in a rewiring
    does not grow in the same one. Optimizer state of kept weights stays with them; grown weights start with none.
    (Adam counts its steps per layer, not per weight, so fresh moments meet a late step count: a grown weight's first
    steps are up to about three times the learning rate.)

    Args:
        model: holds the sparse layers (``mask_model``).
        optimizer: a ``torch.optim`` optimizer that holds their parameters.
        prune_fraction: share of each layer's active weights to replace, in [0, 1].
        every: steps between rewirings, or ``Epochs(n)``.
        until: last step at which a rewiring may happen, or ``Epochs(n)``; None: no end.
        grow: ``"random"``, ``"gradient"`` (of all inactive connections, as RigL does), ``"sampled gradient"`` (of four
            random candidates for each, for layers whose dense gradient would take too long) or a :class:`GrowRule`.
        decay: how the prune fraction falls until ``until``: ``"constant"`` or ``"cosine"``.
        seed: seed of this object's own generator; it draws nothing from torch's global one.
        steps_per_epoch: needed only where a time is given in epochs.

    Raises:
        InvalidArgumentError: an argument outside its range, a model without sparse layers, or an optimizer that
            does not hold their weights.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        prune_fraction: float = 0.1,
        every: int | Epochs = 100,
        until: int | Epochs | None = None,
        grow: str | GrowRule = "random",
        decay: str = "constant",
        seed: int = 0,
        steps_per_epoch: int | None = None,
    ) -> None:
        _check_settings(prune_fraction, grow, decay)
        self.layers = sparse_layers(model)
        if not self.layers:
            raise InvalidArgumentError(f"{type(model).__name__} has no sparse layers; call mask_model(model) first")
        self.optimizer = optimizer
        _check_optimizer(optimizer, self.layers)
        self.prune_fraction = prune_fraction
        self.every = _steps("every", every, steps_per_epoch, at_least=1)
        self.until = None if until is None else _steps("until", until, steps_per_epoch, at_least=0)
        if decay != "constant" and self.until is None:
            raise InvalidArgumentError(f"decay={decay!r} needs an end; pass until=")
        self.grow = GROW_RULES[grow] if isinstance(grow, str) else grow
        self.decay = DECAYS[decay]
        self.generator = torch.Generator().manual_seed(seed)
        self.steps = 0
        self.rewirings = 0
        self._record_if_due_next()

    def step(self) -> bool:
        """Count one optimizer step and rewire if it is time; return whether it was.

        Raises:
            TrainingError: a weight or gradient is not a number; the topology is then unchanged.
        """
        self.steps += 1
        due = self._due(self.steps)
        if due:
            self.rewire()
        self._record_if_due_next()
        return due

    def fraction(self) -> float:
        """Return the share of active weights that a rewiring at this step replaces."""
        progress = min(self.steps / self.until, 1) if self.until else 0
        return self.prune_fraction * self.decay(progress)

    def rewire(self) -> None:
        """Prune and regrow all layers now. All choices are made before any layer changes.

        Raises:
            TrainingError: a weight or gradient is not a number; the topology is then unchanged.
        """
        plans = {name: self._plan(layer) for name, layer in self.layers.items()}
        for name, (kept, grown, values) in plans.items():
            layer = self.layers[name]
            self._carry_optimizer_state(layer.weight_parameter, layer.rewire(kept, grown, values))
        self.rewirings += 1

    def _plan(self, layer: SparsifiableLayer) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the kept connections, the grown ones, and the grown ones' weights."""
        active, values = layer.active(), layer.active_values()
        inactive = math.prod(layer.dense_shape) - len(active)
        count = min(int(self.fraction() * len(active)), inactive)
        keep = torch.ones(len(active), dtype=torch.bool, device=active.device)
        keep[magnitude_prune(values, count)] = False
        grown = self.grow.choose(layer, active, count, self.generator)
        _check_grown(grown, active, count, inactive + len(active))
        new = torch.randn(count, generator=self.generator, dtype=torch.float64) * self.grow.initial_std
        return active[keep], grown, new.to(values)

    def _carry_optimizer_state(self, parameter: nn.Parameter, carry: Carry) -> None:
        group = next(g for g in self.optimizer.param_groups if any(p is parameter for p in g["params"]))
        fresh = {
            "sum": group.get("initial_accumulator_value", 0.0),  # Adagrad
            "step_size": group["lr"],  # Rprop
        }
        state = self.optimizer.state.get(parameter, {})
        for key, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                state[key] = carry(value, float(fresh.get(key, 0.0)))

    def _due(self, step: int) -> bool:
        return self.prune_fraction > 0 and step % self.every == 0 and (self.until is None or step <= self.until)

    def _record_if_due_next(self) -> None:
        wanted = self.grow.needs_gradient and self._due(self.steps + 1)
        for layer in self.layers.values():
            if wanted or layer.record_gradient:
                layer.record_gradient = wanted


def _contained(numbers: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """Tell for each number whether it is in the sorted list ``among``; ``torch.isin`` would sort that list again."""
    if not len(among):
        return torch.zeros_like(numbers, dtype=torch.bool)
    return among[torch.searchsorted(among, numbers).clamp(max=len(among) - 1)] == numbers


def _check_grown(grown: torch.Tensor, active: torch.Tensor, count: int, size: int) -> None:
    """Refuse what a grow rule of one's own may get wrong: nnz would drift."""
    fits = len(grown) == count and (count == 0 or (int(grown[0]) >= 0 and int(grown[-1]) < size))
    if not fits or (grown[1:] <= grown[:-1]).any() or _contained(grown, active).any():
        raise InvalidArgumentError(
            f"the grow rule returned {len(grown)} connections; it must return {count} sorted, distinct, inactive ones"
        )


def _steps(name: str, time: int | Epochs, steps_per_epoch: int | None, at_least: int) -> int:
    """Return a time in optimizer steps, checked."""
    steps = time.in_steps(steps_per_epoch) if isinstance(time, Epochs) else time
    if not isinstance(steps, numbers.Integral) or steps < at_least:
        raise InvalidArgumentError(
            f"{name}={time!r}; use a whole number of steps, at least {at_least}, or Epochs(n) of at least one step "
            "(only a recipe takes a share of the training)"
        )
    return int(steps)


def _check_settings(prune_fraction: float, grow: str | GrowRule, decay: str) -> None:
    if not isinstance(prune_fraction, numbers.Real) or not 0 <= prune_fraction <= 1:
        raise InvalidArgumentError(f"prune_fraction={prune_fraction!r}; use a number from 0 to 1")
    if not isinstance(grow, GrowRule) and grow not in GROW_RULES:
        raise InvalidArgumentError(f"grow={grow!r}; use one of {', '.join(GROW_RULES)}, or a GrowRule")
    if decay not in DECAYS:
        raise InvalidArgumentError(f"decay={decay!r}; use one of {', '.join(DECAYS)}")


def _check_optimizer(optimizer: torch.optim.Optimizer, layers: dict[str, SparsifiableLayer]) -> None:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [name for name, layer in layers.items() if id(layer.weight_parameter) not in held]
    if missing:
        raise InvalidArgumentError(
            f"the optimizer does not hold the weights of {', '.join(missing)}; "
            "build it from this model's parameters, after mask_model"
        )


# ---------------------------------------------------------------------------------------------- recipes


@dataclass(frozen=True)
class Recipe:
    """Settings of a :class:`DynamicSparsity` that wait for a model, an optimizer and the length of the training.

    Attributes:
        prune_fraction: see :class:`DynamicSparsity`.
        every: see :class:`DynamicSparsity`.
        until: share of the training after which the topology is left alone. Whatever it is, the last step never
            rewires: the network that is evaluated has trained in its topology.
        grow: see :class:`DynamicSparsity`.
        decay: see :class:`DynamicSparsity`.
    """

    prune_fraction: float
    every: int | Epochs
    until: float
    grow: str | GrowRule
    decay: str

    def attach(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, steps_per_epoch: int, total_steps: int, seed: int
    ) -> DynamicSparsity:
        """Return the driver for one training run of ``total_steps`` optimizer steps."""
        if not 0 < self.until <= 1:
            raise InvalidArgumentError(f"until={self.until!r}; a recipe takes a share of the training, above 0 up to 1")
        return DynamicSparsity(
            model,
            optimizer,
            prune_fraction=self.prune_fraction,
            every=self.every,
            until=min(int(self.until * total_steps), total_steps - 1),
            grow=self.grow,
            decay=self.decay,
            seed=seed,
            steps_per_epoch=steps_per_epoch,
        )


@dataclass(frozen=True)
class Static(Recipe):
    """The topology drawn at the start stays: the control for everything below."""

    prune_fraction: float = 0.0
    every: int | Epochs = 1
    until: float = 1.0
    grow: str | GrowRule = "random"
    decay: str = "constant"


@dataclass(frozen=True)
class SET(Recipe):
    """Sparse Evolutionary Training: random growth (Mocanu et al., 2018), with the published tutorial's settings."""

    prune_fraction: float = 0.1
    every: int | Epochs = Epochs(2)
    until: float = 1.0
    grow: str | GrowRule = "random"
    decay: str = "constant"


@dataclass(frozen=True)
class RigL(Recipe):
    """Rigging the Lottery: growth by gradient, a decaying fraction, an early end (Evci et al., 2020)."""

    prune_fraction: float = 0.3
    every: int | Epochs = 100
    until: float = 0.75
    grow: str | GrowRule = "gradient"
    decay: str = "cosine"
