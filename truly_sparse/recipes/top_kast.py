"""Top-KAST: compute with the largest weights, and update some more of them."""

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
from ..positions import contained
from ..rules import smallest
from ..schedule import Epochs, in_steps
from ..topology import generator_of, saved_generator
from .base import Recipe, check_interval, last_step, learning_rate


def outside_of_largest(theta: torch.Tensor, count: int) -> torch.Tensor:
    """Return where ``theta``, ``[n]``, is not among its ``count`` largest magnitudes: bool ``[n]``.

    Raises:
        TrainingError: a number is NaN.
    """
    outside = torch.zeros_like(theta, dtype=torch.bool)
    outside[smallest(theta.abs(), len(theta) - count)] = True
    return outside


class ForwardAndBackwardSet(Rewirer):
    """The driver of :class:`TopKAST`. A layer's topology is ``B``; its weights in ``B∖A`` are zero in every pass.

    Args:
        model: holds the sparse layers, without blocks. Half of their weights (``forward``) become zero here.
        optimizer: its step on a weight in ``B∖A``, which starts from zero, is the update of ``θ``.
        forward: share of a layer's connections that compute, ``D / (D + M)``, above 0 up to 1.
        every: steps between two choices of ``A`` and ``B``.
        l2: strength of the exploration regulariser.
        until: the last step that chooses.
        seed: seed of this driver's own generator, which draws the weights outside of the first ``B``.

    Attributes:
        dense: ``θ`` of all connections of each layer, ``[size]`` in the CPU's memory; that of ``B`` may be older.
        theta: ``θ`` of each layer's active connections, ``[nnz]``.
        outside: 1 for those of them in ``B∖A``, 0 for those in ``A``, ``[nnz]``, in the type of the weights.

    Raises:
        InvalidArgumentError: a number outside its range, or a layer whose weights exist in blocks.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        forward: float,
        every: int,
        l2: float,
        until: int,
        seed: int,
    ) -> None:
        super().__init__(model, optimizer, every=every, until=until)
        require(0 < forward <= 1, "forward", forward, "use a number above 0 up to 1")
        require(0 <= l2 < math.inf, "l2", l2, "use a finite number of at least 0")
        for layer in self.layers.values():
            require(layer.structure == (1, 1), "structure", layer.structure, "Top-KAST ranks single weights")
        self.forward, self.l2 = float(forward), float(l2)
        self.generator = generator_of(seed)
        self.dense: dict[str, torch.Tensor] = {}
        self.theta: dict[str, torch.Tensor] = {}
        self.outside: dict[str, torch.Tensor] = {}
        for name, layer in self._in_training().items():
            self._begin(name, layer)

    def _count(self, nnz: int) -> int:
        """Return how many weights of a layer are in ``A``: at least one, if there is one."""
        return min(nnz, max(1, round(self.forward * nnz)))

    def _begin(self, name: str, layer: SparsifiableLayer) -> None:
        """Draw ``θ`` outside of the topology, below all of ``A``."""
        values, size = layer.active_values(), math.prod(layer.dense_shape)
        chosen = values[~outside_of_largest(values, self._count(len(values)))].abs()
        bound = float(chosen.min()) if len(chosen) else 0.0
        empty = torch.empty(size, dtype=values.dtype)
        self.dense[name] = empty.uniform_(-bound, bound, generator=self.generator)
        self._adopt(name, layer)

    def _adopt(self, name: str, layer: SparsifiableLayer) -> None:
        """Take over the layer's topology and weights; the ``θ`` of those that are zero outside of ``A`` is known."""
        values, known = layer.active_values(), self.dense[name][layer.active().cpu()]
        outside = outside_of_largest(values, self._count(len(values)))
        self._choose(name, layer, torch.where(outside & (values == 0), known.to(values), values), outside)

    def _choose(self, name: str, layer: SparsifiableLayer, theta: torch.Tensor, outside: torch.Tensor) -> None:
        """Let the layer compute with ``A`` only: ``α``. What is not finite stays so, and the next choice refuses it."""
        self.theta[name], self.outside[name] = theta, outside.to(theta)
        layer.set_active_values(torch.addcmul(theta, theta, self.outside[name], value=-1))

    def _all(self, name: str, active: torch.Tensor) -> torch.Tensor:
        """Return ``θ`` of all connections, with that of these active ones up to date."""
        self.dense[name][active.cpu()] = self.theta[name].cpu()
        return self.dense[name]

    @override
    def step(self) -> bool:
        with undivided():
            for name, layer in self._in_training().items():
                if name in self.theta:
                    self._update(name, layer)
                else:  # it did not train before
                    self._begin(name, layer)
        return super().step()

    def _update(self, name: str, layer: SparsifiableLayer) -> None:
        """Add the optimizer's step to ``θ``, and regularise."""
        outside, density = self.outside[name], self._count(len(self.theta[name])) / math.prod(layer.dense_shape)
        theta = torch.addcmul(layer.active_values(), self.theta[name], outside)
        decay = self.l2 * learning_rate(self.optimizer, layer.weight_parameter)
        theta.addcmul_(theta, 1 + outside * (1 / density - 1), value=-decay)
        self._choose(name, layer, theta, outside)

    @override
    def rewire(self) -> None:
        with undivided():
            super().rewire()
            for name, layer in self._in_training().items():
                theta = self.dense[name][layer.active().cpu()].to(layer.weight_parameter)
                self._choose(name, layer, theta, outside_of_largest(theta, self._count(len(theta))))

    @override
    def _plans(self, layers: Mapping[str, SparsifiableLayer]) -> dict[str, Plan]:
        return {name: self._plan(layer.active(), self._all(name, layer.active())) for name, layer in layers.items()}

    def _plan(self, active: torch.Tensor, dense: torch.Tensor) -> Plan:
        backward = smallest(-dense.abs(), len(active)).to(active.device)
        grown = backward[~contained(backward, active)]
        return active[contained(active, backward)], grown, dense[grown.cpu()].to(active.device)

    @override
    def topology_loaded(self, layer: SparsifiableLayer, before: torch.Tensor) -> None:
        super().topology_loaded(layer, before)
        for name in [name for name, own in self.layers.items() if own is layer and name in self.theta]:
            self._all(name, before)
            self._adopt(name, layer)

    @override
    def settings(self) -> dict[str, Any]:
        return super().settings() | {"forward": self.forward, "l2": self.l2}

    @override
    def state_dict(self) -> dict[str, Any]:
        dense = {name: self._all(name, self.layers[name].active()).clone() for name in self.theta}
        of = {"generator": self.generator.get_state(), "dense": dense, "outside": dict(self.outside)}
        return super().state_dict() | of

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        generator = saved_generator(state)
        dense, outside = (self._saved(state, key) for key in ("dense", "outside"))
        super().load_state_dict(state)
        self.generator, self.dense, self.outside = generator, dense, outside
        for name in dense:
            values, active = self.layers[name].active_values(), self.layers[name].active()
            self.theta[name], self.outside[name] = dense[name][active.cpu()].to(values), outside[name].to(values)

    def _saved(self, state: Mapping[str, Any], key: str) -> dict[str, torch.Tensor]:
        """Return copies of saved tensors by layer.

        Raises:
            InvalidArgumentError: there are none, or they do not fit the layers.
        """
        saved = state.get(key)
        sizes = {
            name: math.prod(layer.dense_shape) if key == "dense" else len(layer.active())
            for name, layer in self.layers.items()
        }
        fits = isinstance(saved, dict) and all(
            torch.is_tensor(tensor) and tensor.shape == (sizes.get(name),) for name, tensor in saved.items()
        )
        require(fits, f"state[{key!r}]", saved, "give what state_dict() returned for a model of the same sizes")
        return {name: tensor.clone() for name, tensor in (saved or {}).items()}


@dataclass(frozen=True)
class TopKAST(Recipe):
    """Top-K Always Sparse Training (Jayakumar et al., 2020): the largest weights compute, more of them are updated.

    All weights of a layer, ``θ``, stay in memory. The pass forward uses the ``D`` of largest magnitude, ``A``, and
    gradients reach the ``D + M`` of largest magnitude, ``B ⊃ A``::

        α_i  = θ_i             if i ∈ A = TopK(θ, D), else 0
        Δθ_i = −η ∇_α L(α)_i   if i ∈ B = TopK(θ, D + M), else 0
        R_i  = |θ_i| if i ∈ A,   |θ_i| / d if i ∈ B∖A,   else 0     (the exploration regulariser)

    with ``d``, the share of the weights that ``D`` is.

    ``R`` lowers the weights in use, so that unused ones come up, and those of ``B∖A`` more, so that ``A`` changes only
    for large updates. The layer's topology is ``B`` here, so ``sparsify`` with the backward sparsity:
    ``sparsify(model, 0.9)`` computes with 5% of the weights. Both passes cost what ``B`` costs. When training is over,
    ``sparsify(densify(model), None)`` is the network of ``A``.

    Left open, and chosen here: the paper calls ``R`` an L2 regularisation, so a step subtracts ``η λ θ`` or
    ``η λ θ / d``, after the optimizer's and apart from its momentum; ``d`` is that of the layer. It names no ``λ`` but
    the weight decay of its ResNet-50, which is the default (an optimizer's own weight decay does not see ``B∖A``, which
    it holds as zero). Its networks start dense; here ``A`` and ``B`` start from the given topology and weights, and the
    others are drawn uniformly below the smallest of ``A``. The other defaults are 10% and 5%, one of the paper's pairs,
    chosen anew every 100 steps, which its appendix finds as good as every step.

    Attributes:
        forward: ``D / (D + M)``, the share of a layer's connections that compute.
        every: steps between two choices of ``A`` and ``B``.
        l2: ``λ``.
        until: share of the training after which ``A`` and ``B`` stay.
    """

    forward: float = 0.5
    every: int | Epochs = 100
    l2: float = 1e-4
    until: float = 1.0

    def __post_init__(self) -> None:
        check_interval(self.every)

    @override
    def attach(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, steps_per_epoch: int, total_steps: int, seed: int
    ) -> ForwardAndBackwardSet:
        return ForwardAndBackwardSet(
            model,
            optimizer,
            forward=self.forward,
            every=in_steps("every", self.every, steps_per_epoch, least=1),
            l2=self.l2,
            until=last_step(self.until, total_steps),
            seed=seed,
        )
