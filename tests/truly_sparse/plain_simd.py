"""``cpu/simd.py`` and ``cpu/kernel.py`` in plain Python: kernels run uncompiled, every access to memory checked.

A pointer belongs to the tensor, array or piece of the arena that its address lies in when it is made, and may touch
nothing else. Fresh memory holds NaN, so that a number that nobody wrote shows in the result. Bytes that are loaded and
stored are counted, of vectors and of single numbers.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from truly_sparse import cpu as kernels
from truly_sparse.cpu import memory, records, simd

NATIVE = simd.NATIVE
known: dict[int, tuple[int, Any]] = {}  # by its first byte: where memory ends, and whose it is, kept alive
moved: Counter[str] = Counter()  # bytes, by what moved them


class OutOfBounds(AssertionError):
    """Compiled code would have touched memory that is not its own."""


class Pointer:
    """What lies from ``address`` on: numbers of one type."""

    def __init__(self, address: int, dtype: type) -> None:
        self.address, self.dtype, self.bytes = int(address), dtype, np.dtype(dtype).itemsize
        starts = sorted(known)
        self.start = starts[max(0, bisect_right(starts, self.address) - 1)]
        self.end = known[self.start][0]
        self.last: int | None = None  # the number that was read last

    def part(self, index: int, count: int) -> np.ndarray:
        """Return ``count`` numbers from ``index`` on, to read and to write."""
        first = self.address + int(index) * self.bytes
        if not self.start <= first <= first + count * self.bytes <= self.end:
            raise OutOfBounds(
                f"{count} of {self.dtype.__name__} at byte {first - self.start} of {self.end - self.start}"
            )
        return np.frombuffer((ctypes.c_uint8 * (count * self.bytes)).from_address(first), self.dtype)

    def __getitem__(self, index: int) -> Any:
        if index != self.last:  # compiled code loads a number once that is read twice in a row
            moved["numbers loaded"] += self.bytes
        self.last = index
        return self.part(index, 1)[0]

    def __setitem__(self, index: int, number: Any) -> None:
        moved["numbers stored"] += self.bytes
        self.part(index, 1)[0] = number


class Block(Pointer):
    """The 8×8 floats of a function's own."""

    def __init__(self) -> None:
        self.numbers = np.full(64, np.nan, np.float32)
        self.start = self.address = self.numbers.__array_interface__["data"][0]
        self.end, self.dtype, self.bytes, self.last = self.start + self.numbers.nbytes, np.float32, 4, None


def _pointer(dtype: type) -> Any:
    return lambda address: Pointer(address, dtype)


def compiled(function: Any) -> Any:
    """Leave the function as it is; cpu.py asks where its compiled code is stored."""
    function.stats = SimpleNamespace(cache_path="no cache")
    return function


entry = within = compiled
floats, octets, words = map(_pointer, (np.float32, np.uint8, np.uint32))
ints, longs, doubles = map(_pointer, (np.int32, np.int64, np.float64))


def positions(address, size):
    return Pointer(address, {2: np.uint16, 4: np.uint32}[size])


def address_of(array):
    return note(array.__array_interface__["data"][0], array.nbytes, array)


def zeros(lanes):
    return np.zeros(lanes, np.float32)


def splat(number, like):
    return np.full_like(like, number)


def load(pointer, index, like):
    moved["vectors loaded"] += 4 * len(like)
    return pointer.part(index, len(like)).copy()


def gathered(pointer, places, index, step, like):
    return np.array([pointer[int(place) * step] for place in places.part(index, len(like))])


def store(pointer, index, vector):
    moved["vectors stored"] += 4 * len(vector)
    pointer.part(index, len(vector))[:] = vector


def store_apart(pointer, index, step, vector):
    for n, part in enumerate(vector.reshape(-1, 16)):
        store(pointer, index + n * step, part)


def block():
    return Block()


def transpose(source, at, step, target, to, row):
    rows = [load(source, at + step * n, zeros(8)) for n in range(8)]
    for m, vector in enumerate(np.transpose(rows)):
        store(target, to + row * m, vector)


def fma(a, x, y):
    return a * x + y


def add(x, y):
    return x + y


def quotient(x, y):
    return x / y


def root(x):
    return np.sqrt(x)


def flushed(x):
    return np.where(np.abs(x) < np.float32(2.0**-126), np.float32(0), x)


def maximum(x, y):
    return np.maximum(x, y)


def largest(*four):
    return np.maximum.reduce(four)


def store_reaching(bits, index, vector, bound):
    bits.part(index, len(vector) // 8)[:] = np.packbits(~(np.abs(vector) < bound), bitorder="little")


def lowest(bits):
    return (int(bits) & -int(bits)).bit_length() - 1


def total(vector):
    return vector.sum()


def products(x, y, like):
    return (x * y).reshape(-1, len(like)).sum(0)


def totals(*vectors):
    return np.array([vector.sum() for vector in vectors])


def first_lanes(count, vector):
    return np.where(np.arange(len(vector)) < count, vector, np.float32(0))


def where_positive(y, gradient):
    return np.where(y <= 0, np.float32(0), gradient)


def store_winner(codes, index, a, c, d, e, best, relu):
    code = np.select([a == best, c == best, d == best], [0, 1, 2], 3)
    codes.part(index, len(a))[:] = np.where((best <= 0) & relu, 4, code)


def where_winner(codes, index, code, gradient):
    return np.where(codes.part(index, len(gradient)) == code, gradient, np.float32(0))


def where_any_winner(codes, index, gradient):
    return np.where(codes.part(index, len(gradient)) != 4, gradient, np.float32(0))


# ------------------------------------------------------------------------------------------ kernels

by_address: list[Any] = []
made = by_address


class Kernel:
    """Stands in for ``kernel.Kernel``; its address is its place in a list."""

    def __init__(self, function: Any, call: Any, plan: Any) -> None:
        self.function, self.kinds, self.address = function, (call, plan), 1 + len(by_address)
        by_address.append(self)


def kernel(call, plan):
    return lambda function: Kernel(function, call, plan)


def record(address, dtype):
    """Return the record at an address, after a check that all of it is in one piece of memory."""
    return Pointer(address, np.uint8).part(0, dtype.itemsize).view(np.dtype((np.record, dtype)))[0]


def _record_at(kind):
    return lambda address: record(address, getattr(records, kind))


call_at, plan_at, phase_at, pass_at, step_at, weights_at = map(
    _record_at, ("CALL", "PLAN", "PHASE", "PASS", "STEP", "WEIGHTS")
)


def run(address, call, plan, first, last, thread):
    loop = by_address[address - 1]
    given = (a if kind is None else record(a, kind) for a, kind in zip((call, plan), loop.kinds, strict=True))
    loop.function(*given, first, last, thread)


def run_by_all(address, call, plan, pieces, threads):
    for thread in range(threads):
        run(address, call, plan, pieces * thread // threads, pieces * (thread + 1) // threads, thread)


# ------------------------------------------------------------------------------------------ whose memory it is


def note(start: int, size: int, what: Any) -> int:
    """Note that so many bytes are ``what``'s; of what begins in one place, the largest counts."""
    if size and start + size > known.get(start, (0, None))[0]:
        known[start] = start + size, what
    return start


def _data_ptr(tensor: torch.Tensor) -> int:
    """Stand in for ``tensor.data_ptr``: of a batch-innermost tensor, the last row's padding may be read too."""
    numbers, shape = tensor.numel(), tensor.shape
    row = tensor.stride(-1) if shape else 0
    if numbers and len(shape) > 1 and row % memory.LANES == 0 and tensor.stride() == memory.strides(shape, row):
        numbers = (math.prod(shape[1:]) - 1) * row + memory.row_lanes(len(tensor))
    return note(torch._C.TensorBase.data_ptr(tensor), numbers * tensor.element_size(), tensor)


class Pieces(int):
    """A size in bytes that knows of which pieces, ``(start, size)``, it consists."""

    of: tuple[tuple[int, int], ...] = ()

    def __add__(self, other: int) -> Pieces:
        both = Pieces(int(self) + int(other))
        both.of = (*self.of, *((int(self) + start, size) for start, size in _pieces(other)))
        return both

    def __radd__(self, other: int) -> Pieces:
        return Pieces(0) + other + self

    def __rmul__(self, times: int) -> Pieces:
        return sum([self] * times, Pieces(0))


def _pieces(size: int) -> tuple[tuple[int, int], ...]:
    return size.of if isinstance(size, Pieces) else ((0, size),)


class Memory:
    """``plan.Memory``, with 64 bytes of no man's land between the pieces."""

    def __init__(self) -> None:
        self.size = Pieces(0)

    def take(self, size: int) -> int:
        start, of = int(self.size), self.size.of
        self.size = Pieces(-(-(start + size) // 64) * 64 + 64)
        self.size.of = (*of, (start, size))
        return start

    def end(self, gap: int) -> Pieces:
        size = Pieces(self.size + gap)
        size.of = self.size.of
        return size


def _borrow(size: int) -> torch.Tensor:
    whole = torch.full((size,), 255, dtype=torch.uint8)  # as floats, NaN
    start = torch._C.TensorBase.data_ptr(whole)
    for first, bytes_ in _pieces(size):
        note(start + first, bytes_, whole)
    whole.data_ptr = lambda: start
    return whole


@contextmanager
def checked_kernels(lanes: int) -> Iterator[ModuleType]:
    """Give ``cpu/chain.py`` over these words, with registers of so many lanes; nothing else is changed for long."""
    names = (
        "adam convert conv_shape conv_gradient conv_blocks conv_forward conv_backward chain entry gradient_above "
        "linear_shape linear_blocks linear_few linear loss pass_record passes plan program templates traces training "
        "workspace"
    )
    package, here = kernels.__name__, sys.modules[__name__]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(here, "NATIVE", lanes)
        importlib.import_module(f"{package}.chain")
        for name in names.split():  # to be imported once more
            patch.setattr(kernels, name, getattr(kernels, name))
            patch.delitem(sys.modules, f"{package}.{name}")
        patch.setitem(sys.modules, simd.__name__, here)
        patch.setitem(sys.modules, f"{package}.kernel", here)
        checked = importlib.import_module(f"{package}.chain")
        plan = sys.modules[f"{package}.plan"]
        address = plan.address
        patch.setattr(plan, "address", lambda array: note(address(array), array.nbytes, array))
        patch.setattr(sys.modules[f"{package}.program"], "Memory", Memory)
        patch.setattr(sys.modules[f"{package}.training"], "address", plan.address)
        for name in ("gradient_above", "pass_record", "templates"):
            patch.setattr(sys.modules[f"{package}.{name}"], "address", plan.address)
        for name in ("chain", "training", "workspace"):
            patch.setattr(sys.modules[f"{package}.{name}"], "borrow", _borrow)
        patch.setattr(torch.Tensor, "data_ptr", _data_ptr)
        patch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
        torch.use_deterministic_algorithms(True)
        try:
            yield checked
        finally:
            torch.use_deterministic_algorithms(False)
            known.clear()
