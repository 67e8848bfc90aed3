"""Checks of the exercises of notebooks 03 and 04."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from truly_sparse.interface import weight_layers, weight_shape
from truly_sparse.rules import gradient_grow, magnitude_prune
from truly_sparse.topology import layer_nnz

from ..models import TutorialCNN
from .checking import Answer, close, exercise, expect, result


@exercise
def check_prune(answer: Answer) -> None:
    """``answer(values, count)``: positions of the ``count`` weights of smallest magnitude."""
    values = torch.tensor([0.5, -3.0, 0.1, 2.0, -0.2, -0.05])
    chosen = torch.as_tensor(result(answer, values, 3))
    expect(not chosen.is_floating_point(), "these are values of weights; return their positions")
    expect(chosen.dtype != torch.bool, "this is a mask; return positions")
    places = sorted(chosen.tolist())
    expect(places != [0, 1, 3], "the largest weights were chosen")
    expect(1 not in places, "-3.0 was pruned, a weight of large magnitude: rank by magnitude, not by value")
    expect(
        places == magnitude_prune(values, 3).tolist(), f"positions {places} of {values.tolist()}; expected [2, 4, 5]"
    )
    tied = len(result(answer, torch.ones(6), 2))
    expect(tied == 2, f"{tied} of six equal weights are pruned, not 2: a threshold takes all ties, and nnz changes")


@exercise
def check_grow(answer: Answer) -> None:
    """``answer(gradient, active, count)``: flat indices of the largest gradients among inactive connections."""
    gradient = torch.tensor([[0.1, -3.0, 0.2, 5.0], [0.3, 0.1, -4.0, 9.0], [1.0, 0.0, 2.0, -0.5]])
    active, original = torch.tensor([3, 7, 9]), gradient.clone()
    chosen = torch.as_tensor(result(answer, gradient, active, 3))
    expect(torch.equal(gradient, original), "the gradient itself was changed; change a copy")
    expect(not chosen.is_floating_point(), "these are values of gradients; return their flat indices")
    places = sorted(chosen.tolist())
    expect(len(set(places)) == 3, f"indices {places}; expected 3 different ones")
    free = [place for place in range(gradient.numel()) if place not in active]
    ranks = [free.index(place) for place in (1, 6, 10)]
    expect(
        places != ranks, f"{places} are positions in the list of inactive connections; translate them to flat indices"
    )
    taken = sorted(set(places) & set(active.tolist()))
    expect(not taken, f"connections {taken} are active already: grown and active must be disjoint, or nnz falls")
    expect(places != [4, 8, 10], "-4.0 and -3.0 are missing: rank gradients by magnitude, not by value")
    expect(places == gradient_grow([gradient], active, 3).tolist(), f"indices {places}; expected [1, 6, 10]")


@exercise
def check_prune_share(answer: Answer) -> None:
    """``answer(step, total_steps, initial, until)``: share to replace; a cosine from ``initial`` to 0, then 0."""
    total, initial, until = 1000, 0.3, 0.75
    first = result(answer, 0, total, initial, until)
    expect(
        not math.isclose(first, 2 * initial),
        f"it starts at {first:.2f}, twice the initial share: a factor of one half is missing",
    )
    expect(
        not math.isclose(first, 0, abs_tol=1e-9), "it starts at 0 and grows; the first updates should be the largest"
    )
    expect(math.isclose(first, initial), f"it starts at {first:.3f}; expected {initial}")
    end = answer(750, total, initial, until)
    expect(
        abs(end) < 1e-9,
        f"at step 750 it is still {end:.3f}: the cosine must reach 0 at `until`, not at the end of training",
    )
    late = answer(900, total, initial, until)
    expect(abs(late) < 1e-9, f"at step 900 of 1000 it is {late:.3f}: after `until`, rewiring must stop")
    middle = answer(250, total, initial, until)
    expect(
        math.isclose(middle, 0.225),
        f"after a third of the schedule it is {middle:.3f}; expected 0.225: is it a cosine?",
    )


@exercise
def check_erk(answer: Answer) -> None:
    """``answer(shapes, budget)``: ERK's weights per layer as real numbers; no layer gets more than its size."""
    model = TutorialCNN()
    shapes = [weight_shape(layer) for layer in weight_layers(model).values()]
    right = list(layer_nnz(model, 0.95, "erk").values())
    shares = [float(share) for share in result(answer, shapes, sum(right))]
    said = ", ".join(f"{share:,.0f}" for share in shares)
    expect(max(shares) > 1, f"{said}: these are densities; return numbers of weights")
    uniform = list(layer_nnz(model, 0.95, "uniform").values())
    expect(
        not _near(shares, uniform), f"{said}: that is the uniform scheme; ERK divides the sum of a shape by its product"
    )
    er = list(layer_nnz(model, 0.95, "er").values())
    expect(not _near(shares, er), f"{said}: that is ER; for ERK, add the kernel's height and width to the sum")
    for shape, share in zip(shapes, shares, strict=True):
        size = math.prod(shape)
        expect(
            share <= size + 1e-6, f"a layer of {size:,} weights was given {share:,.0f}: cap it and distribute the rest"
        )
    expect(
        abs(sum(shares) - sum(right)) < 1,
        f"the shares add up to {sum(shares):,.0f}, not {sum(right):,}: distribute the excess of full layers",
    )
    expect(_near(shares, right), f"{said}; expected about {', '.join(f'{n:,}' for n in right)}")


def _near(shares: Sequence[float], counts: Sequence[int]) -> bool:
    return all(abs(share - count) <= 1 for share, count in zip(shares, counts, strict=True))


# Four moments of eight connections. 1 is pruned and grows back; 4 is born at moment 1, is pruned, and grows back.
_MASKS = np.array(
    [
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 0, 0],
        [0, 1, 0, 0, 1, 1, 0, 0],
    ],
    dtype=bool,
)


@exercise
def check_exploration(answer: Answer) -> None:
    """``answer(masks)``: for each moment, the share of all connections that have been active up to then."""
    rates = np.asarray(result(answer, _MASKS.copy()), dtype=float)
    expect(rates.shape == (4,), f"expected one rate per moment, shape (4,); got {rates.shape}")
    seen = np.logical_or.accumulate(_MASKS)
    expect(
        not close(rates, _MASKS.mean(axis=1)),
        "that is the density of each moment; exploration includes the moments before",
    )
    expect(
        not close(rates, seen.sum(axis=1)), "these are numbers of connections; divide by the number of all connections"
    )
    expect(not close(rates, 100 * seen.mean(axis=1)), "these are percent; a share is from 0 to 1")
    expect(
        not close(rates, seen.sum(axis=1) / 3),
        "divided by the number of active connections; divide by the number of all connections",
    )
    expect(rates.max() <= 1, f"{100 * rates.max():.0f}% explored: connections that grow back are counted twice")
    expect(close(rates, seen.mean(axis=1)), f"{rates.tolist()}; expected {seen.mean(axis=1).tolist()}")


@exercise
def check_survival(answer: Answer) -> None:
    """``answer(masks, birth)``: from ``birth`` on, the share of those born then that were never pruned since."""
    shares = np.asarray(result(answer, _MASKS.copy(), 1), dtype=float)
    expect(shares.shape == (3,), f"expected one share per moment from birth on, shape (3,); got {shares.shape}")
    everyone = np.logical_and.accumulate(_MASKS[1:])
    expect(
        not close(shares, everyone.mean(axis=1) * 8 / 3),
        "connection 0 was active before: count only connections born at this moment",
    )
    expect(
        not close(shares, [1, 0.5, 1]),
        "connection 4 was pruned and grew back: that is overlap; survival cannot rise again",
    )
    expect(
        not close(shares, [2 / 3, 1 / 3, 1 / 3]),
        "divided by all active connections; divide by those born at this moment",
    )
    expect(close(shares, [1, 0.5, 0.5]), f"{shares.tolist()}; expected [1, 0.5, 0.5]")
    first = np.asarray(answer(_MASKS.copy(), 0), dtype=float)
    expect(
        close(first, [1, 1 / 3, 1 / 3, 0]),
        f"{first.tolist()} for birth 0; all connections of moment 0 are born then; masks[-1] is the last moment",
    )
