"""The large numbers of a dense weight's gradient, for growth by gradient: the others are never written to memory.

Each thread sums the gradient of sixteen outputs at a time in memory of its own, which stays in its cache, and keeps the
numbers whose magnitude reaches a bound.
"""
# Compiled functions have no type hints: numba infers them.
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import pad

from .kernel import kernel, run_by_all
from .plan import address
from .simd import NATIVE, entry, floats, fma, load, longs, lowest, octets, store, store_reaching, words, zeros
from .threads import in_turn, use_threads

ROWS = 16  # outputs of a piece
WIDTH = 64 if NATIVE == 16 else 16  # inputs whose gradients for four outputs are summed in registers
WHOLE = 64  # inputs and outputs are padded to a multiple of this
FINITE = np.float32(np.inf)  # is above all finite numbers
MOST_SAMPLES = 2**11  # more are copied and multiplied better by torch
FIELDS = "x g samples inputs columns outputs outside borders sums reach places numbers counts room"
WORK = np.dtype([(name, np.int64) for name in FIELDS.split()] + [("bound", np.float32)])


@in_turn
@entry
def _run(loop, work, pieces, threads):
    run_by_all(loop, 0, work, pieces, threads)  # in a function whose compiled code is stored


def gradient_above(
    batches: Sequence[tuple[torch.Tensor, torch.Tensor]], bound: float, outside: np.ndarray, most: int
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return where the gradient of a linear layer's dense weight reaches a bound in magnitude, or is not finite.

    Args:
        batches: inputs of the layer, ``[B, in]``, each with the gradient of its result, ``[B, out]``.
        bound: above 0.
        outside: places that do not count as long as their gradient is finite: flat indices, int64, sorted.
        most: how many places to return at most.

    Returns:
        Flat indices, int64, sorted, and the gradient there. None if there are more than ``most``, for many samples, and
        for tensors other than float32 on the CPU.
    """
    samples, threads = sum(len(x) for x, _ in batches), use_threads()
    if samples > MOST_SAMPLES or any(t.dtype != torch.float32 or not t.is_cpu for batch in batches for t in batch):
        return None
    tiles, rows = _in_tiles([x for x, _ in batches], WIDTH), _in_tiles([grad for _, grad in batches], ROWS)
    inputs, outputs = batches[0][0].shape[1], batches[0][1].shape[1]
    columns = -(-inputs // WHOLE) * WHOLE
    sums, reach = np.empty((threads, ROWS * columns), np.float32), np.empty((threads, ROWS * columns // 8), np.uint8)
    # Each thread has room for all, so that it does not depend on their number what is found.
    places, numbers = np.empty((threads, most + 1), np.int64), np.empty((threads, most + 1), np.float32)
    counts, pieces = np.empty(threads, np.int64), -(-outputs // ROWS)
    outside = np.ascontiguousarray(outside)
    borders = np.searchsorted(outside, np.arange(outputs + 1, dtype=np.int64) * inputs)  # where each output's begin
    at = (address(array) for array in (outside, borders, sums, reach, places, numbers, counts))
    numbers_of = (tiles.data_ptr(), rows.data_ptr(), samples, inputs, columns, outputs, *at, most, bound)
    work = np.array([numbers_of], WORK)
    _run(_above.address, address(work), pieces, threads)
    if counts.sum() > most:
        return None
    found = (np.concatenate([of[:count] for of, count in zip(all_, counts, strict=True)]) for all_ in (places, numbers))
    where, gradient = map(torch.from_numpy, found)
    return where, gradient


def _in_tiles(batches: list[torch.Tensor], width: int) -> torch.Tensor:
    """Copy batches ``[B, n]`` to ``[tiles, all B, width]``, with zeros behind the last column."""
    numbers = torch.cat([batch.contiguous() for batch in batches])
    padded = pad(numbers, (0, -numbers.shape[1] % WHOLE))
    return padded.view(len(numbers), padded.shape[1] // width, width).transpose(0, 1).contiguous()


@kernel(None, WORK)
def _above(_, work, first, last, thread):
    """Find the large numbers of pieces of ``ROWS`` outputs; a tile of the input serves all of them."""
    samples, inputs, columns, room, bound, count = work.samples, work.inputs, work.columns, work.room, work.bound, 0
    x, g, sums = floats(work.x), floats(work.g), floats(work.sums + thread * 4 * ROWS * columns)
    start = work.reach + thread * ROWS * (columns // 8)
    reach, reach_words = octets(start), words(start)
    outside, borders = longs(work.outside), longs(work.borders)
    places, numbers = longs(work.places + thread * 8 * (room + 1)), floats(work.numbers + thread * 4 * (room + 1))
    zero = zeros(WIDTH)
    for piece in range(first, last):
        for tile in range(0, columns, WIDTH):
            for r in range(0, ROWS, 4):
                s0, s1, s2, s3 = zero, zero, zero, zero
                for b in range(samples):
                    row, at = load(x, tile * samples + b * WIDTH, zero), (piece * samples + b) * ROWS + r
                    s0, s1 = fma(g[at], row, s0), fma(g[at + 1], row, s1)
                    s2, s3 = fma(g[at + 2], row, s2), fma(g[at + 3], row, s3)
                to = r * columns + tile
                store(sums, to, s0)
                store(sums, to + columns, s1)
                store(sums, to + 2 * columns, s2)
                store(sums, to + 3 * columns, s3)
                store_reaching(reach, to // 8, s0, bound)
                store_reaching(reach, (to + columns) // 8, s1, bound)
                store_reaching(reach, (to + 2 * columns) // 8, s2, bound)
                store_reaching(reach, (to + 3 * columns) // 8, s3, bound)
        for r in range(min(ROWS, work.outputs - piece * ROWS)):
            o, start = piece * ROWS + r, r * columns
            for n in range(borders[o], borders[o + 1]):
                at = start + outside[n] - o * inputs
                if abs(sums[at]) < FINITE:
                    reach_words[at // 32] &= ~(1 << (at % 32))
            for word in range(start // 32, (start + columns) // 32):
                bits = reach_words[word]
                while bits:
                    at, k = min(count, room), 32 * word + lowest(bits) - start
                    places[at], numbers[at] = o * inputs + k, sums[start + k]  # writing always is faster than a branch
                    count += k < inputs
                    bits &= bits - 1
    longs(work.counts)[thread] = count
