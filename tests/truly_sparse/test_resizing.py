"""Truly sparse layers whose number of weights changes: the parameter stays the same object, all follows its size."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from truly_sparse import (
    DSR,
    AveragedSparseModel,
    GradualPruning,
    GraNet,
    InvalidArgumentError,
    PerWeightAdam,
    SparseConv1d,
    SparseConv2d,
    SparseLinear,
    TrainingStep,
    fuse,
    sparse_layers,
    sparsify,
)
from tutorial_lib import load_checkpoint, mask_model, save_checkpoint

LAYERS = {
    "linear": (lambda: SparseLinear(12, 8, sparsity=0.5), (3, 12)),
    "blocks": (lambda: SparseLinear(12, 8, sparsity=0.5, structure=(4, 1)), (3, 12)),
    "conv": (lambda: SparseConv2d(4, 8, 3, padding=1, sparsity=0.5), (2, 4, 6, 6)),
    "conv1d": (lambda: SparseConv1d(4, 8, 3, padding=1, sparsity=0.5), (2, 4, 6)),
}
OPTIMIZERS = [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad, PerWeightAdam]


def with_fewer(layer):
    """Rewire to the weights of the upper half of the outputs, which are whole blocks."""
    active = layer.active()
    kept = active[active < layer.to_dense().numel() // 2]
    layer.rewire(kept, active[:0], layer.values[:0].detach())


def with_all(layer):
    """Rewire to all weights of the dense layer, the new ones 1."""
    active, size = layer.active(), layer.to_dense().numel()
    grown = torch.tensor(sorted(set(range(size)) - set(active.tolist())), dtype=torch.int64)
    layer.rewire(active, grown, torch.ones(len(grown)))


def with_none(layer):
    """Rewire to no weight at all."""
    layer.rewire(layer.active()[:0], layer.active()[:0], layer.values[:0].detach())


@pytest.mark.parametrize("kind", LAYERS)
def test_results_and_gradients_are_those_of_the_dense_layer_at_every_size(kind):
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer, x = make(), torch.randn(*shape)
    parameter, losses = layer.values, []
    for change in (lambda layer: None, with_fewer, with_all, with_fewer, with_none):
        change(layer)
        assert layer.values is parameter and len(parameter) == layer.index.nnz
        dense, ours, theirs = layer.to_dense_layer(), x.clone().requires_grad_(), x.clone().requires_grad_()
        losses.append(layer(ours).square().sum())  # all graphs stay alive, as that of a loss that somebody keeps
        losses[-1].backward()
        dense(theirs).square().sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
        expected = dense.weight.grad.flatten()[layer.active()]
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-4)
        parameter.grad = None


def test_a_gradient_of_the_former_size_is_dropped():
    layer = SparseLinear(12, 8, sparsity=0.5)
    layer(torch.randn(3, 12)).sum().backward()
    with_fewer(layer)
    assert layer.values.grad is None


def test_a_backward_pass_from_before_is_refused():
    layer = SparseLinear(12, 8, sparsity=0.5)
    loss = layer(torch.randn(3, 12, requires_grad=True)).sum()
    with_fewer(layer)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_backward_pass_from_before_is_refused_under_autocast_too():
    layer = SparseLinear(12, 8, sparsity=0.5, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = layer(torch.randn(3, 12)).sum()
    with_fewer(layer)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_fails_leaves_the_layer_as_it_was():
    layer = SparseLinear(12, 8, sparsity=0.5)
    active, before = layer.active(), copy.deepcopy(layer.state_dict())
    missing = torch.tensor(sorted(set(range(96)) - set(active.tolist())))[:5]
    with pytest.raises(Exception, match=r"sparse|Sparse|layout"):
        layer.rewire(active, missing, torch.ones(5).to_sparse())
    assert layer.index.nnz == len(layer.values) == 48
    assert all(map(torch.equal, before.values(), layer.state_dict().values()))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def batches(count):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield torch.randn(16, 64, generator=generator), torch.randint(10, (16,), generator=generator)


def recipe():
    return GraNet(0.3, 4, until=1.0, start=0.5, sparsity=0.9)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizer_state_follows_its_weights(optimizer):
    ends = []
    for kind in ("masked", "sparse"):
        masked = mask_model(network(), 0.5)
        model = masked if kind == "masked" else sparsify(masked)
        ours = optimizer(model.parameters(), lr=0.01)
        driver = recipe().attach(model, ours, steps_per_epoch=9, total_steps=24, seed=0)
        for x, y in batches(24):
            ours.zero_grad()
            F.cross_entropy(model(x), y).backward()
            ours.step()
            driver.step()
        ends.append(torch.cat([layer.active_values() for layer in driver.layers.values()]))
    assert len(ends[0]) < 300
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fused", [True, False])
def test_a_compiled_step_follows(fused):
    ends = []
    for compiled in (True, False):
        model = sparsify(mask_model(network(), 0.5))
        model = fuse(model) if fused else model
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        step = TrainingStep(model, optimizer)
        driver = recipe().attach(model, optimizer, steps_per_epoch=9, total_steps=24, seed=0)
        for x, y in batches(24):
            (step if compiled else step._by_torch)(x, y)
            driver.step()
        ends.append(torch.cat([layer.active_values() for layer in driver.layers.values()]))
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-4)


def test_a_state_of_another_size_is_loaded_with_its_topology():
    saved, model = sparsify(network(), 0.5), sparsify(network(), 0.9)
    parameter = model[1].values
    model.load_state_dict(saved.state_dict())
    x = torch.randn(5, 64)
    assert model[1].values is parameter and torch.equal(model(x), saved(x))


def test_a_resumed_run_of_layers_that_exchange_weights_ends_alike():
    def start():
        model = sparsify(network(), 0.8)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        how = DSR(0.3, 4, until=1.0, threshold=0.05)
        return model, optimizer, how.attach(model, optimizer, steps_per_epoch=9, total_steps=24, seed=0)

    def train(model, optimizer, driver, given):
        for x, y in given:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            driver.step()

    given = list(batches(24))
    whole, first, second = start(), start(), start()
    train(*whole, given)
    train(*first, given[:12])
    assert len(first[0][1].values) != len(second[0][1].values), "no weight went to another layer"
    for ours, saved in zip(second, first, strict=True):
        ours.load_state_dict(copy.deepcopy(saved.state_dict()))
    train(*second, given[12:])
    assert all(map(torch.equal, whole[0].state_dict().values(), second[0].state_dict().values()))


def stepped(optimizer, model):
    F.cross_entropy(model(torch.randn(4, 64)), torch.zeros(4, dtype=torch.int64)).backward()
    optimizer.step()


def test_an_optimizer_state_that_nobody_would_move_is_no_way_to_another_size():
    # torch's fused optimizers read a state without a look at its size.
    model, larger = sparsify(network(), 0.9), sparsify(network(), 0.3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    stepped(optimizer, model)
    before = copy.deepcopy(model.state_dict())
    for change in (lambda: model.load_state_dict(larger.state_dict()), lambda: with_all(model[1])):
        with pytest.raises(
            InvalidArgumentError, match="weights instead of 205, for which an optimizer has state; build"
        ):
            change()
    assert all(map(torch.equal, before.values(), model.state_dict().values()))
    driver = DSR().attach(model, optimizer, steps_per_epoch=9, total_steps=24, seed=0)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    model.load_state_dict(larger.state_dict())
    assert optimizer.state[model[1].values]["exp_avg"].shape == model[1].values.shape == larger[1].values.shape
    stepped(optimizer, model)
    assert not driver.step()


def test_a_checkpoint_takes_its_parts_in_any_order(tmp_path):
    def start():
        model = sparsify(network(), 0.8)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        how = DSR(0.5, 1, until=1.0, threshold=0.1)
        return {
            "driver": how.attach(model, optimizer, steps_per_epoch=9, total_steps=24, seed=0),
            "optimizer": optimizer,
            "model": model,
        }

    saved, other = start(), start()
    for _ in range(4):
        stepped(saved["optimizer"], saved["model"])
        saved["driver"].step()
    assert len(saved["model"][1].values) != len(other["model"][1].values)
    save_checkpoint(tmp_path / "run", **saved)
    load_checkpoint(tmp_path / "run", **other)
    assert all(map(torch.equal, saved["model"].state_dict().values(), other["model"].state_dict().values()))


def test_rewiring_in_inference_mode():
    model = sparsify(network(), 0.8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    driver = DSR(0.5, 1, until=1.0, threshold=0.1).attach(model, optimizer, steps_per_epoch=9, total_steps=24, seed=0)
    for _ in range(3):
        stepped(optimizer, model)
        with torch.inference_mode():
            driver.step()
    assert driver.rewirings == 3


def test_a_computed_bias_is_no_obstacle():
    model = sparsify(network(), 0.5)
    parametrize.register_parametrization(model[1], "bias", nn.Tanh())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert GradualPruning(model, optimizer, sparsity=0.9, until=1).step()


def test_averages_follow():
    model = sparsify(network(), 0.5)
    averaged = AveragedSparseModel(model)
    averaged.update_parameters(model)
    for layer in sparse_layers(model).values():
        with_fewer(layer)
    averaged.update_parameters(model)
    x = torch.randn(5, 64)
    torch.testing.assert_close(averaged(x), model(x))


def test_gradual_pruning_of_truly_sparse_layers_keeps_the_largest():
    model = sparsify(network(), 0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    before = model[1].values.detach().abs().sort().values
    GradualPruning(model, optimizer, sparsity=0.9, until=1).step()
    after = model[1].values.detach().abs().sort().values
    assert len(after) < len(before) and torch.equal(after, before[-len(after) :])


def test_computed_weights_keep_their_number():
    model = sparsify(network(), 0.5)
    parametrize.register_parametrization(model[1], "values", nn.Tanh())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InvalidArgumentError, match="1 are computed by parametrizations, so their number is fixed"):
        GradualPruning(model, optimizer, sparsity=0.9, until=1)
    with pytest.raises(InvalidArgumentError, match="holds exactly"):
        with_fewer(model[1])
    with pytest.raises(InvalidArgumentError, match="connections, this layer"):
        model[1].set_extra_state(model[1].active()[1:])


@pytest.mark.parametrize("recipe", [DSR(), GraNet()])
def test_several_processes_need_fixed_sizes(recipe, monkeypatch):
    monkeypatch.setattr("truly_sparse.driver_checks.is_distributed", lambda: True)
    model = sparsify(network(), 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InvalidArgumentError, match="needs parameters of fixed sizes; use masked"):
        recipe.attach(model, optimizer, steps_per_epoch=9, total_steps=24, seed=0)
