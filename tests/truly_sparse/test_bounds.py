"""No kernel touches memory that is not its own: the compiled loops, run in plain Python over checked pointers."""

from __future__ import annotations

import runpy
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.truly_sparse import plain_simd
from tests.truly_sparse.plain_simd import OutOfBounds, checked_kernels, moved
from truly_sparse import SparseConv2d, SparseLinear, reference
from truly_sparse.cpu import index
from truly_sparse.cpu.index import ConvIndex, LinearIndex
from truly_sparse.cpu.memory import to_batch_innermost
from truly_sparse.cpu.stage import Stage
from truly_sparse.structure import whole_blocks
from tutorial_lib.project import ROOT

DENSITY = 0.6


@pytest.fixture(scope="module", params=[8, 16], ids=["8 lanes", "16 lanes"])
def kernels(request):
    with checked_kernels(request.param) as module:
        yield module


@pytest.fixture(autouse=True)
def nothing_known(kernels):
    plain_simd.known.clear()
    sys.modules[f"{kernels.__package__}.templates"]._templates.clear()  # their arrays are no longer known
    torch.manual_seed(0)


def drawn(shape, structure=(1, 1)):
    grid = (shape[0] // structure[0], shape[1] // structure[1], *shape[2:])
    return whole_blocks((torch.rand(grid).flatten() < DENSITY).nonzero().flatten(), shape, structure)


def linear(n_in, n_out, relu=False, structure=(1, 1)):
    return Stage(LinearIndex.build(drawn((n_out, n_in), structure), (n_out, n_in), structure), relu)


def conv(
    channels,
    outputs,
    kernel,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    groups=1,
    relu=False,
    pool=False,
    structure=(1, 1),
):
    shape = (outputs, channels // groups, *kernel)
    index = ConvIndex.build(drawn(shape, structure), shape, stride, padding, dilation, groups, structure)
    return Stage(index, relu, pool)


def works(kernels, stages, size, batch, innermost, need_input=True):
    """Compare with the reference; every access was checked, and what was only to be read is as it was."""
    parameters = [
        p for of in (stage.index for stage in stages) for p in (torch.randn(of.nnz), torch.randn(of.shape[0]))
    ]
    x = torch.randn(batch, *size)
    expected, passed = reference.forward(x, stages, parameters, remember=True)
    g = torch.randn(expected.shape)
    wanted = reference.backward(g, passed, stages, parameters, need_input)
    here, there = (to_batch_innermost(t) if innermost else t.clone() for t in (x, g))
    given = [t.clone() for t in parameters]
    torch.testing.assert_close(kernels.forward(here, stages, given)[0], expected, rtol=1e-4, atol=1e-4)
    y, passed = kernels.forward(here, stages, given, remember=True)
    found = kernels.backward(there, passed, stages, given, need_input, trace=not innermost)
    for a, b in zip((y, found.x, *found.parameters), (expected, wanted.x, *wanted.parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    for a, b in zip((here, there, *given), (x, g, *parameters), strict=True):
        assert torch.equal(a, b)


LINEAR = {
    "one weight": (1, 1),
    "fewer than a vector": (3, 5, 2),
    "more than a block": (19, 17, 33),
    "more than two vectors of weights": (70, 3),
}
CONV = {
    "1×1": ((1, 3, 3), [((1, 2, (1, 1)), {})]),
    "one pixel": ((1, 1, 1), [((1, 1, (1, 1)), {})]),
    "odd size, padding": ((2, 5, 7), [((2, 3, (3, 3)), {"padding": (1, 1), "relu": True})]),
    "stride 2": ((1, 6, 7), [((1, 2, (3, 2)), {"stride": (2, 2), "padding": (1, 0)})]),
    "rows of two tiles, stride": ((2, 2, 14), [((2, 1, (2, 3)), {"stride": (1, 2), "padding": (1, 1)})]),
    "stride beyond the kernel": ((1, 7, 8), [((1, 1, (1, 2)), {"stride": (3, 3)})]),
    "dilation": ((2, 7, 6), [((2, 2, (2, 3)), {"dilation": (3, 2), "padding": (2, 1)})]),
    "groups": ((4, 4, 4), [((4, 2, (2, 2)), {"groups": 2, "relu": True})]),
    "pool": ((1, 5, 4), [((1, 2, (2, 2)), {"pool": True})]),
    "pool, padding wider than the kernel, stride": (
        (2, 5, 9),
        [((2, 2, (2, 2)), {"padding": (3, 2), "stride": (1, 2), "relu": True, "pool": True})],
    ),
    "blocks of 4×1": ((2, 5, 6), [((2, 8, (3, 2)), {"padding": (1, 1), "structure": (4, 1)})]),
    "blocks of 4×4, stride": (
        (4, 6, 7),
        [((4, 4, (2, 3)), {"stride": (2, 1), "relu": True, "pool": True, "structure": (4, 4)})],
    ),
    "two": ((1, 8, 6), [((1, 2, (3, 3)), {"padding": (1, 1), "relu": True, "pool": True}), ((2, 2, (2, 2)), {})]),
}
INPUTS = [(1, False), (16, True), (17, True), (40, False), (40, True)]
inputs = pytest.mark.parametrize(("batch", "innermost"), INPUTS)


# 3, 13 and 20: all samples in a tile of 8, 16 or 32; 80: tiles of several widths, or spans
@pytest.mark.parametrize(("batch", "innermost"), [*INPUTS, (3, False), (13, False), (20, False), (80, True)])
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("widths", LINEAR.values(), ids=LINEAR)
def test_linear_layers_stay_within_their_memory(kernels, widths, batch, innermost, large, survived, monkeypatch):
    """Threads share large chains, whose layers have wider numbers for positions and go backward block by block."""
    if large:
        monkeypatch.setattr(sys.modules[kernels.forward_program.__module__], "SMALL", 0)
        monkeypatch.setattr(index, "_unsigned", lambda size: np.uint32)
        monkeypatch.setattr(index, "BLOCK", 3)
        monkeypatch.setattr(index, "RUN", 1)
    stages = [linear(n_in, n_out, relu=True) for n_in, n_out in pairwise(widths)]
    for need_input in (True, False):
        works(kernels, stages, widths[:1], batch, innermost, need_input)
    survived("compiled code")


@inputs
@pytest.mark.parametrize("case", CONV.values(), ids=CONV)
def test_convolutions_stay_within_their_memory(kernels, case, batch, innermost, survived):
    size, layers = case
    works(kernels, [conv(*geometry, **how) for geometry, how in layers], size, batch, innermost)
    survived("compiled code")


@pytest.mark.parametrize(("batch", "innermost"), [(1, False), (17, True), (40, False), (80, True)])
@pytest.mark.parametrize("structure", [(2, 2), (4, 1), (1, 4), (8, 4)])
def test_linear_layers_of_blocks_stay_within_their_memory(kernels, structure, batch, innermost, survived, monkeypatch):
    monkeypatch.setattr(index, "BLOCK", 16)
    monkeypatch.setattr(index, "RUN", 1)
    stages = [linear(12, 16, relu=True, structure=structure), linear(16, 8, structure=structure)]
    for need_input in (True, False):
        works(kernels, stages, (12,), batch, innermost, need_input)
    survived("compiled code")


@inputs
def test_chains_stay_within_their_memory(kernels, batch, innermost, survived):
    stages = [conv(1, 2, (3, 3), padding=(1, 1), relu=True, pool=True), linear(12, 5, relu=True), linear(5, 3)]
    works(kernels, stages, (1, 4, 6), batch, innermost, need_input=False)
    survived("compiled code")


@pytest.mark.parametrize("bias", [True, False])
@inputs
def test_steps_of_training_stay_within_their_memory(kernels, batch, innermost, bias, survived):
    stages = [conv(1, 2, (3, 3), padding=(1, 1), relu=True, pool=True), linear(12, 21, relu=True), linear(21, 3)]
    sizes = [size for stage in stages for size in (stage.index.nnz, stage.index.shape[0])]
    weights = [
        (0.1 * torch.randn(size), torch.zeros(size), torch.zeros(size), torch.zeros(())) if n % 2 == 0 or bias else None
        for n, size in enumerate(sizes)
    ]
    x, y = torch.randn(batch, 1, 4, 6), torch.randint(3, (batch,))
    given, trainer = (to_batch_innermost(x) if innermost else x.clone()), kernels.Trainer()
    for _ in range(2):
        parameters = [torch.zeros(n) if w is None else w[0].clone() for w, n in zip(weights, sizes, strict=True)]
        logits, passed = reference.forward(x, stages, parameters, remember=True)
        logits.requires_grad_()
        loss = torch.nn.functional.cross_entropy(logits, y)
        wanted = reference.backward(*torch.autograd.grad(loss, logits), passed, stages, parameters)
        found, right = trainer.step(given, y, stages, weights, (0.01, 0.9, 0.99, 1e-8, 1.0))
        assert found == pytest.approx(loss.item(), rel=1e-4) and right == (logits.argmax(1) == y).sum()
        expected = [gradient for w, gradient in zip(weights, wanted.parameters, strict=True) if w is not None]
        torch.testing.assert_close(list(trainer.gradients), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(given, x)
    survived("compiled code")


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (65, 17), (40, 20)])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_search_for_large_numbers_stays_within_its_memory(kernels, inputs, outputs, threads, monkeypatch, survived):
    monkeypatch.setattr(sys.modules[kernels.gradient_above.__module__], "use_threads", lambda: threads)
    numbers = [torch.randint(-3, 4, (3, size)).float() for size in (inputs, outputs)]
    gradient = (numbers[1].T @ numbers[0]).flatten()
    large = gradient.abs() >= 4
    outside = drawn((outputs, inputs))
    large[outside] = False
    places, found = kernels.gradient_above([numbers], 4.0, outside.numpy(), int(large.sum()))
    assert torch.equal(places, large.nonzero().flatten()) and torch.equal(found, gradient[places])
    assert not large.any() or kernels.gradient_above([numbers], 4.0, outside.numpy(), int(large.sum()) - 1) is None
    survived("compiled code")


@inputs
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_an_index_that_is_wrong_by_one_is_noticed(kernels, kind, batch, innermost):
    stage, size = (linear(4, 4), (4,)) if kind == "linear" else (conv(2, 2, (2, 2)), (2, 3, 3))
    if kind == "linear":
        stage.index.cols[-1] = 4
    else:
        stage.index.cols[-1] = 8  # a channel more than there are
    x = torch.randn(batch, *size)
    parameters = [torch.randn(stage.index.nnz), None]
    with pytest.raises(OutOfBounds):
        kernels.forward(to_batch_innermost(x) if innermost else x, [stage], parameters)


@pytest.mark.parametrize("structure", [(1, 1), (4, 1), (1, 4), (4, 4), (8, 8)], ids="{0[0]}x{0[1]}".format)
def test_linear_kernels_load_and_store_what_the_bound_counts(kernels, structure):
    """Weights and positions that are read, and gradients that are written, one at a time are not all counted."""
    layer = SparseLinear(64, 48, sparsity=0.4, bias=False, structure=structure)
    for of, counted, vectors, numbers in counts(kernels, layer, (64, 64), (64, 48), "linear_work", 64):
        assert vectors / 1.05 <= counted <= vectors + numbers, of


@pytest.mark.parametrize("structure", [(1, 1), (4, 1), (4, 4), (8, 8)], ids="{0[0]}x{0[1]}".format)
def test_kernels_of_convolutions_load_and_store_what_the_bound_counts(kernels, structure):
    """Not counted are borders of rows, and edges such as a weight without a second that would make a pair."""
    layer = SparseConv2d(16, 16, 3, padding=1, bias=False, sparsity=0.85, structure=structure)
    images = 16, 16, 8, 24
    for of, counted, vectors, numbers in counts(kernels, layer, images, images, "conv_work", (8, 24), 16):
        assert counted <= vectors + numbers <= 1.05 * counted, of


def counts(kernels, layer, of_x, of_g, work, *size):
    """Yield for each pass the bytes that it loads, then those that it stores: name, as counted, vectors, numbers.

    ``bound_work.py`` is imported anew, so that it counts for registers as wide as those of the kernels.
    """
    wanted = runpy.run_path(str(ROOT / "benchmarks" / "bound_work.py"))[work](layer, *size)
    x, g = (to_batch_innermost(torch.randn(shape)) for shape in (of_x, of_g))
    stages, parameters = [Stage(layer.index)], [layer.values.detach(), None]
    _, passed = kernels.forward(x, stages, parameters, remember=True)
    for name, counted in wanted.items():
        moved.clear()
        if name == "forward":
            kernels.forward(x, stages, parameters)
        else:
            kernels.backward(g, passed, stages, parameters, name == "all gradients")
        for how in ("loaded", "stored"):
            yield (name, how), getattr(counted, how), moved[f"vectors {how}"], moved[f"numbers {how}"]
