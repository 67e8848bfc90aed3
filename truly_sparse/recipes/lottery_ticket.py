"""Iterative magnitude pruning with rewinding: the search for winning tickets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

from ..arguments import check_count, require
from ..copies import copied
from ..interface import SparsifiableLayer, sparse_layers, untied_layers, weight_shape
from ..topology import check_sparsity
from .before_training import keep_largest, with_topology


def lottery_ticket(
    model: nn.Module,
    train: Callable[[nn.Module], object],
    wrap: Callable[[nn.Module], nn.Module],
    *,
    sparsity: float,
    rounds: int,
    warm_up: Callable[[nn.Module], object] | None = None,
) -> nn.Module:
    """Find a topology by training, pruning and rewinding several times (Frankle & Carbin, 2019).

    Each of the ``n`` rounds trains the rewound network to the end and then keeps the largest weights of all layers
    together: the share ``(1 − sparsity)^(k / n)`` after round ``k``. The paper removes 20% a round, which are 13 rounds
    to 95%; it does so layer by layer in its fully connected network, and over all layers in the deeper ones. Frankle et
    al. (2019, *Stabilizing the Lottery Ticket Hypothesis*) correct where deeper networks rewind to: not to the first
    weights but to those after a short training, ``warm_up``.

    The search costs ``n`` trainings. The result is not trained: train it like another network to see what it is worth.

    Args:
        model: with dense layers and their first weights; it is not changed.
        train: trains a model in place, from the rewinding point to the end.
        wrap: makes the model of a round trainable in its topology: ``sparsify``, or ``mask_model`` to simulate.
        sparsity: share of the weights to remove, in [0, 1).
        rounds: ``n``, at least 1.
        warm_up: trains the dense model in place up to the rewinding point; None: rewind to the first weights.

    Returns:
        The model at the rewinding point with the masks of ``torch.nn.utils.prune``, which ``sparsify`` and
        ``mask_model`` take over.

    Raises:
        InvalidArgumentError: an argument outside its range, or a ``wrap`` that leaves other layers than the model's.
        TrainingError: a trained weight is not finite.
    """
    check_sparsity(sparsity)
    check_count("rounds", rounds, least=1)
    start = copied(model)
    if warm_up is not None:
        warm_up(start)
    shapes = {name: weight_shape(layer) for name, layer in untied_layers(start).items()}
    total = sum(map(math.prod, shapes.values()))
    kept = {name: torch.arange(math.prod(shape)) for name, shape in shapes.items()}
    for k in range(1, rounds + 1):
        ticket = wrap(with_topology(start, kept))
        layers = sparse_layers(ticket)
        _check_wrap(wrap, layers, kept)
        train(ticket)
        scores = {name: _magnitudes(layer, shapes[name]) for name, layer in layers.items()}
        kept = keep_largest(scores, round(total * (1 - sparsity) ** (k / rounds)))
    return with_topology(start, kept)


def _magnitudes(layer: SparsifiableLayer, shape: tuple[int, ...]) -> torch.Tensor:
    """Return ``|w|`` of a layer in the shape of its dense weight, and −1 for pruned weights, which never return."""
    scores = torch.full(shape, -1.0, dtype=torch.float64)
    scores.view(-1)[layer.active().cpu()] = layer.active_values().abs().double().cpu()
    return scores


def _check_wrap(wrap: object, layers: Mapping[str, object], wanted: Mapping[str, object]) -> None:
    made = f"it makes sparse layers {list(layers)} of {list(wanted)}"
    require(layers.keys() == wanted.keys(), "wrap", wrap, f"{made}; use sparsify or mask_model")
