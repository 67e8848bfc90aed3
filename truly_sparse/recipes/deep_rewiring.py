"""Deep Rewiring: a random walk of the weights, in which a connection ends where its sign would flip."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from ..arguments import require
from ..dst import Plan, Rewirer
from ..interface import SparsifiableLayer
from ..interrupt import undivided
from ..positions import without
from ..rules import random_grow, smallest
from ..topology import generator_of, saved_generator
from .base import Recipe, last_step, learning_rate

FIRST = 1e-12  # magnitude of a new weight: as good as zero, but it has a sign


class SignKeeping(Rewirer):
    """The driver of :class:`DeepRewiring`, which rewires after every optimizer step.

    Args:
        model: holds the sparse layers, without blocks.
        optimizer: plain SGD in the paper; its learning rate is ``η``.
        l1: ``α``, the strength of the L1 prior.
        temperature: ``T`` of the random walk.
        until: the last step that rewires.
        seed: seed of this driver's own generator.

    Raises:
        InvalidArgumentError: a number below 0, or a layer whose weights exist in blocks, which have no sign.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        l1: float,
        temperature: float,
        until: int,
        seed: int,
    ) -> None:
        super().__init__(model, optimizer, every=1, until=until)
        for name, value in (("l1", l1), ("temperature", temperature)):
            require(0 <= value < math.inf, name, value, "use a finite number of at least 0")
        for layer in self.layers.values():
            require(layer.structure == (1, 1), "structure", layer.structure, "a block has no sign; use single weights")
        self.l1, self.temperature = float(l1), float(temperature)
        self.generator = generator_of(seed)
        self.signs = {name: layer.active_values().sign() for name, layer in self.layers.items()}

    @override
    def rewire(self) -> None:
        with undivided():
            for name, layer in self._in_training().items():
                layer.set_active_values(self._walked(name, layer))
            super().rewire()
            self.signs = {name: layer.active_values().sign() for name, layer in self.layers.items()}

    def _walked(self, name: str, layer: SparsifiableLayer) -> torch.Tensor:
        """Return the weights after this step's share of the prior and of the noise."""
        values, rate = layer.active_values(), learning_rate(self.optimizer, layer.weight_parameter)
        noise = torch.randn(len(values), generator=self.generator, dtype=torch.float64).to(values)
        return values - rate * self.l1 * self.signs[name] + math.sqrt(2 * rate * self.temperature) * noise

    @override
    def _plans(self, layers: Mapping[str, SparsifiableLayer]) -> dict[str, Plan]:
        return {name: self._plan(layer, self.signs[name]) for name, layer in layers.items()}

    def _plan(self, layer: SparsifiableLayer, signs: torch.Tensor) -> Plan:
        active, theta, size = layer.active(), layer.active_values() * signs, math.prod(layer.dense_shape)
        pruned = smallest(theta, min(int((theta <= 0).sum()), size - len(active)))
        grown = random_grow(active, size, len(pruned), self.generator)
        heads = torch.randint(2, (len(grown),), generator=self.generator)
        return without(active, pruned), grown, (FIRST * (2 * heads - 1)).to(layer.weight_parameter)

    @override
    def topology_loaded(self, layer: SparsifiableLayer, before: torch.Tensor) -> None:
        super().topology_loaded(layer, before)
        self.signs |= {name: own.active_values().sign() for name, own in self.layers.items() if own is layer}

    @override
    def settings(self) -> dict[str, Any]:
        return super().settings() | {"l1": self.l1, "temperature": self.temperature}

    @override
    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"generator": self.generator.get_state()}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        generator = saved_generator(state)
        super().load_state_dict(state)
        self.generator = generator


@dataclass(frozen=True)
class DeepRewiring(Recipe):
    """DEEP R: connections with a fixed sign, noise, and random growth after every step (Bellec et al., 2018).

    A weight is ``w = s θ`` with a sign ``s`` that stays. After the optimizer's step on the loss, every active weight
    walks: ``θ ← θ − η α + √(2 η T) ν``, ``ν ~ N(0, 1)``. Where ``θ < 0``, the connection is pruned, and another one of
    the layer, drawn at random, takes its place with ``θ = 0`` and a random sign. (The authors' program draws the
    signs of all connections once, before the training.)

    The number of connections of each layer stays, as in the authors' experiments on MNIST; the paper also gives the
    variant with one number for the network. ``α`` is that of the authors' program, and ``T`` gives its noise at its
    learning rate of 0.5. The paper derives the walk for plain SGD and says nothing on momentum.

    Attributes:
        l1: ``α``.
        temperature: ``T``.
        until: share of the training after which the topology stays, and the walk ends.
    """

    l1: float = 1e-5
    temperature: float = 2.5e-11
    until: float = 1.0

    @override
    def attach(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, steps_per_epoch: int, total_steps: int, seed: int
    ) -> SignKeeping:
        until = last_step(self.until, total_steps)
        return SignKeeping(model, optimizer, l1=self.l1, temperature=self.temperature, until=until, seed=seed)
