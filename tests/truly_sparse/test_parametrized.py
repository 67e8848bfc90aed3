"""Values of sparse layers that torch.nn.utils.parametrize computes: what they train, and what moves in a rewiring."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import is_parametrized, register_parametrization, remove_parametrizations

from truly_sparse import (
    SET,
    AveragedSparseModel,
    DeepRewiring,
    InvalidArgumentError,
    RigL,
    SparseConv1d,
    SparseConv2d,
    SparseLinear,
    Static,
    TrainingStep,
    decay_groups,
    densify,
    fuse,
    sparse_init,
    sparse_layers,
    sparsify,
)
from tutorial_lib import sparsity_report

STEPS, EVERY = 12, 3


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x

    def right_inverse(self, x):
        return x / 2


class OneWay(nn.Module):
    def forward(self, x):
        return 2 * x


class Normed(nn.Module):
    """Each weight depends on all originals."""

    def forward(self, x):
        return x / x.norm()

    def right_inverse(self, x):
        return x


class ByPlace(nn.Module):
    """Each weight depends on its place in memory."""

    def forward(self, x):
        return x * torch.arange(1, len(x) + 1).to(x)

    def right_inverse(self, x):
        return x / torch.arange(1, len(x) + 1).to(x)


class Masked(nn.Module):
    """Holds one number per weight."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.ones(144, dtype=torch.float64))

    def forward(self, x):
        return x * self.mask


class Positive(nn.Module):
    def forward(self, x):
        return x.exp()

    def right_inverse(self, x):
        return x.log()


LAYERS = {
    "linear": lambda: (SparseLinear(12, 6, sparsity=0.5), torch.randn(3, 12)),
    "conv2d": lambda: (SparseConv2d(2, 3, 3, sparsity=0.5), torch.randn(3, 2, 5, 5)),
    "conv1d": lambda: (SparseConv1d(2, 3, 3, sparsity=0.5), torch.randn(3, 2, 7)),
}


def network(kind=None):
    """A small network whose sparse layers are parametrized, unless ``kind`` is None."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).double()
    model = sparsify(dense, 0.8)
    for layer in sparse_layers(model).values() if kind else ():
        register_parametrization(layer, "values", kind())
    return model


def batches():
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(8, 1, 8, 8, generator=generator, dtype=torch.float64)
        yield x, x.flatten(1)[:, :5].argmax(1)


def attached(recipe, model, optimizer):
    return recipe.attach(model, optimizer, steps_per_epoch=EVERY, total_steps=STEPS, seed=0)


def step(model, optimizer, batch):
    optimizer.zero_grad()
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()


@pytest.mark.parametrize("kind", LAYERS)
def test_the_original_has_the_gradient_of_the_computed_values(kind):
    layer, x = LAYERS[kind]()
    right = layer(x)
    right.sum().backward()
    gradient, layer.values.grad = layer.values.grad, None
    register_parametrization(layer, "values", Doubled())
    assert is_parametrized(layer, "values") and torch.allclose(layer(x), right)
    layer(x).sum().backward()
    assert layer.weight_parameter is layer.parametrizations.values.original
    assert layer.has_gradient and torch.allclose(layer.weight_parameter.grad, 2 * gradient)


def test_it_is_named_as_torch_names_it():
    model = network(Doubled)
    assert "0.parametrizations.values.original" in dict(model.named_parameters())
    assert model.get_parameter("0.parametrizations.values.original") is model[0].weight_parameter
    assert list(model[0].parametrizations) == ["values"]
    layer = register_parametrization(SparseLinear(4, 4), "bias", Doubled())
    assert list(layer.parametrizations.values()) == [layer.parametrizations.bias]  # the method, without such a name


def test_several_in_a_row_and_their_removal():
    model, x = network(Doubled), next(batches())[0]
    register_parametrization(model[0], "values", Doubled())
    computed = model(x)
    assert len(model[0].parametrizations.values) == 2
    for layer in sparse_layers(model).values():
        remove_parametrizations(layer, "values")
    assert type(model[0]) is SparseConv2d and torch.allclose(model(x), computed)


@pytest.mark.parametrize("recipe", [SET(0.5, EVERY), RigL(0.5, EVERY)], ids=["SET", "RigL"])
def test_a_rewired_training_is_that_of_plain_values(recipe):
    # d(2 o) = 2 do = −2 η (2 g): a quarter of the rate trains the same weights, so the same connections come and go.
    runs = []
    for kind, lr in ((None, 0.4), (Doubled, 0.1)):
        model = network(kind)
        groups = [
            {"params": [layer.weight_parameter for layer in sparse_layers(model).values()], "lr": lr},
            {"params": [layer.bias for layer in sparse_layers(model).values()], "lr": 0.4},
        ]
        optimizer = torch.optim.SGD(groups, momentum=0.9)
        driver, walk = attached(recipe, model, optimizer), []
        for batch in batches():
            step(model, optimizer, batch)
            driver.step()
            walk.append([(layer.active(), layer.active_values()) for layer in driver.layers.values()])
        runs.append(walk)
    assert not torch.equal(runs[0][0][1][0], runs[0][-1][1][0]), "nothing was rewired"
    for plain, computed in zip(*runs, strict=True):
        for (places, weights), (same_places, same_weights) in zip(plain, computed, strict=True):
            assert torch.equal(places, same_places) and torch.allclose(weights, same_weights)


def test_moments_move_with_their_connection():
    model = network(Doubled)
    optimizer = torch.optim.Adam(model.parameters())
    driver = attached(SET(0.5, 1), model, optimizer)
    step(model, optimizer, next(batches()))
    layer = model[3]
    old = dict(zip(layer.active().tolist(), optimizer.state[layer.weight_parameter]["exp_avg"].tolist(), strict=True))
    driver.step()
    new = dict(zip(layer.active().tolist(), optimizer.state[layer.weight_parameter]["exp_avg"].tolist(), strict=True))
    assert old.keys() != new.keys() and new == {place: old.get(place, 0.0) for place in new}


@pytest.mark.parametrize("kind", [Normed, ByPlace, Masked, OneWay, Positive], ids=lambda kind: kind.__name__)
def test_weights_that_would_change_are_refused_before_any_layer_changes(kind):
    model = network()
    sparse_init(model)
    for layer in sparse_layers(model).values():
        layer.set_active_values(layer.active_values().abs() + 0.1)
    register_parametrization(model[3], "values", kind())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    driver = attached(SET(0.5, 1), model, optimizer)
    step(model, optimizer, next(batches()))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InvalidArgumentError, match=rf"{kind.__name__} of a layer's values.*or call remove_param"):
        driver.step()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


@pytest.mark.parametrize("kind", [Normed, OneWay, Positive], ids=lambda kind: kind.__name__)
def test_weights_are_set_exactly_or_not_at_all(kind):
    layer = SparseLinear(12, 6, sparsity=0.5)
    with torch.no_grad():
        layer.values.abs_()
    register_parametrization(layer, "values", kind())
    before = layer.active_values()
    with pytest.raises(InvalidArgumentError, match="would compute other weights than those asked for"):
        layer.set_active_values(torch.linspace(-1, 1, len(before)))
    assert torch.equal(layer.active_values(), before)


def test_weights_are_set_through_the_inverse():
    layer = register_parametrization(SparseLinear(12, 6, sparsity=0.5), "values", Doubled())
    parameter, wanted = layer.weight_parameter, torch.linspace(-1, 1, 36)
    layer.set_active_values(wanted)
    assert torch.equal(layer.active_values(), wanted) and torch.equal(parameter, wanted / 2)
    assert layer.weight_parameter is parameter


def test_a_norm_of_all_weights_trains_in_a_topology_that_stays():
    model = network()
    parametrizations.weight_norm(model[0], "values")
    optimizer = torch.optim.SGD(decay_groups(model, 0.1), lr=0.1)
    driver, losses = attached(Static(), model, optimizer), []
    for batch in batches():
        step(model, optimizer, batch)
        driver.step()
        losses.append(model[0].active_values())
    assert not torch.equal(losses[0], losses[-1])
    with pytest.raises(InvalidArgumentError, match=r"_WeightNorm.* does not compute each weight from one number"):
        attached(SET(0.5, 1), model, optimizer).rewire()


def test_a_state_of_another_topology_is_loaded_whole():
    model, other = network(Doubled), network(Doubled)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    driver = attached(SET(0.5, 1), other, optimizer)
    step(other, optimizer, next(batches()))
    driver.step()
    watching = attached(DeepRewiring(), model, torch.optim.SGD(model.parameters(), lr=0.1))
    model.load_state_dict(other.state_dict())
    x = next(batches())[0]
    assert torch.equal(model(x), other(x)) and torch.equal(model[3].active(), other[3].active())
    assert torch.equal(watching.signs["3"], other[3].active_values().sign())


def test_conversions_take_the_computed_values():
    model, x = network(Doubled), next(batches())[0]
    right = model(x)
    with torch.no_grad():
        dense = densify(model)
    assert torch.allclose(dense(x), right) and dense[0].weight.requires_grad
    assert torch.allclose(sparsify(model)(x), right)
    fused = fuse(model)
    assert torch.allclose(fused(x), right) and fused.code.count("run_chain") > 0
    fused.get_submodule("0").weight_parameter.data.mul_(3)
    assert not torch.allclose(fused(x), right) and torch.equal(model(x), right)
    assert sparsity_report(model)["active"].tolist() == sparsity_report(network())["active"].tolist()


@pytest.mark.parametrize("change", [lambda m: m, lambda m: torch.compile(m, backend="aot_eager", fullgraph=True)])
def test_a_copy_records_its_own_gradient(change):
    model, (x, y) = network(Doubled), next(batches())
    copied = copy.deepcopy(model)
    copied[3].record_gradient = True
    F.cross_entropy(change(copied)(x), y).backward()
    assert copied[3].has_gradient and not model[3].has_record
    assert torch.equal(model[3].weight_parameter, copied[3].weight_parameter)


def test_a_file_is_refused_by_torch_and_a_plain_layer_is_not():
    layer = SparseLinear(12, 6)
    x = torch.randn(2, 12)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))
    register_parametrization(layer, "values", Doubled())
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(layer)


def test_a_step_of_the_library_trains_the_original():
    model = fuse(network(Doubled).float())
    before = model.get_submodule("0").active_values()
    one_step = TrainingStep(model, torch.optim.Adam(model.parameters(), lr=0.1))
    for x, y in batches():
        one_step(x.float(), y)
    assert not torch.allclose(model.get_submodule("0").active_values(), before)


def test_an_average_follows_the_topology():
    model = network(Doubled)
    average = AveragedSparseModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    driver = attached(SET(0.5, 1), model, optimizer)
    for batch in batches():
        step(model, optimizer, batch)
        driver.step()
        average.update_parameters(model)
    ours = next(iter(sparse_layers(average.module).values()))
    assert torch.equal(ours.active(), model[0].active()) and not torch.equal(ours.values, model[0].values)
