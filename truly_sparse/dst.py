"""Dynamic sparse training: the drivers, which change the topology of a model while an optimizer trains it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import nn
from typing_extensions import override

from .arguments import check_choice, require
from .blocks import units_of
from .driver_checks import (
    check_attached,
    check_finite,
    check_grown,
    check_holds,
    check_rules,
    check_saved,
    checked_score,
)
from .errors import InvalidArgumentError, TrainingError
from .interface import Carry, SparsifiableLayer, Units, sparse_layers
from .interrupt import undivided
from .positions import without
from .rules import OWN_CHOICES, PRUNE_SCORES, GrowChoice, GrowRule, PruneScore, grow_rule, over_all_ranks, smallest
from .schedule import DECAYS, Epochs, in_steps
from .structure import whole_blocks
from .topology import carry_between, generator_of, saved_generator

# Arguments of SparsifiableLayer.rewire: kept connections, grown connections, weights of the grown ones.
Plan: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

NO_GRADIENT = (
    "no gradient reached this driver's layers since the last rewiring; call backward() on the model given to attach, "
    "not on a copy, then optimizer.step(), then driver.step()"
)


class Rewirer(ABC):
    """Changes the topology of a model's sparse layers every ``every`` steps, up to the step ``until``.

    A layer that does not train keeps its weights and its topology: one that is frozen or not in the optimizer, and, in
    a step in which other layers have a gradient, one without. After ``model.load_state_dict`` the optimizer's state
    stays with its connection, or starts afresh, unless the optimizer's own state was loaded since the last step.

    Attributes:
        layers: the model's sparse layers by name.
        optimizer: holds their weights; its per-weight state moves with the weights.
        steps: optimizer steps counted so far.
        rewirings: number of changes of the topology so far.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, every: int, until: int | None) -> None:
        check_attached(model, optimizer)
        self.layers = sparse_layers(model)
        if not self.layers:
            raise InvalidArgumentError(
                f"model={type(model).__name__} has no sparse layers; call sparsify(model, sparsity=0.95) first"
            )
        self.optimizer, self.every, self.until = optimizer, every, until
        check_holds(optimizer, self.layers)
        self._state_in_use = optimizer.state
        for layer in self.layers.values():
            layer.watch_loading(self)
        self.steps = 0
        self.rewirings = 0

    @override
    def __repr__(self) -> str:
        times = f"every={self.every}, until={self.until}"
        return f"{type(self).__name__}({times}, step {self.steps}, {self.rewirings} rewirings)"

    @property
    def at_rest(self) -> bool:
        """Whether ``state_dict()`` holds all that the next steps depend on, so that a checkpoint is complete."""
        return True

    def step(self) -> bool:
        """Count one optimizer step, and rewire if it is time. Return whether it was.

        Raises:
            TrainingError: a weight or gradient is not finite; the topology is unchanged then.
        """
        self.steps += 1
        self._state_in_use = self.optimizer.state  # load_state_dict puts another object in its place
        due = self._due(self.steps)
        if due:
            self.rewire()
        return due

    def rewire(self) -> None:
        """Change the topology of all layers that train now. All choices are made before the first layer changes.

        Raises:
            TrainingError: a weight or gradient is not finite; the topology is unchanged then.
        """
        layers = self._in_training()
        check_finite(layers)
        plans = self._plans_or_reason(layers) if layers else {}
        for name, plan in plans.items():
            self.layers[name].check_rewire(*plan)
        with undivided():
            for name, plan in plans.items():
                layer = self.layers[name]
                shape = layer.weight_parameter.shape
                self._carry_optimizer_state(layer.weight_parameter, shape, layer.rewire(*plan))
            self.rewirings += 1

    def _plans_or_reason(self, layers: Mapping[str, SparsifiableLayer]) -> dict[str, Plan]:
        try:
            return self._plans(layers)
        except TrainingError as error:
            if any(layer.record_gradient and not layer.has_record for layer in layers.values()):
                raise TrainingError(NO_GRADIENT) from error
            raise

    @abstractmethod
    def _plans(self, layers: Mapping[str, SparsifiableLayer]) -> dict[str, Plan]:
        """Return the arguments of ``rewire`` for each of these layers, by name; there is at least one."""

    def _in_training(self) -> dict[str, SparsifiableLayer]:
        """Return the layers that train; of these, if any has a gradient in any process, those that have one.

        Where gradients were cleared already, the recorded ones tell the same; without them all layers count.
        """
        held = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        layers = {name: layer for name, layer in self.layers.items() if id(layer.weight_parameter) in held}
        layers = {name: layer for name, layer in layers.items() if layer.weight_parameter.requires_grad}
        if not layers:
            return layers
        signs = [[layer.has_gradient for layer in layers.values()], [layer.has_record for layer in layers.values()]]
        device = next(iter(layers.values())).weight_parameter.device
        reached = over_all_ranks(torch.tensor(signs, dtype=torch.float32, device=device)).tolist()
        for flags in reached:
            if any(flags):
                return {name: layers[name] for name, flag in zip(layers, flags, strict=True) if flag}
        return layers

    def topology_loaded(self, layer: SparsifiableLayer, before: torch.Tensor) -> None:
        """Move the optimizer's state after ``load_state_dict`` gave a layer another topology than ``before``."""
        after, parameter, shape = layer.active(), layer.weight_parameter, layer.dense_shape
        resized = parameter.shape != shape and len(before) != len(after)  # no state of the former size may remain
        if (resized or self.optimizer.state is self._state_in_use) and not torch.equal(before, after):
            was = parameter.shape if parameter.shape == shape else before.shape
            self._carry_optimizer_state(parameter, was, carry_between(before, after, shape))

    def settings(self) -> dict[str, Any]:
        """Return all settings, to compare them with those of another run."""
        groups = [{key: value for key, value in g.items() if key != "params"} for g in self.optimizer.param_groups]
        return {
            "driver": type(self).__name__,
            "every": self.every,
            "until": self.until,
            "optimizer": type(self.optimizer).__name__,
            "groups": groups,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs in addition to the state of model and optimizer."""
        of = {"driver": type(self).__name__, "every": self.every}
        return of | {"steps": self.steps, "rewirings": self.rewirings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state.

        Raises:
            InvalidArgumentError: ``state`` was not made by :meth:`state_dict`, or by a driver of another class
                or with another ``every``.
        """
        check_saved(state, Rewirer.state_dict(self))
        self.steps, self.rewirings = state["steps"], state["rewirings"]

    def _due(self, step: int) -> bool:
        return step % self.every == 0 and (self.until is None or step <= self.until)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _carry_optimizer_state(self, parameter: nn.Parameter, was: torch.Size, carry: Carry) -> None:
        """Move the state of a parameter's weights; ``was``: its shape before its topology changed."""
        group = next((g for g in self.optimizer.param_groups if any(p is parameter for p in g["params"])), None)
        if group is None:
            return  # a frozen layer that is not in the optimizer
        fresh = {
            "sum": group.get("initial_accumulator_value", 0.0),  # Adagrad
            "step_size": group["lr"],  # Rprop
        }
        state = self.optimizer.state.get(parameter, {})
        for key, value in state.items():
            if torch.is_tensor(value) and value.shape == was:
                moved = carry(value, float(fresh.get(key, 0.0)))
                # In place where it fits: a compiled step keeps the addresses of these tensors.
                state[key] = value.copy_(moved) if moved.shape == was else moved


class DynamicSparsity(Rewirer):
    """Prunes and regrows the sparse layers of a model during training. Call ``step()`` after each ``optimizer.step()``.

    Every ``every`` steps, each sparse layer prunes the ``int(fraction · nnz)`` active weights of lowest score and grows
    as many inactive connections, so that its nnz does not change. A connection that is pruned in a rewiring
    does not grow in the same rewiring. Optimizer state stays with kept weights and starts at zero for grown weights.
    Where the weights of a layer exist in blocks, each block counts as one connection (``blocks.py``).
    (torch's Adam counts steps per layer, not per weight. With its usual betas the first step of a grown weight is
    therefore about three times the learning rate. :class:`PerWeightAdam` corrects that.)

    In data-parallel training each process needs its own driver with the same seed. The growth rules named below sum
    gradients over the processes, so that all processes reach the same topologies. A custom rule that reads gradients
    must do the same.

    Args:
        model: holds the sparse layers (``sparsify`` or ``mask_model`` makes them).
        optimizer: a ``torch.optim`` optimizer that holds their parameters.
        prune_fraction: share of each layer's active weights to replace, in [0, 1].
        every: steps between rewirings, or ``Epochs(n)``.
        until: last step at which a rewiring may happen, or ``Epochs(n)``; None: no end.
        prune: ``"magnitude"``, or a function that takes :class:`Units` and returns one score per active one, ``[nnz]``;
            the lowest scores are pruned. It may read the layer's gradient if the growth rule records one. Random growth
            records one with ``grow=dataclasses.replace(GROW_RULES["random"], gradient_steps=1)``.
        scope: ``"layer"``: each layer prunes the same share; ``"global"``: the lowest scores of all layers together are
            pruned, and each layer grows as many as it pruned, as far as it has room.
        grow: ``"random"`` (SET); ``"gradient"`` (largest gradient of all inactive connections, RigL); ``"momentum"``
            (the same, smoothed over the last 20 steps, SNFS); ``"sampled gradient"`` (largest gradient of four random
            candidates per connection, for layers whose dense gradient is too expensive); a function as in
            :attr:`GrowRule.choose`; or a :class:`GrowRule`.
        decay: how the prune fraction decreases until ``until``: ``"constant"``, ``"linear"`` or ``"cosine"``.
        seed: seed of this driver's own generator; torch's global generator is not used.
        steps_per_epoch: needed only for times in epochs.

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
            every=in_steps("every", every, steps_per_epoch, least=1),
            until=None if until is None else in_steps("until", until, steps_per_epoch, least=0),
        )
        if decay != "constant" and self.until is None:
            raise InvalidArgumentError(f"decay={decay!r} needs an end; pass until=")
        self.prune_fraction, self.scope = float(prune_fraction), scope
        self.score = PRUNE_SCORES[prune] if isinstance(prune, str) else prune
        self.grow = grow_rule(grow)
        self.decay = DECAYS[decay]
        self.generator = generator_of(seed)
        self._gradient_waits = False
        self._record_if_wanted()

    @override
    def step(self) -> bool:
        recorded = any(layer.record_gradient for layer in self.layers.values())
        due = self._due(self.steps + 1)
        try:
            super().step()
        finally:  # also after an error: the next rewiring must not read these gradients
            self._gradient_waits = recorded and not due
            if due:
                self._forget_gradients()
            self._record_if_wanted()
        return due

    def fraction(self) -> float:
        """Return the share of active weights that a rewiring at this step replaces."""
        progress = min(self.steps / self.until, 1) if self.until else 0
        return self.prune_fraction * self.decay(progress)

    @override
    def settings(self) -> dict[str, Any]:
        own = ("prune_fraction", "scope", "score", "grow", "decay")
        return super().settings() | {name: getattr(self, name) for name in own}

    @property
    @override
    def at_rest(self) -> bool:
        return not self._gradient_waits

    @override
    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"generator": self.generator.get_state()}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        generator = saved_generator(state)
        super().load_state_dict(state)
        self.generator = generator
        self._gradient_waits = False
        self._forget_gradients()
        self._record_if_wanted()

    @override
    def _plans(self, layers: Mapping[str, SparsifiableLayer]) -> dict[str, Plan]:
        units = {name: units_of(layer) for name, layer in layers.items()}
        active = {name: of_layer.active() for name, of_layer in units.items()}
        pruned = self._pruned(units, {name: len(chosen) for name, chosen in active.items()})
        grown = self._grown(units, active, pruned)
        return {
            name: self._plan(layer, units[name], active[name], pruned[name], grown[name])
            for name, layer in layers.items()
            if len(pruned[name]) or grown[name]  # a dense layer stays as it is
        }

    def _pruned(self, layers: Mapping[str, Units], nnz: dict[str, int]) -> dict[str, torch.Tensor]:
        """Return the positions to prune among each layer's active units."""
        scores = {name: checked_score(self.score(layer), name, nnz[name]) for name, layer in layers.items()}
        rooms = {name: math.prod(layers[name].dense_shape) - count for name, count in nnz.items()}
        counts = self._counts(scores, rooms)
        return {name: smallest(score, counts[name]) for name, score in scores.items()}

    def _counts(self, scores: dict[str, torch.Tensor], rooms: dict[str, int]) -> dict[str, int]:
        """Return how many units each layer prunes, given their scores and the number of its inactive units."""
        counts = {name: int(self.fraction() * len(score)) for name, score in scores.items()}
        if self.scope == "global":
            counts = lowest_of_all(scores, sum(counts.values()))
        return {name: min(count, rooms[name]) for name, count in counts.items()}

    def _grown(
        self, layers: Mapping[str, Units], active: dict[str, torch.Tensor], pruned: dict[str, torch.Tensor]
    ) -> dict[str, int]:
        """Return how many units each layer grows: as many as it prunes."""
        return {name: len(positions) for name, positions in pruned.items()}

    def _plan(
        self, layer: SparsifiableLayer, units: Units, active: torch.Tensor, pruned: torch.Tensor, count: int
    ) -> Plan:
        chosen = self._chosen(units, active, pruned, count) if count else active[:0]
        kept = whole_blocks(without(active, pruned), layer.dense_shape, layer.structure)
        grown = whole_blocks(chosen, layer.dense_shape, layer.structure)
        new = torch.zeros(len(grown))
        if self.grow.initial_std > 0:
            new = torch.randn(len(grown), generator=self.generator, dtype=torch.float64) * self.grow.initial_std
        return kept, grown, new.to(layer.weight_parameter)

    def _chosen(self, units: Units, active: torch.Tensor, pruned: torch.Tensor, count: int) -> torch.Tensor:
        """Return the units to grow: flat indices, int64 ``[count]``."""
        chosen = self.grow.choose(units, active, count, self.generator)
        if self.grow.choose not in OWN_CHOICES:
            check_grown(chosen, active, count, math.prod(units.dense_shape))
        return chosen

    @override
    def _due(self, step: int) -> bool:
        return self.prune_fraction > 0 and super()._due(step)

    def _forget_gradients(self) -> None:
        for layer in self.layers.values():
            if layer.record_gradient:
                layer.record_gradient = False

    def _record_if_wanted(self) -> None:
        """Make the next backward pass record its gradient if the next rewiring will read it."""
        next_time = (self.steps // self.every + 1) * self.every
        if next_time - self.steps > self.grow.gradient_steps or not self._due(next_time):
            return
        for layer in self.layers.values():
            if layer.record_gradient:
                layer.fade_gradient(self.grow.momentum)
            elif layer.weight_parameter.requires_grad and self._may_read_gradient(layer):
                layer.record_gradient = True

    def _may_read_gradient(self, layer: SparsifiableLayer) -> bool:
        """Tell whether a rewiring may read this layer's gradient: growth alone does not read that of a full layer."""
        alone = self.grow.choose in OWN_CHOICES and self.scope == "layer" and self.score is PRUNE_SCORES["magnitude"]
        weight = layer.weight_parameter
        is_full = weight.dim() == 1 and weight.numel() == math.prod(layer.dense_shape)  # truly sparse, all active
        return not (alone and is_full)


def lowest_of_all(scores: dict[str, torch.Tensor], count: int) -> dict[str, int]:
    """Return how many of the ``count`` smallest scores of all layers together are in each layer."""
    lowest = smallest(torch.cat(list(scores.values())), count)
    ends = torch.tensor([len(score) for score in scores.values()]).cumsum(0).to(lowest.device)
    of_layer = torch.searchsorted(ends, lowest, right=True)
    return {name: int((of_layer == i).sum()) for i, name in enumerate(scores)}


def _check_settings(prune_fraction: float, prune: object, scope: str, grow: object, decay: str) -> None:
    require(0 <= prune_fraction <= 1, "prune_fraction", prune_fraction, "use a number from 0 to 1")
    check_rules(prune, grow)
    check_choice("scope", scope, ("layer", "global"))
    check_choice("decay", decay, DECAYS)
