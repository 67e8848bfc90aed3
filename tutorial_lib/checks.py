"""One check per exercise: each tests what must hold of an answer and, where it does not, names the symptom."""

from __future__ import annotations

import dis
import itertools
import math
import traceback
import tracemalloc
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
from torch import nn

from .compare import interval
from .dst import GrowChoice, gradient_grow, magnitude_prune
from .errors import TutorialError
from .models import TutorialCNN
from .sparse import SparseLinear
from .topology import layer_nnz, sample_distinct, to_mask, weight_shape
from .validate import checked

Answer = Callable[..., Any]


class CheckFailedError(TutorialError, AssertionError):
    """An answer to an exercise does not hold; the message names the symptom."""

    def _render_traceback_(self) -> list[str]:
        # IPython shows this in place of a traceback: the check's own lines would only hide the message.
        return [f"Not yet: {self}"]


@checked
def exercise(check: Callable[[Answer], None]) -> Callable[[Answer], None]:
    """Turn a function that raises on a wrong answer into a check that leaves an untouched stub alone, and reports."""

    @wraps(check)
    @checked
    def run(answer: Answer) -> None:
        try:
            if _is_untouched(answer):
                raise NotImplementedError
            check(answer)
        except NotImplementedError as error:
            if error.args:  # not a stub's: torch says so of an operation that it lacks
                raise
            print(f"{check.__name__}: not attempted yet")
        except CheckFailedError:
            raise
        except Exception as error:
            if _raised_in(answer, error):
                raise
            name = getattr(answer, "__name__", type(answer).__name__)
            raise CheckFailedError(
                f"what {name} returns cannot be checked ({type(error).__name__}: {error}): "
                "compare its type and shape with those asked for"
            ) from error
        else:
            print(f"{check.__name__}: passed")

    return run


def _raised_in(answer: Answer, error: Exception) -> bool:
    """Tell whether an error came up while the answer ran, not while a check looked at what it returned."""
    return any(frame.f_code is getattr(answer, "__code__", None) for frame, _ in traceback.walk_tb(error.__traceback__))


def _is_untouched(answer: Answer) -> bool:
    """Tell whether a function's body is nothing but ``...`` (or ``pass``, or a docstring)."""
    trivial = {"RESUME", "NOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST"}
    if not hasattr(answer, "__code__"):
        return False
    steps = list(dis.get_instructions(answer))
    loaded = [step.argval for step in steps if step.opname in ("LOAD_CONST", "RETURN_CONST")]
    return {step.opname for step in steps} <= trivial and loaded[-1] in (None, ...)


def _expect(holds: object, symptom: str) -> None:
    if not holds:
        raise CheckFailedError(symptom)


def _result(answer: Answer, *arguments: Any) -> Any:
    """Call the answer and return what it returns, which must be something."""
    result = answer(*arguments)
    name = getattr(answer, "__name__", type(answer).__name__)
    _expect(result is not None, f"{name} returns None; is a `return` missing?")
    return result


def _close(a: object, b: object, tolerance: float = 1e-5) -> bool:
    """Tell whether two arrays have one shape and nearly equal numbers; None is close to nothing."""
    if a is None or b is None:
        return False
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return a.shape == b.shape and np.allclose(a, b, rtol=tolerance, atol=tolerance)


def _draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------ 01: the paradox


@exercise
def check_active_weights(answer: Answer) -> None:
    """``answer(model, sparsity)``: how many weights a model keeps, biases aside."""
    # Four layers of 8 weights: rounded per layer, cut off, or with biases, each count is another.
    small = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2), nn.Linear(2, 4), nn.Linear(4, 2))
    for model, sparsity in ((small, 0.7), (TutorialCNN(), 0.95)):
        weights = [p.numel() for name, p in model.named_parameters() if name.endswith("weight")]
        everything = sum(p.numel() for p in model.parameters())
        kept, right = _result(answer, model, sparsity), round((1 - sparsity) * sum(weights))
        of = f"{kept:,} of {sum(weights):,} weights at sparsity {sparsity}"
        _expect(float(kept).is_integer(), f"{of}: not a whole number; round to the nearest")
        _expect(kept != round(sparsity * sum(weights)), f"{of}: these are the removed ones; the sparsity counts zeros")
        _expect(kept != round((1 - sparsity) * everything), f"{of}: that many only if biases are counted as weights")
        _expect(kept != sum(round((1 - sparsity) * n) for n in weights), f"{of}: rounded in each layer; round the sum")
        _expect(kept != int((1 - sparsity) * sum(weights)), f"{of}: a fraction was cut off; round to the nearest")
        _expect(kept == right, f"{of}; expected {right:,}")


@exercise
def check_global_prune(answer: Answer) -> None:
    """``answer(weights, sparsity)``: a mask per layer that keeps the largest magnitudes of the whole network."""
    # The second layer is ten times the first: one threshold for both must take mostly from the first.
    weights, sparsity = [_draws(6, 10), 10 * _draws(20, 2, seed=1)], 0.7
    masks, budget = _result(answer, weights, sparsity), 30
    _expect(
        len(masks) == 2
        and all(m.shape == w.shape and m.dtype == torch.bool for m, w in zip(masks, weights, strict=True)),
        "expected one boolean mask per layer, each in the shape of its weight",
    )
    magnitude = torch.cat([w.abs().flatten() for w in weights])
    values, kept = torch.cat([w.flatten() for w in weights]), torch.cat([m.flatten() for m in masks])
    _expect(kept.sum() != len(kept) - budget, f"{int(kept.sum())} weights kept: the mask is True where one is removed")
    _expect(kept.sum() == budget, f"{int(kept.sum())} of {len(kept)} weights kept; 70% sparsity leaves {budget}")
    _expect(
        not _close(kept, to_mask(magnitude.topk(budget, largest=False).indices, kept.shape)), "the smallest are kept"
    )
    _expect(
        not _close(kept, to_mask(values.topk(budget).indices, kept.shape)),
        "large negative weights are gone: rank by magnitude, not by value",
    )
    lost, smallest = magnitude[~kept].max(), magnitude[kept].min()
    _expect(
        lost <= smallest,
        f"a weight of magnitude {lost:.2f} is gone while one of {smallest:.2f} stays in another layer: "
        "rank all layers together, not each for itself",
    )
    tied = _result(answer, [torch.ones(4, 5)], 0.5)[0].sum()
    _expect(tied == 10, f"of 20 weights of equal magnitude {int(tied)} are kept, not 10: a threshold cannot split ties")


# ------------------------------------------------------------------------------------------ 02: masked layers


@exercise
def check_masked_linear(answer: Answer) -> None:
    """``answer(x, weight, mask, bias)``: the layer's output, with gradients only where connections are."""
    x, bias, before = _draws(4, 6), _draws(3, seed=1), _draws(3, 6, seed=2)
    mask = to_mask(torch.tensor([0, 3, 7, 8, 16]), (3, 6))
    weight = before.clone().requires_grad_()
    y = _result(answer, x, weight, mask, bias)
    right = F.linear(x, before * mask, bias)
    _expect(torch.equal(weight.detach(), before), "the stored weight has changed; mask the product, not the parameter")
    _expect(
        not _close(y.detach(), F.linear(x, before, bias)), "the output is the dense layer's: the mask has no effect"
    )
    _expect(not _close(y.detach(), F.linear(x, before * mask)), "the bias is missing from the output")
    _expect(_close(y.detach(), right), "the output differs from x (weight × mask)ᵀ + bias")
    _expect(y.requires_grad, "no gradient reaches the weight: it was detached, so the layer cannot learn")
    y.square().sum().backward()
    leak = int((weight.grad[~mask] != 0).sum())
    _expect(leak == 0, f"{leak} of {int((~mask).sum())} removed weights get a gradient: it leaks past the mask")


@exercise
def check_forget(answer: Answer) -> None:
    """``answer(optimizer, weight, mask)``: clears, in place, the optimizer's state of removed weights and no other."""
    for kind in (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.Adam(p, lr=0.1)):
        weight = nn.Parameter(_draws(3, 4))
        mask, optimizer = to_mask(torch.arange(0, 12, 2), (3, 4)), kind([weight])
        _train(weight, torch.ones_like(mask), optimizer)
        with torch.no_grad():
            weight[~mask] = 0
        name, before = type(optimizer).__name__, {k: torch.clone(v) for k, v in optimizer.state[weight].items()}
        values = weight.detach().clone()
        answer(optimizer, weight, mask)
        _expect(torch.equal(weight.detach(), values), f"{name}: the weights themselves were changed")
        state = optimizer.state[weight]
        _expect(state.keys() == before.keys(), f"{name}: state was deleted, with the memory of the kept weights")
        for key, value in before.items():
            if value.shape == weight.shape:
                _expect(torch.equal(state[key][mask], value[mask]), f"{name}: {key} of kept weights was lost")
            else:
                _expect(torch.equal(state[key], value), f"{name}: {key} belongs to all weights and was reset")
        _train(weight, mask, optimizer)
        drift = weight.detach()[~mask].abs().max()
        _expect(drift == 0, f"{name}: 3 steps later a removed weight has drifted from 0 to {drift:.2f}: it remembers")


def _train(weight: nn.Parameter, mask: torch.Tensor, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        (weight * mask).sum().backward()
        optimizer.step()


# ------------------------------------------------------------------------------------------ 03: the DST loop


@exercise
def check_prune(answer: Answer) -> None:
    """``answer(values, count)``: positions of the ``count`` weights of smallest magnitude."""
    values = torch.tensor([0.5, -3.0, 0.1, 2.0, -0.2, -0.05])
    chosen = torch.as_tensor(_result(answer, values, 3))
    _expect(not chosen.is_floating_point(), "these are weights; return their positions")
    _expect(chosen.dtype != torch.bool, "this is a mask; return positions")
    places = sorted(chosen.tolist())
    _expect(places != [0, 1, 3], "the largest weights were chosen")
    _expect(1 not in places, "-3.0 was pruned, a large weight: rank by magnitude, not by value")
    _expect(
        places == magnitude_prune(values, 3).tolist(), f"positions {places} of {values.tolist()}; expected [2, 4, 5]"
    )
    tied = len(_result(answer, torch.ones(6), 2))
    _expect(tied == 2, f"of six equal weights {tied} are pruned, not 2: a threshold takes all ties, and nnz drifts")


@exercise
def check_grow(answer: Answer) -> None:
    """``answer(gradient, active, count)``: flat places of the largest gradients where no connection is."""
    gradient = torch.tensor([[0.1, -3.0, 0.2, 5.0], [0.3, 0.1, -4.0, 9.0], [1.0, 0.0, 2.0, -0.5]])
    active, original = torch.tensor([3, 7, 9]), gradient.clone()
    chosen = torch.as_tensor(_result(answer, gradient, active, 3))
    _expect(torch.equal(gradient, original), "the gradient itself was changed; work on a copy")
    _expect(not chosen.is_floating_point(), "these are gradients; return their places")
    places = sorted(chosen.tolist())
    _expect(len(set(places)) == 3, f"places {places}: asked for 3 different ones")
    free = [place for place in range(gradient.numel()) if place not in active]
    ranks = [free.index(place) for place in (1, 6, 10)]
    _expect(places != ranks, f"{places} are positions in the list of free places; translate them to flat places")
    taken = sorted(set(places) & set(active.tolist()))
    _expect(not taken, f"places {taken} hold a connection already: grown and active must be disjoint, or nnz falls")
    _expect(places != [4, 8, 10], "-4.0 and -3.0 were passed over: a large negative gradient is as good a reason")
    _expect(places == gradient_grow([gradient], active, 3).tolist(), f"places {places}; expected [1, 6, 10]")


@exercise
def check_prune_share(answer: Answer) -> None:
    """``answer(step, total_steps, initial, until)``: the share to replace: a cosine from ``initial`` to 0, then 0."""
    total, initial, until = 1000, 0.3, 0.75
    first = _result(answer, 0, total, initial, until)
    _expect(not math.isclose(first, 2 * initial), f"it starts at {first:.2f}, twice the initial share: half is missing")
    _expect(not math.isclose(first, 0, abs_tol=1e-9), "it starts at 0 and grows; early rewirings should be the largest")
    _expect(math.isclose(first, initial), f"it starts at {first:.3f}; expected {initial}")
    end = answer(750, total, initial, until)
    _expect(abs(end) < 1e-9, f"at step 750 it is still {end:.3f}: the cosine must reach 0 at `until`, not at the end")
    late = answer(900, total, initial, until)
    _expect(abs(late) < 1e-9, f"at step 900 of 1000 it is {late:.3f} again: past `until`, rewiring must stop")
    middle = answer(250, total, initial, until)
    _expect(math.isclose(middle, 0.225), f"at a third of the way it is {middle:.3f}, expected 0.225: is it a cosine?")


@exercise
def check_erk(answer: Answer) -> None:
    """``answer(shapes, budget)``: real-valued ERK shares of a budget, no layer above its size."""
    model = TutorialCNN()
    shapes = [weight_shape(layer) for layer in model.children()]
    right = list(layer_nnz(model, 0.95, "erk").values())
    shares = [float(share) for share in _result(answer, shapes, sum(right))]
    said = ", ".join(f"{share:,.0f}" for share in shares)
    _expect(max(shares) > 1, f"{said}: these are densities; return numbers of weights")
    uniform = list(layer_nnz(model, 0.95, "uniform").values())
    _expect(not _near(shares, uniform), f"{said}: that is uniform; ERK goes by the sum of a shape, not by its product")
    er = list(layer_nnz(model, 0.95, "er").values())
    _expect(not _near(shares, er), f"{said}: that is ER; for ERK add the kernel's sides instead of multiplying")
    for shape, share in zip(shapes, shares, strict=True):
        size = math.prod(shape)
        _expect(
            share <= size + 1e-6, f"a layer of {size:,} weights was given {share:,.0f}: cap it and share the rest out"
        )
    _expect(
        abs(sum(shares) - sum(right)) < 1,
        f"the shares add up to {sum(shares):,.0f}, not {sum(right):,}: what a full layer cannot take, others get",
    )
    _expect(_near(shares, right), f"{said}; expected about {', '.join(f'{n:,}' for n in right)}")


def _near(shares: Sequence[float], counts: Sequence[int]) -> bool:
    return all(abs(share - count) <= 1 for share, count in zip(shares, counts, strict=True))


# ------------------------------------------------------------------------------------------ 04: moving masks

# Four moments of eight places. Place 1 dies and comes back; place 4 is grown at moment 1, dies, and comes back.
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
    """``answer(masks)``: up to each moment, the share of all connections that have ever been active."""
    rates = np.asarray(_result(answer, _MASKS.copy()), dtype=float)
    _expect(rates.shape == (4,), f"expected one rate per moment, shape (4,); got {rates.shape}")
    seen = np.logical_or.accumulate(_MASKS)
    _expect(
        not _close(rates, _MASKS.mean(axis=1)), "that is the density of each moment; exploration remembers the past"
    )
    _expect(not _close(rates, seen.sum(axis=1)), "these are numbers of connections; divide by all that are possible")
    _expect(not _close(rates, 100 * seen.mean(axis=1)), "these are percent; a share goes from 0 to 1")
    _expect(not _close(rates, seen.sum(axis=1) / 3), "divided by the active connections; the share is of all places")
    _expect(rates.max() <= 1, f"{100 * rates.max():.0f}% explored: places that were left and found again count twice")
    _expect(_close(rates, seen.mean(axis=1)), f"{rates.tolist()}; expected {seen.mean(axis=1).tolist()}")


@exercise
def check_survival(answer: Answer) -> None:
    """``answer(masks, birth)``: from ``birth`` on, the share of those grown then that were never pruned since."""
    shares = np.asarray(_result(answer, _MASKS.copy(), 1), dtype=float)
    _expect(shares.shape == (3,), f"expected one share per moment from birth on, shape (3,); got {shares.shape}")
    everyone = np.logical_and.accumulate(_MASKS[1:])
    _expect(
        not _close(shares, everyone.mean(axis=1) * 8 / 3), "place 0 is older than this birth: follow only the new ones"
    )
    _expect(not _close(shares, [1, 0.5, 1]), "place 4 died and came back: that is overlap; survival cannot rise again")
    _expect(not _close(shares, [2 / 3, 1 / 3, 1 / 3]), "divided by all active connections; divide by those born then")
    _expect(_close(shares, [1, 0.5, 0.5]), f"{shares.tolist()}; expected [1, 0.5, 0.5]")
    first = np.asarray(answer(_MASKS.copy(), 0), dtype=float)
    _expect(
        _close(first, [1, 1 / 3, 1 / 3, 0]),
        f"birth 0: all that were drawn are new, none is compared with the last moment; got {first.tolist()}",
    )


# ------------------------------------------------------------------------------------------ 05: CSR and timing


@exercise
def check_csr(answer: Answer) -> None:
    """``answer(matrix)``: pointers, columns, values."""
    matrix = np.array([[0, 7, 0, 1], [0, 0, 0, 0], [5, 0, 3, 0], [0, 2, 0, 0], [0, 0, 0, 0]], dtype=np.float32)
    right = scipy.sparse.csr_matrix(matrix)
    pointers, columns, values = map(np.asarray, _result(answer, matrix))
    by_column = scipy.sparse.csc_matrix(matrix)
    _expect(not _close(values, by_column.data), "the values come column by column: that is CSC")
    _expect(not _close(pointers, matrix.nonzero()[0]), "these are the rows of COO; a pointer says where a row begins")
    _expect(len(values) == right.nnz, f"{len(values)} values stored for {right.nnz} nonzeros")
    _expect(
        not _close(pointers, right.indptr[1:]),
        "the leading 0 is missing: row 0 begins at 0, n rows need n + 1 pointers",
    )
    _expect(not _close(pointers, np.diff(right.indptr)), "these are the rows' lengths; pointers add them up")
    _expect(len(pointers) == 6, f"{len(pointers)} pointers for 5 rows: an empty row has one too, equal to the next")
    for name, mine, theirs in (
        ("pointers", pointers, right.indptr),
        ("columns", columns, right.indices),
        ("values", values, right.data),
    ):
        _expect(_close(mine, theirs), f"{name} {mine.tolist()}; expected {theirs.tolist()}")


class _Machine:
    """A call and a clock that can be predicted: cold at first, then 1 ms, with a hiccup at every fifth call."""

    def __init__(self) -> None:
        self.now, self.calls, self.readings = 0.0, 0, 0

    def call(self) -> None:
        self.calls += 1
        self.now += 13.5 if self.calls == 1 else 0.2 if self.calls % 5 == 0 else 0.001 + 1e-5 * self.calls

    def clock(self) -> float:
        self.readings += 1
        return self.now


@exercise
def check_fair_time(answer: Answer) -> None:
    """``answer(call, clock, runs)``: median seconds of a warm call."""
    machine = _Machine()
    once = _result(answer, machine.call, machine.clock, 1)
    _expect(machine.calls > 0, "call was never called")
    _expect(once < 13, f"{once:.1f} s for a call of 1 ms: the cold first call is inside the measurement")
    machine = _Machine()
    seconds = _result(answer, machine.call, machine.clock, 9)
    _expect(machine.calls > 9, f"{machine.calls} calls for 9 timed runs and a warm-up")
    _expect(
        machine.readings >= 10, f"the clock was read {machine.readings} times: time every call, or there is no spread"
    )
    again, singles = _Machine(), []
    for _ in range(machine.calls):
        start = again.now
        again.call()
        singles.append(again.now - start)
    timed = singles[-9:]
    _expect(
        not math.isclose(seconds, float(np.mean(timed))),
        f"{1e3 * seconds:.1f} ms: a mean, ruled by one hiccup of 200 ms",
    )
    _expect(not math.isclose(seconds, min(timed)), "the minimum flatters: it is the luckiest call, not a typical one")
    _expect(
        math.isclose(seconds, float(np.median(timed)), rel_tol=1e-6),
        f"{1e3 * seconds:.3f} ms; the median is {1e3 * np.median(timed):.3f} ms",
    )


# ------------------------------------------------------------------------------------------ 06: barriers


@exercise
def check_break_even(answer: Answer) -> None:
    """``answer(value_bytes, index_bytes)``: the density below which CSR is smaller than dense."""
    for value, index in ((4, 4), (2, 4), (8, 4), (1, 2)):
        density, right = _result(answer, value, index), value / (value + index)
        of = f"{density:.2f} for {value}-byte values and {index}-byte indices"
        _expect(density < 1, f"{of}: a density of 1 or more; a nonzero costs its value and its index")
        _expect(
            not (math.isclose(density, 1 - right) and value != index),
            f"{of}: that is the sparsity; density is what remains",
        )
        _expect(
            not math.isclose(density, value / (value + 2 * index)),
            f"{of}: two indices a nonzero is COO; CSR stores the column only",
        )
        _expect(
            not (density == 0.5 and value != index), f"{of}: one half holds only where an index is as wide as a value"
        )
        _expect(math.isclose(density, right), f"{of}; expected {right:.2f}")


@exercise
def check_best_gain(answer: Answer) -> None:
    """``answer(sparsity, size, batch, peak, bandwidth)``: the roofline's bound on CSR against dense."""
    machine = {"peak": 100e9, "bandwidth": 20e9}
    for sparsity, size, batch in ((0.95, 1000, 64), (0.95, 4000, 1), (0.99, 1000, 256), (0.5, 2000, 4)):
        gain = _result(answer, sparsity, size, batch, machine["peak"], machine["bandwidth"])
        bounds = {
            name: _roofline_gain(sparsity, size, batch, **machine, **how) for name, how in _ROOFLINE_ERRORS.items()
        }
        at = f"{gain:.2f} times at {100 * sparsity:.0f}% sparsity, {size}×{size}, batch {batch}"
        right = bounds.pop("")
        if not math.isclose(gain, right, rel_tol=1e-6):
            for symptom, wrong in bounds.items():
                _expect(not math.isclose(gain, wrong, rel_tol=1e-6), f"{at}: {symptom}")
        _expect(math.isclose(gain, right, rel_tol=1e-6), f"{at}; expected {right:.2f}")


_ROOFLINE_ERRORS: dict[str, dict[str, Any]] = {
    "": {},
    "dense time over sparse time, not the other way round": {"invert": True},
    "arithmetic and traffic overlap; the slower one decides, they do not add up": {"combine": sum},
    "a nonzero of CSR brings its index along, 8 bytes, not 4": {"entry": 4},
    "input and output are moved too": {"activations": 0},
    "the bytes are left out: memory has a roof as well": {"combine": lambda times: times[0]},
}


def _roofline_gain(
    sparsity: float,
    size: int,
    batch: int,
    peak: float,
    bandwidth: float,
    combine: Callable[[Sequence[float]], float] = max,
    entry: int = 8,
    activations: int = 8,
    invert: bool = False,
) -> float:
    def seconds(weights: float, weight_bytes: float) -> float:
        return combine([2 * weights * batch / peak, (weight_bytes + activations * size * batch) / bandwidth])

    nonzeros = (1 - sparsity) * size * size
    gain = seconds(size * size, 4 * size * size) / seconds(nonzeros, entry * nonzeros)
    return 1 / gain if invert else gain


# ------------------------------------------------------------------------------------------ 07: truly sparse


class _Rows:
    """An input ``[features, batch]`` that notes how it is read."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype, self.reads, self.single = array, array.shape, array.dtype, 0, 0

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, key: Any) -> np.ndarray:
        self.reads += 1
        taken = self.array[key]
        self.single += np.ndim(taken) == 0
        return taken


@exercise
def check_spmm(answer: Answer) -> None:
    """``answer(values, columns, pointers, x)``: sparse matrix times ``[in, batch]``, a whole row per nonzero."""
    matrix = scipy.sparse.csr_matrix(
        np.array([[0, 2, 0, 1], [0, 0, 0, 0], [5, 0, 3, 0], [0, -1, 0, 0]], dtype=np.float32)
    )
    x, right = _Rows(_draws(4, 8).numpy()), None
    right = matrix @ x.array
    y = np.asarray(_result(answer, matrix.data, matrix.indices, matrix.indptr, x))
    _expect(y.shape == right.shape, f"output of shape {y.shape}; expected [out, batch] = {right.shape}")
    _expect(not _close(y, matrix.T @ x.array), "that is the transposed product: a row adds up what its columns name")
    last = np.stack(
        [
            matrix.data[end - 1] * x.array[matrix.indices[end - 1]] if end > start else 0 * x.array[0]
            for start, end in itertools.pairwise(matrix.indptr)
        ]
    )
    _expect(not _close(y, last), "each row holds only its last nonzero: add with +=, do not assign")
    _expect(not y[1].any(), "row 1 is empty and must stay 0: it holds a neighbour's product")
    _expect(_close(y, right), "the result differs from the dense product")
    _expect(x.single == 0, f"x was read {x.single} times one number at a time: one nonzero, one whole row of the batch")


@exercise
def check_transpose(answer: Answer) -> None:
    """``answer(rows, columns)``: the order in which the nonzeros stand column by column, rows rising."""
    generator = np.random.default_rng(0)
    rows, columns = np.nonzero(generator.random((7, 9)) < 0.4)
    order = np.asarray(_result(answer, rows, columns))
    right = np.lexsort((rows, columns))
    _expect(sorted(order.tolist()) == list(range(len(rows))), "that is no permutation: every nonzero must appear once")
    _expect(
        not _close(order, right.argsort()), "that is the inverse: it says where each nonzero goes, not which comes next"
    )
    _expect(not _close(order, np.arange(len(rows))), "the order has not changed: the nonzeros still stand row by row")
    _expect((np.diff(columns[order]) >= 0).all(), "the columns do not rise: they must come in order")
    _expect(_close(order, right), "within a column the rows do not rise: sort by column, then row")


@exercise
def check_weight_gradient(answer: Answer) -> None:
    """``answer(rows, columns, x, grad_y)``: the gradient at the nonzeros, never the dense one."""
    size, batch = 1500, 4
    places = sample_distinct(size * size, 3000, torch.Generator().manual_seed(0)).numpy()
    rows, columns = np.divmod(places, size)
    x, grad_y = _draws(size, batch).numpy(), _draws(size, batch, seed=1).numpy()
    tracemalloc.start()
    try:
        gradient = np.asarray(_result(answer, rows, columns, x, grad_y))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    right = (grad_y[rows] * x[columns]).sum(axis=1)
    _expect(gradient.shape == right.shape, f"shape {gradient.shape}; expected one number per nonzero, {right.shape}")
    _expect(
        not _close(gradient, right / batch), "a mean over the batch; the gradient of a sum over samples is their sum"
    )
    _expect(
        not _close(gradient, (grad_y[columns] * x[rows]).sum(axis=1)),
        "rows and columns are swapped: rows belong to the output",
    )
    _expect(_close(gradient, right, 1e-4), "the values differ from the dense gradient at these places")
    dense = 4 * size * size
    _expect(
        peak < dense / 4,
        f"{peak / 1e6:.0f} MB held at the peak: a dense gradient ({dense / 1e6:.0f} MB) was built on the way",
    )


# ------------------------------------------------------------------------------------------ 08: which algorithm


@exercise
def check_interval(answer: Answer) -> None:
    """``answer(samples)``: low and high of the mean's 95% interval."""
    for samples in ([98.1, 98.5, 98.4], [97.0, 98.0, 98.2, 99.0, 97.6]):
        low, high = map(float, _result(answer, samples))
        n, mean, spread = len(samples), float(np.mean(samples)), float(np.std(samples, ddof=1))
        wide, right = (high - low) / 2, (interval(samples)[1] - mean)
        of = f"± {wide:.2f} from {n} seeds"
        _expect(
            math.isclose((low + high) / 2, mean, rel_tol=1e-6),
            f"({low:.2f}, {high:.2f}) is not centred on the mean {mean:.2f}",
        )
        _expect(
            not math.isclose(wide, 1.96 * spread / math.sqrt(n), rel_tol=2e-3),
            f"{of}: too narrow. 1.96 is for many samples; with {n} use Student's t",
        )
        _expect(
            not math.isclose(wide, right * math.sqrt(n), rel_tol=2e-3),
            f"{of}: the spread of single runs; a mean is surer, by the root of {n}",
        )
        _expect(
            not math.isclose(wide, right * math.sqrt((n - 1) / n), rel_tol=2e-3),
            f"{of}: too narrow. Divide by n - 1, not n (ddof=1)",
        )
        _expect(math.isclose(wide, right, rel_tol=2e-3), f"{of}; expected ± {right:.2f}")


@exercise
def check_growth_rule(answer: GrowChoice) -> None:
    """``answer(layer, active, count, generator)``: new connections, for inputs with few outputs first."""
    layer, count = SparseLinear(40, 30, connections=_uneven_connections()), 60
    active = layer.active()
    grown = _result(answer, layer, active, count, torch.Generator().manual_seed(0))
    _expect(len(grown) == count, f"{len(grown)} connections grown, {count} asked for: nnz drifts")
    _expect(len(grown.unique()) == count, f"{count - len(grown.unique())} places were chosen twice")
    free = (~to_mask(active, (30 * 40,))).nonzero().squeeze(1)
    every = _result(answer, layer, active, len(free), torch.Generator().manual_seed(0))
    taken = int(torch.isin(torch.cat([grown, every]), active).sum())
    _expect(taken == 0, f"{taken} grown connections are active already: grown and active must be disjoint")
    _expect((grown.diff() > 0).all(), "the indices are not sorted; later steps rely on it")
    same = answer(layer, active, count, torch.Generator().manual_seed(0))
    _expect(torch.equal(grown, same), "the same generator gave two different answers: draw from the one that is passed")
    by_output = _mean_degree(active // 40, grown // 40) < 0.6 * _mean_degree(active // 40, free // 40)
    by_input = _mean_degree(active % 40, grown % 40) < 0.6 * _mean_degree(active % 40, free % 40)
    _expect(by_input or not by_output, "it feeds outputs with few inputs; asked for were inputs with few outputs")
    _expect(by_input, "poorly connected inputs are chosen no more often than others")


def _mean_degree(active: torch.Tensor, units: torch.Tensor) -> float:
    """Return how many of the active connections the given units have on average."""
    return float(torch.bincount(active, minlength=40)[units].double().mean())


def _uneven_connections() -> torch.Tensor:
    """Return 200 places of a 30×40 weight: inputs and outputs of high number have more connections."""
    chance = torch.arange(1.0, 31).unsqueeze(1) * torch.arange(1.0, 41)
    return chance.flatten().multinomial(200, generator=torch.Generator().manual_seed(0)).sort().values


@exercise
def check_equal_width(answer: Answer) -> None:
    """``answer(budget, inputs, outputs)``: the widest dense network of two hidden layers within a budget of weights."""
    for budget, inputs, outputs in ((67_173, 784, 10), (5_000, 100, 10), (1_000_000, 784, 100)):
        width = _result(answer, budget, inputs, outputs)
        _expect(float(width).is_integer(), f"a width of {width}: a layer has whole neurons")
        of, weights = f"width {width:,}", _mlp_weights(int(width), inputs, outputs)
        forgot = budget // (inputs + outputs)
        _expect(width != forgot, f"{of}: the weights between the two hidden layers are not counted")
        _expect(
            weights <= budget, f"{of} has {weights:,} weights, more than the budget of {budget:,}: not a fair control"
        )
        wider = _mlp_weights(int(width) + 1, inputs, outputs)
        _expect(
            wider > budget,
            f"{of} leaves room: {int(width) + 1:,} has {wider:,} of {budget:,} weights, still within the budget",
        )


def _mlp_weights(width: int, inputs: int, outputs: int) -> int:
    return inputs * width + width * width + width * outputs
