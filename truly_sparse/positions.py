"""Sorted lists of positions: checks, membership, merging, and the choice of the largest scores.

A list of positions is int64 ``[n]``, sorted, without duplicates. All functions take linear time. Where numba works, the
loops are compiled (``position_loops.py``); numpy does the same elsewhere.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch

from .arguments import shown
from .errors import InvalidArgumentError

LARGEST = 2**63 - 1  # of int64
SAMPLE = 2**14  # scores from which the threshold of a selection is estimated


@functools.cache
def loops_or_none() -> ModuleType | None:
    """Return the compiled loops; None where numba is missing or cannot compile, which one of them shows."""
    try:
        from . import position_loops

        position_loops.first_wrong(np.empty(0, np.int64), 0)
    except Exception:  # numba raises several kinds
        return None
    return position_loops


def _is_list(flat: object) -> bool:
    return isinstance(flat, torch.Tensor) and flat.dtype == torch.int64 and flat.dim() == 1 and not flat.is_meta


def check_places(name: str, flat: torch.Tensor, shape: Sequence[int]) -> np.ndarray:
    """Return flat indices as a numpy array after checking that all of them lie inside a dense weight, in any order.

    Args:
        name: what an error message calls them.
        flat: int64, of one dimension.
        shape: of the dense weight.

    Raises:
        InvalidArgumentError: wrong dtype or dimension, or out of range.
    """
    if not _is_list(flat):
        what = f"{flat.dtype} {tuple(flat.shape)} on {flat.device}" if isinstance(flat, torch.Tensor) else shown(flat)
        raise InvalidArgumentError(f"{name} are {what}; give a one-dimensional int64 tensor.")
    positions = flat.detach().cpu().numpy()
    size, low, high = math.prod(shape), positions.min(initial=0), positions.max(initial=-1)
    if low < 0 or high >= size:
        bad = low if low < 0 else high
        raise InvalidArgumentError(f"{name}: {bad} is out of range for shape {tuple(shape)}; use 0 to {size - 1}.")
    return positions


def check_connections(name: str, flat: torch.Tensor, shape: Sequence[int]) -> np.ndarray:
    """Return flat indices as a numpy array after checking that they are a topology: sorted, without duplicates.

    Raises:
        InvalidArgumentError: wrong dtype or dimension, out of range, unsorted or duplicate.
    """
    loops, size = loops_or_none(), math.prod(shape)
    if loops is not None and _is_list(flat) and size <= LARGEST:
        positions = flat.detach().numpy(force=True)
        if loops.first_wrong(positions, size) == len(positions):
            return positions
    positions = check_places(name, flat, shape)
    wrong = np.flatnonzero(positions[1:] <= positions[:-1])
    if len(wrong):
        before, after = positions[wrong[0]], positions[wrong[0] + 1]
        what = "duplicate" if before == after else "unsorted"
        raise InvalidArgumentError(f"{name} are {what}: {before} is followed by {after}; use torch.unique.")
    return positions


def contained(numbers: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """Tell for each position of a list whether it is in another list.

    Args:
        numbers: ``[n]``.
        among: ``[m]``.

    Returns:
        bool ``[n]``.
    """
    ours, theirs = numbers.numpy(force=True), among.numpy(force=True)
    loops = loops_or_none()
    if loops is None:
        inside = np.isin(ours, theirs, assume_unique=True)
    else:
        inside = np.empty(len(ours), np.bool_)
        loops.contained(ours, theirs, inside)
    return torch.from_numpy(inside).to(numbers.device)


def are_outside(positions: torch.Tensor, among: torch.Tensor, size: int) -> bool:
    """Tell whether ``positions`` are a list of numbers of ``range(size)``, none of which is in the list ``among``."""
    if not _is_list(positions):
        return False
    ours, theirs = positions.numpy(force=True), among.numpy(force=True)
    loops = loops_or_none()
    if loops is not None:
        return bool(loops.are_outside(ours, theirs, size))
    ordered = (ours[1:] > ours[:-1]).all() and (len(ours) == 0 or (ours[0] >= 0 and ours[-1] < size))
    return bool(ordered and not np.isin(ours, theirs, assume_unique=True).any())


def sorted_distinct(numbers: torch.Tensor, population: int) -> torch.Tensor:
    """Return numbers of ``range(population)``, int64 ``[n]`` on the CPU, as a list. Uses them up."""
    array, loops = numbers.numpy(), loops_or_none()
    if loops is not None:
        other = np.empty_like(array)
        count, moved = loops.sort_distinct(array, other, population)
        return torch.from_numpy(other)[:count] if moved else numbers[:count]
    array.sort()
    repeated = array[1:] == array[:-1]
    return torch.from_numpy(array[np.concatenate([[True], ~repeated])]) if repeated.any() else numbers


def rewired(active: torch.Tensor, kept: torch.Tensor, grown: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace a list by the part of it that is kept, together with new positions.

    Args:
        active: ``[n]``.
        kept: a part of it, ``[k]``.
        grown: positions outside of it, ``[g]``.

    Returns:
        The new list, ``[k + g]``, and where each of its positions was in ``torch.cat([active, grown])``: int32, or
        int64 where that is too short.

    Raises:
        InvalidArgumentError: a kept position is not active, or a grown one is.
    """
    ours, stay, come = (numbers.numpy(force=True) for numbers in (active, kept, grown))
    short = len(ours) + len(come) <= np.iinfo(np.int32).max
    room = len(stay) + len(come) + 1
    after, was = np.empty(room, np.int64), np.empty(room, np.int32 if short else np.int64)
    loops = loops_or_none()
    if loops is not None:
        lost, there = loops.rewire(ours, stay, come, after, was)
    else:
        places = np.searchsorted(ours, stay)
        found = np.isin(stay, ours, assume_unique=True), np.isin(come, ours, assume_unique=True)
        lost, there = (int(np.argmax(wrong)) if wrong.any() else -1 for wrong in (~found[0], found[1]))
        order = np.argsort(np.concatenate([stay, come]), kind="stable")
        after[:-1], was[:-1] = (
            part[order]
            for part in (
                np.concatenate([stay, come]),
                np.concatenate([places, len(ours) + np.arange(len(come))]),
            )
        )
    if lost >= 0:
        raise InvalidArgumentError(f"kept: {stay[lost]} is not active; keep others")
    if there >= 0:
        raise InvalidArgumentError(f"grown: {come[there]} is already active; grow others")
    return torch.from_numpy(after[:-1]).to(active.device), torch.from_numpy(was[:-1]).to(active.device)


def without(active: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return a list without the positions at some of its places, int64 ``[m]``, in any order."""
    ours, gone, loops = active.numpy(force=True), places.numpy(force=True), loops_or_none()
    if loops is None:
        return torch.from_numpy(np.delete(ours, gone)).to(active.device)
    left = np.empty(len(ours) - len(gone) + 1, np.int64)
    loops.without(ours, gone, left)
    return torch.from_numpy(left[:-1]).to(active.device)


def unranked(active: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """Return, of the positions that are not in a list, those of the given ranks.

    Args:
        active: ``[n]``.
        ranks: int64 ``[m]``, sorted: 0 for the first position outside of ``active``, and so on.
    """
    ours, wanted = active.numpy(force=True), ranks.numpy(force=True)
    loops = loops_or_none()
    if loops is None:
        # Before active[i] lie active[i] - i positions of others: the wanted ones come after all with as many or fewer.
        places = wanted + np.searchsorted(ours - np.arange(len(ours)), wanted, side="right")
    else:
        places = np.empty_like(wanted)
        loops.unranked(ours, wanted, places)
    return torch.from_numpy(places).to(active.device)


def one_in_each_part(drawn: torch.Tensor, size: int, shift: int) -> torch.Tensor:
    """Divide ``range(size)`` into parts of nearly equal size, and return a number of each, int64 ``[parts]``, sorted.

    Args:
        drawn: how far into its part each number lies, from 0 to below 1: float64 ``[parts]`` on the CPU.
        size: at least the number of parts.
        shift: where the first part begins, 0 to ``size - 1``; the last one ends there.
    """
    parts, loops = len(drawn), loops_or_none()
    if loops is not None:
        found = np.empty(parts, np.int64)
        loops.one_in_each_part(drawn.numpy(), size, shift, found)
        return torch.from_numpy(found)
    borders = np.floor(np.arange(parts + 1) * (size / max(1, parts)))
    borders[-1] = size
    numbers = (borders[:-1] + np.floor(drawn.numpy() * np.diff(borders))).astype(np.int64)
    return torch.from_numpy(np.sort((numbers + shift) % max(1, size)))


def largest(score: torch.Tensor, count: int) -> torch.Tensor:
    """Return the positions of the ``count`` largest scores; of equal scores the lowest positions.

    Args:
        score: ``[n]``, without NaN.
        count: 0 to n.
    """
    return torch.from_numpy(_largest(_numbers(score), count)).to(score.device)


def _largest(score: np.ndarray, count: int) -> np.ndarray:
    if count == 0:
        return np.empty(0, np.int64)
    loops = loops_or_none()
    if loops is not None and score.dtype == np.float32:
        room = np.empty(count + 1, np.int64)
        loops.largest((score + np.float32(0)).view(np.int32), count, room)  # −0 becomes 0
        return room[:count]
    threshold = np.partition(score, len(score) - count)[len(score) - count]
    places = np.flatnonzero(score >= threshold)
    surplus = len(places) - count
    if surplus:
        equal = np.flatnonzero(score[places] == threshold)
        places = np.delete(places, equal[len(equal) - surplus :])
    return places


NOTHING = np.empty(0, np.int64), np.empty(0, np.float32)


class Largest:
    """The ``count`` largest magnitudes outside a list of positions, found in one pass over blocks of numbers.

    It keeps the best so far. Of a further block only the numbers that reach a bound are looked at. The bound is
    estimated from a sample; if it proves too high, the block is read again.

    Args:
        count: how many to find.
        outside: positions that do not count, ``[n]``.
        least: magnitudes below this do not count either, and nothing is estimated; 0: all count.
    """

    def __init__(self, count: int, outside: torch.Tensor, least: float = 0.0) -> None:
        self._count, self._outside, self._sure = count, outside.numpy(force=True), least
        self._is_estimated = least == 0
        self._found: list[tuple[np.ndarray, np.ndarray]] = []  # positions and magnitudes, block after block
        self._room = np.empty(0, np.int64)  # for positions in a block
        self.start = 0  # numbers seen so far

    @property
    def places(self) -> np.ndarray:
        """The positions found so far, at most ``count``: int64, sorted; of equal magnitudes the lowest."""
        self._keep_largest()
        return self._found[0][0]

    def add(self, block: torch.Tensor) -> float | None:
        """Look at the next numbers. Return None, or the first that is not finite; nothing changes then.

        Args:
            block: floating numbers, in any shape.
        """
        numbers = np.ascontiguousarray(_numbers(block).reshape(-1))
        first, last = np.searchsorted(self._outside, [self.start, self.start + len(numbers)])
        outside, bound = self._outside[first:last] - self.start, self._sure
        if self._is_estimated:
            bound = max(bound, _estimate(numbers, outside, self._count))
        if len(self._room) <= len(numbers):
            self._room = np.empty(len(numbers) + 1, np.int64)
        place, score = _at_least(numbers, outside, bound, self._room)
        if len(score) and not np.isfinite(score.max()):
            return float(numbers[~np.isfinite(numbers)][0])
        if bound > self._sure and len(score) + self._at_least(bound) < self._count:
            place, score = _at_least(numbers, outside, self._sure, self._room)
        self._found.append((place + self.start, score))
        if self._is_estimated or sum(len(score) for _, score in self._found) > 2 * self._count:
            self._keep_largest()
        self.start += len(numbers)
        return None

    def _at_least(self, bound: float) -> int:
        """Return how many of those found reach a bound."""
        return sum(int(np.count_nonzero(score >= bound)) for _, score in self._found)

    def _keep_largest(self) -> None:
        """Forget all but the largest. What is smaller than the last of them need not be looked at any more."""
        place, score = map(np.concatenate, zip(*self._found, strict=True)) if self._found else NOTHING
        if len(score) >= self._count > 0:
            best = _largest(score, self._count)
            place, score = place[best], score[best]
            self._sure = max(self._sure, float(score.min()))
        self._found = [(place[: self._count], score[: self._count])]


def _estimate(numbers: np.ndarray, outside: np.ndarray, count: int) -> float:
    """Return a bound that about ``1.5 · count`` of the others reach; 0 if an estimate would not save time."""
    step = len(numbers) // SAMPLE
    wanted = count * 3 // 2 // max(step, 1) + 8
    if step < 4 or wanted > SAMPLE // 2:
        return 0.0
    step |= 1  # odd, so that it does not meet the same columns in all rows
    loops = loops_or_none()
    if loops is None:
        sample = np.abs(numbers[::step][~np.isin(np.arange(0, len(numbers), step), outside, assume_unique=True)])
    else:
        sample = np.empty(len(numbers) // step + 2, numbers.dtype)
        sample = sample[: loops.sample(numbers, outside, step, sample)]
    if len(sample) < wanted or not np.isfinite(sample.max()):
        return 0.0
    return float(sample[_largest(sample, wanted)].min())


def _at_least(
    numbers: np.ndarray, outside: np.ndarray, bound: float, room: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and magnitudes of the numbers, not in ``outside``, that reach the bound or are not finite."""
    loops = loops_or_none()
    if loops is not None and numbers.dtype == np.float32:
        place = room[: loops.at_least(numbers.view(np.int32), outside, np.float32(bound).view(np.int32), room)]
    else:
        reach = ~(np.abs(numbers) < bound)
        reach[outside] &= ~np.isfinite(numbers[outside])
        place = np.flatnonzero(reach)
    return place, np.abs(numbers[place])


def _numbers(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor's numbers on the CPU, as float32 or float64."""
    wide = tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
    return wide.detach().numpy(force=True)
