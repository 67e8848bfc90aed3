"""Checks of the exercises of notebook 09."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from .checking import Answer, exercise, expect, fresh, positions
from .reading import alike
from .speed import compare_all


@exercise
def check_row_loads(answer: Answer) -> None:
    """``answer(rows, columns)``: rows loaded per weight in a training step, by blocks of rows × columns."""
    drawn = [tuple(map(int, fresh().choice([1, 2, 3, 4, 5, 8, 16], 2, replace=False))) for _ in range(4)]
    cases = [{"rows": r, "columns": c} for r, c in (*drawn, (1, 1), (4, 4), (4, 1))]
    compare_all(answer, cases, _row_loads, _ROW_LOADS_MISTAKES, "blocks of {rows}×{columns}")


def _row_loads(rows: int, columns: int) -> float:
    return 2 * (rows + columns) / (rows * columns)


# Symptom → the answer with this mistake.
_ROW_LOADS_MISTAKES: dict[str, Callable[..., float]] = {
    "these are the loads of a whole block; divide by its weights": lambda rows, columns: 2 * (rows + columns),
    "that is half: the gradient of the weights loads rows of both kinds once more": lambda rows, columns: (
        (rows + columns) / (rows * columns)
    ),
    "half the loads of a whole block: divide by its weights, and count the weights' gradient": lambda rows, columns: (
        rows + columns
    ),
    "the three products do not load the same rows": lambda rows, columns: 3 / rows,
    "that is the forward pass alone; a step has three products": lambda rows, columns: 1 / rows,
    "that is the input gradient alone; a step has three products": lambda rows, columns: 1 / columns,
    "the gradient of the inputs is left out": lambda rows, columns: (rows + 2 * columns) / (rows * columns),
    "the forward pass is left out": lambda rows, columns: (2 * rows + columns) / (rows * columns),
    "the weights of a block share the rows that their gradients need: load each once": lambda rows, columns: (
        (rows + columns) / (rows * columns) + 2
    ),
    "four loads are those of a single weight: blocks share rows": lambda rows, columns: 4.0,
    "these are weights per load; divide the other way round": lambda rows, columns: (
        rows * columns / (2 * (rows + columns))
    ),
}


@exercise
def check_even_blocks(answer: Answer) -> None:
    """``answer(grid, count, generator)``: blocks drawn at random, as many in each row and column of the grid."""
    for tall, wide in ((8, 12), (6, 15), (9, 4), (5, 7)):
        for count in (tall * wide, int(fresh().integers(1, tall * wide)), 2 * max(tall, wide) + 1):
            seeds = [*map(int, fresh().integers(2**31, size=5))]
            drawn = [_drawn(answer, tall, wide, count, seed) for seed in seeds]
            expect(
                alike(drawn[0], _drawn(answer, tall, wide, count, seeds[0])),
                "the same generator gave two different answers: draw random numbers only from the given generator",
            )
        differ = any(not alike(drawn[0], other) for other in drawn[1:])
        expect(differ, "another generator gave the same blocks: draw them from the given generator")
    few = np.concatenate([_drawn(answer, 5, 7, 3, int(seed)) for seed in fresh().integers(2**31, size=60)])
    for side, size, used in (("rows", 5, few // 7), ("columns", 7, few % 7)):
        never = np.setdiff1d(np.arange(size), used)
        expect(
            not never.size,
            f"{side} {never.tolist()} got no block in 60 draws of 3 from 5×7: each must have the same chance",
        )


def _drawn(answer: Answer, tall: int, wide: int, count: int, seed: int) -> np.ndarray:
    """Return the blocks of one call, sorted, after checking that they are different and evenly distributed."""
    given = answer((tall, wide), count, torch.Generator().manual_seed(seed))
    expect(given is not None, "it returns None; is a `return` missing?")
    chosen = positions(given, tall * wide, "flat indices (row × *wide* + column)", "blocks")
    of = f"{count} blocks in a grid of {tall}×{wide}"
    expect(len(chosen) == count, f"{of}: {len(chosen)} are drawn")
    for side, per in (
        ("row", np.bincount(chosen // wide, minlength=tall)),
        ("column", np.bincount(chosen % wide, minlength=wide)),
    ):
        uneven = f"{of}: one {side} has {per.max()} blocks, another {per.min()}; they may differ by one"
        uneven += " (is it row × *wide* + column?)"
        expect(per.max() - per.min() <= 1, uneven)
    return chosen
