"""Dynamic sparse training: the drivers that change a model's topology while an optimizer trains it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .arguments import check_choice, require, shown
from .errors import InvalidArgumentError, TrainingError
from .interface import Carry, SparsifiableLayer, sparse_layers
from .interrupt import undivided
from .rules import GROW_RULES, PRUNE_SCORES, GrowChoice, GrowRule, PruneScore, _smallest, magnitude_prune
from .topology import SCHEMES, check_sparsity, contained, layer_nnz

DECAYS = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,  # Evci et al., 2020, section 3
}


@dataclass(frozen=True)
class Epochs:
    """A time in epochs where otherwise optimizer steps are meant: ``every=Epochs(2)``."""

    count: float

    def __post_init__(self) -> None:
        require(math.isfinite(self.count), "count", self.count, "use a finite number of epochs")

    def in_steps(self, steps_per_epoch: int | None) -> int:
        """Return the same time in optimizer steps.

        Raises:
            InvalidArgumentError: ``steps_per_epoch`` is None or below 1.
        """
        if steps_per_epoch is None:
            raise InvalidArgumentError(f"{self} and {steps_per_epoch=}; pass it, or give the time in steps")
        require(steps_per_epoch >= 1, "steps_per_epoch", steps_per_epoch, "use a whole number of at least 1")
        steps = self.count * steps_per_epoch
        require(math.isfinite(steps), "count", self.count, f"with {steps_per_epoch} steps each use fewer epochs")
        return round(steps)


Plan = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # what SparsifiableLayer.rewire takes


class Rewirer(ABC):
    """Changes the topology of a model's sparse layers every ``every`` steps, up to the step ``until``.

    Attributes:
        layers: the model's sparse layers by name.
        optimizer: holds their weights; its per-weight state follows every change.
        steps: optimizer steps counted so far.
        rewirings: how often the topology has changed.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, every: int, until: int | None) -> None:
        require(every >= 1, "every", every, "use at least 1 step")
        require(until is None or until >= 0, "until", until, "use at least 0 steps, or None")
        self.layers = sparse_layers(model)
        if not self.layers:
            raise InvalidArgumentError(f"{type(model).__name__} has no sparse layers; call mask_model(model) first")
        _check_optimizer(optimizer, self.layers)
        self.optimizer, self.every, self.until = optimizer, every, until
        self.steps = 0
        self.rewirings = 0

    @property
    def at_rest(self) -> bool:
        """Whether everything that the next steps depend on is in ``state_dict()``: a good moment for a checkpoint."""
        return True

    def step(self) -> bool:
        """Count one optimizer step and rewire if it is time; return whether it was.

        Raises:
            TrainingError: a weight or gradient is not a number; the topology is then unchanged.
        """
        self.steps += 1
        due = self._due(self.steps)
        if due:
            self.rewire()
        return due

    def rewire(self) -> None:
        """Change the topology of all layers now. All choices are made before any layer changes.

        Raises:
            TrainingError: a weight or gradient is not a number; the topology is then unchanged.
        """
        for name, layer in self.layers.items():
            if not layer.active_values().isfinite().all():
                raise TrainingError(f"a weight of {name!r} is not finite; lower the learning rate")
        plans = self._plans()
        with undivided():
            for name, plan in plans.items():
                layer = self.layers[name]
                self._carry_optimizer_state(layer.weight_parameter, layer.rewire(*plan))
            self.rewirings += 1

    @abstractmethod
    def _plans(self) -> dict[str, Plan]:
        """Return each layer's kept connections, its grown ones, and the grown ones' weights."""

    def settings(self) -> dict[str, Any]:
        """Return what tells this driver from one with other settings."""
        groups = [{key: value for key, value in g.items() if key != "params"} for g in self.optimizer.param_groups]
        return {
            "driver": type(self).__name__,
            "every": self.every,
            "until": self.until,
            "optimizer": type(self.optimizer).__name__,
            "groups": groups,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs beside the model's and the optimizer's state."""
        return {"steps": self.steps, "rewirings": self.rewirings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state.

        Raises:
            InvalidArgumentError: ``state`` is not what :meth:`state_dict` returned.
        """
        for name in ("steps", "rewirings"):
            value = state.get(name)
            require(isinstance(value, int) and value >= 0, f"state[{name!r}]", value, "give what state_dict() returned")
        self.steps, self.rewirings = state["steps"], state["rewirings"]

    def _due(self, step: int) -> bool:
        return step % self.every == 0 and (self.until is None or step <= self.until)

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


class DynamicSparsity(Rewirer):
    """Prunes and regrows a model's sparse layers while an optimizer trains it. Call ``step()`` after each
    ``optimizer.step()``.

    Every ``every`` steps, in every sparse layer: the ``int(fraction · nnz)`` active weights of lowest score are
    pruned and as many inactive connections grown, so that no layer's nnz ever changes. What was pruned in a rewiring
    does not grow in the same one. Optimizer state of kept weights stays with them; grown weights start with none.
    (torch's Adam counts its steps per layer, not per weight, so fresh moments meet a late step count: with its usual
    betas a grown weight's first step is about three times the learning rate. :class:`PerWeightAdam` corrects that.)

    In data-parallel training every process needs its own driver with the same seed; the growth rules named below then
    sum gradients over the processes, so that all of them walk through the same topologies. A rule of one's own that
    reads a gradient has to do that itself.

    Args:
        model: holds the sparse layers (``mask_model``, ``sparsify``).
        optimizer: a ``torch.optim`` optimizer that holds their parameters.
        prune_fraction: share of each layer's active weights to replace, in [0, 1].
        every: steps between rewirings, or ``Epochs(n)``.
        until: last step at which a rewiring may happen, or ``Epochs(n)``; None: no end.
        prune: ``"magnitude"``, or a function of a layer that returns one score per active connection, ``[nnz]`` in
            their order; the lowest are pruned. It may read the layer's gradient where growth does; random growth does
            with ``grow=dataclasses.replace(GROW_RULES["random"], gradient_steps=1)``.
        scope: ``"layer"``: every layer gives up the same share; ``"global"``: the lowest scores of all layers
            together go (and grow again where they went, as far as there is room).
        grow: ``"random"`` (SET), ``"gradient"`` (of all inactive connections, as RigL does), ``"momentum"`` (the
            same, smoothed over the last 20 steps since the rewiring before, as SNFS does), ``"sampled gradient"`` (of
            four random candidates for each, for layers whose dense gradient would take too long), a function as
            :attr:`GrowRule.choose` describes, or a :class:`GrowRule`.
        decay: how the prune fraction falls until ``until``: ``"constant"``, ``"linear"`` or ``"cosine"``.
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
        prune: str | PruneScore = "magnitude",
        scope: str = "layer",
        grow: str | GrowChoice | GrowRule = "random",
        decay: str = "constant",
        seed: int = 0,
        steps_per_epoch: int | None = None,
    ) -> None:
        _check_settings(prune_fraction, prune, scope, grow, decay)
        super().__init__(
            model,
            optimizer,
            every=_steps("every", every, steps_per_epoch, at_least=1),
            until=None if until is None else _steps("until", until, steps_per_epoch, at_least=0),
        )
        if decay != "constant" and self.until is None:
            raise InvalidArgumentError(f"decay={decay!r} needs an end; pass until=")
        self.prune_fraction, self.scope = prune_fraction, scope
        self.score = PRUNE_SCORES[prune] if isinstance(prune, str) else prune
        self.grow = _grow_rule(grow)
        self.decay = DECAYS[decay]
        self.generator = torch.Generator().manual_seed(seed)
        self._gradient_waits = False
        self._record_if_wanted()

    def step(self) -> bool:
        """Count one optimizer step and rewire if it is time; return whether it was.

        Raises:
            TrainingError: a weight or gradient is not a number; the topology is then unchanged.
        """
        recorded = any(layer.record_gradient for layer in self.layers.values())
        due = self._due(self.steps + 1)
        try:
            super().step()
        finally:  # a rewiring that was refused must not leave its gradients to the next one
            self._gradient_waits = recorded and not due
            if due:
                self._forget_gradients()
            self._record_if_wanted()
        return due

    def fraction(self) -> float:
        """Return the share of active weights that a rewiring at this step replaces."""
        progress = min(self.steps / self.until, 1) if self.until else 0
        return self.prune_fraction * self.decay(progress)

    def settings(self) -> dict[str, Any]:
        """See :class:`Rewirer`."""
        own = ("prune_fraction", "scope", "score", "grow", "decay")
        return super().settings() | {name: getattr(self, name) for name in own}

    @property
    def at_rest(self) -> bool:
        """See :class:`Rewirer`; gradients that wait for the next rewiring are in no ``state_dict``."""
        return not self._gradient_waits

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Rewirer`; the generator's state as well."""
        return super().state_dict() | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`Rewirer`."""
        drawn = torch.Generator()
        try:
            drawn.set_state(state["generator"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise InvalidArgumentError(
                f"state={shown(state)} holds generator={shown(state.get('generator'))}; give what state_dict() returned"
            ) from error
        super().load_state_dict(state)
        self.generator.set_state(drawn.get_state())
        self._gradient_waits = False
        self._forget_gradients()
        self._record_if_wanted()

    def _plans(self) -> dict[str, Plan]:
        pruned = self._pruned()
        return {name: self._plan(layer, pruned[name]) for name, layer in self.layers.items()}

    def _pruned(self) -> dict[str, torch.Tensor]:
        """Return the positions to prune among each layer's active weights."""
        scores = {name: _checked_score(self.score(layer), name, layer) for name, layer in self.layers.items()}
        counts = {name: int(self.fraction() * len(score)) for name, score in scores.items()}
        if self.scope == "global":
            lowest = _smallest(torch.cat(list(scores.values())), sum(counts.values()))
            ends = torch.tensor([len(score) for score in scores.values()]).cumsum(0).to(lowest.device)
            of_layer = torch.searchsorted(ends, lowest, right=True)
            counts = {name: int((of_layer == i).sum()) for i, name in enumerate(scores)}
        rooms = {name: math.prod(self.layers[name].dense_shape) - len(score) for name, score in scores.items()}
        return {name: _smallest(score, min(counts[name], rooms[name])) for name, score in scores.items()}

    def _plan(self, layer: SparsifiableLayer, pruned: torch.Tensor) -> Plan:
        active, count = layer.active(), len(pruned)
        keep = torch.ones(len(active), dtype=torch.bool, device=active.device)
        keep[pruned] = False
        grown = self.grow.choose(layer, active, count, self.generator) if count else active[:0]
        _check_grown(grown, active, count, math.prod(layer.dense_shape))
        new = torch.randn(count, generator=self.generator, dtype=torch.float64) * self.grow.initial_std
        return active[keep], grown, new.to(layer.weight_parameter)

    def _due(self, step: int) -> bool:
        return self.prune_fraction > 0 and super()._due(step)

    def _forget_gradients(self) -> None:
        for layer in self.layers.values():
            if layer.record_gradient:
                layer.record_gradient = False

    def _record_if_wanted(self) -> None:
        """Let the next step's backward pass leave its gradient behind if the next rewiring will read it."""
        next_time = (self.steps // self.every + 1) * self.every
        if next_time - self.steps > self.grow.gradient_steps or not self._due(next_time):
            return
        for layer in self.layers.values():
            if layer.record_gradient:
                layer.fade_gradient(self.grow.momentum)
            else:
                layer.record_gradient = True


class GradualPruning(Rewirer):
    """Gradual magnitude pruning: from a dense topology to a sparse one while training (Zhu & Gupta, 2017, eq. 1).

    The sparsity rises as ``s(t) = S · (1 − (1 − t / until)³)``; every ``every`` steps each layer keeps the largest of
    its weights. What is pruned never comes back. Nothing is saved on the way: the layers have to be masked ones.

    Args:
        model: a model with masked layers, ``mask_model(model, sparsity=0.0)``.
        optimizer: a ``torch.optim`` optimizer that holds their parameters.
        sparsity: ``S``, reached at ``until``.
        until: step at which the final sparsity is reached.
        every: steps between prunings.
        scheme: how layers share the weights that are left, see :func:`layer_nnz`.

    Raises:
        InvalidArgumentError: truly sparse layers, whose number of weights is fixed; or an argument outside its range.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        sparsity: float,
        until: int,
        every: int = 100,
        scheme: str = "uniform",
    ) -> None:
        every, until = _steps("every", every, None, at_least=1), _steps("until", until, None, at_least=1)
        super().__init__(model, optimizer, every, until)
        fixed = [name for name, layer in self.layers.items() if not layer.can_shrink]
        if fixed:
            raise InvalidArgumentError(
                f"{', '.join(fixed)}: the number of weights of a truly sparse layer is fixed; "
                "gradual pruning starts from mask_model(model, sparsity=0.0)"
            )
        check_choice("scheme", scheme, SCHEMES)
        self.model, self.sparsity, self.scheme = model, check_sparsity(sparsity), scheme
        self.final = self._nnz(sparsity)

    def settings(self) -> dict[str, Any]:
        """See :class:`Rewirer`."""
        return super().settings() | {"sparsity": self.sparsity, "scheme": self.scheme}

    def _nnz(self, sparsity: float) -> dict[str, int]:
        return layer_nnz(self.model, sparsity, self.scheme, include=list(self.layers))

    def _plans(self) -> dict[str, Plan]:
        progress = min(self.steps / self.until, 1)
        allowed = self._nnz(self.sparsity * (1 - (1 - progress) ** 3))
        plans = {}
        for name, layer in self.layers.items():
            active, values = layer.active(), layer.active_values()
            keep = torch.ones(len(active), dtype=torch.bool, device=active.device)
            # Rounding may give a layer one weight less on the way than at the end: what is pruned never comes back.
            target = max(allowed[name], self.final[name])
            keep[magnitude_prune(values, max(0, len(active) - target))] = False
            plans[name] = active[keep], active[:0], values[:0]
        return plans

    def _due(self, step: int) -> bool:
        return super()._due(step) or step == self.until  # the final sparsity is reached whatever the interval


def _checked_score(score: torch.Tensor, name: str, layer: SparsifiableLayer) -> torch.Tensor:
    nnz = len(layer.active())
    if score.shape != (nnz,):
        raise InvalidArgumentError(
            f"the prune rule returned scores of shape {tuple(score.shape)} for {name!r}; "
            f"it must return one per active connection, [{nnz}]"
        )
    return score


def _check_grown(grown: torch.Tensor, active: torch.Tensor, count: int, size: int) -> None:
    """Refuse what a grow rule of one's own may get wrong: nnz would drift."""
    fits = len(grown) == count and (count == 0 or (int(grown[0]) >= 0 and int(grown[-1]) < size))
    if not fits or (grown[1:] <= grown[:-1]).any() or contained(grown, active).any():
        raise InvalidArgumentError(
            f"the grow rule returned {len(grown)} connections; it must return {count} sorted, distinct, inactive ones"
        )


def _steps(name: str, time: int | Epochs, steps_per_epoch: int | None, at_least: int) -> int:
    """Return a time in optimizer steps, checked."""
    steps = time.in_steps(steps_per_epoch) if isinstance(time, Epochs) else time
    if steps < at_least:
        raise InvalidArgumentError(
            f"{name}={time!r}; use a whole number of steps, at least {at_least}, or Epochs(n) of at least one step "
            "(only a recipe takes a share of the training)"
        )
    return int(steps)


def _grow_rule(grow: str | GrowChoice | GrowRule) -> GrowRule:
    if isinstance(grow, str):
        return GROW_RULES[grow]
    return grow if isinstance(grow, GrowRule) else GrowRule(grow)


def _check_settings(prune_fraction: float, prune: object, scope: str, grow: object, decay: str) -> None:
    require(0 <= prune_fraction <= 1, "prune_fraction", prune_fraction, "use a number from 0 to 1")
    if not callable(prune) and prune not in PRUNE_SCORES:
        raise InvalidArgumentError(f"prune={prune!r}; use one of {', '.join(PRUNE_SCORES)}, or a function of a layer")
    check_choice("scope", scope, ("layer", "global"))
    if not callable(grow) and not isinstance(grow, GrowRule) and grow not in GROW_RULES:
        raise InvalidArgumentError(f"grow={grow!r}; use one of {', '.join(GROW_RULES)}, a function, or a GrowRule")
    check_choice("decay", decay, DECAYS)


def _check_optimizer(optimizer: torch.optim.Optimizer, layers: dict[str, SparsifiableLayer]) -> None:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [name for name, layer in layers.items() if id(layer.weight_parameter) not in held]
    if missing:
        raise InvalidArgumentError(
            f"optimizer={type(optimizer).__name__} does not hold the weights of {', '.join(missing)}; "
            "build it from this model's parameters, after mask_model"
        )
