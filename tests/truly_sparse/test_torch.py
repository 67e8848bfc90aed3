"""What torch does with nn.Linear and nn.Conv2d, it does with sparse layers too."""

import copy
import io
import itertools
import pickle
import re
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.exc import Unsupported
from torch._dynamo.utils import counters
from torch.distributed import destroy_process_group, init_process_group
from torch.func import functional_call, grad, jacfwd, jacrev, stack_module_state, vmap
from torch.nn.utils import clip_grad_norm_, parametrize, prune
from torch.utils.checkpoint import checkpoint

from truly_sparse import (
    SET,
    InvalidArgumentError,
    RigL,
    SparseConv2d,
    SparseLinear,
    densify,
    fuse,
    sparse_layers,
    sparsify,
)
from tutorial_lib import mask_model
from tutorial_lib.project import ROOT

BUILDS = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="there is no C++ compiler")


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, 5))


def convolution():
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, groups=2), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(6, 5))


SPARSE = {
    "linear": lambda: sparsify(linear(), 0.5),
    "convolution": lambda: sparsify(convolution(), 0.5),
    "chain": lambda: fuse(sparsify(convolution(), 0.5)),
}
KINDS = SPARSE | {"masked": lambda: mask_model(convolution(), 0.5)}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_sparse = pytest.mark.parametrize("kind", SPARSE)


def made(kind):
    torch.manual_seed(0)
    return KINDS[kind]()


def batch(size=6, seed=1):
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(size, 1, 6, 6, generator=drawn), torch.randint(5, (size,), generator=drawn)


def loss_and_gradients(model, x, y, parameters=None):
    parameters = list(model.parameters()) if parameters is None else parameters
    loss = F.cross_entropy(model(x), y)
    return [loss, *torch.autograd.grad(loss, parameters)]


def near(these, those, most=1e-5):
    return all(torch.allclose(a, b, rtol=most, atol=most) for a, b in zip(these, those, strict=True))


def topology(model):
    return [layer.active() for layer in sparse_layers(model).values()]


@pytest.fixture(autouse=True)
def _forget_graphs():
    yield
    torch._dynamo.reset()


# Graphs


@pytest.mark.parametrize(
    ("kind", "backend"),
    [*((kind, "aot_eager") for kind in KINDS), pytest.param("convolution", "inductor", marks=BUILDS)],
)
def test_a_compiled_step_is_the_same_step(kind, backend):
    model = made(kind)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    x, y = batch()
    right = loss_and_gradients(model, x, y)
    assert near(loss_and_gradients(compiled, x, y, list(model.parameters())), right)


@each_kind
def test_layers_do_not_break_the_graph(kind):
    model = made(kind)
    counters.clear()
    torch.compile(model, backend="aot_eager")(batch()[0]).sum().backward()
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


@each_sparse
def test_batches_of_any_size_and_rewirings_need_no_other_graph(kind):
    model = made(kind)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    driver = SET(every=1).attach(model, optimizer, steps_per_epoch=1, total_steps=20, seed=0)
    for size in (6, 7):  # the second size makes the batch dynamic
        compiled(batch(size)[0])
    before = topology(model)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in (9, 3, 50):
            x, y = batch(size)
            right = loss_and_gradients(model, x, y)
            assert near(loss_and_gradients(compiled, x, y, list(model.parameters())), right)
            for parameter, gradient in zip(model.parameters(), right[1:], strict=True):
                parameter.grad = gradient
            optimizer.step()
            assert driver.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, topology(model), strict=True))


@pytest.mark.parametrize("recipe", [SET(every=1), RigL(every=2)], ids=["SET", "RigL"])
@pytest.mark.parametrize("kind", ["convolution", "chain"])
def test_a_compiled_training_walks_the_same_topologies(kind, recipe):
    ends, x, y = [], *batch()
    for is_compiled in (False, True):
        model = made(kind)
        called = torch.compile(model, fullgraph=True, backend="aot_eager") if is_compiled else model
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        driver = recipe.attach(model, optimizer, steps_per_epoch=1, total_steps=8, seed=0)
        graphs = counters["stats"]["unique_graphs"]
        for _ in range(7):
            optimizer.zero_grad()
            F.cross_entropy(called(x), y).backward()
            optimizer.step()
            driver.step()
        assert driver.rewirings >= 2
        # One graph, and where gradients are recorded one more.
        assert counters["stats"]["unique_graphs"] - graphs <= is_compiled * (2 if isinstance(recipe, RigL) else 1)
        ends.append([*topology(model), *model.parameters()])
    assert near(*ends)


@each_sparse
def test_a_program_is_exported_saved_and_loaded(kind):
    model, x = made(kind), batch()[0]
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for size in (2, 50):
        x, y = batch(size)
        assert torch.equal(loaded(x), model(x))
        assert near(loss_and_gradients(loaded, x, y), loss_and_gradients(model, x, y))


# Transforms


@each_sparse
def test_functional_transforms_give_the_same_gradients(kind):
    model, (x, y) = made(kind), batch()
    weights = dict(model.named_parameters())

    def loss(weights, x, y):
        return F.cross_entropy(functional_call(model, weights, (x,)), y)

    _, *right = loss_and_gradients(model, x, y)
    assert near(grad(loss)(weights, x, y).values(), right)
    of_samples = vmap(grad(lambda weights, x, y: loss(weights, x[None], y[None])), (None, 0, 0))(weights, x, y)
    assert near([gradient.mean(0) for gradient in of_samples.values()], right)
    assert near([jacfwd(model)(x[:1])], [jacrev(model)(x[:1])])
    assert near([vmap(model)(x[:, None]).squeeze(1)], [model(x)])
    assert near(loss_and_gradients(model, x, y)[1:], right)  # nothing of the transforms is left behind


def test_an_ensemble_runs_by_vmap():
    models = [made("linear") for _ in range(3)]
    for factor, model in enumerate(models):
        for parameter in model.parameters():
            parameter.data *= factor
    weights, buffers = stack_module_state(models)
    x = batch()[0]
    together = vmap(lambda w, b: functional_call(models[0], (w, b), (x,)))(weights, buffers)
    assert near(together, [model(x) for model in models])


def twins(kind):
    """Return a sparse model, its dense twin, and a function from the twin's gradients to those of the sparse model."""
    model = made(kind)
    dense = densify(model)
    active = [layer.active() for layer in sparse_layers(model).values() for _ in range(2)]

    def reduced(tensors):
        return [t.flatten()[a] if t.dim() > 1 else t for t, a in zip(tensors, active, strict=True)]

    return model, dense, reduced


@each_sparse
def test_a_gradient_penalty_is_differentiated(kind):
    model, dense, reduced = twins(kind)
    x, y = batch()
    found = []
    for network in (model, dense):
        here = x.clone().requires_grad_()
        of_x = torch.autograd.grad(F.cross_entropy(network(here), y), here, create_graph=True)[0]
        weights = [w for n, w in network.named_parameters()]
        found.append(torch.autograd.grad(of_x.square().sum(), weights, allow_unused=True, materialize_grads=True))
    assert near(found[0], reduced(found[1]))


def test_the_graph_of_a_gradient_counts_a_layer_that_is_called_twice():
    torch.manual_seed(0)
    layer = SparseLinear(8, 8, sparsity=0.5)
    dense, x, found = densify(layer), torch.randn(3, 8), []
    for module, weight, active in ((layer, layer.values, slice(None)), (dense, dense.weight, layer.active())):
        (first,) = torch.autograd.grad(module(module(x)).square().sum(), weight, create_graph=True)
        (second,) = torch.autograd.grad(first.flatten()[active].square().sum(), weight)
        found.append([first.flatten()[active], second.flatten()[active]])
    assert near(*found, most=1e-3)


def test_a_gradient_is_recorded_also_where_it_is_differentiated():
    layer = SparseLinear(8, 4, sparsity=0.5)
    x, found = torch.randn(3, 8, requires_grad=True), []
    for create_graph in (False, True):
        layer.record_gradient = True
        torch.autograd.grad(layer(x).square().sum(), x, create_graph=create_graph)
        found.append(torch.cat(list(layer.gradient_rows())))
    assert torch.equal(*found) and not found[1].requires_grad


def test_forward_mode_is_right():
    model, x = made("convolution"), batch()[0]
    tangent = torch.randn_like(x)
    _, right = torch.func.jvp(densify(model), (x,), (tangent,))
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        y = model(torch.autograd.forward_ad.make_dual(x, tangent))
        assert near([torch.autograd.forward_ad.unpack_dual(y).tangent], [right])


# Autocast


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_compiled", [False, True])
@each_kind
def test_autocast_gives_the_type_that_dense_layers_give(kind, is_compiled, given):
    model, x = made(kind), batch()[0].to(given)
    dense = densify(model)
    called = torch.compile(model, fullgraph=True, backend="aot_eager") if is_compiled else model
    with torch.autocast("cpu", torch.bfloat16):
        y, right = called(x), dense(x)
    y.float().sum().backward()
    assert y.dtype == right.dtype == torch.bfloat16 and near([y.float()], [right.float()], most=0.05)
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_autocast_computes_in_float32_and_rounds_the_result():
    layer, x = SparseLinear(50, 20, sparsity=0.5), torch.randn(4, 50)
    with torch.autocast("cpu", torch.bfloat16):
        y, direct = layer(x), layer.double()(x.double())
    assert direct.dtype == torch.float64  # as in nn.Linear, autocast leaves it alone
    assert torch.equal(y, layer.float()(x).bfloat16())


# Training


@each_kind
def test_checkpointing_computes_the_same_gradients(kind):
    model, (x, y) = made(kind), batch()
    right = loss_and_gradients(model, x, y)
    for reentrant in (False, True):
        model.zero_grad()
        loss = F.cross_entropy(checkpoint(model, x.clone().requires_grad_(), use_reentrant=reentrant), y)
        loss.backward()
        assert near([loss, *[p.grad for p in model.parameters()]], right)


@each_kind
def test_ddp_computes_the_same_gradients(kind, tmp_path):
    model, (x, y) = made(kind), batch()
    right = loss_and_gradients(model, x, y)
    init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        for _ in range(2):
            model.zero_grad()
            loss = F.cross_entropy(wrapped(x), y)
            loss.backward()
            assert near([loss, *[p.grad for p in model.parameters()]], right)
    finally:
        destroy_process_group()


@each_kind
def test_copies_and_files_compute_the_same_and_share_nothing(kind):
    model, x = made(kind), batch()[0]
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ):
        assert torch.equal(other(x), model(x))
        assert torch.equal(torch.compile(other, backend="aot_eager", fullgraph=True)(x), model(x))
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert other(x).abs().max() == 0 < model(x).abs().max()


@each_kind
def test_gradients_accumulate_and_are_clipped(kind):
    model, (x, y) = made(kind), batch()
    right = loss_and_gradients(model, x, y)[1:]
    for part in ((x[:3], y[:3]), (x[3:], y[3:])):
        (F.cross_entropy(model(part[0]), part[1]) / 2).backward()
    assert near([p.grad for p in model.parameters()], right)
    norm = torch.stack([g.norm() for g in right]).norm()
    assert torch.allclose(clip_grad_norm_(model.parameters(), norm.item() / 2), norm)
    assert near([p.grad for p in model.parameters()], [g / 2 for g in right])


@each_kind
def test_hooks_are_called(kind):
    model, (x, y), called = made(kind), batch(), []
    layer = next(iter(sparse_layers(model).values()))
    layer.register_forward_pre_hook(lambda *_: called.append("before"))
    layer.register_forward_hook(lambda *_: called.append("after"))
    layer.register_full_backward_hook(lambda *_: called.append("backward"))
    layer.weight_parameter.register_hook(lambda gradient: called.append("gradient"))
    F.cross_entropy(model(x.requires_grad_()), y).backward()
    assert sorted(called) == ["after", "backward", "before", "gradient"]


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


@each_sparse
def test_a_parametrization_computes_a_parameter(kind):
    model, x = made(kind), batch()[0]
    layer = next(iter(sparse_layers(model).values()))
    with torch.no_grad():
        right = model(x)
        layer.bias /= 2
    parametrize.register_parametrization(layer, "bias", Doubled())
    assert near([model(x), torch.compile(model, backend="aot_eager")(x)], [right, right])
    model(x).sum().backward()
    assert layer.parametrizations.bias.original.grad.abs().max() > 0


OPTIMIZERS = {
    "SGD, foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, foreach=True),
    "SGD, fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "Adam, foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@each_sparse
def test_optimizers_schedulers_and_averages_treat_weights_as_in_a_dense_network(kind, name):
    model, dense, reduced = twins(kind)
    masks = [p != 0 if p.dim() > 1 else torch.ones_like(p, dtype=torch.bool) for p in dense.parameters()]
    ends = []
    for network in (model, dense):
        optimizer = OPTIMIZERS[name](network.parameters())
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        average = torch.optim.swa_utils.AveragedModel(network)
        for seed in range(4):
            optimizer.zero_grad()
            x, y = batch(seed=seed)
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
            schedule.step()
            if network is dense:  # as a mask would
                for parameter, mask in zip(network.parameters(), masks, strict=True):
                    parameter.data *= mask
            average.update_parameters(network)
        ends.append([[*network.parameters()], [*average.module.parameters()]])
    (here, here_average), (there, there_average) = ends
    assert near(here, reduced(there), 1e-3) and near(here_average, reduced(there_average), 1e-3)


def test_code_that_asks_for_the_dimensions_of_parameters_finds_one():
    # Muon and its like take matrices; the active weights are a vector and go to the other optimizer.
    layers = [layer for kind in SPARSE for layer in sparse_layers(made(kind)).values()]
    for layer in layers:
        assert layer.values.ndim == 1 and layer.weight.ndim == layer.weight.dim() == len(layer.dense_shape)
        assert layer.weight.shape == layer.weight.size() == layer.dense_shape
        assert layer.weight.size(0) == layer.dense_shape[0] and layer.weight.numel() == layer.to_dense().numel()
        described = layer.weight.dtype, layer.weight.device, layer.weight.requires_grad
        assert described == (torch.float32, torch.device("cpu"), True)


# What is different, and why


@pytest.mark.parametrize("is_padded", [False, True])
def test_a_transformer_computes_the_same_in_training_and_inference(is_padded):
    torch.manual_seed(0)
    dense = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0), 1)
    model, x = sparsify(dense, 0.5, include=["*linear*"]), torch.randn(2, 5, 16)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    options = {"src_key_padding_mask": padding} if is_padded else {}
    there = ~padding if is_padded else slice(None)  # torch's fast way leaves the rest undefined
    trained = model(x, **options)
    trained.sum().backward()
    model.eval()
    twin = densify(model)
    compiled, twin_compiled = (torch.compile(of, fullgraph=True, backend="aot_eager") for of in (model, twin))
    with torch.no_grad():
        for network in (model, twin):
            assert near([network(x, **options)[there]], [trained[there]], 1e-4)
        try:
            twin_compiled(x, **options)
        except Unsupported:
            return  # torch 2.7 cannot compile its own padded encoder
        assert near([compiled(x, **options)[there]], [trained[there]], 1e-4)


def test_the_dense_weight_that_does_not_exist_is_refused():
    layer = SparseLinear(4, 3)
    for use in (
        lambda: F.linear(torch.zeros(1, 4), layer.weight),
        lambda: torch.cat([layer.weight]),
        lambda: torch.zeros(3, 4) + layer.weight,
    ):
        with pytest.raises(InvalidArgumentError, match=r"no dense weight.*layer\.values"):
            use()
    for use in (lambda: layer.weight.data, lambda: nn.init.zeros_(layer.weight)):
        with pytest.raises(AttributeError, match=r"no weight\.\w+; use layer\.values"):
            use()


def documented(heading):
    """Return the names in the first column of a table of docs/torch.md."""
    text = (ROOT / "docs" / "torch.md").read_text(encoding="utf-8")
    table = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| `")]
    assert all(len(reason.strip()) > 20 for _, *_, reason in rows)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}


@pytest.mark.parametrize(
    ("dense", "sparse"), [(nn.Linear(4, 3), SparseLinear(4, 3)), (nn.Conv2d(1, 2, 3), SparseConv2d(1, 2, 3))]
)
def test_every_attribute_of_a_dense_layer_is_there_or_documented(dense, sparse):
    differ = documented("Attributes")
    for name in (name for name in dir(dense) if not name.startswith("_")):
        if name in differ:
            continue
        mine, other = getattr(sparse, name), getattr(dense, name)
        assert callable(mine) == callable(other), name
        if isinstance(other, (int, str, tuple, bool)):
            assert mine == other, name
    known = {*dir(SparseLinear(4, 3)), *dir(SparseConv2d(1, 2, 3)), *dir(nn.Linear(4, 3)), *dir(nn.Conv2d(1, 2, 3))}
    assert differ <= known


@pytest.mark.parametrize("network", [nn.Linear(8, 8), nn.Conv2d(8, 8, 1)], ids=["linear", "convolution"])
@pytest.mark.parametrize(
    ("of_input", "of_weights"),
    list(itertools.permutations(["float32", "float16", "float64", "bfloat16"], 2)),
)
def test_an_input_of_another_type_than_the_weights(of_input, of_weights, network):
    layer = sparsify(network, 0.5).to(getattr(torch, of_weights))
    x = torch.randn((2, 8) if isinstance(network, nn.Linear) else (2, 8, 3, 3)).to(getattr(torch, of_input))
    message = rf"the input is {of_input}, the weights {of_weights}: use one type, or keep float32 and torch\.autocast"
    with pytest.raises(InvalidArgumentError, match=message):
        layer(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
@pytest.mark.parametrize(
    "refused", [torch.jit.script, lambda layer: prune.l1_unstructured(layer, "weight", 0.5)], ids=["script", "prune"]
)
def test_what_the_page_says_is_refused_changes_nothing(refused):
    layer, x = sparsify(nn.Linear(8, 8), 0.5), torch.randn(2, 8)
    before = layer(x)
    with pytest.raises((TypeError, ValueError, InvalidArgumentError)):
        refused(layer)
    assert torch.equal(layer(x), before)
