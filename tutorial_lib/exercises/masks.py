"""Checks of the exercises of notebooks 01 and 02."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from truly_sparse.topology import to_mask

from ..models import TutorialCNN
from .checking import Answer, CheckFailedError, draws, exercise, expect, fresh, result
from .reading import alike, array, close, number


@exercise
def check_active_weights(answer: Answer) -> None:
    """``answer(model, sparsity)``: the number of weights that stay active, without biases."""
    for model, sparsity in _models():
        weights = [p.numel() for name, p in model.named_parameters() if name.endswith("weight")]
        total, everything = sum(weights), sum(p.numel() for p in model.parameters())
        kept = number(result(answer, model=model, sparsity=sparsity))
        right, of = (1 - sparsity) * total, f"{kept:,.9g} of {total:,} weights at sparsity {sparsity:.4g}"
        expect(kept.is_integer(), f"{of}: not a whole number; round to the nearest one")
        if kept == round(right):
            continue
        removed = (round(sparsity * total), math.floor(sparsity * total), math.ceil(sparsity * total))
        expect(kept not in removed, f"{of}: that is the number of removed weights; the sparsity is their share")
        expect(kept != round((1 - sparsity) * everything), f"{of}: biases are counted as weights")
        by_layer = sum(round((1 - sparsity) * n) for n in weights)
        expect(kept != by_layer, f"{of}: rounded in each layer; round the total once")
        expect(kept != math.floor(right), f"{of}: a fraction was cut off; round to the nearest whole number")
        expect(kept != math.ceil(right), f"{of}: always rounded up; round to the nearest whole number")
        expect(kept != total, f"{of}: all weights are counted; the sparsity is not used")
        raise CheckFailedError(f"{of}; expected {round(right):,}")


def _models() -> Iterator[tuple[nn.Module, float]]:
    """Yield networks and sparsities; what is left of the weights is no whole number, and rounded down or up."""
    for low, high in ((0.28, 0.36), (0.39, 0.47)):
        # Four layers of the same size, so that each typical mistake gives a different count.
        a, b = (int(n) for n in fresh().integers(3, 8, 2))
        kept = int(fresh().uniform(0.3, 0.4) * a * b) + fresh().uniform(low, high)
        yield (
            nn.Sequential(nn.Linear(a, b), nn.Linear(b, a), nn.Linear(a, b), nn.Linear(b, a)),
            1 - float(kept / (a * b)),
        )
    for low, high in ((0.15, 0.4), (0.6, 0.85)):
        first = nn.Linear(int(fresh().integers(3, 8)), 5)
        nn.init.zeros_(first.weight)  # the value of a weight does not matter
        nested = nn.Sequential(nn.Conv2d(3, 4, (3, 2)), nn.Sequential(first, nn.ReLU()), nn.Linear(5, 6, bias=False))
        for model in (nested, TutorialCNN()):
            total = sum(p.numel() for name, p in model.named_parameters() if name.endswith("weight"))
            kept = int(fresh().uniform(0.1, 0.35) * total) + fresh().uniform(low, high)
            yield model, 1 - float(kept / total)


@exercise
def check_global_prune(answer: Answer) -> None:
    """``answer(weights, sparsity)``: one mask per layer; active are the largest magnitudes of the whole network."""
    for weights, fraction in (
        (_layers(1.0, 10.0), 0.3),
        (_layers(20.0, 1.0, 3.0), 0.7),
        ([layer.double() for layer in _layers(5.0, 1.0)], 0.2),
        ([torch.round(2 * layer) for layer in _layers(1.0, 1.0, 1.0)], 0.0),  # many equal magnitudes
        ([torch.full((int(fresh().integers(3, 6)), 4), -1.5)], 0.0),
    ):
        total = sum(w.numel() for w in weights)
        sparsity = 1 - (int(fresh().uniform(0.2, 0.4) * total) + fraction) / total
        _compare_masks(result(answer, weights=weights, sparsity=sparsity), weights, sparsity)


def _layers(*scales: float) -> list[torch.Tensor]:
    """Return a weight per scale; layers of a larger scale keep more when all are ranked together."""
    sizes = fresh().integers(4, 8, len(scales))
    shapes = [(int(n), 7) if place % 2 == 0 else (3, int(n), 2, 2) for place, n in enumerate(sizes)]
    return [scale * draws(*shape) for scale, shape in zip(scales, shapes, strict=True)]


def _compare_masks(masks: Any, weights: list[torch.Tensor], sparsity: float) -> None:
    masks = [array(mask) for mask in masks]
    expect(
        [(m.shape, m.dtype) for m in masks] == [(tuple(w.shape), np.dtype(bool)) for w in weights],
        "expected one boolean mask per layer, each in the shape of its weight",
    )
    kept = np.concatenate([mask.ravel() for mask in masks])
    values = np.concatenate([w.numpy().ravel() for w in weights])
    magnitude, count, budget = np.abs(values), int(kept.sum()), round((1 - sparsity) * len(values))
    lost, smallest = max(magnitude[~kept], default=0.0), min(magnitude[kept], default=math.inf)
    if count == budget and lost <= smallest:
        return
    of = f"{count} of {len(kept)} weights are kept; sparsity {sparsity:.4f} leaves {budget}"
    expect(count != len(kept) - budget, f"{of}: the mask is True where a weight is removed")
    expect(
        lost <= smallest or not _is_by_layer(masks, weights, sparsity),
        f"a weight of magnitude {lost:.2f} is removed while one of {smallest:.2f} is kept in another layer: "
        "rank all layers together, not each layer separately",
    )
    if lost <= smallest:
        expect(len(np.unique(magnitude)) == len(magnitude), f"{of}: a threshold cannot split weights that are equal")
        expect(abs(count - budget) > 1, f"{of}: round the number of weights that stay to the nearest whole number")
        raise CheckFailedError(of)
    largest, removed = max(magnitude[kept], default=0.0), min(magnitude[~kept], default=math.inf)
    expect(largest > removed, "the weights of smallest magnitude are kept")
    by_value = min(values[kept], default=math.inf) >= max(values[~kept], default=-math.inf)
    expect(not by_value, "large negative weights are removed: rank by magnitude, not by value")
    raise CheckFailedError(f"a weight of magnitude {lost:.2f} is removed while one of {smallest:.2f} is kept")


def _is_by_layer(masks: list[np.ndarray], weights: list[torch.Tensor], sparsity: float) -> bool:
    """Return whether each of several layers keeps its own largest weights, the same share of each."""
    parts = [(abs(w.numpy())[m], abs(w.numpy())[~m]) for w, m in zip(weights, masks, strict=True)]
    largest = all(max(lost, default=0.0) <= min(kept, default=math.inf) for kept, lost in parts)
    return len(masks) > 1 and largest and all(abs(m.sum() - (1 - sparsity) * m.size) <= 1 for m in masks)


@exercise
def check_masked_linear(answer: Answer) -> None:
    """``answer(x, weight, mask, bias)``: the output of the layer; only active weights receive gradients."""
    for dtype in (torch.float32, torch.float64, torch.float32):
        batch, inputs, outputs = map(int, fresh().choice(np.arange(2, 9), 3, replace=False))
        x, weight, bias = (draws(*shape, dtype=dtype) for shape in ((batch, inputs), (outputs, inputs), (outputs,)))
        mask = torch.from_numpy(fresh().random((outputs, inputs)) < 0.5)
        mask[0], mask[-1, 0], mask[-1, 1] = False, True, False
        leaves = {"x": x.requires_grad_(), "weight": weight.requires_grad_(), "bias": bias.requires_grad_()}
        y = result(answer, x=x, weight=weight, mask=mask, bias=bias)
        expect(isinstance(y, torch.Tensor), "expected a tensor; without one no gradient flows")
        _compare_outputs(y.detach(), x.detach(), weight.detach(), mask, bias.detach())
        upstream = draws(batch, outputs, dtype=dtype)
        right = torch.autograd.grad(F.linear(x, weight * mask, bias), [*leaves.values()], upstream)
        _compare_gradients(y, leaves, mask, dict(zip(leaves, right, strict=True)), upstream)


def _compare_outputs(
    y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, mask: torch.Tensor, bias: torch.Tensor
) -> None:
    right = F.linear(x, weight * mask, bias)
    expect(y.shape == right.shape, f"output of shape {tuple(y.shape)}; expected {tuple(right.shape)}, [batch, out]")
    if close(y, right):
        return
    for symptom, wrong in {
        "the output is that of the dense layer: the mask has no effect": F.linear(x, weight, bias),
        "the bias is missing from the output": F.linear(x, weight * mask),
        "the bias is subtracted": F.linear(x, weight * mask, -bias),
        "the removed weights are used, and the active ones are not: the mask is inverted": F.linear(
            x, weight * ~mask, bias
        ),
        "the outputs are masked; mask the weights": F.linear(x, weight, bias) * mask.any(dim=1),
    }.items():
        expect(not close(y, wrong), symptom)
    raise CheckFailedError("the output differs from x (weight × mask)ᵀ + bias")


def _compare_gradients(
    y: torch.Tensor,
    leaves: dict[str, torch.Tensor],
    mask: torch.Tensor,
    right: dict[str, torch.Tensor],
    upstream: torch.Tensor,
) -> None:
    expect(y.requires_grad, "no gradient reaches the weight: it is detached, so the layer cannot learn")
    found = torch.autograd.grad(y, [*leaves.values()], upstream.to(y.dtype), allow_unused=True)
    for name, gradient in zip(leaves, found, strict=True):
        lost = f"no gradient reaches the {name}: it is detached, so "
        reason = "the layers before this one cannot learn" if name == "x" else "the layer cannot learn"
        expect(gradient is not None, lost + reason)
        if name == "weight":
            leak, removed = int((gradient[~mask] != 0).sum()), int((~mask).sum())
            expect(leak == 0, f"{leak} of {removed} removed weights get a gradient: it leaks past the mask")
        expect(close(gradient, right[name]), f"the gradient of the {name} is not that of x (weight × mask)ᵀ + bias")


@exercise
def check_forget(answer: Answer) -> None:
    """``answer(optimizer, weight, mask)``: in place, sets the optimizer state of only the removed weights to 0."""
    kinds: list[Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=0.1),
        lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, centered=True),
        lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
        lambda p: torch.optim.SGD(p, lr=0.1),
    ]
    for kind in kinds:
        for shape in ((int(fresh().integers(3, 6)), 7), (3, 4, 2, 2)):
            # A second parameter of the same shape, and in any order, so that the argument `weight` matters.
            weight, other = nn.Parameter(draws(*shape)), nn.Parameter(draws(*shape))
            optimizer = kind([weight, other] if fresh().random() < 0.5 else [other, weight])
            mask = to_mask(torch.from_numpy(fresh().permutation(weight.numel())[: weight.numel() // 2]), shape)
            for _ in range(3):
                optimizer.zero_grad()
                torch.autograd.backward((weight * draws(*shape)).sum() + (other * draws(*shape)).sum())
                optimizer.step()
            _compare_states(answer, optimizer, weight, mask, other)


def _compare_states(
    answer: Answer, optimizer: torch.optim.Optimizer, weight: nn.Parameter, mask: torch.Tensor, other: nn.Parameter
) -> None:
    before, name = {p: copy.deepcopy(dict(optimizer.state[p])) for p in (weight, other)}, type(optimizer).__name__
    tensors = {"weights": weight, "mask": mask, "gradients": weight.grad}
    held = {of: torch.clone(t.detach()) for of, t in tensors.items() if t is not None}
    answer(optimizer, weight, mask)
    state = optimizer.state[weight]
    expect(torch.equal(weight.detach(), held["weights"]), f"{name}: the weights themselves were changed")
    expect(torch.equal(mask, held["mask"]), f"{name}: the mask was changed")
    expect(state.keys() >= before[weight].keys(), f"{name}: state was deleted, including that of the kept weights")
    expect(alike(dict(optimizer.state[other]), before[other]), f"{name}: the state of another parameter was changed")
    for key, value in before[weight].items():
        if not torch.is_tensor(value) or value.shape != weight.shape:
            expect(alike(state[key], value), f"{name}: {key} belongs to all weights and was changed")
            continue
        now = state[key]
        expect(
            torch.is_tensor(now) and now.shape == value.shape and now.dtype == value.dtype,
            f"{name}: {key} is no longer a tensor of the weight's shape and type",
        )
        inverted = not now[mask].any() and torch.equal(now[~mask], value[~mask])
        expect(not inverted, f"{name}: {key} of kept weights was cleared instead of that of removed ones")
        expect(torch.equal(now[mask], value[mask]), f"{name}: {key} of kept weights was lost")
        left = int((now[~mask] != 0).sum())
        expect(left == 0, f"{name}: {key} of {left} removed weights is not 0: a weight that returns would drift by it")
    expect(alike(weight.grad, held.get("gradients")), f"{name}: the gradients were changed; clear the state only")
