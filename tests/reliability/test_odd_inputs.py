"""Legal inputs that lie oddly in memory: the result is that of a plain copy, and the input stays as it was."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import truly_sparse as engine
import tutorial_lib as lib
from truly_sparse import InvalidArgumentError, positions, reference, rules, topology
from truly_sparse.cpu import chain as cpu
from truly_sparse.cpu import index, memory
from truly_sparse.cpu.stage import Stage
from tutorial_lib import checkpoint, compare, contenders, cost, csr, data, viz

pytestmark = pytest.mark.filterwarnings("ignore:The given .* is not writable")  # torch, of arrays and of buffers


class Own(torch.Tensor):
    """A tensor of somebody's own class."""


# ------------------------------------------------------------------------------------------ forms


def read_only(array: np.ndarray, path: Path) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def mapped(array: np.ndarray, path: Path) -> np.ndarray:
    """From a file, in pages that the system lets nobody write to; an empty file cannot be mapped."""
    path.write_bytes(array.tobytes())
    return np.memmap(path, array.dtype, "r", shape=array.shape) if array.size else array


def every_other(array: np.ndarray, path: Path) -> np.ndarray:
    return np.stack([array, array], axis=-1)[..., 1]


def transposed(array: np.ndarray, path: Path) -> np.ndarray:
    return np.asfortranarray(array)


def unaligned(array: np.ndarray, path: Path) -> np.ndarray:
    """Behind a number that belongs to nobody, so on no border of a cache line."""
    return np.concatenate([array.reshape(-1)[:1], array.reshape(-1)])[array.size > 0 :].reshape(array.shape)


ARRAYS = (read_only, mapped, every_other, transposed, unaligned)
TENSORS: dict[str, Callable[[torch.Tensor, Path], torch.Tensor]] = {
    **{form.__name__: lambda t, path, form=form: torch.from_numpy(form(t.numpy(), path)) for form in ARRAYS},
    "of a buffer": lambda t, path: (
        torch.frombuffer(t.numpy().tobytes(), dtype=t.dtype).view(t.shape) if t.numel() else t
    ),
    "batch last": lambda t, path: t.movedim(0, -1).contiguous().movedim(-1, 0) if t.dim() > 1 else t.clone(),
    "of its own class": lambda t, path: t.as_subclass(Own),
    "a view that negates": lambda t, path: torch._neg_view(-t) if t.is_floating_point() else t.clone(),
    "a view of a parameter": lambda t, path: (
        nn.Parameter(torch.stack([t, t]))[0] if t.is_floating_point() else torch.stack([t, t])[0]
    ),
}
# Fewer numbers in memory than in the tensor: only for what takes any numbers.
OVERLAPS: dict[str, Callable[[torch.Tensor, Path], torch.Tensor]] = {
    "expanded": lambda t, path: t[:1].clone().expand(t.shape),
    "a single number": lambda t, path: t.reshape(-1)[:1].clone().expand(t.shape),
    "sliding windows": lambda t, path: t.clone().as_strided(t.shape, (1,) * t.dim()),
}


class Call(NamedTuple):
    """What is called: with ``tensors`` by name; those of ``free`` may hold any numbers."""

    function: Callable[..., Any]
    tensors: dict[str, torch.Tensor]
    free: tuple[str, ...] = ()


def numbers(*shape: int) -> torch.Tensor:
    """Small whole numbers, which add up exactly in any order."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(len(shape))).float()


ACTIVE = torch.tensor([0, 5, 7, 11])
LINEAR = index.LinearIndex.build(ACTIVE, (3, 4))
CONV = index.ConvIndex.build(torch.tensor([0, 3, 7]), (2, 1, 2, 2))
MASK = numbers(3, 4) > 0
CONV_LAYER = {"in_channels": 1, "out_channels": 2, "kernel_size": 2, "connections": torch.tensor([0, 3, 7])}


def linear(**more: Any) -> engine.SparseLinear:
    torch.manual_seed(0)
    return engine.SparseLinear(4, 3, connections=ACTIVE, **more)


def both_ways(layer: nn.Module, x: torch.Tensor, gradient: torch.Tensor | None = None) -> list[torch.Tensor | None]:
    """A pass forward and one backward: the result, and the gradients of the input and the parameters."""
    inputs = x.detach().requires_grad_()
    y = layer(inputs)
    y.backward(y.detach() if gradient is None else gradient)
    return [y, inputs.grad, *(parameter.grad for parameter in layer.parameters())]


def chain() -> nn.Module:
    torch.manual_seed(0)
    parts = nn.Conv2d(1, 2, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)
    return engine.fuse(engine.sparsify(lib.mask_model(nn.Sequential(*parts), 0.3)))


def masked() -> lib.MaskedLinear:
    torch.manual_seed(0)
    layer = lib.MaskedLinear(4, 3)
    layer.set_mask(MASK)
    return layer


def set_values(layer: Any, values: torch.Tensor) -> torch.Tensor:
    layer.set_active_values(values)
    return layer.active_values()


def rewired(layer: Any, kept: torch.Tensor, grown: torch.Tensor, values: torch.Tensor) -> list[torch.Tensor]:
    carry = layer.rewire(kept, grown, values)
    return [layer.active(), layer.active_values(), carry(torch.ones_like(layer.weight_parameter), 0.5)]


def recorded(layer: Any, x: torch.Tensor, connections: torch.Tensor) -> list[torch.Tensor]:
    layer.record_gradient = True
    layer(x).sum().backward()
    return [*layer.gradient_rows(), layer.gradient_at(connections)]


def saved(tensor: torch.Tensor, path: Path) -> torch.Tensor:
    checkpoint.save_checkpoint(path, tensor=tensor)
    return checkpoint.load_checkpoint(path)["tensor"]


def digits(x: torch.Tensor, y: torch.Tensor) -> list[Any]:
    made = data.Digits(x, y, x, y, "digits", "made up")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 10))
    history = lib.fit(model, made, epochs=1, batch_size=2, progress=False)
    return [made.sha256(), history.train_loss, *lib.evaluate(model, made)]


X, IMAGES, VALUES, BIAS = numbers(5, 4), numbers(3, 1, 5, 5), numbers(4), numbers(3)
GROWN = {"kept": torch.tensor([0, 5]), "grown": torch.tensor([1, 8]), "values": numbers(2)}
CALLS = {
    "SparseLinear": Call(lambda x: both_ways(linear(), x), {"x": X}, ("x",)),
    "SparseLinear, its gradient": Call(
        lambda gradient: both_ways(linear(relu=True), X, gradient), {"gradient": numbers(5, 3)}, ("gradient",)
    ),
    "SparseConv2d, its gradient": Call(
        lambda gradient: both_ways(_conv(), IMAGES, gradient), {"gradient": numbers(3, 2, 4, 4)}, ("gradient",)
    ),
    "SparseLinear, a single input": Call(lambda x: linear()(x), {"x": VALUES}, ("x",)),
    "SparseConv2d": Call(lambda x: both_ways(_conv(), x), {"x": IMAGES}, ("x",)),
    "a fused chain": Call(lambda x: both_ways(chain(), x), {"x": IMAGES}, ("x",)),
    "MaskedLinear": Call(lambda x: both_ways(masked(), x), {"x": X}, ("x",)),
    "SparseLinear, its topology": Call(
        lambda connections: engine.SparseLinear(4, 3, connections=connections).active(), {"connections": ACTIVE}
    ),
    "set_active_values": Call(lambda values: set_values(linear(), values), {"values": VALUES}, ("values",)),
    "set_active_values, masked": Call(
        lambda values: set_values(masked(), values), {"values": numbers(int(MASK.sum()))}, ("values",)
    ),
    "set_mask": Call(lambda mask: (layer := masked(), layer.set_mask(mask), layer.weight)[-1], {"mask": MASK}),
    "set_extra_state": Call(
        lambda state: (layer := linear(), layer.set_extra_state(state), layer.active())[-1], {"state": ACTIVE + 0}
    ),
    "rewire": Call(lambda **moved: rewired(linear(), **moved), GROWN, ("values",)),
    "gradient_at": Call(
        lambda x, connections: recorded(linear(), x, connections), {"x": X, "connections": ACTIVE}, ("x",)
    ),
    "gradient_at, masked": Call(
        lambda x, connections: recorded(masked(), x, connections), {"x": X, "connections": ACTIVE}, ("x",)
    ),
    "LinearIndex.build": Call(lambda flat: index.LinearIndex.build(flat, (3, 4)).t_perm, {"flat": ACTIVE}),
    "ConvIndex.build": Call(lambda flat: index.ConvIndex.build(flat, (2, 2, 2, 2)).cols, {"flat": ACTIVE}),
    "to_batch_innermost": Call(memory.to_batch_innermost, {"x": X}, ("x",)),
    "cpu.forward": Call(
        lambda x, values, bias: cpu.forward(x, [Stage(LINEAR)], [values, bias])[0],
        {"x": X, "values": VALUES, "bias": BIAS},
        ("x", "values", "bias"),
    ),
    "linear_forward": Call(
        lambda x, values, bias: reference.linear_forward(x, values, bias, LINEAR),
        {"x": X, "values": VALUES, "bias": BIAS},
        ("x", "values", "bias"),
    ),
    "linear_backward": Call(
        lambda grad, x, values: reference.linear_backward(grad, x, None, values, LINEAR),
        {"grad": numbers(5, 3), "x": X, "values": VALUES},
        ("grad", "x", "values"),
    ),
    "conv_forward": Call(
        lambda x, values: reference.conv_forward(x, values, None, CONV, pool=True, remember=True),
        {"x": IMAGES, "values": numbers(3)},
        ("x", "values"),
    ),
    "conv_backward": Call(
        lambda grad, x, values: reference.conv_backward(grad, x, None, None, values, CONV),
        {"grad": numbers(3, 2, 4, 4), "x": IMAGES, "values": numbers(3)},
        ("grad", "x", "values"),
    ),
    "to_mask": Call(lambda connections: topology.to_mask(connections, (3, 4)), {"connections": ACTIVE}),
    "to_mask of none": Call(lambda connections: topology.to_mask(connections, (3, 4)), {"connections": ACTIVE[:0]}),
    "to_connections": Call(topology.to_connections, {"mask": MASK}),
    "to_connections of none": Call(topology.to_connections, {"mask": MASK[:0]}),
    "contained": Call(positions.contained, {"numbers": torch.tensor([1, 4, 7]), "among": ACTIVE}),
    "magnitude_prune": Call(lambda values: rules.magnitude_prune(values, 2), {"values": VALUES}, ("values",)),
    "random_grow": Call(
        lambda active: rules.random_grow(active, 12, 3, torch.Generator().manual_seed(0)), {"active": ACTIVE}
    ),
    "gradient_grow": Call(
        lambda gradient, active: rules.gradient_grow([gradient], active, 3),
        {"gradient": numbers(3, 4), "active": ACTIVE},
        ("gradient",),
    ),
    **{
        f"CSRProduct, {backend}": Call(
            lambda matrix, mask, x, backend=backend: csr.CSRProduct(matrix, mask, backend)(x),
            {"matrix": numbers(3, 4), "mask": MASK, "x": numbers(4, 2)},
            ("matrix", "x"),
        )
        for backend in csr.BACKENDS
    },
    "Digits, fit and evaluate": Call(digits, {"x": numbers(6, 1, 4, 4), "y": torch.tensor([3, 1, 4, 1, 5, 9])}, ("x",)),
    "benchmark": Call(
        lambda output: list(lib.benchmark({"a": lambda: output, "b": output.clone}, runs=1, warmup=0).seconds),
        {"output": X},
        ("output",),
    ),
    "TopologyRecorder": Call(
        lambda mask: (
            layer := masked(),
            layer.set_mask(mask),
            recorder := lib.TopologyRecorder(),
            recorder.record({"a": layer}, 0),
            recorder.mask("a", 0),
        )[-1],
        {"mask": MASK},
    ),
}


def _conv() -> engine.SparseConv2d:
    torch.manual_seed(0)
    return engine.SparseConv2d(**CONV_LAYER)


def parts(result: Any) -> Iterator[Any]:
    """Go through whatever a call returns, number by number or array by array."""
    if isinstance(result, (list, tuple)):
        for part in result:
            yield from parts(part)
    elif isinstance(result, torch.Tensor):
        yield result.detach().as_subclass(torch.Tensor).resolve_neg().numpy().copy()
    else:
        yield copy.deepcopy(result)


def same(found: Any, expected: Any) -> None:
    for a, b in itertools.zip_longest(parts(found), parts(expected)):
        assert type(a) is type(b)
        if isinstance(a, float):  # of a dense layer: torch adds up in another order where memory is not aligned
            assert a == pytest.approx(b, rel=1e-6)
        else:
            np.testing.assert_array_equal(a, b)
        assert getattr(a, "dtype", None) == getattr(b, "dtype", None)


def plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().as_subclass(torch.Tensor).clone(memory_format=torch.contiguous_format).resolve_neg()


CASES = [
    pytest.param(call, name, form, id=f"{of}-{name}-{how}")
    for of, call in CALLS.items()
    for name in call.tensors
    for how, form in (TENSORS | (OVERLAPS if name in call.free else {})).items()
]


@pytest.mark.parametrize(("call", "name", "form"), CASES)
def test_the_result_is_that_of_a_plain_copy(call, name, form, tmp_path, survived):
    odd = form(call.tensors[name], tmp_path / "mapped")
    before, others = plain(odd), {other: t.clone() for other, t in call.tensors.items() if other != name}
    expected = [*parts(call.function(**others, **{name: plain(odd)}))]
    try:
        same(call.function(**others, **{name: odd}), expected)
    except InvalidArgumentError as error:
        assert "contiguous" in str(error)  # compiled code takes weights side by side only, and says so
    assert torch.equal(plain(odd), before), "the input was changed"
    survived("bad input")


@pytest.mark.parametrize("form", TENSORS.values(), ids=TENSORS)
def test_a_checkpoint_holds_the_numbers_however_they_lie(form, tmp_path, survived):
    odd = form(X, tmp_path / "mapped")
    same(saved(plain(odd), tmp_path / "plain"), saved(odd.as_subclass(torch.Tensor), tmp_path / "odd"))
    survived("bad input")


# ------------------------------------------------------------------------------------------ arrays

ARRAY_CALLS = {
    "plot_mask": (lambda mask: viz.plot_mask(mask).axes[0].images[0].get_array().filled(), MASK),
    "mask_states": (lambda mask: viz.mask_states(mask, ~np.asarray(mask)), MASK),
    "plot_mask_evolution": (
        lambda mask: viz.plot_mask_evolution([mask, np.ones_like(mask)]).axes[0].images[0].get_array().filled(),
        MASK,
    ),
    "break_even": (lambda sparsity: viz.break_even(sparsity, np.array([2.0, 1.5, 0.5])), torch.tensor([0.1, 0.5, 0.9])),
    "break_even, ratio": (lambda ratio: viz.break_even(np.arange(3) / 4, ratio), torch.tensor([2.0, 1.5, 0.5])),
}


@pytest.mark.parametrize("form", ARRAYS, ids=lambda form: form.__name__)
@pytest.mark.parametrize(("function", "tensor"), ARRAY_CALLS.values(), ids=ARRAY_CALLS)
def test_arrays_as_well(function, tensor, form, tmp_path, survived):
    odd = form(tensor.numpy(), tmp_path / "mapped")
    before = np.array(odd)
    same(function(odd), function(before.copy()))
    assert np.array_equal(odd, before)
    survived("bad input")


# ------------------------------------------------------------------------------------------ numbers

Number = Callable[[int], Any]


def seeded(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return function(*args, **kwargs)


def fitted(n: Number) -> list[float]:
    x, y = numbers(6, 1, 4, 4), torch.arange(6)
    model = nn.Sequential(nn.Flatten(), seeded(nn.Linear, 16, 10))
    made = data.Digits(x, y, x, y, "digits", "made up")
    return lib.fit(model, made, epochs=n(2), batch_size=n(4), seed=n(3), progress=False).train_loss


def driven(n: Number) -> torch.Tensor:
    model = lib.mask_model(seeded(nn.Linear, 20, 30), 0.5, seed=n(3))
    driver = engine.DynamicSparsity(model, torch.optim.SGD(model.parameters()), every=n(1), until=n(9), seed=n(5))
    driver.step()
    return model.active()


NUMBERS = {
    "mask_model": lambda n: lib.mask_model(seeded(nn.Linear, 20, 30), 0.5, seed=n(3)).weight,
    "SparseLinear": lambda n: seeded(engine.SparseLinear, n(200), n(30)).active(),
    "MaskedLinear": lambda n: seeded(lib.MaskedLinear, n(200), n(30)).weight,
    "SparseConv2d": lambda n: seeded(engine.SparseConv2d, n(40), n(60), n(3), (n(2), n(1)), n(1))(
        torch.ones(1, 40, 5, 5)
    ),
    "MaskedConv2d": lambda n: seeded(lib.MaskedConv2d, n(40), n(60), (n(3), n(1)), padding=n(1))(
        torch.ones(1, 40, 5, 5)
    ),
    "sample_distinct": lambda n: topology.sample_distinct(n(200), n(3), torch.Generator().manual_seed(0)),
    "to_mask": lambda n: topology.to_mask(ACTIVE, (n(200), n(3))),
    "magnitude_prune": lambda n: rules.magnitude_prune(VALUES, n(2)),
    "random_grow": lambda n: rules.random_grow(ACTIVE, n(200), n(3), torch.Generator().manual_seed(0)),
    "LinearIndex.build": lambda n: index.LinearIndex.build(ACTIVE, (n(200), n(200))).cols,
    "ConvIndex.build": lambda n: index.ConvIndex.build(ACTIVE, (n(200),) * 4, groups=n(2)).cols,
    "Epochs": lambda n: engine.Epochs(n(200)).in_steps(n(200)),
    "TutorialCNN": lambda n: [seeded(lib.TutorialCNN, n(1)).fc1.weight.shape],
    "training_multiply_adds": lambda n: [*cost.training_multiply_adds(nn.Linear(20, 30), (n(20),), n(200)).values()],
    "interval": lambda n: compare.interval([n(1), n(2), n(4)]),
    "fit": fitted,
    "DynamicSparsity": driven,
}


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("call", NUMBERS.values(), ids=NUMBERS)
def test_numpy_s_numbers_are_numbers(call, kind, survived):
    """None of them is taken for another type, or wraps at its end."""
    same(call(kind), [*parts(call(int))])
    survived("bad input")


def test_seeds_may_be_an_array(tmp_path, survived):
    x, y = torch.zeros(12, 1, 28, 28), torch.arange(12) % 10
    given = (
        {"small": contenders.SmallDense()},
        data.Digits(x, y, x, y, "digits", "made up"),
        np.array([0.99]),
        np.arange(2),
    )
    budget = compare.Budget(np.int64(1), np.int64(6))
    runs = compare.compare(*given, budget, folder=tmp_path, progress=False).runs
    assert compare.compare(*given, budget, folder=tmp_path, progress=False).runs.equals(runs)  # read back
    survived("bad input")


# ------------------------------------------------------------------------------------------ one piece of memory, twice


def shared_bias(share: bool) -> list[Any]:
    """A layer whose bias is a part of its values."""
    layer = linear()
    layer.bias = nn.Parameter(layer.values.detach()[:3] if share else layer.values.detach()[:3].clone())
    return both_ways(layer, X)


def own_values(share: bool) -> list[Any]:
    layer = linear()
    return [set_values(layer, layer.values if share else layer.values.clone())]


def own_values_grow(share: bool) -> list[Any]:
    layer = linear()
    values = layer.values.detach()[:2]
    return rewired(layer, GROWN["kept"], GROWN["grown"], values if share else values.clone())


def own_state(share: bool) -> list[Any]:
    model = chain()
    state = model.state_dict()
    model.load_state_dict(state if share else copy.deepcopy(state))
    return [*model.parameters()]


def own_mask(share: bool) -> torch.Tensor:
    layer = masked()
    layer.set_mask(layer.mask if share else layer.mask.clone())
    return layer.weight


def input_is_gradient(share: bool) -> list[Any]:
    square = engine.SparseLinear(4, 4, connections=ACTIVE)
    square.values.data, square.bias.data = VALUES.clone(), VALUES.clone()
    x = X.clone().requires_grad_()
    y = square(x)
    y.backward(x.detach() if share else X.clone())
    return [y, x.grad, square.values.grad, square.bias.grad]


def input_is_weight(share: bool) -> list[Any]:
    layer = linear()
    x = layer.values.view(1, 4) if share else layer.values.detach().clone().view(1, 4)
    return [layer(x)]


def train_is_test(share: bool) -> list[Any]:
    x, y = numbers(6, 1, 4, 4), torch.arange(6)
    made = data.Digits(x, y, x if share else x.clone(), y if share else y.clone(), "digits", "made up")
    torch.manual_seed(0)
    return [lib.fit(nn.Sequential(nn.Flatten(), nn.Linear(16, 10)), made, epochs=1, progress=False).test_loss]


def one_tensor_for_all(share: bool) -> torch.Tensor:
    x, values, bias = numbers(4, 4)[:1], numbers(4, 4)[0], numbers(4, 4)[0, :3]
    if share:
        x = numbers(4, 4)[:1]
        values, bias = x[0], x[0, :3]
    return cpu.forward(x, [Stage(LINEAR)], [values, bias])[0]


ALIASES = (
    shared_bias,
    own_values,
    own_values_grow,
    own_state,
    own_mask,
    input_is_gradient,
    input_is_weight,
    train_is_test,
    one_tensor_for_all,
    lambda share: positions.contained(ACTIVE, ACTIVE if share else ACTIVE.clone()),
    lambda share: rules.gradient_grow([X] * 2 if share else [X, X.clone()], ACTIVE, 3),
    lambda share: viz.mask_states(MASK.numpy(), MASK.numpy() if share else MASK.numpy().copy()),
    lambda share: reference.linear_backward(X[:, :3], X if share else X.clone(), None, VALUES, LINEAR),
    lambda share: csr.CSRProduct(X[:3], X[:3] > 0, "scipy")(X[:4] if share else X[:4].clone()),
)


@pytest.mark.parametrize("call", ALIASES, ids=lambda call: call.__name__)
def test_one_piece_of_memory_may_be_given_twice(call, survived):
    same(call(True), [*parts(call(False))])
    survived("bad input")


def test_the_same_connections_cannot_be_kept_and_grown(survived):
    kept = ACTIVE[:2]
    with pytest.raises(InvalidArgumentError, match="grown: 0 is already active"):
        linear().rewire(kept, kept, numbers(2))
    survived("bad input")
