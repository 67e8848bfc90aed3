"""Layers that do not train, weights that are averaged or loaded: what belongs to a connection stays with it."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from truly_sparse import (
    AveragedSparseModel,
    DynamicSparsity,
    GradualPruning,
    GrowRule,
    InvalidArgumentError,
    TrainingError,
    decay_groups,
    fuse,
    sparse_init,
    sparse_layers,
    sparsify,
)
from tutorial_lib import mask_model

KINDS = {"masked": lambda model: model, "sparse": sparsify}
GROW = ["random", "gradient", "sampled gradient", "momentum"]
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.25),
}


class Branched(nn.Module):
    """The second layer takes part in a step only if it is told to."""

    def __init__(self):
        super().__init__()
        self.first, self.branch, self.last = nn.Linear(20, 16), nn.Linear(16, 16), nn.Linear(16, 5)
        self.with_branch = False

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(self.branch(x) if self.with_branch else x)


def branched(kind):
    torch.manual_seed(0)
    return KINDS[kind](sparse_init(mask_model(Branched(), 0.7)))


def train(model, optimizer, driver, steps, after_step=lambda: None):
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(8, 20)), torch.randint(5, (8,))).backward()
        optimizer.step()
        after_step()
        driver.step()


def by_connection(layer, numbers):
    """Return one number per connection, whichever way the layer stores them."""
    flat = numbers.detach().flatten()
    return dict(
        zip(
            layer.active().tolist(),
            (flat if len(flat) == len(layer.active()) else flat[layer.active()]).tolist(),
            strict=True,
        )
    )


def look(layer):
    return layer.active(), layer.active_values()


def is_as_before(layer, before):
    return all(map(torch.equal, look(layer), before))


# ------------------------------------------------------------------------------------------ frozen, unused


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grow", GROW)
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("held", [True, False])
def test_a_frozen_layer_keeps_weights_and_topology_and_the_others_rewire(kind, grow, scope, held):
    model = branched(kind)
    model.first.weight_parameter.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if held or p.requires_grad])
    driver = DynamicSparsity(model, optimizer, prune_fraction=0.3, every=2, grow=grow, scope=scope)
    model.with_branch = True
    before = {name: look(layer) for name, layer in sparse_layers(model).items()}
    train(model, optimizer, driver, 4)
    assert [is_as_before(layer, before[name]) for name, layer in sparse_layers(model).items()] == [True, False, False]
    assert driver.rewirings == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(
    ("grow", "clears"),  # when optimizer.zero_grad() is called; random growth has nothing else that tells who took part
    [*((grow, "before the step") for grow in GROW), *((grow, "before the driver") for grow in GROW[1:])],
)
def test_a_layer_that_takes_no_part_is_left_as_it_is(kind, grow, scope, clears):
    model = branched(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    driver = DynamicSparsity(model, optimizer, prune_fraction=0.3, every=2, grow=grow, scope=scope)
    before = {name: look(layer) for name, layer in sparse_layers(model).items()}
    train(model, optimizer, driver, 4, optimizer.zero_grad if clears == "before the driver" else lambda: None)
    assert [is_as_before(layer, before[name]) for name, layer in sparse_layers(model).items()] == [False, True, False]
    model.with_branch = True
    train(model, optimizer, driver, 2)
    assert not is_as_before(model.branch, before["branch"])


@pytest.mark.parametrize("kind", KINDS)
def test_growth_by_gradient_without_any_gradient_is_an_error(kind):
    model = branched(kind)
    driver = DynamicSparsity(model, torch.optim.SGD(model.parameters(), lr=0.1), every=1, grow="gradient")
    with pytest.raises(TrainingError, match="no gradient reached this driver's layers since the last rewiring; call"):
        driver.step()


def test_a_model_in_which_nothing_trains():
    model = branched("sparse").requires_grad_(False)
    driver = DynamicSparsity(model, torch.optim.SGD(model.parameters(), lr=0.1), every=1, scope="global")
    before = look(model.first)
    assert driver.step() and is_as_before(model.first, before)


def test_a_layer_that_is_trained_must_be_in_the_optimizer():
    model = branched("sparse")
    with pytest.raises(InvalidArgumentError, match="does not hold the weights of branch"):
        DynamicSparsity(model, torch.optim.SGD([*model.first.parameters(), *model.last.parameters()], lr=0.1))


def test_gradual_pruning_leaves_frozen_layers_dense():
    model = mask_model(Branched(), 0.0)
    model.first.weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.with_branch = True
    train(model, optimizer, GradualPruning(model, optimizer, sparsity=0.8, until=4, every=2), 4)
    assert [len(layer.active()) for layer in sparse_layers(model).values()] == [320, 51, 16]


# ------------------------------------------------------------------------------------------ averages


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("buffers", [True, False])
def test_an_average_is_by_connection(kind, buffers):
    model = branched(kind)
    model.with_branch = True
    average = AveragedSparseModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=buffers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    driver = DynamicSparsity(model, optimizer, prune_fraction=0.5, every=1)
    expected = {name: {} for name in sparse_layers(model)}
    for step in range(4):
        train(model, optimizer, driver, 1)
        average.update_parameters(model)
        for name, layer in sparse_layers(model).items():
            old, new = expected[name], by_connection(layer, layer.active_values())
            expected[name] = {c: 0.9 * old[c] + 0.1 * v if step and c in old else v for c, v in new.items()}
    for name, layer in sparse_layers(average.module).items():
        assert torch.equal(layer.active(), sparse_layers(model)[name].active())
        assert by_connection(layer, layer.active_values()) == pytest.approx(expected[name], rel=1e-4, abs=1e-6)
    assert average(torch.randn(3, 20)).isfinite().all()


@pytest.mark.parametrize("buffers", [True, False])
@pytest.mark.parametrize("function", [None, get_ema_multi_avg_fn(0.99)])
@pytest.mark.parametrize("fused", [True, False])
def test_torchs_average_is_refused_once_connections_have_moved(buffers, function, fused):
    torch.manual_seed(0)
    model = sparsify(mask_model(nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5)), 0.7))
    model, x = fuse(model) if fused else model, torch.randn(3, 20)
    average = AveragedModel(model, multi_avg_fn=function, use_buffers=buffers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    driver = DynamicSparsity(model, optimizer, prune_fraction=0.5, every=1)
    for _ in range(3):  # while the topology is the same, nothing is wrong
        average.update_parameters(model)
        average(x)
    train(model, optimizer, driver, 1)
    average.update_parameters(model)
    for _ in range(2):
        with pytest.raises(TrainingError, match="AveragedSparseModel, which averages by connection"):
            average(x)
    model(x)
    average.module.load_state_dict(model.state_dict())
    torch.testing.assert_close(average(x), model(x))  # a complete state makes it whole again


def test_the_seal_is_not_in_the_way():
    layer = branched("sparse").first
    assert set(layer.state_dict()) == {"values", "bias", "_extra_state"}
    x = torch.randn(3, 20)
    expected = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer).double().float()):
        assert torch.equal(other(x), expected)
    with torch.inference_mode():
        assert torch.equal(layer.to(torch.float64).to(torch.float32)(x), expected)


# ------------------------------------------------------------------------------------------ loading


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_are_with_their_connection_after_going_back(kind, name):
    model = branched(kind)
    model.with_branch = True
    optimizer = OPTIMIZERS[name](model.parameters())
    driver = DynamicSparsity(model, optimizer, prune_fraction=0.5, every=1)
    train(model, optimizer, driver, 1)
    best = copy.deepcopy(model.state_dict())
    train(model, optimizer, driver, 3)

    def moments():
        return {
            (place, key): by_connection(layer, numbers)
            for place, layer in sparse_layers(model).items()
            for key, numbers in optimizer.state[layer.weight_parameter].items()
            if numbers.shape == layer.weight_parameter.shape
        }

    before = moments()
    model.load_state_dict(best)
    after, fresh = moments(), 0.25 if name == "adagrad" else 0.0
    for key, numbers in after.items():
        assert numbers == {place: before[key].get(place, fresh) for place in numbers}
        assert any(place in before[key] for place in numbers) and any(place not in before[key] for place in numbers)
    if kind == "masked":  # nothing waits outside the mask
        for layer in sparse_layers(model).values():
            for numbers in optimizer.state[layer.weight].values():
                assert numbers.dim() == 0 or (numbers[~layer.mask] == fresh).all()
    train(model, optimizer, driver, 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [("model", "optimizer", "driver"), ("optimizer", "model", "driver")])
def test_a_resumed_run_has_the_saved_moments_in_any_order_of_loading(kind, order):
    def start():
        model = branched(kind)
        optimizer = torch.optim.Adam(model.parameters())
        return {"model": model, "optimizer": optimizer, "driver": DynamicSparsity(model, optimizer, every=1)}

    one, other = start(), start()
    train(*one.values(), 3)
    train(*other.values(), 5)
    for name in order:
        other[name].load_state_dict(copy.deepcopy(one[name].state_dict()))
    for run in (one, other):
        torch.manual_seed(1)
        train(*run.values(), 3)
    states = [run["model"].state_dict() | run["optimizer"].state_dict()["state"][0] for run in (one, other)]
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True))


def test_a_watched_layer_is_copied_without_its_driver():
    model = branched("sparse")
    optimizer = torch.optim.Adam(model.parameters())
    driver = DynamicSparsity(model, optimizer, every=1)
    train(model, optimizer, driver, 1)
    state = copy.deepcopy(optimizer.state[model.first.values])
    other = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    other.load_state_dict(branched("sparse").state_dict())
    assert all(map(torch.equal, state.values(), optimizer.state[model.first.values].values()))


# ------------------------------------------------------------------------------------------ weight decay


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_weights_decay_and_biases_and_norms_do_not(kind):
    layers = nn.Embedding(9, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Conv1d(3, 4, 1), nn.Linear(8, 8)
    model = mask_model(nn.Sequential(*layers), 0.5, exclude=["4"])
    model = sparsify(model, exclude=["4"]) if kind == "sparse" else model
    decay, no_decay = decay_groups(model, 0.1)
    weight = "values" if kind == "sparse" else "weight"
    assert [name for name, _ in decay["params"]] == ["0.weight", f"1.{weight}", f"3.{weight}", "4.weight"]
    assert [name for name, _ in no_decay["params"]] == ["1.bias", "2.weight", "2.bias", "3.bias", "4.bias"]
    optimizer = torch.optim.AdamW(decay_groups(model, 0.1), lr=0.5)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.95 if name in dict(decay["params"]) else 1.0
        torch.testing.assert_close(parameter.detach(), factor * before[name])
    DynamicSparsity(model, optimizer, prune_fraction=0.5, every=1).step()


def test_a_parameter_that_is_used_twice_decays_once():
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9))
    model[1].weight = model[0].weight
    assert [name for name, _ in decay_groups(model, 0.1)[0]["params"]] == ["0.weight"]


def test_a_rule_of_ones_own_still_sees_the_layers_that_train():
    seen = []

    def choose(layer, active, count, generator):
        seen.append(layer)
        return torch.tensor(
            [place for place in range(active[-1] + 2 * count) if place not in set(active.tolist())][:count]
        )

    model = branched("sparse")
    model.branch.values.requires_grad_(False)
    rule = GrowRule(choose, gradient_steps=0)
    DynamicSparsity(model, torch.optim.SGD(model.parameters(), lr=0.1), every=1, grow=rule).step()
    assert seen == [model.first, model.last]
