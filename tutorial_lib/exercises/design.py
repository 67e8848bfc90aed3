"""Checks of the exercises of notebook 08."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy import stats

from truly_sparse.layers import SparseLinear
from truly_sparse.topology import to_mask

from ..compare import interval
from .checking import Answer, CheckFailedError, exercise, expect, fresh, result
from .reading import alike, array, number


@exercise
def check_interval(answer: Answer) -> None:
    """``answer(samples)``: lower and upper end of the 95% confidence interval of the mean."""
    for n in (3, 5, 10, 2):
        scale = fresh().uniform(0.2, 3)
        samples = (fresh().uniform(-100, 100) + scale * fresh().standard_normal(n)).tolist()
        given = result(answer, samples=samples)
        expect(array(given).shape == (2,), f"expected two numbers, the low and the high end; got {array(given).shape}")
        low, high = (number(end) for end in array(given))
        mean, wide, right = float(np.mean(samples)), (high - low) / 2, interval(samples)[1] - float(np.mean(samples))
        ends = f"({low:.2f}, {high:.2f})"
        expect(abs(low + high - 2 * mean) < 0.02 * right, f"{ends} is not centred on the mean {mean:.2f}")
        expect(wide > 0, f"{ends}: the low end comes first, and an interval has a width")
        _compare_widths(wide, right, samples, f"± {wide:.4g} from {n} seeds")


def _compare_widths(wide: float, right: float, samples: list[float], of: str) -> None:
    n, spread = len(samples), float(np.std(samples, ddof=1))
    error, quantile = spread / math.sqrt(n), stats.t.ppf
    if math.isclose(wide, right, rel_tol=2e-3):
        return
    for symptom, wrong in {
        f"too narrow. 1.96 is right for many samples; for {n}, use Student's t": 1.96 * error,
        "1.96 for many samples, and the spread of single runs: use Student's t and the error of the mean": 1.96
        * spread,
        f"that is the spread of single runs; divide by the square root of {n} for that of the mean": right
        * math.sqrt(n),
        "divide by the square root of the number of samples, not by the number": right / math.sqrt(n),
        "too narrow. Divide by n - 1, not n (ddof=1)": right * math.sqrt((n - 1) / n),
        f"Student's t has n - 1 = {n - 1} degrees of freedom": quantile(0.975, n) * error,
        "that is the 90% interval: 2.5% are left out at each end, not 5%": quantile(0.95, n - 1) * error,
        "that is the standard error alone; multiply it by the quantile of Student's t": error,
        "that is the standard deviation": spread,
        "that is the distance from one end to the other; take half of it on each side": 2 * right,
        "half too narrow": right / 2,
        "that is from the smallest to the largest sample": float(np.ptp(samples)) / 2,
    }.items():
        expect(not math.isclose(wide, wrong, rel_tol=2e-3), f"{of}: {symptom}")
    raise CheckFailedError(f"{of}; expected ± {right:.4g}")


@exercise
def check_growth_rule(answer: Answer) -> None:
    """``answer(layer, active, count, generator)``: new connections, preferably of inputs with few connections."""
    for outputs, inputs, count in ((30, 40, 60), (54, 26, 45), (30, 40, 60), (54, 26, 45)):
        layer, active = _uneven_layer(outputs, inputs)
        free = (~to_mask(active, (outputs * inputs,))).nonzero().squeeze(1)
        for number_of in (1, len(free), count):
            seeds = [*map(int, fresh().integers(2**31, size=3))]
            grown = [_grow(answer, layer, active, number_of, seed) for seed in seeds]
            for chosen in grown:
                _compare_places(chosen, active.numpy(), number_of, outputs * inputs)
            same = alike(grown[0], _grow(answer, layer, active, number_of, seeds[0]))
            expect(
                same,
                "the same generator gave two different answers: draw random numbers only from the given generator",
            )
        differ = not alike(grown[0], grown[1]) or not alike(grown[0], grown[2])
        expect(differ, "another generator gave the same answer: draw the candidates from the given generator")
        _compare_preference(np.concatenate(grown), active.numpy(), free.numpy(), inputs)


def _grow(answer: Answer, layer: SparseLinear, active: torch.Tensor, count: int, seed: int) -> np.ndarray:
    held, weights = active.clone(), layer.active_values().detach().clone()
    chosen = answer(layer, active, count, torch.Generator().manual_seed(seed))
    expect(chosen is not None, "it returns None; is a `return` missing?")
    expect(alike(active, held), "the argument active itself was changed; work on a copy")
    expect(alike(layer.active_values(), weights), "the layer itself was changed; return the new connections")
    return array(chosen)


def _compare_places(chosen: np.ndarray, active: np.ndarray, count: int, size: int) -> None:
    expect(chosen.ndim == 1, f"an array of shape {chosen.shape}; expected flat indices, ({count},)")
    expect(chosen.dtype != bool, "this is a mask; return flat indices")
    expect(len(chosen) == count, f"{len(chosen)} connections grown, not {count}: nnz changes")
    expect(chosen.dtype.kind in "iu", "these are real numbers; return flat indices, which are whole numbers")
    expect(chosen.min() >= 0 and chosen.max() < size, f"flat indices go from 0 to {size - 1}")
    twice = count - len(np.unique(chosen))
    expect(not twice, f"{twice} connections were chosen twice")
    taken = len(np.intersect1d(chosen, active))
    expect(not taken, f"{taken} grown connections are active already: grown and active must be disjoint")
    expect((np.diff(chosen) > 0).all(), "the indices are not sorted; the layer expects sorted indices")


def _compare_preference(grown: np.ndarray, active: np.ndarray, free: np.ndarray, inputs: int) -> None:
    """Compare the mean number of connections of what was grown with that of all free places."""

    def mean_degrees(unit: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
        degree = np.bincount(unit(active), minlength=int(unit(np.append(free, active)).max()) + 1)
        return float(degree[unit(grown)].mean()), float(degree[unit(free)].mean())

    chosen, usual = mean_degrees(lambda place: place % inputs)
    chosen_outputs, usual_outputs = mean_degrees(lambda place: place // inputs)
    if chosen < 0.5 * usual:
        return
    numbers = f"the inputs chosen have {chosen:.1f} active connections on average, those of all free places {usual:.1f}"
    expect(
        chosen_outputs > 0.4 * usual_outputs,
        f"it prefers outputs with few connections; expected inputs with few connections: {numbers}",
    )
    expect(chosen < 1.3 * usual, f"inputs with many connections are chosen, not those with few: {numbers}")
    raise CheckFailedError(f"inputs with few connections are chosen no more often than others: {numbers}")


def _uneven_layer(outputs: int, inputs: int) -> tuple[SparseLinear, torch.Tensor]:
    """Return a layer, and those of its connections that are active after pruning.

    In the layer every input has as many connections as any other; of those that are active after pruning, a few
    inputs and a few outputs have most.
    """
    chance = np.outer(fresh().permutation(outputs) + 1.0, fresh().permutation(inputs) + 1.0)
    chance **= 2
    chance[-1], chance[:, -1] = 0, 0  # the last output and the last input have lost all connections
    active = np.sort(fresh().choice(outputs * inputs, 200, replace=False, p=(chance / chance.sum()).ravel()))
    mask = np.zeros((outputs, inputs), dtype=bool)
    mask.ravel()[active] = True
    most = int(mask.sum(axis=0).max())
    for column in mask.T:
        others = np.flatnonzero(~column)
        column[fresh().permutation(others)[: most - int(column.sum())]] = True
    connections = torch.from_numpy(np.flatnonzero(mask))
    return SparseLinear(inputs, outputs, connections=connections), torch.from_numpy(active)


@exercise
def check_equal_width(answer: Answer) -> None:
    """``answer(budget, inputs, outputs)``: largest width of two equal hidden layers within a budget of weights."""
    for spare in ("none", "most", "some", "too little"):
        # In the first case the last layer has a large share of the weights, in the others a small one.
        ranges = ((20, 60), (50, 100), (100, 400)) if spare == "none" else ((200, 800), (5, 20), (100, 400))
        inputs, outputs, right = (int(fresh().integers(*limits)) for limits in ranges)
        right = 0 if spare == "too little" else 2 * (right // 2) + (spare == "none")  # one is odd, others are even
        least, most = (_mlp_weights(width, inputs, outputs) for width in (right, right + 1))
        budget = {"none": least, "most": most - 1}.get(spare, int(fresh().integers(max(least, 1), most)))
        given = number(result(answer, budget=budget, inputs=inputs, outputs=outputs))
        expect(given.is_integer(), f"a width of {given:.6g}: the number of neurons must be a whole number")
        expect(given <= budget, f"a width of {given:.6g} has more weights than the budget of {budget:,}")
        _compare_neurons(int(given), right, budget, inputs, outputs)


def _compare_neurons(width: int, right: int, budget: int, inputs: int, outputs: int) -> None:
    of, weights = f"width {width:,}", _mlp_weights(width, inputs, outputs)
    if width == right:
        return
    expect(width >= 0, f"{of}: a number of neurons is not negative")
    if width > right + 1:
        flat = budget // (inputs + outputs)
        expect(width != flat, f"{of}: the weights between the two hidden layers are not counted")
        short = next(w for w in range(budget + 2) if (w + 1) * (inputs + w + 1) > budget)
        expect(width != short, f"{of}: the weights of the last layer are not counted")
    expect(weights <= budget, f"{of} has {weights:,} weights, more than the budget of {budget:,}")
    wider = _mlp_weights(width + 1, inputs, outputs)
    raise CheckFailedError(
        f"{of} is not the largest: {width + 1:,} has {wider:,} weights, still within the budget of {budget:,}"
    )


def _mlp_weights(width: int, inputs: int, outputs: int) -> int:
    return inputs * width + width * width + width * outputs
