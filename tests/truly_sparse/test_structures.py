"""Weights in blocks: the compiled kernels against dense torch, for each structure, kind of layer and batch."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.nn import functional as F

from truly_sparse import InvalidArgumentError, SparseConv2d, SparseLinear, reference
from truly_sparse.cpu import chain as cpu
from truly_sparse.cpu import index as index_module
from truly_sparse.cpu import program
from truly_sparse.cpu.index import ConvIndex, LinearIndex
from truly_sparse.cpu.memory import to_batch_innermost
from truly_sparse.cpu.stage import Stage
from truly_sparse.structure import whole_blocks

STRUCTURES = [(1, 1), (4, 1), (1, 4), (4, 4), (8, 8), (16, 1), (2, 2), (3, 3)]
BATCHES = [1, 3, 32, 64, 100, 256, 1000]
structures = pytest.mark.parametrize("structure", STRUCTURES, ids="{0[0]}x{0[1]}".format)
blocked = pytest.mark.parametrize("structure", STRUCTURES[1:], ids="{0[0]}x{0[1]}".format)
GEOMETRIES = {
    "3×3": ((48, 24, 3, 3), {"padding": (1, 1)}, (6, 8)),
    "stride, groups": ((96, 24, 3, 2), {"stride": (2, 2), "padding": (1, 0), "groups": 2}, (7, 9)),
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def drawn(shape, structure, density=0.3):
    """Return connections in whole blocks."""
    grid = (shape[0] // structure[0], shape[1] // structure[1], *shape[2:])
    return whole_blocks((torch.rand(grid).flatten() < density).nonzero().flatten(), shape, structure)


def linear(n_in, n_out, structure):
    return LinearIndex.build(drawn((n_out, n_in), structure), (n_out, n_in), structure)


def conv(shape, how, structure):
    return ConvIndex.build(drawn(shape, structure), shape, **how, structure=structure)


def parameters_of(stages):
    sizes = [(stage.index.nnz, stage.index.shape[0]) for stage in stages]
    return [torch.randn(size) for both in sizes for size in both]


def dense_result(x, stages, parameters):
    """Compute a chain with dense weights, in float64."""
    for (index, relu, pool), values, bias in zip(stages, parameters[::2], parameters[1::2], strict=True):
        weight = values.new_zeros(index.shape).flatten().index_put((index.flat(),), values).view(index.shape)
        if isinstance(index, LinearIndex):
            x = F.linear(x.flatten(1), weight, bias)
        else:
            x = F.conv2d(x, weight, bias, index.stride, index.padding, index.dilation, index.groups)
        x = x.relu() if relu else x
        x = F.max_pool2d(x, 2) if pool else x
    return x


def agree(stages, x):
    """Compare both passes with dense torch, relative to the largest number of each result."""
    parameters = parameters_of(stages)
    exact = [t.double().requires_grad_() for t in (x, *parameters)]
    wanted = dense_result(exact[0], stages, exact[1:])
    g = torch.randn_like(wanted).float()
    of_x, *of_parameters = torch.autograd.grad(wanted, exact, g.double())
    given, gradient = (to_batch_innermost(t) if len(x) % 32 == 0 else t for t in (x, g))
    for need_input in (True, False):
        y, passed = cpu.forward(given, stages, parameters, remember=True)
        found = cpu.backward(gradient, passed, stages, parameters, need_input)
        assert (found.x is not None) == need_input
        plain = cpu.forward(given, stages, parameters)[0]
        pairs = [(y, wanted), (plain, wanted), *zip(found.parameters, of_parameters, strict=True)]
        for a, b in pairs + ([(found.x, of_x)] if need_input else []):
            assert a.shape == b.shape
            assert ((a - b).abs() <= 2e-5 * (1 + b.abs().max())).all()


@structures
@pytest.mark.parametrize("batch", BATCHES)
def test_linear_layers_equal_dense(structure, batch):
    agree([Stage(linear(96, 48, structure))], torch.randn(batch, 96))


@structures
@pytest.mark.parametrize("batch", [3, 32, 100])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_convolutions_equal_dense(structure, batch, geometry):
    shape, how, size = geometry
    x = torch.randn(batch, shape[1] * how.get("groups", 1), *size)
    agree([Stage(conv(shape, how, structure), batch == 3, batch == 100)], x)


@structures
@pytest.mark.parametrize("batch", [1, 64, 100])
def test_chains_with_unstructured_layers_equal_dense(structure, batch):
    first = Stage(conv((48, 24, 3, 3), {"padding": (1, 1)}, structure), True, True)
    second = Stage(conv((24, 48, 1, 1), {}, (1, 1) if structure == (16, 1) else structure), True)
    widths = Stage(linear(24 * 9, 48, structure), True), Stage(linear(48, 96, (1, 1)), True)
    agree([first, second, *widths, Stage(linear(96, 48, structure))], torch.randn(batch, 24, 6, 6))


@blocked
def test_layers_in_parts_equal_dense(structure, monkeypatch):
    """Threads share large chains, and the outputs of large layers are divided into parts in the backward pass."""
    monkeypatch.setattr(program, "SMALL", 0)
    monkeypatch.setattr(index_module, "BLOCK", 30)
    monkeypatch.setattr(index_module, "RUN", 1)
    stages = [Stage(linear(96, 48, structure), True), Stage(linear(48, 96, structure))]
    assert stages[0].index.blocks > 1 or structure[0] % 4 == 0, "blocks of four outputs go by output"
    agree(stages, torch.randn(100, 96))


@structures
def test_the_reference_computes_the_same(structure):
    stages = [Stage(conv((48, 24, 3, 3), {}, structure), True), Stage(linear(48 * 4 * 4, 48, structure))]
    parameters, x = parameters_of(stages), torch.randn(5, 24, 6, 6)
    torch.testing.assert_close(
        reference.forward(x, stages, parameters)[0], dense_result(x, stages, parameters), rtol=1e-4, atol=1e-3
    )


@structures
@pytest.mark.parametrize("batch", [1, 50, 300])
def test_same_bits_for_any_number_of_threads(structure, batch):
    """The linear layer has enough work for threads to share a single sample."""
    stages = [Stage(linear(96, 960, structure), True)], [Stage(conv(*GEOMETRIES["3×3"][:2], structure), True, True)]
    work = [
        (of, parameters_of(of), x)
        for of, x in zip(stages, (torch.randn(batch, 96), torch.randn(batch, 24, 6, 8)), strict=True)
    ]
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append([])
        for of, parameters, x in work:
            y, passed = cpu.forward(to_batch_innermost(x), of, parameters, remember=True)
            gradients = cpu.backward(y, passed, of, parameters)
            results[-1] += [y, gradients.x, *gradients.parameters]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@structures
def test_a_step_in_one_call_equals_torch(structure):
    """Adam's first step goes by the sign of the gradient, so its gradients are compared."""
    first = Stage(conv((48, 24, 3, 3), {"padding": (1, 1)}, structure), True, True)
    stages = [first, Stage(linear(48 * 9, 48, structure), True), Stage(linear(48, 10, (1, 1)))]
    parameters, x, labels = parameters_of(stages), torch.randn(70, 24, 6, 6), torch.randint(10, (70,))
    parameters = [0.1 * p for p in parameters]
    exact = [p.double().requires_grad_() for p in parameters]
    loss = F.cross_entropy(dense_result(x.double(), stages, exact), labels)
    weights = [(p, torch.zeros_like(p), torch.zeros_like(p), torch.zeros(())) for p in parameters]
    trainer = cpu.Trainer()
    found, _ = trainer.step(x, labels, stages, weights, (0.0, 0.9, 0.99, 1e-8, 1.0))
    assert found == pytest.approx(loss.item(), rel=1e-4)
    for a, b in zip(trainer.gradients, torch.autograd.grad(loss, exact), strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-5)


@structures
@pytest.mark.parametrize("compiled", [True, False])
def test_an_index_gives_its_connections_back(structure, compiled, monkeypatch):
    if not compiled:  # as where numba is missing
        monkeypatch.setattr("truly_sparse.cpu.blocks.loops_or_none", lambda: None)
    shape, how, _ = GEOMETRIES["stride, groups"]
    for index in (linear(96, 48, structure), conv(shape, how, structure)):
        assert copy.deepcopy(index) is index and index.structure == structure
        again = pickle.loads(pickle.dumps(index))
        assert again.structure == structure and torch.equal(again.flat(), index.flat())
        assert (index.flat()[1:] > index.flat()[:-1]).all() and len(index.flat()) == index.nnz
    if compiled:
        index = linear(96, 48, structure)
        monkeypatch.setattr("truly_sparse.cpu.blocks.loops_or_none", lambda: None)
        same = LinearIndex.build(index.flat(), index.shape, structure)
        assert all(
            (getattr(index, name) == getattr(same, name)).all() for name in ("cols", "t_indptr", "t_rows", "t_perm")
        )


@pytest.mark.parametrize(
    ("structure", "most"), [((4, 1), 1.15), ((4, 4), 1.15), ((8, 8), 1.08), ((16, 1), 1.05), ((1, 4), 1.95)]
)
def test_an_index_of_blocks_is_small(structure, most):
    for kind, shape in ((LinearIndex, (960, 960)), (ConvIndex, (64, 64, 3, 3))):
        flat = drawn(shape, structure, 0.05)
        index = kind.build(flat, shape, structure=structure)
        assert (index.nbytes + 4 * len(flat)) / (4 * len(flat)) <= most, "bytes per byte of weights"


@blocked
def test_connections_that_are_not_whole_blocks_are_refused(structure):
    shape, how, _ = GEOMETRIES["stride, groups"]
    for build, of in (
        (lambda flat: LinearIndex.build(flat, (48, 96), structure), (48, 96)),
        (lambda flat: ConvIndex.build(flat, shape, **how, structure=structure), shape),
    ):
        flat = drawn(of, structure)
        missing, free = flat[torch.arange(len(flat)) != 7], torch.ones(torch.Size(of).numel(), dtype=torch.bool)
        free[flat] = False
        moved = torch.cat([missing, free.nonzero()[:1, 0]]).sort().values
        for broken in (missing, moved):
            with pytest.raises(InvalidArgumentError, match=f"whole blocks of structure={structure[0]}×{structure[1]}"):
                build(broken)


@pytest.mark.parametrize("structure", [(5, 1), (1, 5), (0, 1), (1, -2), (2.0, 1), (1, 2, 3), "4x4", None])
def test_structures_that_do_not_fit_are_refused(structure):
    none = torch.zeros(0, dtype=torch.int64)
    for build in (
        lambda: LinearIndex.build(none, (4, 4), structure),
        lambda: ConvIndex.build(none, (8, 4, 3, 3), groups=2, structure=structure),
        lambda: SparseLinear(4, 4, structure=structure),
        lambda: SparseConv2d(4, 4, 3, structure=structure),
    ):
        with pytest.raises((InvalidArgumentError, TypeError)):
            build()
    with pytest.raises(InvalidArgumentError, match="2 groups"):
        ConvIndex.build(none, (8, 4, 3, 3), groups=2, structure=(8, 1))


@structures
def test_layers_draw_blocks(structure):
    for layer in (
        SparseLinear(96, 48, sparsity=0.9, structure=structure),
        SparseConv2d(24, 48, 3, sparsity=0.9, structure=structure),
    ):
        area = structure[0] * structure[1]
        whole = torch.Size(layer.dense_shape).numel()
        assert layer.index.structure == structure and layer.index.nnz == area * round(0.1 * whole / area)
        x = torch.randn(4, 96) if isinstance(layer, SparseLinear) else torch.randn(4, 24, 5, 5)
        torch.testing.assert_close(layer(x), layer.to_dense_layer()(x), rtol=1e-4, atol=1e-4)
        again = pickle.loads(pickle.dumps(layer))
        again.load_state_dict(layer.state_dict())
        assert again.index.structure == structure and torch.equal(again(x), layer(x))


def test_blocks_become_flat_indices():
    assert whole_blocks(torch.tensor([1]), (2, 4), (2, 2)).tolist() == [2, 3, 6, 7]
    assert whole_blocks(torch.tensor([0, 3]), (2, 2, 1, 2), (1, 2)).tolist() == [0, 2, 5, 7]
    assert whole_blocks(torch.tensor([], dtype=torch.int64), (4, 4), (2, 2)).tolist() == []
