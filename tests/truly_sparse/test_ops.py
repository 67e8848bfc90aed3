"""The operators of sparse layers, judged by torch's own machinery, and strict about what reaches compiled code."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck

from truly_sparse import InvalidArgumentError, SparseConv2d, SparseLinear, places
from truly_sparse.ops import parameters_of, run
from truly_sparse.places import places_of

OPERATOR, BACKWARD = torch.ops.truly_sparse.chain, torch.ops.truly_sparse.chain_backward


def linear(**options):
    torch.manual_seed(0)
    return [SparseLinear(20, 10, sparsity=0.5, **options)]


def convolution(**options):
    torch.manual_seed(0)
    return [SparseConv2d(4, 6, 3, 2, 1, groups=2, sparsity=0.5, **options)]


def chain(**options):
    torch.manual_seed(0)
    return [SparseConv2d(1, 4, 3, sparsity=0.5, pool=True, **options), SparseLinear(36, 7, sparsity=0.5, **options)]


KINDS = {
    "linear": (linear, (5, 20)),
    "linear, ReLU, no bias": (lambda: linear(relu=True, bias=False), (5, 20)),
    "linear, float64": (lambda: linear(dtype=torch.float64), (3, 20)),
    "convolution": (convolution, (3, 4, 9, 8)),
    "convolution, ReLU, pooling, no bias": (lambda: convolution(relu=True, pool=True, bias=False), (3, 4, 9, 8)),
    "chain, several spans": (chain, (40, 1, 8, 8)),
}


def arguments(layers, x):
    """Return what the operator takes."""
    parameters = [parameter for parameter in parameters_of(layers) if parameter is not None]
    tensors = [tensor for layer in layers for tensor in layer.places]
    return x, parameters, tensors, [n for layer in layers for n in layer.sizes], [0] * len(layers)


def sample(kind):
    make, shape = KINDS[kind]
    layers = make()
    return layers, torch.randn(shape, dtype=layers[0].values.dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_accepts_the_operator(kind):
    layers, x = sample(kind)
    opcheck(OPERATOR, arguments(layers, x.requires_grad_()))


@pytest.mark.parametrize("need_x", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_torch_accepts_the_operator_of_the_backward_pass(kind, need_x):
    layers, x = sample(kind)
    _, weights, *rest = arguments(layers, x)
    weights = [weight.detach() for weight in weights]
    opcheck(BACKWARD, (torch.randn_like(OPERATOR(x, weights, *rest)), x, weights, *rest, need_x))


@pytest.mark.parametrize("kind", KINDS)
def test_the_operator_computes_what_eager_mode_does(kind):
    layers, x = sample(kind)
    results = []
    for by_operator in (False, True):
        here = x.clone().requires_grad_()
        weights = [parameter for parameter in parameters_of(layers) if parameter is not None]
        y = OPERATOR(*arguments(layers, here)) if by_operator else run(here, layers)
        gradient = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
        results.append([y, *torch.autograd.grad(y, [here, *weights], gradient)])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"relu": True}])
def test_gradients_and_their_gradients_are_right(kind, options):
    make = {"linear": linear, "convolution": convolution}[kind]
    (layer,) = make(dtype=torch.float64, **options)
    x = torch.randn((2, 20) if kind == "linear" else (1, 4, 3, 3), dtype=torch.float64, requires_grad=True)
    inputs = [x, *layer.parameters()]

    def function(x, *parameters):
        names = dict(zip(dict(layer.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(layer, names, (x,))

    assert gradcheck(function, inputs, fast_mode=True) and gradgradcheck(function, inputs, fast_mode=True)


STRIDES = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "sliced": lambda x: torch.cat([x, x], dim=-1)[..., : x.shape[-1]],
    "expanded": lambda x: x[:1].expand_as(x),
    "of no samples": lambda x: x[:0],
    "of one sample": lambda x: x[:1],
}
DENSE = {
    "linear": (nn.Linear(20, 12), (5, 20)),
    "linear, three dimensions": (nn.Linear(20, 12), (2, 3, 20)),
    "linear, no bias": (nn.Linear(20, 1, bias=False), (5, 20)),
    "convolution": (nn.Conv2d(3, 6, 3, padding=1), (5, 3, 7, 6)),
    "convolution, every argument": (nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 2), 2, bias=False), (5, 4, 9, 8)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("kind", DENSE)
def test_a_layer_computes_what_its_dense_layer_does(kind, strides, dtype):
    dense, shape = DENSE[kind]
    torch.manual_seed(1)
    dense = copy.deepcopy(dense)
    with torch.no_grad():
        dense.weight.masked_fill_(torch.rand_like(dense.weight) < 0.5, 0)
    layer = sparsified(dense).to(dtype)
    dense = dense.to(dtype)
    x, results = STRIDES[strides](torch.randn(shape)).to(dtype), []
    for module in (dense, layer):
        here = x.detach().requires_grad_()
        y = module(here)
        y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape).to(dtype))
        weight = module.weight.grad.flatten()[layer.active()] if module is dense else module.values.grad
        results.append([y, here.grad, weight, *([] if module.bias is None else [module.bias.grad])])
    near = {torch.float32: 1e-4, torch.float64: 1e-10, torch.bfloat16: 0.2}[dtype]
    for a, b in zip(*results, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=near, atol=near)


def sparsified(dense):
    from truly_sparse import sparsify

    return sparsify(dense)


# The index behind the tensors.


def test_the_tensors_share_the_memory_of_the_index():
    for (layer,) in (linear(), convolution()):
        before = layer.places
        assert before[0].data_ptr() == layer.index.indptr.__array_interface__["data"][0]
        layer.rewire(layer.active(), layer.active()[:0], layer.values.detach()[:0])
        after = layer.places
        assert [(t.shape, t.dtype) for t in before] == [(t.shape, t.dtype) for t in after]


def test_a_known_index_is_found_and_forgotten_with_its_tensors(monkeypatch):
    layers, x = sample("linear")
    gc.collect()
    known = len(places._known)
    monkeypatch.setattr(places, "_rebuilt", None)  # it must not be built anew
    for _ in range(3):
        OPERATOR(*arguments(layers, x))
        old = layers[0].places[1]
        layers[0].set_extra_state(layers[0].active())
        assert layers[0].places[1] is not old
        del old
    assert len(places._known) == known
    copied = copy.deepcopy(layers)
    assert copied[0].number != layers[0].number and copied[0].places[1] is not layers[0].places[1]
    OPERATOR(*arguments(copied, x))


@pytest.mark.parametrize("kind", ["linear", "convolution", "chain, several spans"])
def test_tensors_of_another_origin_are_indexed_anew(kind):
    layers, x = sample(kind)
    given = list(arguments(layers, x))
    right = OPERATOR(*given)
    given[2] = [tensor.clone() for tensor in given[2]]
    assert torch.equal(OPERATOR(*given), right)
    with torch.inference_mode():
        given[2] = [tensor.clone() for tensor in given[2]]
        assert torch.equal(OPERATOR(*given), right)


def test_a_tensor_changed_in_place_stands_for_its_new_positions():
    layer = SparseLinear(4, 2, bias=False, connections=torch.tensor([0, 5]))
    x, given = torch.randn(3, 4), list(arguments([layer], torch.randn(3, 4)))
    given[0], given[2] = x, [tensor.clone() for tensor in given[2]]
    OPERATOR(*given)
    given[2][1][0] = 3
    assert torch.equal(OPERATOR(*given), x[:, [3, 1]] * layer.values)


def changed(tensors, which, change):
    tensors = [tensor.clone() for tensor in tensors]
    tensors[which] = change(tensors[which])
    return tensors


def filled(value, *at):
    def change(tensor):
        tensor[at] = value
        return tensor

    return change


WRONG_PLACES = {
    "linear": {
        "no borders": (0, lambda t: t[:0]),
        "too few borders": (0, lambda t: t[:-1]),
        "borders of another type": (0, lambda t: t.int()),
        "borders that fall": (0, filled(40, 1)),
        "a negative border": (0, filled(-1, 0)),
        "a border beyond the end": (0, filled(10**9, -1)),
        "an input beyond the end": (1, filled(20, 0)),
        "a negative input": (1, filled(-1, 0)),
        "the same input twice": (1, lambda t: t[:1].expand_as(t).clone()),
        "too few inputs": (1, lambda t: t[:-1]),
        "inputs of another type": (1, lambda t: t.int()),
        "inputs of two dimensions": (1, lambda t: t[:, None]),
    },
    "convolution": {
        "too few borders": (0, lambda t: t[:-1]),
        "a position beyond the end": (1, filled(1000, 0)),
        "a negative position": (1, filled(-1, 0)),
        "the same position twice": (1, lambda t: t[:1].expand_as(t).clone()),
        "positions of another type": (1, lambda t: t.long()),
        "positions of two dimensions": (1, lambda t: t[:, None]),
    },
}


@pytest.mark.parametrize(("kind", "wrong"), [(kind, wrong) for kind, of in WRONG_PLACES.items() for wrong in of])
def test_wrong_positions_are_refused(kind, wrong):
    layers, x = sample(kind)
    given = list(arguments(layers, x))
    given[2] = changed(given[2], *WRONG_PLACES[kind][wrong])
    with pytest.raises(InvalidArgumentError):
        OPERATOR(*given)


WRONG = {
    "another number of positions": {2: lambda tensors: tensors[:1]},
    "no positions": {2: lambda tensors: []},
    "no sizes": {3: lambda sizes: []},
    "too few sizes": {3: lambda sizes: sizes[:-1]},
    "other sizes": {3: lambda sizes: [sizes[0] + 1, *sizes[1:]]},
    "an input that does not fit": {0: lambda x: x[:, 1:]},
    "integers": {0: lambda x: x.long()},
    "values of another size": {1: lambda weights: [weights[0][1:], weights[1]]},
    "no bias": {1: lambda weights: weights[:1]},
    "one parameter too many": {1: lambda weights: [*weights, weights[1]]},
}


@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_refused(kind, wrong):
    layers, x = sample(kind)
    given = list(arguments(layers, x))
    for at, change in WRONG[wrong].items():
        given[at] = change(given[at])
    with pytest.raises(InvalidArgumentError):
        OPERATOR(*given)


# Who follows the calls of operators sees one.


@pytest.mark.parametrize("kind", KINDS)
def test_a_fake_tensor_gets_the_shape_of_the_result(kind):
    layers, x = sample(kind)
    shape = run(x, layers).shape
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        y = run(mode.from_tensor(x), layers)
        assert y.shape == shape and y.is_contiguous()
        with pytest.raises((InvalidArgumentError, RuntimeError), match="give"):
            run(mode.from_tensor(x[:, 1:]), layers)


def test_a_traced_graph_holds_the_operator():
    layers, x = sample("chain, several spans")
    with torch.no_grad():
        graph = make_fx(lambda x: run(x, layers))(x)
        assert OPERATOR.default in [node.target for node in graph.graph.nodes]
        assert torch.equal(graph(2 * x), run(2 * x, layers))


def test_an_index_made_in_inference_mode_can_be_trained():
    with torch.inference_mode():
        index = linear()[0].index
        pointers, positions = places_of(index)
    assert not pointers.is_inference() and not positions.is_inference()
