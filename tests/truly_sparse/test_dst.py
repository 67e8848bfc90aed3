"""Dynamic sparsity: exact counts, the right connections, and an optimizer that forgets what it must."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from truly_sparse import (
    ITOP,
    SET,
    DeepRewiring,
    DynamicSparsity,
    Epochs,
    GradualMagnitudePruning,
    GrowRule,
    InvalidArgumentError,
    RigL,
    SparseMomentum,
    SRigL,
    Static,
    TrainingError,
    gradient_grow,
    magnitude_prune,
    random_grow,
    sparse_layers,
)
from tutorial_lib import mask_model

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=0.1),
    "adam fused": lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, initial_accumulator_value=0.25),
}


# ------------------------------------------------------------------------------------------ plain functions


def test_prune_by_hand():
    values = torch.tensor([0.5, -0.1, 3.0, 0.1, -2.0])
    assert magnitude_prune(values, 2).tolist() == [1, 3]
    assert magnitude_prune(values, 1).tolist() == [1]  # of equals the first
    assert magnitude_prune(values, 0).tolist() == [] and magnitude_prune(values, 5).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [-1, 6])
def test_prune_count_out_of_range(count):
    with pytest.raises(InvalidArgumentError, match=f"count={count}"):
        magnitude_prune(torch.ones(5), count)


def test_nan_weights_are_refused():
    with pytest.raises(TrainingError, match="NaN"):
        magnitude_prune(torch.tensor([1.0, math.nan]), 1)


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 60), data=st.data())
def test_random_growth_finds_free_places(size, data):
    active = torch.tensor(sorted(data.draw(st.sets(st.integers(0, size - 1)))), dtype=torch.int64)
    count = data.draw(st.integers(0, size - len(active)))
    grown = random_grow(active, size, count, torch.Generator().manual_seed(0))
    assert len(grown) == count and len(set(grown.tolist()) | set(active.tolist())) == count + len(active)
    assert torch.equal(grown, grown.sort().values) and (count == 0 or grown.max() < size)


def test_random_growth_reaches_every_free_place_alike():
    active, generator = torch.tensor([0, 3, 4, 9]), torch.Generator().manual_seed(0)
    hits = torch.zeros(10)
    for _ in range(3000):
        hits[random_grow(active, 10, 2, generator)] += 1
    assert (hits[active] == 0).all()
    free = hits[hits > 0]
    assert len(free) == 6 and (free - 1000).abs().max() < 5 * 26


def test_random_growth_in_a_weight_too_large_to_hold():
    active = torch.tensor([5, 10**10])
    grown = random_grow(active, 200_000**2, 1000, torch.Generator().manual_seed(0))
    assert len(grown) == 1000 and not torch.isin(grown, active).any()


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 12), width=st.integers(1, 9), block=st.integers(1, 12), seed=st.integers(0, 999), data=st.data()
)
def test_gradient_growth_is_the_top_k_however_it_is_cut(rows, width, block, seed, data):
    # Few distinct values, so that ties are common.
    gradient = torch.randint(-3, 4, (rows, width), generator=torch.Generator().manual_seed(seed)).float()
    size = rows * width
    active = torch.tensor(sorted(data.draw(st.sets(st.integers(0, size - 1)))), dtype=torch.int64)
    count = data.draw(st.integers(0, size - len(active)))
    grown = gradient_grow(gradient.split(block), active, count)
    free = sorted(set(range(size)) - set(active.tolist()))
    best_first = sorted(free, key=lambda place: (-gradient.flatten()[place].abs().item(), place))
    assert grown.tolist() == sorted(best_first[:count])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_growth_refuses_gradients_that_are_no_numbers(bad):
    with pytest.raises(TrainingError, match="not finite"):
        gradient_grow([torch.tensor([[1.0, bad]])], torch.tensor([], dtype=torch.int64), 1)


def test_more_growth_than_room():
    with pytest.raises(InvalidArgumentError, match="1 inactive"):
        gradient_grow([torch.ones(1, 3)], torch.tensor([0, 1]), 2)
    with pytest.raises(InvalidArgumentError, match="count=-1"):
        gradient_grow([torch.ones(1, 3)], torch.tensor([0, 1]), -1)
    with pytest.raises(InvalidArgumentError, match="1 inactive"):
        random_grow(torch.tensor([0, 1]), 3, 2, torch.Generator())


# ------------------------------------------------------------------------------------------ the driver


def train_steps(model, optimizer, driver, steps, seed=0, after_backward=None):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x, y = torch.randn(8, 1, 28, 28, generator=generator), torch.randint(10, (8,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if after_backward:
            after_backward()
        optimizer.step()
        driver.step()


@pytest.mark.parametrize("grow", ["random", "gradient"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_invariants_hold_at_every_step(small_cnn, name, grow):
    model = mask_model(small_cnn, 0.8, "erk").to(memory_format=torch.channels_last)
    optimizer = OPTIMIZERS[name](model.parameters())
    driver = DynamicSparsity(model, optimizer, prune_fraction=0.3, every=2, until=12, grow=grow, decay="cosine")
    layers, moved = sparse_layers(model), 0
    nnz = {key: len(layer.active()) for key, layer in layers.items()}
    for _ in range(14):
        masks = {key: layer.mask.clone() for key, layer in layers.items()}
        train_steps(model, optimizer, driver, 1, seed=driver.steps)
        for key, layer in layers.items():
            assert len(layer.active()) == nnz[key]
            assert (layer.weight[~layer.mask] == 0).all(), "a masked weight moved"
            moved += int((layer.mask != masks[key]).sum())
    assert driver.rewirings == 6 and moved > 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_follows_its_weight(small_cnn, name):
    model = mask_model(small_cnn, 0.8)
    optimizer = OPTIMIZERS[name](model.parameters())
    driver = DynamicSparsity(model, optimizer, prune_fraction=0.5, every=10)
    train_steps(model, optimizer, driver, 5)
    layer = model.hidden
    state = optimizer.state[layer.weight]
    before = {key: value.clone() for key, value in state.items() if value.shape == layer.weight.shape}
    assert before and all(value[layer.mask].abs().sum() > 0 for value in before.values())
    mask = layer.mask.clone()
    driver.rewire()
    kept, grown, pruned = mask & layer.mask, ~mask & layer.mask, mask & ~layer.mask
    assert grown.sum() == pruned.sum() == int(0.5 * mask.sum())
    for key, old in before.items():
        fresh = 0.25 if key == "sum" else 0.0
        assert torch.equal(state[key][kept], old[kept])
        assert (state[key][grown] == fresh).all() and (state[key][pruned] == fresh).all()


def test_prunes_the_smallest_and_grows_where_the_dense_gradient_is_largest(small_cnn):
    model = mask_model(small_cnn, 0.8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    driver = DynamicSparsity(model, optimizer, prune_fraction=0.2, every=1, grow="gradient")
    layer = model.hidden
    seen = {}

    def look():
        seen["gradient"] = torch.cat(list(layer.gradient_rows())).reshape(-1).abs().clone()
        seen["mask"] = layer.mask.reshape(-1).clone()
        # The weight's own gradient is masked: ranking by it would be ranking zeros.
        assert (layer.weight.grad.reshape(-1)[~seen["mask"]] == 0).all() and (seen["gradient"][~seen["mask"]] > 0).any()

    train_steps(model, optimizer, driver, 1, after_backward=look)
    mask, now = seen["mask"], layer.mask.reshape(-1)
    grown = (now & ~mask).nonzero().squeeze(1)
    assert len(grown) == int(0.2 * mask.sum())
    assert seen["gradient"][grown].min() >= seen["gradient"][~mask & ~now].max()
    assert (layer.weight.reshape(-1)[grown] == 0).all()  # the function does not jump


def test_random_growth_starts_near_zero(small_cnn):
    model = mask_model(small_cnn, 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = model.hidden.mask.clone()
    DynamicSparsity(model, optimizer, prune_fraction=1.0, every=1).step()
    new = model.hidden.weight[model.hidden.mask & ~before]
    assert len(new) > 5000 and 0.009 < new.std() < 0.011  # N(0, 0.01²): the deviation, not the variance


def test_every_and_until_and_decay(small_cnn):
    model = mask_model(small_cnn, 0.8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    driver = DynamicSparsity(model, optimizer, prune_fraction=0.4, every=3, until=6, decay="cosine")
    fractions = []
    rewired = []
    for _ in range(12):
        rewired.append(driver.step())
        fractions.append(driver.fraction())
    assert [i + 1 for i, due in enumerate(rewired) if due] == [3, 6]
    assert fractions[2] == pytest.approx(0.2) and fractions[5] == pytest.approx(0) and fractions[11] == pytest.approx(0)


def test_epochs_become_steps(small_cnn):
    model = mask_model(small_cnn, 0.8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    driver = DynamicSparsity(model, optimizer, every=Epochs(2), until=Epochs(5), steps_per_epoch=7)
    assert (driver.every, driver.until) == (14, 35)
    with pytest.raises(InvalidArgumentError, match="steps_per_epoch"):
        DynamicSparsity(model, optimizer, every=Epochs(2))


def test_a_nearly_dense_layer_prunes_only_what_can_regrow(small_cnn):
    model = mask_model(small_cnn, 0.05)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    nnz = {key: len(layer.active()) for key, layer in sparse_layers(model).items()}
    DynamicSparsity(model, optimizer, prune_fraction=0.9, every=1).step()
    assert {key: len(layer.active()) for key, layer in sparse_layers(model).items()} == nnz


def test_own_grow_rule(small_cnn):
    def first_free(layer, active, count, generator):
        free = torch.ones(math.prod(layer.dense_shape), dtype=torch.bool)
        free[active] = False
        return free.nonzero().squeeze(1)[:count]

    model = mask_model(small_cnn, 0.8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    free = (~model.hidden.mask).reshape(-1).nonzero().squeeze(1)
    rule = GrowRule(first_free, gradient_steps=0)
    DynamicSparsity(model, optimizer, prune_fraction=0.1, every=1, grow=rule).step()
    assert model.hidden.mask.reshape(-1)[free[: int(0.1 * len(model.hidden.active()))]].all()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda layer, active, count, generator: active[:count],
        lambda layer, active, count, generator: random_grow(active, 12544, count, generator)[1:],
        lambda layer, active, count, generator: random_grow(active, 12544, count, generator).flip(0),
    ],
    ids=["active places", "one too few", "unsorted"],
)
def test_a_grow_rule_that_would_let_nnz_drift_is_refused(wrong):
    model = mask_model(nn.Sequential(nn.Linear(784, 16)), 0.8)
    before = model[0].active()
    rule = GrowRule(wrong, gradient_steps=0)
    driver = DynamicSparsity(model, torch.optim.SGD(model.parameters(), lr=0.1), every=1, grow=rule)
    with pytest.raises(InvalidArgumentError, match="the grow rule returned"):
        driver.step()
    assert torch.equal(before, model[0].active())


def test_a_gradient_that_is_no_number_changes_nothing(small_cnn):
    model = mask_model(small_cnn, 0.8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    driver = DynamicSparsity(model, optimizer, every=1, grow="gradient")
    before = {key: layer.active() for key, layer in sparse_layers(model).items()}
    model(torch.full((2, 1, 28, 28), math.inf)).sum().backward()
    with pytest.raises(TrainingError, match="not finite"):
        driver.step()
    assert all(torch.equal(before[key], layer.active()) for key, layer in sparse_layers(model).items())


@pytest.mark.parametrize("grow", ["random", "gradient", "momentum"])
def test_a_weight_that_is_no_number_changes_nothing(small_cnn, grow):
    model = mask_model(small_cnn, 0.8)
    driver = DynamicSparsity(model, torch.optim.SGD(model.parameters(), lr=0.1), every=1, grow=grow)
    layer = model.hidden
    with torch.no_grad():
        layer.weight[layer.mask] = torch.inf  # larger than all others, so that no ranking would stumble over it
    before = layer.active()
    with pytest.raises(TrainingError, match="a weight of 'hidden' is not finite"):
        driver.step()
    assert torch.equal(before, layer.active())


def test_same_seed_same_walk(small_cnn):
    walks = []
    for seed in (0, 0, 1):
        model = mask_model(small_cnn, 0.8)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        driver = DynamicSparsity(model, optimizer, prune_fraction=0.3, every=1, seed=seed)
        train_steps(model, optimizer, driver, 5)
        walks.append(model.hidden.active())
    assert torch.equal(walks[0], walks[1]) and not torch.equal(walks[0], walks[2])


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"prune_fraction": 1.1}, "prune_fraction=1.1"),
        ({"prune_fraction": -0.1}, "prune_fraction=-0.1"),
        ({"prune_fraction": math.nan}, "prune_fraction=nan"),
        ({"every": 0}, "every=0"),
        ({"every": 2.5}, "every=2.5"),
        ({"every": Epochs(0), "steps_per_epoch": 5}, "every=Epochs"),
        ({"every": Epochs(0.01), "steps_per_epoch": 10}, "at least one step"),
        ({"until": 0.75}, "until=0.75; use a whole number"),
        ({"until": -5}, "until=-5"),
        ({"until": "x"}, "until='x'"),
        ({"grow": "magic"}, "grow='magic'"),
        ({"decay": "exp"}, "decay='exp'"),
        ({"decay": "cosine"}, "pass until="),
    ],
)
def test_bad_settings(small_cnn, settings_, message):
    model = mask_model(small_cnn, 0.8)
    with pytest.raises(InvalidArgumentError, match=message):
        DynamicSparsity(model, torch.optim.SGD(model.parameters(), lr=0.1), **settings_)


def test_optimizer_of_another_model(small_cnn):
    optimizer = torch.optim.SGD(small_cnn.parameters(), lr=0.1)  # built before masking
    with pytest.raises(InvalidArgumentError, match=r"does not hold the weights of features\.0, hidden, out"):
        DynamicSparsity(mask_model(small_cnn, 0.8), optimizer)


def test_an_error_names_three_layers_at_most():
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(9)])
    with pytest.raises(
        InvalidArgumentError, match=r"SGD does not hold the weights of 0, 1, 2 and 6 more; build it from"
    ):
        DynamicSparsity(mask_model(model, 0.5), torch.optim.SGD(model.parameters(), lr=0.1))


def test_an_optimizer_without_a_state_per_weight():
    model = mask_model(nn.Linear(20, 20), 0.8)
    with pytest.raises(InvalidArgumentError, match="optimizer=LBFGS keeps one state for all weights"):
        RigL().attach(model, torch.optim.LBFGS(model.parameters()), steps_per_epoch=9, total_steps=9, seed=0)


def test_a_model_and_an_optimizer_in_each_others_place():
    model = mask_model(nn.Linear(20, 20), 0.8)
    optimizer = torch.optim.AdamW(model.parameters())
    for recipe in (RigL(), DeepRewiring(), GradualMagnitudePruning(0.9)):
        with pytest.raises(InvalidArgumentError, match="model=AdamW, optimizer=MaskedLinear are swapped"):
            recipe.attach(optimizer, model, steps_per_epoch=9, total_steps=9, seed=0)


def test_a_weight_in_half_precision_that_is_not_finite():
    model = mask_model(nn.Linear(20, 20), 0.8).half()
    driver = DynamicSparsity(model, torch.optim.SGD(model.parameters(), lr=0.1), every=1)
    model.weight.data[model.mask] = math.inf
    with pytest.raises(
        TrainingError, match=r"lower the learning rate, or keep weights in float32 and use torch\.autocast"
    ):
        driver.step()


# ------------------------------------------------------------------------------------------ what it saves and shows


def test_a_driver_says_what_it_is():
    model = mask_model(nn.Linear(20, 20), 0.8)
    driver = DynamicSparsity(model, torch.optim.SGD(model.parameters(), lr=0.1), every=5, until=75)
    assert repr(driver) == "DynamicSparsity(every=5, until=75, step 0, 0 rewirings)"
    for _ in range(11):
        driver.step()
    assert repr(driver) == "DynamicSparsity(every=5, until=75, step 11, 2 rewirings)"


def saved_by(recipe, **more):
    model = mask_model(nn.Linear(20, 20), 0.8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return recipe.attach(model, optimizer, **{"steps_per_epoch": 5, "total_steps": 100, "seed": 0} | more)


@pytest.mark.parametrize(
    ("saved", "told"),
    [
        (lambda: saved_by(RigL(every=7)), r"DynamicSparsity\(every=7\)"),
        (lambda: saved_by(RigL(every=5), total_steps=50), None),
        (lambda: saved_by(ITOP(every=5, until=0.75)), None),  # the same driver
        (lambda: saved_by(SRigL(every=5)), r"ConstantFanIn\(every=5\)"),
    ],
)
def test_the_state_of_another_driver_is_refused(saved, told):
    state, driver = saved().state_dict() | {"steps": 3}, saved_by(RigL(every=5))
    if told is None:
        driver.load_state_dict(state)
        assert driver.steps == 3
        return
    with pytest.raises(InvalidArgumentError, match=rf"state is of {told}, this driver is DynamicSparsity\(every=5\)"):
        driver.load_state_dict(state)
    assert driver.steps == 0


def test_a_state_of_an_earlier_version_is_taken():
    driver = saved_by(RigL(every=5))
    state = {name: value for name, value in driver.state_dict().items() if name not in ("driver", "every", "until")}
    driver.load_state_dict(state | {"steps": 9, "rewirings": 1})
    assert (driver.steps, driver.rewirings) == (9, 1)


def test_dense_model_is_refused(small_cnn):
    with pytest.raises(InvalidArgumentError, match="call sparsify"):
        DynamicSparsity(small_cnn, torch.optim.SGD(small_cnn.parameters(), lr=0.1))


# ------------------------------------------------------------------------------------------ recipes


@pytest.mark.parametrize(("recipe", "rewirings"), [(Static(), 0), (SET(), 4), (RigL(every=10), 7)])
def test_recipes_never_rewire_at_the_last_step(recipe, rewirings):
    model = mask_model(nn.Linear(20, 20), 0.8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    driver = recipe.attach(model, optimizer, steps_per_epoch=10, total_steps=100, seed=0)
    for step in range(100):
        model(torch.randn(2, 20)).sum().backward()
        optimizer.step()
        assert not (driver.step() and step == 99)
    assert driver.rewirings == rewirings


def test_a_training_of_one_step_never_rewires():
    model = mask_model(nn.Linear(20, 20), 0.8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert not SET(every=1).attach(model, optimizer, steps_per_epoch=1, total_steps=1, seed=0).step()


def test_recipe_with_a_bad_end():
    model = mask_model(nn.Linear(20, 20), 0.8)
    with pytest.raises(InvalidArgumentError, match="until=0"):
        RigL(until=0).attach(model, torch.optim.SGD(model.parameters()), steps_per_epoch=1, total_steps=1, seed=0)


@pytest.mark.parametrize("recipe", [SET, RigL, ITOP, SRigL, SparseMomentum])
def test_a_recipe_checks_its_numbers_when_it_is_made(recipe):
    for wrong in (0, -1, 2.5, True, "x"):
        with pytest.raises(InvalidArgumentError, match=f"every={wrong!r}; use"):
            recipe(every=wrong)
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(InvalidArgumentError, match=f"prune_fraction={wrong}; use a number from 0 to 1"):
            dataclasses.replace(recipe(), prune_fraction=wrong)
    assert dataclasses.replace(recipe(), every=7) == recipe(every=7)
    with pytest.raises(InvalidArgumentError, match="every=0; use"):
        GradualMagnitudePruning(0.9, every=0)


@pytest.mark.parametrize("recipe", [RigL(), DeepRewiring(), GradualMagnitudePruning(0.9)])
def test_a_training_without_steps(recipe):
    with pytest.raises(InvalidArgumentError, match="total_steps=0; use a whole number of at least 1"):
        saved_by(recipe, total_steps=0)
