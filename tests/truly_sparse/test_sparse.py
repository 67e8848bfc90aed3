"""Truly sparse layers: the same function, the same gradients and the same walk as the masked simulation."""

import copy
import io
import math
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from truly_sparse import (
    SET,
    DynamicSparsity,
    InvalidArgumentError,
    RigL,
    SparseConv2d,
    SparseLinear,
    TrainingError,
    cpu,
    densify,
    fuse,
    sparse_layers,
    sparsify,
)
from truly_sparse import backend as kernels
from truly_sparse.cpu import memory
from truly_sparse.fuse import run_chain
from tutorial_lib import TutorialCNN, evaluate, fit, mask_model, multiply_adds, sparsity_report, storage_bytes

GEOMETRIES = [
    {},
    {"stride": 2, "padding": 1},
    {"padding": (2, 0), "dilation": (1, 2)},
    {"groups": 2, "padding": 1},
    {"stride": (1, 2), "groups": 4, "bias": False},
]


def layers(dtype=torch.float32):
    torch.manual_seed(0)
    yield SparseLinear(9, 6, sparsity=0.6, dtype=dtype), torch.randn(5, 9, dtype=dtype)
    yield SparseLinear(9, 6, sparsity=0.6, relu=True, bias=False, dtype=dtype), torch.randn(5, 9, dtype=dtype)
    for geometry in GEOMETRIES:
        x = torch.randn(2, 4, 5, 6, dtype=dtype)
        yield SparseConv2d(4, 4, 3, sparsity=0.6, dtype=dtype, **geometry), x
        yield SparseConv2d(4, 4, 3, sparsity=0.6, relu=True, dtype=dtype, **geometry), x
    yield SparseConv2d(4, 8, 3, padding=1, sparsity=0.6, relu=True, pool=True, dtype=dtype), x


def cases(dtype=torch.float32):
    return [pytest.param(layer, x, id=str(layer)) for layer, x in layers(dtype)]


# ------------------------------------------------------------------------------------------ one layer


@pytest.mark.parametrize(("layer", "x"), cases())
def test_same_function_and_gradients_as_dense(layer, x):
    dense = layer.to_dense_layer()
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer.zero_grad()
    upstream = torch.randn_like(dense(b))
    layer(a).backward(upstream)
    dense(b).backward(upstream)
    plain = dense[0] if isinstance(dense, nn.Sequential) else dense
    assert torch.allclose(layer(x), dense(x), atol=1e-5)
    assert torch.allclose(a.grad, b.grad, atol=1e-5)
    assert torch.allclose(layer.values.grad, plain.weight.grad.reshape(-1)[layer.active()], atol=1e-4)
    if layer.bias is not None:
        assert torch.allclose(layer.bias.grad, plain.bias.grad, atol=1e-4)


@pytest.mark.parametrize(("layer", "x"), cases(torch.float64))
def test_gradcheck(layer, x):
    parameters = [p for p in (layer.values, layer.bias) if p is not None]

    def function(x, *_):
        return layer(x)

    assert torch.autograd.gradcheck(function, (x[:1].clone().requires_grad_(), *parameters))


@pytest.mark.parametrize(("layer", "x"), cases(torch.float64))
def test_recorded_gradient_is_the_dense_one(layer, x):
    with pytest.raises(TrainingError, match="no gradient was recorded"):
        next(layer.gradient_rows())
    dense = layer.to_dense_layer()
    upstream = torch.randn_like(dense(x))
    layer.record_gradient = True
    for _ in range(2):  # accumulated over two batches
        layer(x).backward(upstream)
        dense(x).backward(upstream)
    plain = dense[0] if isinstance(dense, nn.Sequential) else dense
    rows = torch.cat(list(layer.gradient_rows()))
    assert rows.shape == (layer.dense_shape[0], math.prod(layer.dense_shape[1:]))
    assert torch.allclose(rows, plain.weight.grad.flatten(1))
    places = torch.tensor([0, 3, 20, 35])
    assert torch.allclose(layer.gradient_at(places), plain.weight.grad.reshape(-1)[places])
    layer.record_gradient = False


@pytest.mark.parametrize("batch", [0, 1, 3, 16, 17, 64, 100])
@pytest.mark.parametrize("nnz", [0, 1, 50, 120])
def test_odd_batches_and_fillings(batch, nnz):
    connections = torch.randperm(120)[:nnz].sort().values
    layer = SparseLinear(12, 10, connections=connections, relu=True)
    x = torch.randn(batch, 12, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert torch.allclose(y, layer.to_dense_layer()(x), atol=1e-5)
    assert x.grad.shape == x.shape and layer.values.grad.shape == (nnz,)
    assert layer.values.grad.isfinite().all()


def test_inputs_of_any_stride_and_rank():
    layer = SparseLinear(6, 4, sparsity=0.5)
    x = torch.randn(2, 3, 6)
    assert torch.allclose(layer(x), layer.to_dense_layer()(x), atol=1e-6)
    assert torch.allclose(layer(x[0, 0]), layer.to_dense_layer()(x[0, 0]), atol=1e-6)
    for odd in (torch.randn(6, 5).T, torch.randn(1, 6).expand(5, 6), torch.randn(5, 12)[:, ::2]):
        assert torch.allclose(layer(odd), layer.to_dense_layer()(odd), atol=1e-6)
    conv = SparseConv2d(2, 3, 3, sparsity=0.5)
    assert conv(torch.randn(2, 5, 5)).shape == (3, 3, 3)


def test_nan_is_not_hidden():
    layer = SparseLinear(4, 4, sparsity=0.0, relu=True)
    assert layer(torch.full((3, 4), math.nan)).isnan().all()


@pytest.mark.parametrize(
    ("connections", "message"),
    [
        (torch.tensor([0, 12]), "out of range"),
        (torch.tensor([-1, 2]), "out of range"),
        (torch.tensor([3, 2]), "unsorted"),
        (torch.tensor([2, 2]), "duplicate"),
        (torch.tensor([1, 2], dtype=torch.int32), "int64"),
        (torch.tensor([[1, 2]]), "one-dimensional"),
        ([1, 2], r"flat indices are \[1, 2\]; give a one-dimensional int64 tensor"),
    ],
)
def test_bad_connections_never_reach_compiled_code(connections, message):
    with pytest.raises(ValueError, match=message):
        SparseLinear(4, 3, connections=connections)
    with pytest.raises(ValueError, match=message):
        SparseConv2d(3, 4, 1, connections=connections)


def test_other_bad_arguments():
    with pytest.raises(InvalidArgumentError, match="sparsity=1"):
        SparseLinear(4, 3, sparsity=1)
    with pytest.raises(InvalidArgumentError, match="groups=3"):
        SparseConv2d(4, 3, 3, groups=3)
    with pytest.raises(InvalidArgumentError, match="stride"):
        SparseConv2d(4, 3, 3, stride=0)
    with pytest.raises(InvalidArgumentError, match="give \\[B, 4\\]"):
        SparseLinear(4, 3)(torch.randn(2, 5))
    with pytest.raises(InvalidArgumentError, match="give \\[B, 4, H, W\\]"):
        SparseConv2d(4, 3, 3)(torch.randn(2, 5, 8, 8))


# ------------------------------------------------------------------------------------------ torch's machinery


def trained(layer, x):
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
    return layer


@pytest.mark.parametrize(("layer", "x"), cases())
def test_state_dict_holds_the_topology(layer, x):
    layer = trained(copy.deepcopy(layer), x)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(layer)
    free = torch.ones(math.prod(layer.dense_shape), dtype=torch.bool)
    free[layer.active()] = False
    other.rewire(layer.active()[1:], free.nonzero()[0], torch.tensor([1.0]))
    assert not torch.equal(other.active(), layer.active())
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.active(), layer.active()) and torch.equal(other(x), layer(x))


def test_a_damaged_topology_is_refused_and_changes_nothing():
    layer = SparseLinear(4, 3, sparsity=0.5)
    before = layer.active()
    state = layer.state_dict()
    state["_extra_state"] = torch.tensor([0, 1, 2, 3, 4, 99])
    with pytest.raises(Exception, match="out of range"):
        layer.load_state_dict(state)
    assert torch.equal(layer.active(), before)


def test_copies_and_casts():
    layer, x = next(iter(layers()))
    twin = copy.deepcopy(layer)
    twin.values.data.zero_()
    assert layer.values.abs().sum() > 0
    assert layer.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
        lambda p: torch.optim.RMSprop(p, lr=0.1),
        lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.25),
    ],
)
def test_optimizer_state_follows_its_coordinate(make):
    torch.manual_seed(0)
    layer, x = SparseLinear(20, 10, sparsity=0.7), torch.randn(8, 20)
    optimizer = make(layer.parameters())
    driver = DynamicSparsity(nn.Sequential(layer), optimizer, prune_fraction=0.5, every=100)
    for _ in range(3):
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()

    def by_coordinate():
        state = {"value": layer.values.detach().clone()} | {
            key: s.clone() for key, s in optimizer.state[layer.values].items() if s.shape == layer.values.shape
        }
        return {key: dict(zip(layer.active().tolist(), s.tolist(), strict=True)) for key, s in state.items()}

    before = by_coordinate()
    driver.rewire()
    after = by_coordinate()
    kept, grown = set(before["value"]) & set(after["value"]), set(after["value"]) - set(before["value"])
    assert len(grown) == 30 and len(before) > 1
    for key, old in before.items():
        assert all(after[key][place] == old[place] for place in kept)
        if key != "value":
            assert all(after[key][place] == (0.25 if key == "sum" else 0) for place in grown)


# ------------------------------------------------------------------------------------------ whole networks


@pytest.mark.parametrize("scheme", ["uniform", "erk"])
def test_sparsify_and_fuse_and_densify_keep_the_function(scheme):
    masked = mask_model(TutorialCNN(), 0.95, scheme).eval()
    x = torch.randn(70, 1, 28, 28)
    with torch.no_grad():
        expected = masked(x)
        sparse = sparsify(masked)
        for network in (sparse, fuse(sparse), densify(sparse), densify(fuse(sparse)), sparsify(densify(masked))):
            assert (network(x) - expected).abs().max() <= 1e-5
    assert list(sparse_layers(fuse(sparse))) == list(sparse_layers(masked))
    assert sparsity_report(sparse).equals(sparsity_report(masked))
    work = multiply_adds(fuse(sparse), (1, 28, 28))
    assert work["executed"].equals(work["useful"])
    assert work["useful"].equals(multiply_adds(masked, (1, 28, 28))["useful"])


def test_fused_network_is_one_call():
    fused = fuse(sparsify(mask_model(TutorialCNN(), 0.95)))
    (call,) = (node for node in fused.graph.nodes if node.op.startswith("call"))
    assert [node.target for node in call.args[1]] == ["conv1", "conv2", "fc1", "fc2", "fc3", "fc4"]
    assert fused.conv1.relu and fused.conv1.pool and fused.fc3.relu and not fused.fc4.relu


def test_a_chain_is_left_where_somebody_looks_inside():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (SparseLinear(6, 6, sparsity=0.5) for _ in range(3))

        def forward(self, x):
            y = self.a(x)
            return self.c(self.b(y)) + y

    model = Skips()
    fused, x = fuse(model), torch.randn(5, 6)
    (call,) = (node for node in fused.graph.nodes if node.target is run_chain)
    assert [node.target for node in call.args[1]] == ["b", "c"]
    for batch in (x, torch.randn(2, 3, 6)):
        torch.testing.assert_close(fused(batch), model(batch))
    torch.testing.assert_close(fuse(fused)(x), model(x))
    torch.testing.assert_close(copy.deepcopy(fused)(x), model(x))
    seen = []
    fused.c.register_forward_hook(lambda layer, inputs, output: seen.append(output))
    torch.testing.assert_close(fused(x), model(x))
    assert len(seen) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    "shape", [(5, 20), (64, 20), (1, 20), (0, 20), (20,), (2, 7, 20), (3, 2, 2, 20), "conv", "one image", "no image"]
)
def test_results_are_laid_out_as_those_of_dense_layers(shape, relu, dtype):
    """Code that views results, changes them in place or reads their memory works as with torch's layers."""
    if isinstance(shape, str):
        sparse = SparseConv2d(3, 4, 3, padding=1, sparsity=0.5, relu=relu, dtype=dtype)
        x = torch.randn({"conv": (6, 3, 7, 5), "one image": (3, 7, 5), "no image": (0, 3, 7, 5)}[shape], dtype=dtype)
    else:
        sparse, x = SparseLinear(20, 24, sparsity=0.8, relu=relu, dtype=dtype), torch.randn(shape, dtype=dtype)
    dense = densify(sparse)
    forms = [x, x.flip(0), x[..., None].expand(*x.shape, 2)[..., 0], torch.stack([x, x], -1)[..., 1]]
    for given in forms if x.dim() != 4 else [*forms, x.contiguous(memory_format=torch.channels_last)]:
        given = given.detach().requires_grad_()
        y, expected = sparse(given), dense(given)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        assert y.is_contiguous() and y.view(-1).shape == expected.reshape(-1).shape
        assert y.detach().numpy().flags.c_contiguous
        if not relu:  # in torch, too, ReLU's result must stay for its gradient
            y += 1
        (dx,) = torch.autograd.grad(y.sum(), given)
        assert dx.is_contiguous() and dx.view(-1).shape == (x.numel(),)
        with torch.no_grad():
            assert sparse(given).is_contiguous()


def test_between_sparse_layers_nothing_is_copied():
    fused = fuse(sparsify(mask_model(TutorialCNN(), 0.95)))
    x = torch.randn(64, 1, 28, 28)
    fused(x)
    before = memory.conversions
    loss = fused(x).square().sum()
    assert memory.conversions - before == 1  # the images, at the door
    before = memory.conversions
    loss.backward()
    assert memory.conversions - before <= 1  # the loss's gradient, at the other


def test_no_dense_tensor_is_ever_made():
    """Training with rewiring allocates nothing of the dense weight's size."""
    torch.manual_seed(0)
    layer = SparseLinear(3000, 3000, sparsity=0.999)
    optimizer = torch.optim.Adam(layer.parameters())
    driver = DynamicSparsity(nn.Sequential(layer), optimizer, prune_fraction=0.3, every=1)
    x = torch.randn(4, 3000)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(2):
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
            driver.step()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert 0 < largest < 9_000_000 / 10  # a dense mask alone would be 9 MB


def test_storage_is_a_sixth_of_dense_and_nothing_in_it_has_the_dense_size():
    masked = mask_model(TutorialCNN(), 0.95)
    assert storage_bytes(densify(masked)) / storage_bytes(sparsify(masked)) > 6
    assert not any(t.numel() > 67_173 for t in sparsify(masked).state_dict().values())


def walk(model, recipe, dtype, rewirings):
    """Train with frequent rewiring; return the topology after each rewiring and the final weights."""
    torch.manual_seed(1)
    model = copy.deepcopy(model).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    driver = recipe.attach(model, optimizer, steps_per_epoch=2, total_steps=2 * rewirings + 2, seed=0)
    topologies = []
    for _ in range(2 * rewirings):
        x, y = torch.randn(8, 1, 28, 28).to(dtype), torch.randint(10, (8,))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if driver.step():
            topologies.append({name: layer.active() for name, layer in sparse_layers(model).items()})
    return topologies, {name: layer.active_values() for name, layer in sparse_layers(model).items()}


@pytest.mark.parametrize("recipe", [SET(prune_fraction=0.2, every=2), RigL(every=2, until=1.0)], ids=["SET", "RigL"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_simulated_and_truly_sparse_walk_through_the_same_topologies(small_cnn, recipe, dtype):
    """The proof that results found on masks carry over: one seed, 22 rewirings, both kinds.

    In float64 every index agrees. In float32 the two kinds add up in another order, so gradients differ in the last
    bits; where two candidates of growth are that close, the kinds may choose differently: at most 1% of a layer.
    """
    masked = mask_model(small_cnn, 0.8, "erk")
    (simulated, a), (true, b) = (walk(m, recipe, dtype, 22) for m in (masked, sparsify(masked)))
    assert len(simulated) == len(true) >= 20
    for left, right in zip(simulated, true, strict=True):
        for name in left:
            assert len(left[name]) == len(right[name])
            differing = (~torch.isin(left[name], right[name])).sum().item()
            assert differing <= (0 if dtype == torch.float64 else 0.01 * len(left[name]) + 1)
    if dtype == torch.float64:
        assert all(torch.allclose(a[name], b[name], rtol=1e-9, atol=1e-12) for name in a)


def test_fit_trains_a_truly_sparse_network(digits):
    torch.manual_seed(0)
    model = fuse(sparsify(mask_model(TutorialCNN(), 0.9, "erk")))
    fit(model, digits, epochs=12, lr=2e-3, sparsity=RigL(every=10), progress=False)
    assert evaluate(model, digits)[0] > 80


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_whatever_the_thread_count(threads, digits):
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            torch.manual_seed(0)
            model = fuse(sparsify(mask_model(TutorialCNN(), 0.95)))
            y = model(digits.train_x[:70])
            y.square().sum().backward()
            results.append([y.detach(), *(layer.values.grad for layer in sparse_layers(model).values())])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_padding_that_is_not_supported():
    for conv in (nn.Conv2d(2, 2, 3, padding="same"), nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")):
        with pytest.raises(InvalidArgumentError, match="does not support the padding"):
            sparsify(nn.Sequential(conv))


def test_standard_modules_in_between(small_cnn):
    masked = mask_model(small_cnn, 0.8)
    x = torch.randn(5, 1, 28, 28)
    assert torch.allclose(sparsify(masked)(x), masked(x), atol=1e-5)  # BatchNorm between, in training mode
    assert torch.allclose(fuse(sparsify(masked))(x), masked(x), atol=1e-5)


def test_without_numba_plain_torch_does_the_work_and_says_so_once(monkeypatch):
    layer, x = SparseLinear(8, 5, sparsity=0.5), torch.randn(3, 8)
    expected = layer(x)
    kernels._compiled.cache_clear()
    monkeypatch.delattr(cpu, "chain")
    monkeypatch.setitem(sys.modules, "truly_sparse.cpu.chain", None)  # what an import finds where numba is missing
    try:
        with pytest.warns(UserWarning, match="plain torch, slower") as warned:
            torch.testing.assert_close(layer(x), expected)
            layer(x).sum().backward()
        assert len(warned) == 1 and layer.values.grad.isfinite().all()
    finally:
        monkeypatch.undo()
        kernels._compiled.cache_clear()


@pytest.mark.parametrize("batch", [16, 100])
def test_what_people_put_around_layers(batch):
    """Activation checkpointing, changes in place behind a layer, and other default types."""
    model = nn.Sequential(nn.Linear(12, 9), nn.ReLU(inplace=True), nn.Linear(9, 4))
    sparse, x = sparsify(model), torch.randn(batch, 12)
    model(x).square().sum().backward()
    sparse(x).square().sum().backward()
    torch.testing.assert_close(sparse[0].bias.grad, model[0].bias.grad, rtol=1e-4, atol=1e-5)
    first = sparse[0].values.grad.clone()
    sparse.zero_grad()
    checkpoint(sparse, x, use_reentrant=False).square().sum().backward()
    assert torch.equal(sparse[0].values.grad, first)
    sparse.zero_grad()
    torch.set_default_dtype(torch.float64)
    try:
        sparse(x).square().sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(sparse[0].values.grad, first)


def test_fuse_leaves_classes_of_ones_own_alone():
    class Doubled(SparseLinear):
        def forward(self, x):
            return -2 * super().forward(x)

    model = nn.Sequential(Doubled(6, 6, sparsity=0.5), nn.ReLU(), Doubled(6, 6, sparsity=0.5), SparseLinear(6, 3))
    x = torch.randn(4, 6)
    torch.testing.assert_close(fuse(model)(x), model(x))


def test_two_threads_may_use_one_layer():
    conv, x = SparseConv2d(3, 8, 3, padding=1, sparsity=0.5), torch.randn(20, 3, 9, 9)
    with torch.no_grad():
        expected = SparseConv2d.forward(conv, x).clone()
        with ThreadPoolExecutor(2) as pool:
            for got in pool.map(lambda _: conv(x), range(20)):
                torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("kind", ["masked", "truly sparse"])
def test_sampled_gradient_growth_takes_the_largest_of_its_candidates(kind):
    """With few weights inactive, four candidates for each to grow are all there are: the choice is then RigL's."""
    grown = {}
    for grow in ("gradient", "sampled gradient"):
        torch.manual_seed(0)
        model = mask_model(nn.Sequential(nn.Linear(10, 8)), sparsity=0.2, seed=0)
        model = model if kind == "masked" else sparsify(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        driver = DynamicSparsity(model, optimizer, prune_fraction=0.1, every=1, grow=grow)
        before = driver.layers["0"].active()
        x = torch.randn(16, 10, generator=torch.Generator().manual_seed(1))
        model(x).square().sum().backward()
        driver.step()
        after = driver.layers["0"].active()
        assert len(after) == len(before) == 64
        grown[grow] = set(after.tolist()) - set(before.tolist())
    assert grown["gradient"] == grown["sampled gradient"] and len(grown["gradient"]) == 6


@pytest.mark.parametrize("batch", [20, 40, 70])  # one span of the batch, and several of which the last is short
def test_a_chain_hands_over_the_dense_gradient_of_the_simulation(batch):
    """What growth ranks is the same whether the batch went through the chain in one piece or in spans."""
    masked = mask_model(TutorialCNN(), 0.95, seed=0)
    fused = fuse(sparsify(masked))
    x, y = torch.randn(batch, 1, 28, 28), torch.randint(0, 10, (batch,))
    for model in (masked, fused):
        for layer in sparse_layers(model).values():
            layer.record_gradient = True
        F.cross_entropy(model(x), y).backward()
    pairs = zip(sparse_layers(masked).values(), sparse_layers(fused).values(), strict=True)
    for simulated, sparse in pairs:
        expected = torch.cat(list(simulated.gradient_rows()))
        found = torch.cat(list(sparse.gradient_rows()))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("block", [1, 2, 7, 1000])  # rows: part of a group, one, three, all
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_the_gradient_of_grouped_convolutions_is_torchs_in_blocks_of_any_size(groups, block, monkeypatch):
    torch.manual_seed(0)
    layer = SparseConv2d(6, 12, 3, padding=1, groups=groups, sparsity=0.5)
    monkeypatch.setattr("truly_sparse.layers.GRADIENT_BLOCK", block * 6 // groups * 9)
    dense, x = layer.to_dense_layer(), torch.randn(2, 6, 5, 4)
    layer.record_gradient = True
    for each in (layer, dense):
        each(x).square().sum().backward()
    rows = list(layer.gradient_rows())
    assert all(len(part) <= block for part in rows)
    torch.testing.assert_close(torch.cat(rows), dense.weight.grad.flatten(1), rtol=1e-4, atol=1e-4)
