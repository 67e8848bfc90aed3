"""The kernels against their oracle, on fuzzed shapes; what they refuse; what they must not touch."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.nn import functional as F

from truly_sparse import InvalidArgumentError, reference
from truly_sparse.cpu import chain as cpu
from truly_sparse.cpu import index as index_module
from truly_sparse.cpu import memory, program, templates
from truly_sparse.cpu.index import ConvIndex, LinearIndex
from truly_sparse.cpu.memory import empty_batch_innermost, is_batch_innermost, to_batch_innermost
from truly_sparse.cpu.plan import layer_part
from truly_sparse.cpu.stage import Stage
from tutorial_lib.project import ROOT

fuzz = settings(max_examples=40, deadline=None, derandomize=True)
densities = st.sampled_from([0.0, 0.05, 0.5, 1.0])
batches = st.sampled_from([0, 1, 7, 16, 17, 48, 63, 64, 100, 130])


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for one another make tests crawl on a busy machine; the test about threads asks for its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pick(shape, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(torch.Size(shape).numel(), generator=generator) < density).nonzero().flatten()


@contextmanager
def treated_as_large(shared, in_blocks):
    """Threads share chains of any size; layers of 30 weights go backward in blocks."""
    with pytest.MonkeyPatch.context() as patch:
        if shared:
            patch.setattr(program, "SMALL", 0)
        if in_blocks:
            patch.setattr(index_module, "BLOCK", 30)
            patch.setattr(index_module, "RUN", 1)
        yield


def close(got, expected, scale=1.0):
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5 * max(scale, 1.0))


def dense_of(values, index):
    return values.new_zeros(index.shape).flatten().index_put((index.flat(),), values).view(index.shape)


def dirty(x):
    """The same numbers, batch innermost, with NaN in the padding."""
    y = empty_batch_innermost(x.shape)
    row = y.stride(-1)
    y.as_strided((row * x[0].numel() if len(x) else 0,), (1,)).fill_(float("nan"))
    return y.copy_(x)


def agree(stages, parameters, x, g, need_input=True, scale=1.0, winners=True, formats=(dirty, dirty)):
    """Run a chain through both implementations; compare results, gradients and traces, and the formats of tensors."""
    results, (format_x, format_g) = [], formats
    for kernels, x_in, g_in in ((cpu, format_x(x), format_g(g)), (reference, format_x(x), g)):
        y, passed = kernels.forward(x_in, stages, parameters, remember=True)
        of = kernels.backward(g_in, passed, stages, parameters, need_input, trace=True)
        close(kernels.forward(x_in, stages, parameters)[0], y)
        assert (of.x is None) == (not need_input) and len(of.traces) == len(stages)
        for tensor in (y, of.x):
            assert tensor is None or is_contiguous_or_ours(tensor, like=x_in)
        traced = [t for trace in of.traces for t in (trace.x, trace.grad if winners else None)]
        results.append((y, of.x, *of.parameters, *traced))
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            close(a, b, scale)


def is_contiguous_or_ours(y, like):
    """Whether ``y`` is batch innermost if ``like`` is, which is not contiguous at the same time; else contiguous."""
    return y.is_contiguous() if like.is_contiguous() or not is_batch_innermost(like) else is_batch_innermost(y)


formats = st.tuples(*[st.sampled_from([dirty, torch.clone])] * 2)


@fuzz
@given(
    batches,
    st.integers(1, 40),
    st.integers(1, 90),
    densities,
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    formats,
)
def test_linear_agrees_with_reference(
    batch, n_out, n_in, density, relu, with_bias, need_input, shared, in_blocks, formats
):
    with treated_as_large(shared, in_blocks):
        of = LinearIndex.build(pick((n_out, n_in), density), (n_out, n_in))
        values, bias = torch.randn(of.nnz), torch.randn(n_out) if with_bias else None
        x, g = torch.randn(batch, n_in), torch.randn(batch, n_out)
        agree([Stage(of, relu)], [values, bias], x, g, need_input, scale=batch, formats=formats)


@st.composite
def geometries(draw):
    groups = draw(st.sampled_from([1, 1, 2]))
    kernel = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    shape = (groups * draw(st.integers(1, 3)), draw(st.integers(1, 3)), *kernel)
    stride = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    dilation = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    padding = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    size = tuple(
        draw(st.integers(max(1, d * (k - 1) + 1 - 2 * p), 13))
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    )
    return shape, stride, padding, dilation, groups, size


@fuzz
@given(geometries(), batches, densities, st.booleans(), st.booleans(), st.booleans(), st.booleans(), formats)
def test_conv_agrees_with_reference(geometry, batch, density, relu, pool, with_bias, need_input, formats):
    shape, stride, padding, dilation, groups, size = geometry
    index = ConvIndex.build(pick(shape, density), shape, stride, padding, dilation, groups)
    values, bias = torch.randn(index.nnz), torch.randn(shape[0]) if with_bias else None
    x = torch.randn(batch, shape[1] * groups, *size)
    out = index.output_size(*size)
    g = torch.randn(batch, shape[0], *((n // 2 for n in out) if pool else out))
    # equal pixels, where rounding decides who won, are likely only in between
    scale = batch * g[0].numel() ** 0.5 if batch else 1
    winners = density in (0.0, 1.0)
    agree([Stage(index, relu, pool)], [values, bias], x, g, need_input, scale, winners, formats)


@fuzz
@given(
    batches,
    st.lists(st.integers(1, 70), min_size=1, max_size=4),
    densities,
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    formats,
)
def test_chains_agree_with_reference(batch, widths, density, relu, pool, with_bias, shared, in_blocks, formats):
    shapes = [(3, 2, 3, 3), (4, 3, 2, 2)]
    stages = [
        Stage(ConvIndex.build(pick(s, 0.5), s, (1, 1), (1, 1)), relu, pool and i == 0) for i, s in enumerate(shapes)
    ]
    size = (8, 10)
    for stage in stages:
        size = stage.index.output_size(*size)
        size = tuple(n // 2 for n in size) if stage.pool else size
    widths = [4 * size[0] * size[1], *widths]
    with treated_as_large(shared, in_blocks):
        for i, shape in enumerate(zip(widths[1:], widths[:-1], strict=True)):
            stages.append(Stage(LinearIndex.build(pick(shape, density), shape), relu and i % 2 == 0))
        parameters = []
        for stage in stages:
            parameters += [torch.randn(stage.index.nnz), torch.randn(stage.index.shape[0]) if with_bias else None]
        scale = 10.0 ** len(stages) * max(batch, 1)
        x, g = torch.randn(batch, 2, 8, 10), torch.randn(batch, widths[-1])
        agree(stages, parameters, x, g, True, scale, winners=False, formats=formats)


@pytest.mark.parametrize("relu", [False, True])
def test_reference_linear_backward_is_autograd(relu):
    index = LinearIndex.build(pick((5, 7), 0.4), (5, 7))
    x, values, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 7), index.nnz, 5))
    y = reference.linear_forward(x, values, bias, index, relu)
    torch.testing.assert_close(
        y, F.linear(x, dense_of(values, index), bias).relu() if relu else F.linear(x, dense_of(values, index), bias)
    )
    assert torch.autograd.gradcheck(lambda *t: reference.linear_forward(*t, index, relu), (x, values, bias))
    g = torch.randn_like(y)
    by_hand = reference.linear_backward(g, x.detach(), y.detach(), values.detach(), index, relu)
    for a, b in zip(by_hand, torch.autograd.grad(y, (x, values, bias), g), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("pool", [False, True])
def test_reference_conv_backward_is_autograd(relu, pool):
    shape = (4, 2, 3, 2)
    index = ConvIndex.build(pick(shape, 0.5), shape, (1, 2), (1, 0), (1, 2), 2)
    x, values, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 4, 5, 7), index.nnz, 4))
    y, winners = reference.conv_forward(x, values, bias, index, relu, pool, remember=True)
    torch_y = F.conv2d(x, dense_of(values, index), bias, (1, 2), (1, 0), (1, 2), 2)
    torch_y = torch_y.relu() if relu else torch_y
    torch_y = F.max_pool2d(torch_y, 2) if pool else torch_y
    torch.testing.assert_close(y, torch_y)
    assert torch.autograd.gradcheck(lambda *t: reference.conv_forward(*t, index, relu, pool)[0], (x, values, bias))
    g = torch.randn_like(y)
    by_hand = reference.conv_backward(g, x.detach(), y.detach(), winners, values.detach(), index, relu)
    for a, b in zip(by_hand, torch.autograd.grad(torch_y, (x, values, bias), g), strict=True):
        torch.testing.assert_close(a, b)


def everything(batch):
    torch.manual_seed(1)
    linear = LinearIndex.build(pick((120, 90), 0.1), (120, 90))
    conv = ConvIndex.build(pick((8, 6, 3, 3), 0.3), (8, 6, 3, 3), padding=(1, 1))
    x, image, values, weights = (
        torch.randn(batch, 90),
        torch.randn(batch, 6, 12, 12),
        torch.randn(linear.nnz),
        torch.randn(conv.nnz),
    )
    results = []
    rows, images = (x, Stage(linear, True), values), (image, Stage(conv, True, True), weights)
    for x_in, stage, of in (rows, (to_batch_innermost(x), *rows[1:]), images):
        y, passed = cpu.forward(x_in, [stage], [of, None], remember=True)
        gradients = cpu.backward(y, passed, [stage], [of, None])
        results += [y, gradients.x, *gradients.parameters]
    return results


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("batch", [1, 7, 20, 50, 64, 300])
def test_same_bits_for_any_number_of_threads(batch, large):
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with treated_as_large(shared=large, in_blocks=large):
                results.append(everything(batch))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_nan_and_infinity_are_kept_and_stay_in_their_sample():
    linear = LinearIndex.build(pick((6, 6), 1.0), (6, 6))
    conv = ConvIndex.build(pick((2, 1, 3, 3), 1.0), (2, 1, 3, 3), padding=(1, 1))
    x, image = torch.randn(20, 6), torch.randn(20, 1, 6, 6)
    x[3, 2], image[3, 0, 2, 2] = float("nan"), float("inf")
    stages, ones = [Stage(conv, relu=True, pool=True)], [torch.ones(18), None]
    y, _ = cpu.forward(x, [Stage(linear, relu=True)], [torch.randn(36), None])
    z, _ = cpu.forward(image, stages, ones)
    assert y[3].isnan().all() and z[3].isinf().any()
    others = torch.arange(20) != 3
    assert y[others].isfinite().all() and z[others].isfinite().all()
    image[3, 0, 2, 2] = float("nan")
    z, _ = cpu.forward(image, stages, ones)
    torch.testing.assert_close(z, reference.forward(image, stages, ones)[0], equal_nan=True)


def test_odd_inputs_agree():
    index = LinearIndex.build(pick((9, 8), 0.5), (9, 8))
    values = torch.randn(index.nnz)
    big = to_batch_innermost(torch.randn(64, 8))
    for x in (
        torch.randn(8, 30).t(),
        torch.randn(1, 8).expand(30, 8),
        torch.randn(30, 16)[:, ::2],
        big[:50],
        big[3:20],
        big[::2],
    ):
        chain = [Stage(index)], [values, None]
        close(cpu.forward(x, *chain)[0], reference.forward(x, *chain)[0])


@pytest.mark.parametrize("batch", [1, 7, 16, 20, 33, 64, 100])
@pytest.mark.parametrize("size", [(90,), (6, 12, 12), (6, 7, 7), (6, 3, 5)], ids=str)
def test_numbers_are_the_same_in_every_format(batch, size):
    torch.manual_seed(1)
    if len(size) == 1:
        stage = Stage(LinearIndex.build(pick((70, 90), 0.1), (70, 90)), relu=True)
    else:
        stage = Stage(ConvIndex.build(pick((8, 6, 3, 3), 0.3), (8, 6, 3, 3), padding=(1, 1)), relu=True)
    parameters = [torch.randn(stage.index.nnz), None]
    x = torch.randn(batch, *size)
    wide = torch.zeros(batch, *size[:-1], 2 * size[-1])
    wide[..., ::2] = x
    inputs = [x, dirty(x), wide[..., ::2], *([x.contiguous(memory_format=torch.channels_last)] if x.dim() == 4 else [])]
    results = []
    for x_in in inputs:
        y, passed = cpu.forward(x_in, [stage], parameters, remember=True)
        again, _ = cpu.forward(x_in, [stage], parameters)
        dx = [cpu.backward(form(y), passed, [stage], parameters).x for form in (torch.clone, dirty)]
        assert all(is_contiguous_or_ours(tensor, like=x_in) for tensor in (y, *dx))
        results.append((y, again, *dx))
    for one in results:
        assert all(torch.equal(a, b) for a, b in zip(one, results[0], strict=True))
        assert torch.equal(one[2], one[3])
        assert torch.equal(one[0], one[1]) or batch == 1  # a single sample has a kernel of its own


def test_samples_of_one_number_are_read_alike_in_both_passes():
    """Such a batch is contiguous and batch innermost at once, whatever its strides say."""
    index = LinearIndex.build(pick((9, 1), 1.0), (9, 1))
    chain, g = ([Stage(index)], [torch.randn(9), None]), torch.randn(2, 9)
    for x in (torch.randn(2, 1), torch.randn(2, 2)[:, ::2], to_batch_innermost(torch.randn(2, 1))):
        gradients = []
        for kernels in (cpu, reference):
            _, passed = kernels.forward(x, *chain, remember=True)
            gradients.append(kernels.backward(g, passed, *chain))
        close(gradients[0].parameters[0], gradients[1].parameters[0])
        close(gradients[0].x, gradients[1].x)


def test_format():
    for shape in ((100, 5), (64, 5), (128, 5), (1, 5), (0, 5), (32, 5), (33, 3, 4, 5)):
        x = empty_batch_innermost(shape)
        assert x.shape == shape and is_batch_innermost(x) and x.data_ptr() % 64 == 0 and x.stride(-1) % 16 == 0
        assert x.flatten(1).shape == (shape[0], x[:1].numel()) or not shape[0]
    assert not is_batch_innermost(torch.empty_strided((50, 5), (1, 64)))  # the last row's padding is not in the storage
    image = empty_batch_innermost((33, 3, 4, 5))
    assert image.flatten(1).data_ptr() == image.data_ptr()  # a view


def test_nothing_is_copied_between_sparse_layers():
    conv = ConvIndex.build(pick((4, 1, 3, 3), 0.5), (4, 1, 3, 3), padding=(1, 1))
    linear = LinearIndex.build(pick((10, 4 * 7 * 7), 0.1), (10, 4 * 7 * 7))
    first, second = (
        ([Stage(conv, True, True)], [torch.randn(conv.nnz), None]),
        ([Stage(linear)], [torch.randn(linear.nnz), None]),
    )
    for batch in (64, 100):
        x = to_batch_innermost(torch.randn(batch, 1, 14, 14))
        before = memory.conversions
        y, of_first = cpu.forward(x, *first, remember=True)
        z, of_second = cpu.forward(y.flatten(1), *second, remember=True)
        dy = cpu.backward(z, of_second, *second).x
        cpu.backward(dy.unflatten(1, (4, 7, 7)), of_first, *first)
        assert memory.conversions == before
        cpu.forward(torch.randn(batch, 4 * 7 * 7), *second)
        assert memory.conversions == before + 1


def test_copies_of_an_index_are_itself_and_pickles_build_their_own():
    for index in (
        LinearIndex.build(pick((7, 9), 0.5), (7, 9)),
        ConvIndex.build(
            pick((4, 2, 3, 3), 0.5), (4, 2, 3, 3), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2
        ),
    ):
        assert copy.copy(index) is copy.deepcopy(index) is index
        other = pickle.loads(pickle.dumps(index))
        assert other.number != index.number and other.shape == index.shape and torch.equal(other.flat(), index.flat())


def test_topologies_of_as_many_weights_have_programs_of_one_template():
    conv = ConvIndex.build(pick((2, 1, 3, 3), 1.0), (2, 1, 3, 3), padding=(1, 1))
    x, grad, programs = torch.randn(5, 1, 4, 4), torch.randn(5, 70), []
    for count, seed in ((300, 0), (300, 1), (301, 2)):
        flat = torch.randperm(70 * 32, generator=torch.Generator().manual_seed(seed))[:count].sort().values
        stages = [Stage(conv, relu=True, pool=False), Stage(LinearIndex.build(flat, (70, 32)))]
        parameters = [torch.randn(18), torch.randn(2), torch.randn(count), None]
        y, passed = cpu.forward(x, stages, parameters, remember=True)
        expected, memory_ = reference.forward(x, stages, parameters, remember=True)
        close(y, expected)
        found = cpu.backward(grad, passed, stages, parameters, trace=True)
        right = reference.backward(grad, memory_, stages, parameters, trace=True)
        for ours, theirs in zip((found.x, *found.parameters), (right.x, *right.parameters), strict=True):
            close(ours, theirs, 10)
        there = program.forward_program(stages, x, (False, False), remember=True)
        programs.append((there, program.backward_program(stages, x, (False, False, False), True, True)))
    first, second, other = programs
    assert all(map(templates.are_alike, first, second)) and not any(map(templates.are_alike, first, other))
    assert all(some.address != of.address for some, of in zip(first, second, strict=True))


def test_programs_of_many_topologies_are_not_kept():
    first = ConvIndex.build(pick((2, 1, 3, 3), 1.0), (2, 1, 3, 3), padding=(1, 1))
    for seed in range(3 * templates.KEPT):
        second = LinearIndex.build(pick((3, 2 * 16), 0.5, seed), (3, 2 * 16))
        chain = [Stage(first), Stage(second)], [torch.randn(18), None, torch.randn(second.nnz), None]
        x = torch.randn(5, 1, 4, 4)
        close(cpu.forward(x, *chain)[0], reference.forward(x, *chain)[0])
    assert len(first.programs) <= templates.KEPT and len(templates._templates) <= templates.KEPT


@pytest.mark.parametrize("remember", [False, True])
def test_threads_work_far_from_one_another(remember):
    shapes = (4, 1, 3, 3), (6, 4, 3, 3)
    convs = [Stage(ConvIndex.build(pick(shape, 0.5), shape, padding=(1, 1)), relu=True, pool=True) for shape in shapes]
    stages = [*convs, Stage(LinearIndex.build(pick((10, 6 * 49), 0.5), (10, 6 * 49)))]
    x = torch.randn(64, 1, 28, 28)
    there = program.forward_program(stages, x, (False, False), remember)
    back = program.backward_program(stages, x, (False, False, True), need_input=True, trace=False)
    ours = (there, program.ARENA, there.bytes), (back, program.ROOM, back.bytes), (back, program.SCRATCH, back.scratch)
    for passed, base, size in ours:
        *_, bases, offsets, _, _ = passed.alive
        last = offsets[bases == base].max()  # where the last piece of a thread's memory begins
        assert passed.spans == 2 and size - last > program.APART


def test_indices_come_back():
    flat = pick((70_000, 3), 0.01)
    index = LinearIndex.build(flat, (70_000, 3))
    assert torch.equal(index.flat(), flat) and index.cols.dtype == np.uint16 and index.t_rows.dtype == np.uint32
    flat = pick((6, 4, 3, 2), 0.3)
    assert torch.equal(ConvIndex.build(flat, (6, 4, 3, 2), groups=2).flat(), flat)


def test_layer_that_dense_cannot_allocate():
    n = 200_000
    flat = torch.randint(n * n, (100_000,)).unique()
    index = LinearIndex.build(flat, (n, n))
    assert torch.equal(index.flat(), flat) and index.nbytes < 8e6
    values, x = torch.randn(index.nnz), torch.randn(2, n)
    agree([Stage(index)], [values, None], x, torch.randn(2, n), scale=10)


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        (torch.tensor([0, 12]), "12 is out of range"),
        (torch.tensor([-1, 3]), "-1 is out of range"),
        (torch.tensor([4, 2]), "unsorted: 4 is followed by 2"),
        (torch.tensor([4, 4]), "duplicate: 4"),
        (torch.tensor([1, 2], dtype=torch.int32), "int32"),
        (torch.tensor([[1, 2]]), "one-dimensional"),
        ([1, 2], "one-dimensional"),
    ],
)
def test_bad_indices_are_refused(flat, message):
    for build, shape in ((LinearIndex.build, (3, 4)), (ConvIndex.build, (3, 1, 2, 2))):
        with pytest.raises(ValueError, match=message):
            build(flat, shape)


def test_bad_arguments_are_refused():
    flat, none = torch.tensor([1, 2]), torch.zeros(0, dtype=torch.int64)
    linear, conv = LinearIndex.build(flat, (3, 4)), ConvIndex.build(flat, (3, 1, 2, 2))
    two, x, image = torch.ones(2), torch.ones(5, 4), torch.ones(5, 1, 4, 4)
    _, passed = cpu.forward(x, [Stage(linear)], [two, None], remember=True)
    for call in (
        lambda: LinearIndex.build(flat, (3, 4, 5)),
        lambda: ConvIndex.build(flat, (3, 4)),
        lambda: ConvIndex.build(none, (3, 1, 2, 2), stride=(0, 1)),
        lambda: ConvIndex.build(none, (3, 1, 2, 2), padding=(-1, 1)),
        lambda: ConvIndex.build(none, (3, 1, 2, 2), groups=2),
        lambda: cpu.forward(x, [Stage(linear)], [torch.ones(3), None]),
        lambda: cpu.forward(x, [Stage(linear)], [torch.ones(4)[::2], None]),
        lambda: cpu.forward(x, [Stage(linear)], [two, torch.ones(4)]),
        lambda: cpu.forward(x.double(), [Stage(linear)], [two, None]),
        lambda: cpu.forward(x, [Stage(linear)], [two.double(), None]),
        lambda: cpu.forward(x[:, :3], [Stage(linear)], [two, None]),
        lambda: cpu.forward(x, [Stage(linear)] * 2, [two, None] * 2),
        lambda: cpu.backward(torch.ones(5, 4), passed, [Stage(linear)], [two, None]),
        lambda: cpu.backward(torch.ones(5, 3).double(), passed, [Stage(linear)], [two, None]),
        lambda: cpu.forward(image.expand(5, 2, 4, 4), [Stage(conv)], [two, None]),
        lambda: cpu.forward(image[:, :, :1], [Stage(conv)], [two, None]),
        lambda: cpu.forward(x, [Stage(conv)], [two, None]),
        lambda: to_batch_innermost(torch.ones(2, 3, 4)),
    ):
        with pytest.raises(ValueError, match=r".+"):
            call()


def fake(*shape):
    with FakeTensorMode():
        return torch.randn(shape)


class Harmless(torch.Tensor):
    """A subclass with memory of its own, as many libraries have one."""


class Elsewhere(torch.Tensor):
    """A subclass that decides itself where its numbers are."""

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return super().__torch_dispatch__(function, types, args, kwargs or {})


def functional(t):
    with FunctionalTensorMode():
        return FunctionalTensor.to_functional(t)


WITHOUT_MEMORY = {
    "fake": lambda t: fake(*t.shape),
    "functional, in Python": functional,
    "functional": torch._to_functional_tensor,
    "meta": lambda t: t.to("meta"),
    "zeros": lambda t: torch._efficientzerotensor(t.shape),
    "sparse": torch.Tensor.to_sparse,
    "mkldnn": torch.Tensor.to_mkldnn,
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "nested": lambda t: torch.nested.nested_tensor(list(t)),
    "masked": lambda t: torch.masked.masked_tensor(t, t > 0),
    "with a dispatcher": lambda t: t.as_subclass(Elsewhere),
    "a list": torch.Tensor.tolist,
}


@pytest.mark.parametrize("name", ["x", "values", "bias", "gradient"])
@pytest.mark.parametrize("kind", WITHOUT_MEMORY)
@pytest.mark.filterwarnings("ignore")  # of prototypes
def test_what_has_no_memory_is_refused(kind, name, survived):
    stage = Stage(LinearIndex.build(torch.tensor([1, 2]), (3, 4)))
    tensors = {"x": torch.randn(5, 4), "values": torch.randn(2), "bias": torch.randn(3), "gradient": torch.randn(5, 3)}
    _, passed = cpu.forward(tensors["x"], [stage], [tensors["values"], None], remember=True)
    tensors[name] = WITHOUT_MEMORY[kind](tensors[name])
    x, values, bias, gradient = tensors.values()
    with pytest.raises(InvalidArgumentError):
        cpu.forward(x, [stage], [values, bias])
        cpu.backward(gradient, passed, [stage], [values, bias])
    survived("compiled code")


def jvp(function):
    return lambda t: torch.func.jvp(function, (t,), (t,))


@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.grad, jvp])
@pytest.mark.parametrize("name", ["x", "values"])
def test_tensors_inside_transforms_are_refused(transform, name, survived):
    stage = Stage(LinearIndex.build(torch.tensor([1, 2]), (3, 4)))
    tensors = {"x": torch.randn(5, 4), "values": torch.randn(2)}
    given = tensors[name] if transform is not torch.func.vmap else torch.stack([tensors[name]] * 3)

    def total(tensor):
        x, values = (tensors | {name: tensor}).values()
        return cpu.forward(x, [stage], [values, None])[0].sum()

    with pytest.raises(InvalidArgumentError, match="with memory"):
        transform(total)(given)
    survived("compiled code")


@pytest.mark.parametrize("name", ["x", "values", "bias"])
def test_tensors_without_memory_are_refused_and_harmless_subclasses_are_not(name):
    index = LinearIndex.build(torch.tensor([1, 2]), (3, 4))
    tensors = {"x": torch.randn(5, 4), "values": torch.randn(2), "bias": torch.randn(3)}

    def computed(**others):
        x, *parameters = (tensors | others).values()
        return cpu.forward(x, [Stage(index)], parameters)[0]

    expected = computed()
    assert torch.equal(torch.Tensor(computed(**{name: tensors[name].as_subclass(Harmless)})), expected)
    with pytest.raises(InvalidArgumentError, match="with memory"):
        computed(**{name: fake(*tensors[name].shape)})


def test_images_beyond_the_range_of_an_offset_are_refused():
    index = ConvIndex.build(torch.tensor([0]), (1, 1, 1, 1))
    with pytest.raises(InvalidArgumentError, match=r"16 of these images take 25,[\d,]+ bytes; use smaller ones"):
        layer_part(index, (1, 20_000, 20_000))


def test_what_an_address_belongs_to_is_kept():
    """Another thread may give a layer other memory, and a cache may drop the zeros of a missing bias."""
    indices = [LinearIndex.build(torch.tensor([0, 3]), (n, 2)) for n in (2, 3)]
    values, bias = torch.ones(4)[::2].contiguous(), torch.ones(3)._neg_view()
    found, kept = cpu.addresses([Stage(index) for index in indices], [values, None, values, bias], with_bias=True)
    assert found == [each.data_ptr() for each in kept] and found[0] == found[2] == values.data_ptr()
    assert kept[1].tolist() == [0, 0] and torch.empty(0).set_(kept[3]).tolist() == [-1, -1, -1]


def test_warmup_says_so(capsys):
    assert cpu.warmup() < 600 and "ready in" in capsys.readouterr().err


def test_the_number_of_threads_that_was_set_before_the_kernels_were_loaded_stays():
    """Numba's pool, when it starts, sets OpenMP's number of threads, and with it torch's."""
    program = (
        "import torch, numba; torch.set_num_threads(1);"
        "from truly_sparse import SparseLinear; SparseLinear(8, 8)(torch.ones(4, 8));"
        "print(torch.get_num_threads(), numba.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "1 1"
