"""Topologies chosen once, before training, by a score of each weight: SNIP, GraSP, SynFlow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.utils import prune

from ..arguments import check_count, require
from ..copies import copied
from ..errors import InvalidArgumentError, TrainingError
from ..interface import check_has_numbers, sparse_layers, untied_layers
from ..positions import largest
from ..topology import check_sparsity, to_mask

# Computes the loss of a model on some fixed training samples, as a tensor of one number.
Loss: TypeAlias = Callable[[nn.Module], torch.Tensor]


def snip(model: nn.Module, loss: Loss, sparsity: float) -> nn.Module:
    """Keep the weights whose removal would change the loss most: ``|∂L/∂w · w|`` (Lee et al., 2019).

    How many samples to take is up to ``loss``; the weights should be drawn with a variance that is scaled to the layer,
    as torch draws them. The division of all scores by their sum, which the paper has, changes no order.

    Args:
        model: with dense layers; it is not changed.
        loss: computes the loss of a model on the samples to score by.
        sparsity: share of the weights to remove, of all layers together, in [0, 1).

    Returns:
        A copy with the masks of ``torch.nn.utils.prune``, which ``sparsify(copy)`` and ``mask_model(copy)`` take over.

    Raises:
        InvalidArgumentError: sparsity outside [0, 1), or a model with layers that are not dense, or pruned already.
        TrainingError: a score is not finite.
    """
    weights = _weights(model)
    gradients = torch.autograd.grad(loss(model), list(weights.values()))
    scores = {name: (weight * of).abs() for (name, weight), of in zip(weights.items(), gradients, strict=True)}
    return with_topology(model, keep_largest(scores, _count(weights, sparsity)))


def grasp(model: nn.Module, loss: Loss, sparsity: float) -> nn.Module:
    """Keep the weights whose removal would reduce the norm of the gradient most (Wang et al., 2020).

    The paper removes the largest ``−w ⊙ H g``, with the gradient ``g`` and the Hessian ``H`` of the loss; so the
    largest ``w ⊙ H g`` are kept. It divides the logits by 200 and takes ten samples per class, which is up to ``loss``.

    Args, Returns, Raises: see :func:`snip`.
    """
    weights = _weights(model)
    gradients = torch.autograd.grad(loss(model), list(weights.values()), create_graph=True)
    flow = torch.stack([(of * of.detach()).sum() for of in gradients]).sum()
    products = torch.autograd.grad(flow, list(weights.values()))
    scores = {name: weight * of for (name, weight), of in zip(weights.items(), products, strict=True)}
    return with_topology(model, keep_largest(scores, _count(weights, sparsity)))


def synflow(model: nn.Module, shape: Sequence[int], sparsity: float, rounds: int = 100) -> nn.Module:
    """Keep the weights that contribute most to the results of the network of ``|w|``, in rounds (Tanaka et al., 2020).

    ``R = Σ f(1; |w|)`` is the sum of these results for an input of ones; the score of a weight is ``∂R/∂w · w``. Round
    ``k`` of ``n`` keeps the share ``(1 − sparsity)^(k / n)``. No data is used. The copy that is scored computes in
    float64, in evaluation mode; its norms use the magnitudes of their statistics, as in the authors' code.

    Args:
        model: see :func:`snip`.
        shape: of one input, without the batch.
        sparsity: see :func:`snip`.
        rounds: at least 1.

    Returns, Raises: see :func:`snip`.
    """
    check_count("rounds", rounds, least=1)
    count = _count(_weights(model), sparsity)
    positive = copied(model).double().eval()
    for tensor in [*positive.parameters(), *positive.buffers()]:
        tensor.data.abs_()
    weights = _weights(positive)
    total, first = sum(weight.numel() for weight in weights.values()), next(iter(weights.values()))
    ones, kept = first.new_ones(1, *shape), {}
    for k in range(1, rounds + 1):
        gradients = torch.autograd.grad(positive(ones).sum(), list(weights.values()))
        scores = {name: weight * of for (name, weight), of in zip(weights.items(), gradients, strict=True)}
        kept = keep_largest(scores, round(total * (count / total) ** (k / rounds)))
        for name, weight in weights.items():
            weight.data *= to_mask(kept[name], tuple(weight.shape))
    return with_topology(model, kept)


def keep_largest(scores: Mapping[str, torch.Tensor], count: int) -> dict[str, torch.Tensor]:
    """Return where the ``count`` largest scores of all layers together are; of equal scores the first.

    Args:
        scores: one per weight, in the shape of the dense weight, by layer.
        count: 0 to the number of scores.

    Returns:
        Flat indices by layer, int64 ``[n]``, sorted. They are ``count`` together.

    Raises:
        TrainingError: a score is not finite.
    """
    flat = {name: score.detach().double().reshape(-1) for name, score in scores.items()}
    for name, score in flat.items():
        if not score.isfinite().all():
            raise TrainingError(f"a score of {name!r} is not finite, so weights cannot be ranked; check the loss")
    chosen, kept = largest(torch.cat(list(flat.values())), count), {}
    for name, score in flat.items():
        kept[name] = chosen[(chosen >= 0) & (chosen < len(score))]
        chosen = chosen - len(score)
    return kept


def with_topology(model: nn.Module, connections: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return a copy of a dense model with masks of ``torch.nn.utils.prune`` that hold these connections.

    Args:
        model: with dense layers; it is not changed.
        connections: flat indices by layer, int64 ``[n]``, sorted.
    """
    pruned = copied(model)
    for name, active in connections.items():
        layer = pruned.get_submodule(name)
        prune.custom_from_mask(layer, "weight", to_mask(active, tuple(layer.get_parameter("weight").shape)))
    return pruned


def _weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of the model's dense layers by name."""
    check_has_numbers(model)
    layers: dict[str, Any] = untied_layers(model)
    plain = {name: layer.weight for name, layer in layers.items() if "weight" in layer._parameters}
    if sparse_layers(model) or len(plain) < len(layers):
        raise InvalidArgumentError(
            f"model={type(model).__name__} has layers that are sparse or pruned already; give the dense model"
        )
    frozen = [name for name, weight in plain.items() if not weight.requires_grad]
    require(not frozen, "model", frozen, "these layers are frozen; call requires_grad_() first")
    return plain


def _count(weights: Mapping[str, torch.Tensor], sparsity: float) -> int:
    return round((1 - check_sparsity(sparsity)) * sum(weight.numel() for weight in weights.values()))
