"""A vector type for numba, and the operations on it that the kernels use.

``Vector`` is a numba type whose data model is LLVM's ``<lanes x float>``; each operation is an ``@intrinsic``. Vectors
are held in registers, and LLVM splits them into the widths that the CPU has. A vector of 64 floats is a *register tile*
of 4×16. The width is part of the type, so a function that takes a vector works for every width.

Tensors are passed as addresses (``tensor.data_ptr()`` costs a tenth of a NumPy view) and become pointers here. Nothing
is checked here: ``index.py``, ``program.py``, ``entry.py`` and ``training.py`` validate all addresses and sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit
from numba.core import cgutils, config, types
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic, models, register_model

FASTMATH = {"contract", "reassoc", "nsz", "arcp"}  # allows vectorised sums; "nnan" would hide NaN
_FLOAT, _INT, _BYTE = ir.FloatType(), ir.IntType(32), ir.IntType(8)

# Lanes of one register: the width of the vectors in tiles that must fit into registers.
NATIVE = 16 if "+avx512f" in (config.CPU_FEATURES or get_host_cpu_features()) else 8  # type: ignore[attr-defined]

OPTIONS: dict[str, Any] = {"fastmath": FASTMATH, "error_model": "numpy", "nogil": True}
# A function that other compiled functions call: Python cannot call it, and nothing but its callers is cached.
_INNER: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
compiled = njit(**_INNER, **OPTIONS)
# The same for a small one that becomes part of its caller at each call.
within = njit(forceinline=True, **_INNER, **OPTIONS)
# A function that Python calls.
entry = njit(cache=True, **OPTIONS)


class Vector(types.Type):
    """The numba type of ``lanes`` float32 numbers that are treated as one value."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(f"Vector({lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, ir.VectorType(_FLOAT, vector.lanes))


def _word(result: Any, arguments: tuple[Any, ...], emit: Callable[[Any, list[Any]], Any]) -> tuple[Any, ...]:
    """Return the signature of an intrinsic, and the function that emits its code (builder ``b``, values ``v``)."""
    return result(*arguments), lambda context, b, signature, v: emit(b, v)


def _splat(b: Any, scalar: Any, lanes: int) -> Any:
    one = b.insert_element(ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined), scalar, _INT(0))
    return b.shuffle_vector(one, one, ir.Constant(ir.VectorType(_INT, lanes), None))


def _at(b: Any, pointer: Any, index: Any, element: Any, lanes: int) -> Any:
    return b.bitcast(b.gep(pointer, [index]), ir.VectorType(element, lanes).as_pointer())


def _llvm(b: Any, name: str, result: Any, values: list[Any], **flags: Any) -> Any:
    kind = ir.FunctionType(result, [value.type for value in values])
    return b.call(cgutils.get_or_insert_function(b.module, kind, "llvm." + name), values, **flags)


def _pointer(number: types.Type, llvm: Any) -> Any:
    @intrinsic
    def at(context: Any, address: Any) -> Any:
        return _word(types.CPointer(number), (types.intp,), lambda b, v: b.inttoptr(v[0], llvm.as_pointer()))

    return at


# ``floats(address)``: a pointer to the floats at this address; ``p[i]`` reads or writes one of them.
floats = _pointer(types.float32, _FLOAT)
octets = _pointer(types.uint8, _BYTE)
words, ints = _pointer(types.uint32, _INT), _pointer(types.int32, _INT)
longs = _pointer(types.int64, ir.IntType(64))
doubles = _pointer(types.float64, ir.DoubleType())


@compiled
def address_of(array: Any) -> Any:
    """Return the address of an array's memory."""
    return array.ctypes.data


@intrinsic(prefer_literal=True)
def positions(context: Any, address: Any, size: Any) -> Any:
    """``positions(address, 2)``: a pointer to unsigned integers of 2 or 4 bytes. The size is written as a literal."""
    number, bits = {2: types.uint16, 4: types.uint32}[size.literal_value], 8 * size.literal_value
    pointer = ir.IntType(bits).as_pointer()
    return _word(types.CPointer(number), (types.intp, size), lambda b, v: b.inttoptr(v[0], pointer))


@intrinsic(prefer_literal=True)
def zeros(context: Any, lanes: Any) -> Any:
    """``zeros(16)``: sixteen zeros. The width is written as a literal."""
    width = lanes.literal_value
    return _word(Vector(width), (lanes,), lambda b, v: ir.Constant(ir.VectorType(_FLOAT, width), None))


@intrinsic
def splat(context: Any, number: Any, like: Any) -> Any:
    """``splat(s, like)``: a vector as wide as ``like`` with ``s`` in every lane."""
    return _word(like, (types.float32, like), lambda b, v: _splat(b, v[0], like.lanes))


@intrinsic
def load(context: Any, pointer: Any, index: Any, like: Any) -> Any:
    """``load(p, i, like)``: the vector, as wide as ``like``, that starts at ``p[i]``."""
    lanes = like.lanes
    return _word(like, (pointer, types.intp, like), lambda b, v: b.load(_at(b, v[0], v[1], _FLOAT, lanes), align=4))


@intrinsic
def gathered(context: Any, pointer: Any, places: Any, index: Any, step: Any, like: Any) -> Any:
    """``gathered(p, places, i, step, like)``: a vector of ``p[step·places[i]]``, ``p[step·places[i + 1]]`` and so on.

    Single loads, and the positions eight bytes at a time, instead of a gather instruction.
    """
    bits = places.dtype.bitwidth
    word, in_word = ir.IntType(64), 64 // bits

    def emit(b: Any, v: list[Any]) -> Any:
        numbers = ir.Constant(ir.VectorType(_FLOAT, like.lanes), ir.Undefined)
        for n in range(like.lanes):
            if n % in_word == 0:
                start = b.gep(v[1], [b.add(v[2], word(n))])
                several = b.load(b.bitcast(start, word.as_pointer()), align=bits // 8)
            place = b.and_(b.lshr(several, word(n % in_word * bits)), word(2**bits - 1))
            numbers = b.insert_element(numbers, b.load(b.gep(v[0], [b.mul(place, v[3])])), _INT(n))
        return numbers

    return _word(like, (pointer, places, types.intp, types.intp, like), emit)


@intrinsic
def store(context: Any, pointer: Any, index: Any, vector: Any) -> Any:
    """``store(p, i, v)``: write ``v`` to memory from ``p[i]`` on."""

    def emit(b: Any, v: list[Any]) -> Any:
        b.store(v[2], _at(b, v[0], v[1], _FLOAT, vector.lanes), align=4)

    return _word(types.void, (pointer, types.intp, vector), emit)


@intrinsic
def store_apart(context: Any, pointer: Any, index: Any, step: Any, vector: Any) -> Any:
    """``store_apart(p, i, step, v)``: write each 16 lanes of ``v``, to ``p[i]``, ``p[i + step]`` and so on."""

    def emit(b: Any, v: list[Any]) -> Any:
        for n in range(vector.lanes // 16):
            lanes = ir.Constant(ir.VectorType(_INT, 16), list(range(16 * n, 16 * n + 16)))
            at = b.add(v[1], b.mul(v[2], v[2].type(n)))
            b.store(b.shuffle_vector(v[3], v[3], lanes), _at(b, v[0], at, _FLOAT, 16), align=4)

    return _word(types.void, (pointer, types.intp, types.intp, vector), emit)


@intrinsic
def block(context: Any) -> Any:
    """``block()``: a pointer to 8×8 floats of the calling function's own."""

    def emit(b: Any, v: list[Any]) -> Any:
        with b.goto_entry_block():
            numbers = b.alloca(ir.ArrayType(_FLOAT, 64))
        numbers.align = 64
        return b.bitcast(numbers, _FLOAT.as_pointer())

    return _word(types.CPointer(types.float32), (), emit)


@intrinsic
def transpose(context: Any, source: Any, at: Any, step: Any, target: Any, to: Any, row: Any) -> Any:
    """Write the 8×8 numbers ``source[at + step·n + m]`` to ``target[to + row·m + n]``."""

    def emit(b: Any, v: list[Any]) -> Any:
        def place(pointer: Any, start: Any, stride: Any, n: int) -> Any:
            return _at(b, pointer, b.add(start, b.mul(stride, stride.type(n))), _FLOAT, 8)

        def mixed(rows: list[Any], far: int, *choices: list[int]) -> list[Any]:
            """Each row with the one ``far`` behind it: each choice from the lanes of the two, for all such pairs."""
            pairs = [(n, n + far) for n in range(8) if n & far == 0]
            lanes = [ir.Constant(ir.VectorType(_INT, 8), choice) for choice in choices]
            return [b.shuffle_vector(rows[n], rows[m], choice) for n, m in pairs for choice in lanes]

        rows = [b.load(place(v[0], v[1], v[2], n), align=4) for n in range(8)]
        rows = mixed(rows, 1, [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15])
        rows = mixed(rows, 2, [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15])
        rows = mixed(rows, 4, [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15])
        for n, vector in zip((0, 4, 1, 5, 2, 6, 3, 7), rows, strict=True):
            b.store(vector, place(v[3], v[4], v[5], n), align=4)

    return _word(types.void, (source, types.intp, types.intp, target, types.intp, types.intp), emit)


@intrinsic
def fma(context: Any, a: Any, x: Any, y: Any) -> Any:
    """``fma(a, x, y)``: a·x + y in one instruction; ``a`` is a vector or a number."""

    def emit(b: Any, v: list[Any]) -> Any:
        factor = v[0] if isinstance(a, Vector) else _splat(b, v[0], y.lanes)
        return _llvm(b, f"fma.v{y.lanes}f32", v[2].type, [factor, v[1], v[2]])

    return _word(y, (a if isinstance(a, Vector) else types.float32, x, y), emit)


@intrinsic
def add(context: Any, x: Any, y: Any) -> Any:
    """``add(x, y)``: x + y."""
    return _word(x, (x, y), lambda b, v: b.fadd(*v))


@intrinsic
def quotient(context: Any, x: Any, y: Any) -> Any:
    """``quotient(x, y)``: x / y."""
    return _word(x, (x, y), lambda b, v: b.fdiv(*v))


@intrinsic
def root(context: Any, x: Any) -> Any:
    """``root(x)``: the square root."""
    return _word(x, (x,), lambda b, v: _llvm(b, f"sqrt.v{x.lanes}f32", v[0].type, v))


@intrinsic
def flushed(context: Any, x: Any) -> Any:
    """``flushed(x)``: ``x`` with denormal numbers set to zero, because some CPUs are slow with them."""

    def emit(b: Any, v: list[Any]) -> Any:
        smallest = ir.Constant(v[0].type, [2.0**-126] * x.lanes)
        size = _llvm(b, f"fabs.v{x.lanes}f32", v[0].type, v)
        return b.select(b.fcmp_ordered("<", size, smallest), ir.Constant(v[0].type, None), v[0])

    return _word(x, (x,), emit)


@intrinsic
def maximum(context: Any, x: Any, y: Any) -> Any:
    """``maximum(x, y)``, lane by lane; NaN if one of them is NaN."""

    def emit(b: Any, v: list[Any]) -> Any:
        larger = b.select(b.fcmp_ordered(">", v[0], v[1]), v[0], v[1])  # y where either is NaN
        return b.select(b.fcmp_unordered("uno", v[0], v[0]), v[0], larger)

    return _word(x, (x, y), emit)


@intrinsic
def store_reaching(context: Any, bits: Any, index: Any, vector: Any, bound: Any) -> Any:
    """``store_reaching(bits, i, v, bound)``: write a bit for each lane from byte ``i`` on: not |lane| < bound."""

    def emit(b: Any, v: list[Any]) -> Any:
        size, whole = _llvm(b, f"fabs.v{vector.lanes}f32", v[2].type, [v[2]]), ir.IntType(vector.lanes)
        reach = b.bitcast(b.fcmp_unordered(">=", size, _splat(b, v[3], vector.lanes)), whole)
        b.store(reach, b.bitcast(b.gep(v[0], [v[1]]), whole.as_pointer()), align=1)

    return _word(types.void, (bits, types.intp, vector, types.float32), emit)


@intrinsic
def lowest(context: Any, bits: Any) -> Any:
    """``lowest(bits)``: which bit of a number other than 0 is the lowest one that is set."""
    return _word(types.int64, (types.int64,), lambda b, v: _llvm(b, "cttz.i64", v[0].type, [v[0], ir.IntType(1)(1)]))


@intrinsic
def total(context: Any, vector: Any) -> Any:
    """``total(v)``: the sum over the lanes, a number."""
    name, how = f"vector.reduce.fadd.v{vector.lanes}f32", ("reassoc",)
    return _word(types.float32, (vector,), lambda b, v: _llvm(b, name, _FLOAT, [_FLOAT(0), v[0]], fastmath=how))


@intrinsic
def products(context: Any, x: Any, y: Any, like: Any) -> Any:
    """``products(x, y, like)``: x·y, its lanes summed to the number of lanes of ``like``."""

    def emit(b: Any, v: list[Any]) -> Any:
        def part(vector: Any, n: int) -> Any:
            lanes = ir.Constant(ir.VectorType(_INT, like.lanes), list(range(n, n + like.lanes)))
            return b.shuffle_vector(vector, vector, lanes)

        sums = b.fmul(part(v[0], 0), part(v[1], 0))
        for n in range(like.lanes, x.lanes, like.lanes):
            sums = _llvm(b, f"fma.v{like.lanes}f32", sums.type, [part(v[0], n), part(v[1], n), sums])
        # Without the fence, LLVM sums the halves of a vector in one long dependent chain.
        return _llvm(b, f"arithmetic.fence.v{like.lanes}f32", sums.type, [sums])

    return _word(like, (x, y, like), emit)


@intrinsic
def totals(context: Any, p: Any, q: Any, r: Any, s: Any, t: Any, u: Any, v: Any, w: Any) -> Any:
    """``totals(p, …, w)``: the eight sums over the lanes as a vector, at half the cost of eight ``total``."""
    lanes, blocks = p.lanes, range(0, p.lanes, 4)

    def emit(b: Any, vectors: list[Any]) -> Any:
        def added(x: Any, y: Any, one: list[int], other: list[int]) -> Any:
            """One choice from the lanes of x (0, 1, …) and y (lanes, lanes + 1, …) plus another."""
            return b.fadd(*(b.shuffle_vector(x, y, ir.Constant(ir.VectorType(_INT, len(h)), h)) for h in (one, other)))

        def mixed(x: Any, y: Any, block: tuple[int, ...]) -> Any:
            """In every block of four lanes, this choice plus the one two lanes behind it."""
            lanes_of = [n + at for at in blocks for n in block]
            return added(x, y, lanes_of, [n + 2 for n in lanes_of])

        pairs = [mixed(vectors[n], vectors[n + 1], (0, lanes, 1, lanes + 1)) for n in range(0, 8, 2)]  # p q p q
        fours = [mixed(pairs[n], pairs[n + 1], (0, 1, lanes, lanes + 1)) for n in (0, 2)]  # p q r s
        near = [n + start for start in (0, lanes) for n in range(lanes // 2)]
        both = added(*fours, near, [n + lanes // 2 for n in near])  # type: ignore[call-arg]  # p q r s, t u v w
        if lanes == 16:
            both = added(both, both, [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15])
        return both

    return _word(Vector(8), (p, q, r, s, t, u, v, w), emit)


@intrinsic
def first_lanes(context: Any, count: Any, vector: Any) -> Any:
    """``first_lanes(n, v)``: ``v`` with zeros from lane ``n`` on, also in place of NaN."""

    def emit(b: Any, v: list[Any]) -> Any:
        lane = ir.Constant(ir.VectorType(_INT, vector.lanes), list(range(vector.lanes)))
        return b.select(b.icmp_signed("<", lane, _splat(b, v[0], vector.lanes)), v[1], ir.Constant(v[1].type, None))

    return _word(vector, (types.int32, vector), emit)


@intrinsic
def where_positive(context: Any, y: Any, gradient: Any) -> Any:
    """``where_positive(y, g)``: ``g``, but zero where ``y <= 0``: the gradient of ReLU."""
    zero = ir.Constant(ir.VectorType(_FLOAT, y.lanes), None)
    return _word(gradient, (y, gradient), lambda b, v: b.select(b.fcmp_ordered("<=", v[0], zero), zero, v[1]))


def _pooled(b: Any, v: list[Any], lanes: int) -> tuple[Any, ...]:
    """Return, of four vectors, whether the second, the fourth and the later pair is larger; and the largest, or NaN."""
    second, fourth = b.fcmp_ordered("<", v[0], v[1]), b.fcmp_ordered("<", v[2], v[3])
    upper, lower = b.select(second, v[1], v[0]), b.select(fourth, v[3], v[2])
    below = b.fcmp_ordered("<", upper, lower)
    nan = b.or_(b.fcmp_unordered("uno", v[0], v[1]), b.fcmp_unordered("uno", v[2], v[3]))
    nans = ir.Constant(v[0].type, [float("nan")] * lanes)
    return second, fourth, below, b.select(nan, nans, b.select(below, lower, upper))


@intrinsic
def largest(context: Any, a: Any, c: Any, d: Any, e: Any) -> Any:
    """``largest(a, c, d, e)`` lane by lane; NaN if one of them is NaN. Cheaper than three ``maximum``."""
    return _word(a, (a, c, d, e), lambda b, v: _pooled(b, v, a.lanes)[3])


@intrinsic
def store_winner(context: Any, codes: Any, index: Any, a: Any, c: Any, d: Any, e: Any, best: Any, relu: Any) -> Any:
    """``store_winner(codes, i, a, c, d, e, best, relu)``: write, as bytes, which of the four is ``best`` in each lane.

    0 to 3, the first of equals; 4 where ``relu`` is true and ``best <= 0``.
    """

    def emit(b: Any, v: list[Any]) -> Any:
        def number(n: int) -> Any:
            return ir.Constant(ir.VectorType(_BYTE, a.lanes), [n] * a.lanes)

        second, fourth, below, _ = _pooled(b, v[2:6], a.lanes)
        code = b.select(below, b.select(fourth, number(3), number(2)), b.select(second, number(1), number(0)))
        dead = b.and_(b.fcmp_ordered("<=", v[6], ir.Constant(v[6].type, None)), _splat(b, v[7], a.lanes))
        b.store(b.select(dead, number(4), code), _at(b, v[0], v[1], _BYTE, a.lanes), align=1)

    return _word(types.void, (codes, types.intp, a, c, d, e, best, types.boolean), emit)


@intrinsic
def where_winner(context: Any, codes: Any, index: Any, code: Any, gradient: Any) -> Any:
    """``where_winner(codes, i, n, g)``: ``g``, but zero in the lanes whose byte is not ``n``."""

    def emit(b: Any, v: list[Any]) -> Any:
        stored = b.load(_at(b, v[0], v[1], _BYTE, gradient.lanes), align=1)
        wanted = _splat(b, b.trunc(v[2], _BYTE), gradient.lanes)
        return b.select(b.icmp_unsigned("==", stored, wanted), v[3], ir.Constant(v[3].type, None))

    return _word(gradient, (codes, types.intp, types.int32, gradient), emit)


@intrinsic
def where_any_winner(context: Any, codes: Any, index: Any, gradient: Any) -> Any:
    """``where_any_winner(codes, i, g)``: ``g``, but zero in the lanes whose byte is 4 (blocked by ReLU)."""

    def emit(b: Any, v: list[Any]) -> Any:
        stored = b.load(_at(b, v[0], v[1], _BYTE, gradient.lanes), align=1)
        blocked = ir.Constant(stored.type, [4] * gradient.lanes)
        return b.select(b.icmp_unsigned("!=", stored, blocked), v[2], ir.Constant(v[2].type, None))

    return _word(gradient, (codes, types.intp, gradient), emit)
