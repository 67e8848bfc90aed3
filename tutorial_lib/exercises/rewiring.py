"""Checks of the exercises of notebook 03."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from truly_sparse.interface import weight_layers, weight_shape

from ..models import TutorialCNN
from .checking import Answer, CheckFailedError, diagnose, exercise, expect, fresh, positions, result, shuffled
from .reading import close, in_short, number


@exercise
def check_prune(answer: Answer) -> None:
    """``answer(values, count)``: positions of the ``count`` weights of smallest magnitude."""
    for values, count in (
        (_signed(14), 5),
        (_signed(9, torch.float64), 3),
        (_signed(30), 1),
        (torch.from_numpy(fresh().choice([-2.0, -1.0, 0.0, 1.0, 2.0], 40)).float(), 13),
        (torch.full((8,), -0.5), 3),
    ):
        chosen = positions(result(answer, values=values, count=count), len(values), "positions", "weights")
        magnitude, size = values.abs().numpy(), len(values)
        pruned, smallest = magnitude[chosen], np.sort(magnitude)[:count]
        if close(np.sort(pruned), smallest):
            continue
        of = f"{len(chosen)} of {size} weights are pruned, not {count}"
        kept = np.delete(magnitude, chosen)
        threshold = len(chosen) != count and max(pruned, default=0) < min(kept, default=math.inf)
        tied = len(np.unique(magnitude)) < size
        expect(not (threshold and tied), f"{of}: a threshold takes all weights that are equal, and nnz changes")
        expect(len(chosen) == count, of)
        expect(not close(np.sort(pruned), np.sort(magnitude)[-count:]), "the largest weights were chosen")
        worst = values[chosen[int(pruned.argmax())]]
        by_value = close(np.sort(values.numpy()[chosen]), np.sort(values.numpy())[:count])
        expect(not by_value, f"{worst:.2f} was pruned, a weight of large magnitude: rank by magnitude, not by value")
        raise CheckFailedError(
            f"positions {chosen.tolist()} of {in_short(values)}: {worst:.2f} is not among the smallest"
        )


def _signed(size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return different numbers of which every second one is negative, in random order."""
    numbers = (np.arange(1, size + 1) / 8 + fresh().uniform(0, 0.05, size)) * (-1) ** np.arange(size)
    return torch.from_numpy(fresh().permutation(numbers)).to(dtype)


@exercise
def check_grow(answer: Answer) -> None:
    """``answer(gradient, active, count)``: flat indices of the largest gradients among inactive connections."""
    for shape, dtype, zeros in (
        ((3, 8), torch.float32, 0),
        ((4, 3, 2, 2), torch.float64, 0),
        ((6, 5), torch.float32, 12),
        ((4, 9), torch.float32, 16),
    ):
        gradient = _signed(math.prod(shape), dtype)
        places = torch.from_numpy(fresh().permutation(len(gradient)))
        # Most inactive connections of some layers get no gradient, and must be grown nevertheless.
        active, flat = places[: len(gradient) // 3].sort().values, gradient
        flat[places[len(gradient) // 3 :][:zeros]] = 0
        count = (len(flat) - len(active)) // (1 if zeros else 3)
        given = result(answer, gradient=flat.view(shape), active=active, count=count)
        _compare_grown(given, flat.numpy(), active.numpy(), count)


def _compare_grown(given: Any, flat: np.ndarray, active: np.ndarray, count: int) -> None:
    chosen = positions(given, len(flat), "flat indices", "gradients")
    free = np.setdiff1d(np.arange(len(flat)), active)
    magnitude, best = np.abs(flat), np.sort(np.abs(flat[free]))[-count:]
    taken = np.intersect1d(chosen, active)
    if len(chosen) == count and not len(taken) and close(np.sort(magnitude[chosen]), best):
        return
    expect(len(chosen) == count, f"{len(chosen)} connections are grown, not {count}: nnz changes")
    ranks = np.sort(magnitude[free].argsort()[-count:])
    expect(
        not close(chosen, ranks) or count == len(free),
        f"{chosen.tolist()} are positions in the list of inactive connections; translate them to flat indices",
    )
    expect(
        not len(taken),
        f"connections {taken.tolist()} are active already: grown and active must be disjoint, or nnz falls",
    )
    by_value = np.sort(flat[free])[-count:]
    expect(not close(np.sort(flat[chosen]), by_value), "large negative ones are missing: rank gradients by magnitude")
    expect(not close(np.sort(magnitude[chosen]), np.sort(magnitude[free])[:count]), "the smallest gradients are grown")
    missing = np.setdiff1d(free, chosen)
    lost, least = missing[magnitude[missing].argmax()], chosen[magnitude[chosen].argmin()]
    raise CheckFailedError(
        f"connection {least} of gradient {flat[least]:.2f} is grown, connection {lost} of {flat[lost]:.2f} is not"
    )


@exercise
def check_prune_share(answer: Answer) -> None:
    """``answer(step, total_steps, initial, until)``: share to replace; a cosine from ``initial`` to 0, then 0."""
    for _ in range(4):
        # So that the end of the rewiring is a step, and its number is exact.
        total, initial = 64 * int(fresh().integers(3, 30)), float(fresh().uniform(0.1, 0.45))
        until = float(fresh().integers(24, 56)) / 64
        end = round(until * total)
        middle, late = round(fresh().uniform(0.2, 0.4) * end), round(fresh().uniform(0.55, 0.9) * end)
        for step in (0, end, (end + total) // 2, total, middle, late):
            share = result(answer, step=step, total_steps=total, initial=initial, until=until)
            right = _cosine(step / end, initial) if step < end else 0.0
            of = f"at step {step} of {total}, with until={until:.3f}, it is {number(share):.3f}"
            diagnose(share, right, dict(_mistakes(step, total, initial, until)), of)


def _cosine(progress: float, initial: float) -> float:
    return initial * (1 + math.cos(math.pi * progress)) / 2


def _mistakes(step: int, total: int, initial: float, until: float) -> Iterator[tuple[str, float]]:
    """Yield symptoms, and the share of an answer with each."""
    progress = min(1.0, step / (until * total))
    yield "twice the right share: a factor of one half is missing", 2 * _cosine(progress, initial)
    yield "it starts at 0 and grows; the first updates should be the largest", _cosine(1 - progress, initial)
    if step == until * total:
        yield "the cosine must reach 0 at `until`, not at the end of training", _cosine(step / total, initial)
    yield "after `until`, rewiring must stop: a cosine rises again", _cosine(step / (until * total), initial)
    if 0 < progress < 1:
        yield "it falls along a straight line; is it a cosine?", initial * (1 - progress)
        yield "it falls along a quarter of a cosine; take half of one", initial * math.cos(math.pi * progress / 2)
    if step == 0:
        yield "the first share should be `initial`", 1.0


@exercise
def check_erk(answer: Answer) -> None:
    """``answer(shapes, budget)``: ERK's weights per layer as real numbers; no layer gets more than its size."""
    model = TutorialCNN()
    real = [tuple(weight_shape(layer)) for layer in weight_layers(model).values()]
    for shapes, budget in (
        (real, round(0.05 * sum(map(math.prod, real)))),
        *map(_network, (1, 2, 3)),
    ):
        given = result(answer, shapes=shapes, budget=budget)
        shares = [number(share) for share in given]
        expect(len(shares) == len(shapes), f"{len(shares)} shares for {len(shapes)} layers")
        sizes, right = [*map(math.prod, shapes)], erk_shares(shapes, budget)
        if close(given, right):
            continue
        said = f"{in_short(shares)} of layers of {in_short(sizes)}, budget {budget}"
        _explain_shares(shares, shapes, budget, said)
        raise CheckFailedError(f"{said}; expected {in_short(right)}")


def erk_shares(
    shapes: Sequence[Sequence[int]], budget: float, demand: Callable[[Sequence[int]], float] = sum, rounds: int = 99
) -> list[float]:
    """Return each layer's share of the budget; a full layer is left out of the next round."""
    sizes, full, shares = [*map(math.prod, shapes)], set[int](), [0.0]
    for _ in range(rounds):
        scale = (budget - sum(sizes[i] for i in full)) / sum(demand(s) for i, s in enumerate(shapes) if i not in full)
        shares = [float(sizes[i]) if i in full else scale * demand(s) for i, s in enumerate(shapes)]
        over = {i for i, share in enumerate(shares) if share > sizes[i]}
        if not over - full:
            break
        full |= over
    return shares


def _explain_shares(shares: list[float], shapes: Sequence[Sequence[int]], budget: int, said: str) -> None:
    """Raise :class:`CheckFailedError` if the shares have a known fault."""
    sizes, right, once = [*map(math.prod, shapes)], erk_shares(shapes, budget), erk_shares(shapes, budget, rounds=1)
    expect(max(shares) > 1, f"{said}: these are densities; return numbers of weights")
    uniform = erk_shares(shapes, budget, demand=math.prod)
    expect(not close(shares, uniform), f"{said}: that is the uniform scheme; ERK takes the sum of a shape")
    er = erk_shares(shapes, budget, demand=lambda s: (s[0] + s[1]) * math.prod(s[2:]))
    expect(not close(shares, er), f"{said}: that is ER; for ERK, add the kernel's height and width to the sum")
    flat = erk_shares(shapes, budget, demand=lambda s: s[0] + s[1])
    expect(not close(shares, flat), f"{said}: the kernel's height and width are not in the sum")
    for rounds in (1, 99):
        density = erk_shares(shapes, budget, demand=lambda s: sum(s) / math.prod(s), rounds=rounds)
        symptom = "that is sum divided by product, a density; the number of weights follows the sum alone"
        expect(not close(shares, density), f"{said}: {symptom}")
    expect(
        not close(shares, np.round(right), 1e-9) and not close(shares, np.floor(right), 1e-9),
        f"{said}: rounded to whole numbers; return real numbers, which add up to the budget",
    )
    for share, size in zip(shares, sizes, strict=True):
        overflow = f"a layer of {size:,} weights was given {share:,.0f}"
        again = share > size + 1e-3 and not close(shares, once) and close(sum(shares), budget)
        expect(not again, f"{overflow}: it overflows when the rest is shared out; repeat until no layer does")
        expect(share <= size + 1e-3, f"{overflow}: cap it and distribute the rest")
    total = f"the shares add up to {sum(shares):,.1f}, not {budget:,}"
    expect(not close(shares, np.minimum(once, sizes)), f"{total}: distribute the excess of full layers")
    expect(close(sum(shares), budget), f"{total}: {said}")


def _network(rounds: int) -> tuple[list[tuple[int, ...]], int]:
    """Return shapes and a budget that take this many rounds until no layer overflows."""
    low = [(4, 1, 3, 3), (10, 4, 3, 5), (40, 60), (20, 40), (3, 6)]
    high = [(9, 4, 4, 4), (17, 9, 4, 6), (60, 90), (40, 60), (11, 20)]
    while True:
        shapes = shuffled([tuple(map(int, fresh().integers(a, b))) for a, b in zip(low, high, strict=True)])
        sizes = [*map(math.prod, shapes)]
        budget = int(fresh().uniform(0.1, 0.7) * sum(sizes))
        tries = (erk_shares(shapes, budget, rounds=n) for n in itertools.count(1))
        if rounds == 1 + next(n for n, shares in enumerate(tries) if np.less_equal(shares, sizes).all()):
            return shapes, budget
