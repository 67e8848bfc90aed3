"""Checks of the exercises of notebooks 01 and 02."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from truly_sparse.topology import to_mask

from ..models import TutorialCNN
from .checking import Answer, close, draws, exercise, expect, result


@exercise
def check_active_weights(answer: Answer) -> None:
    """``answer(model, sparsity)``: the number of weights that stay active, without biases."""
    # Four layers of 8 weights, chosen so that each typical mistake gives a different count.
    small = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2), nn.Linear(2, 4), nn.Linear(4, 2))
    for model, sparsity in ((small, 0.7), (TutorialCNN(), 0.95)):
        weights = [p.numel() for name, p in model.named_parameters() if name.endswith("weight")]
        everything = sum(p.numel() for p in model.parameters())
        kept, right = result(answer, model, sparsity), round((1 - sparsity) * sum(weights))
        of = f"{kept:,} of {sum(weights):,} weights at sparsity {sparsity}"
        expect(float(kept).is_integer(), f"{of}: not a whole number; round to the nearest one")
        expect(
            kept != round(sparsity * sum(weights)),
            f"{of}: that is the number of removed weights; the sparsity is their share",
        )
        expect(kept != round((1 - sparsity) * everything), f"{of}: biases are counted as weights")
        expect(
            kept != sum(round((1 - sparsity) * n) for n in weights),
            f"{of}: rounded in each layer; round the total once",
        )
        expect(
            kept != int((1 - sparsity) * sum(weights)),
            f"{of}: a fraction was cut off; round to the nearest whole number",
        )
        expect(kept == right, f"{of}; expected {right:,}")


@exercise
def check_global_prune(answer: Answer) -> None:
    """``answer(weights, sparsity)``: one mask per layer; active are the largest magnitudes of the whole network."""
    # The second layer's weights are ten times larger, so global pruning removes mostly weights of the first.
    weights, sparsity = [draws(6, 10), 10 * draws(20, 2, seed=1)], 0.7
    masks, budget = result(answer, weights, sparsity), 30
    expect(
        len(masks) == 2
        and all(m.shape == w.shape and m.dtype == torch.bool for m, w in zip(masks, weights, strict=True)),
        "expected one boolean mask per layer, each in the shape of its weight",
    )
    magnitude = torch.cat([w.abs().flatten() for w in weights])
    values, kept = torch.cat([w.flatten() for w in weights]), torch.cat([m.flatten() for m in masks])
    expect(
        kept.sum() != len(kept) - budget, f"{int(kept.sum())} weights kept: the mask is True where a weight is removed"
    )
    expect(kept.sum() == budget, f"{int(kept.sum())} of {len(kept)} weights kept; 70% sparsity leaves {budget}")
    expect(
        not close(kept, to_mask(magnitude.topk(budget, largest=False).indices, kept.shape)),
        "the weights of smallest magnitude are kept",
    )
    expect(
        not close(kept, to_mask(values.topk(budget).indices, kept.shape)),
        "large negative weights are removed: rank by magnitude, not by value",
    )
    lost, smallest = magnitude[~kept].max(), magnitude[kept].min()
    expect(
        lost <= smallest,
        f"a weight of magnitude {lost:.2f} is removed while one of {smallest:.2f} is kept in another layer: "
        "rank all layers together, not each layer separately",
    )
    tied = result(answer, [torch.ones(4, 5)], 0.5)[0].sum()
    expect(tied == 10, f"{int(tied)} of 20 weights of equal magnitude are kept, not 10: a threshold cannot split ties")


@exercise
def check_masked_linear(answer: Answer) -> None:
    """``answer(x, weight, mask, bias)``: the output of the layer; only active weights receive gradients."""
    x, bias, before = draws(4, 6), draws(3, seed=1), draws(3, 6, seed=2)
    mask = to_mask(torch.tensor([0, 3, 7, 8, 16]), (3, 6))
    weight = before.clone().requires_grad_()
    y = result(answer, x, weight, mask, bias)
    right = F.linear(x, before * mask, bias)
    expect(
        torch.equal(weight.detach(), before),
        "the stored weight has changed; use weight * mask and leave the parameter as it is",
    )
    expect(
        not close(y.detach(), F.linear(x, before, bias)),
        "the output is that of the dense layer: the mask has no effect",
    )
    expect(not close(y.detach(), F.linear(x, before * mask)), "the bias is missing from the output")
    expect(close(y.detach(), right), "the output differs from x (weight × mask)ᵀ + bias")
    expect(y.requires_grad, "no gradient reaches the weight: it is detached, so the layer cannot learn")
    (gradient,) = torch.autograd.grad(y.square().sum(), weight)
    leak = int((gradient[~mask] != 0).sum())
    expect(
        leak == 0,
        f"{leak} of {int((~mask).sum())} removed weights get a gradient: it leaks past the mask",
    )


@exercise
def check_forget(answer: Answer) -> None:
    """``answer(optimizer, weight, mask)``: in place, sets the optimizer state of only the removed weights to 0."""
    for kind in (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.Adam(p, lr=0.1)):
        weight = nn.Parameter(draws(3, 4))
        mask, optimizer = to_mask(torch.arange(0, 12, 2), (3, 4)), kind([weight])
        _train(weight, torch.ones_like(mask), optimizer)
        with torch.no_grad():
            weight[~mask] = 0
        name, before = type(optimizer).__name__, {k: torch.clone(v) for k, v in optimizer.state[weight].items()}
        values = weight.detach().clone()
        answer(optimizer, weight, mask)
        expect(torch.equal(weight.detach(), values), f"{name}: the weights themselves were changed")
        state = optimizer.state[weight]
        expect(state.keys() == before.keys(), f"{name}: state was deleted, including that of the kept weights")
        for key, value in before.items():
            if value.shape == weight.shape:
                expect(torch.equal(state[key][mask], value[mask]), f"{name}: {key} of kept weights was lost")
            else:
                expect(torch.equal(state[key], value), f"{name}: {key} belongs to all weights and was changed")
        _train(weight, mask, optimizer)
        drift = weight.detach()[~mask].abs().max()
        expect(
            drift == 0,
            f"{name}: 3 steps later a removed weight has drifted from 0 to {drift:.2f}: it still has momentum",
        )


def _train(weight: nn.Parameter, mask: torch.Tensor, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward((weight * mask).sum())
        optimizer.step()
