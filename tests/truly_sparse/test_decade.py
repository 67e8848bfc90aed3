"""The recipes of the decade: each rule against an example worked out by hand, masked and truly sparse side by side."""

import ast
import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from truly_sparse import (
    CHT,
    DSR,
    ITOP,
    MEST,
    DeepRewiring,
    DynamicSparsity,
    GraNet,
    InvalidArgumentError,
    SparseMomentum,
    SRigL,
    TopKAST,
    TrainingError,
    densify,
    grasp,
    lottery_ticket,
    snip,
    sparse_init,
    sparse_layers,
    sparsify,
    synflow,
)
from truly_sparse import recipes as all_recipes
from truly_sparse.recipes.before_training import keep_largest, with_topology
from truly_sparse.recipes.classic import MagnitudeAndGradient
from truly_sparse.recipes.decade import METHODS
from truly_sparse.recipes.fan_in import fan_ins
from truly_sparse.recipes.links import ch3_l3_rows, link_grow
from truly_sparse.recipes.sharing import shared_out
from tutorial_lib import MaskedLinear, mask_model

STEPS, EVERY = 24, 4


def linear(weight):
    """Return a masked linear layer with the nonzeros of this weight as its topology."""
    layer = MaskedLinear(len(weight[0]), len(weight), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
    layer.set_mask(layer.weight != 0)
    return layer


def attached(recipe, model, lr=0.1, steps=STEPS):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return recipe.attach(model, optimizer, steps_per_epoch=EVERY, total_steps=steps, seed=0)


def network():
    torch.manual_seed(0)
    convolution = nn.Conv2d(1, 4, 3, padding=1)
    return nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(256, 24), nn.ReLU(), nn.Linear(24, 5)).double()


def batches():
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(8, 1, 8, 8, generator=generator, dtype=torch.float64)
        yield x, x.flatten(1)[:, :5].argmax(1)


def walk(recipe, kind, sparsity=0.8):
    """Train with momentum and return the topology of each layer after each step."""
    masked = sparse_init(mask_model(network(), sparsity), 0)
    model = masked if kind == "masked" else sparsify(masked)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    driver = recipe.attach(model, optimizer, steps_per_epoch=EVERY, total_steps=STEPS, seed=0)
    walked = []
    for x, y in batches():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        driver.step()
        walked.append([layer.active() for layer in driver.layers.values()])
    return walked


# ------------------------------------------------------------------------------------------ all of them

FIXED = {
    "ITOP": ITOP(every=EVERY),
    "MEST": MEST(every=EVERY),
    "CHT": CHT(every=EVERY),
    "SRigL": SRigL(every=EVERY),
    "DeepRewiring": DeepRewiring(l1=1e-3, temperature=1e-4),
    "TopKAST": TopKAST(every=EVERY),
}
EXCHANGING = {
    "DSR": DSR(0.2, EVERY, until=1.0, threshold=0.01),
    "SparseMomentum": SparseMomentum(),
    "GraNet": GraNet(every=EVERY, sparsity=0.9, until=1.0),
}


@pytest.mark.parametrize("name", FIXED | EXCHANGING)
def test_masked_and_truly_sparse_layers_walk_through_the_same_topologies(name):
    one, other = (walk((FIXED | EXCHANGING)[name], kind) for kind in ("masked", "sparse"))
    assert all(
        torch.equal(a, b) for before, after in zip(one, other, strict=True) for a, b in zip(before, after, strict=True)
    )
    assert not torch.equal(one[0][1], one[-1][1]), "nothing was rewired"
    assert name in EXCHANGING or {tuple(map(len, step)) for step in one} == {tuple(map(len, one[0]))}


@pytest.mark.parametrize("name", ["DSR", "SparseMomentum"])
def test_layers_exchange_weights_and_keep_the_total(name):
    walked = walk(EXCHANGING[name], "masked")
    assert len({sum(map(len, step)) for step in walked}) == 1
    assert len({tuple(map(len, step)) for step in walked}) > 1


def test_every_recipe_is_exported_and_has_a_row_in_the_table():
    recipes = {
        name
        for name in all_recipes.__all__
        if name[0].isupper() or name in ("snip", "grasp", "synflow", "lottery_ticket")
    }
    assert {method.code for method in METHODS} - {"sparsify", ""} == recipes - {
        "Recipe",
        "DynamicRecipe",
        "Static",
        "SNFS",
    }


# ------------------------------------------------------------------------------------------ MEST


def test_mest_adds_the_weighted_gradient():
    layer = linear([[1.0, -2.0, 0.0]])
    layer.record_gradient = True
    (layer(torch.tensor([[10.0, 30.0, 5.0]])) * -1).sum().backward()
    assert torch.allclose(MagnitudeAndGradient(0.1)(layer), torch.tensor([1 + 1.0, 2 + 3.0]))


def test_mest_prunes_the_lowest_sum():
    model = nn.Sequential(linear([[1.0, 1.1, 0.0, 0.0]]))
    driver = attached(MEST(0.5, 1, until=1.0, decay="constant", prune=MagnitudeAndGradient(0.1)), model)
    model(torch.tensor([[9.0, 1.0, 0.0, 0.0]])).sum().backward()  # scores 1.9 and 1.2
    driver.step()
    assert 0 in model[0].active() and 1 not in model[0].active()


# ------------------------------------------------------------------------------------------ CHT


def scores(links, shape):
    flat = torch.tensor(sorted(u * shape[1] + v for u, v in links))
    return torch.cat(list(ch3_l3_rows(flat, shape)))


def test_ch3_l3_of_one_path_is_one_without_external_links():
    # 0 – 0 – 1 – 1 is the only path that lacks a link: from output 0 over input 0 and output 1 to input 1.
    assert torch.equal(scores([(0, 0), (1, 0), (1, 1)], (2, 2)), torch.tensor([[0.0, 1.0], [0.0, 0.0]]).double())


def test_ch3_l3_divides_by_the_external_links_of_the_path():
    # Input 0 has one more link (to output 2), output 1 two more (to inputs 2 and 3): 1 / √((1 + 1) (1 + 2)).
    links = [(0, 0), (1, 0), (1, 1), (2, 0), (1, 2), (1, 3)]
    assert scores(links, (3, 4))[0, 1] == pytest.approx(1 / math.sqrt(2 * 3))


@pytest.mark.parametrize("kind", ["compiled", "numpy"])
def test_ch3_l3_equals_a_plain_loop_over_all_paths(kind, monkeypatch):
    if kind == "numpy":
        monkeypatch.setattr("truly_sparse.recipes.links.loops_or_none", lambda: None)
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(7, 9, generator=generator) < 0.35).numpy()
    expected = np.zeros(mask.shape)
    for u, v in np.argwhere(~mask):
        paths = [(a, b) for a in np.flatnonzero(mask[u]) for b in np.flatnonzero(mask[:, v]) if mask[b, a]]
        ins, outs = {a for a, _ in paths}, {b for _, b in paths}
        for a, b in paths:
            external = [
                len(set(np.flatnonzero(mask[:, a])) - outs - {u}),
                len(set(np.flatnonzero(mask[b])) - ins - {v}),
            ]
            expected[u, v] += 1 / math.sqrt((1 + external[0]) * (1 + external[1]))
    active = torch.from_numpy(np.flatnonzero(mask))
    assert np.allclose(torch.cat(list(ch3_l3_rows(active, mask.shape))).numpy(), expected)


def test_link_growth_prefers_links_with_paths_and_draws_the_others():
    graph = torch.tensor([0, 4, 5])  # (0, 0), (1, 0), (1, 1) of 3×4: only (0, 1) has a path
    generator = torch.Generator().manual_seed(0)
    assert link_grow(graph, graph, (3, 4), 1, generator).tolist() == [1]
    drawn = {tuple(link_grow(graph, graph, (3, 4), 3, generator).tolist()) for _ in range(20)}
    assert len(drawn) > 1 and all(1 in each and len(each) == 3 for each in drawn)


def test_cht_predicts_from_what_pruning_left():
    # Without the small weight (1, 0) no path is left, and any link may grow; with it, (0, 1) would always.
    grown = set()
    for seed in range(12):
        model = nn.Sequential(linear([[1.0, 0, 0, 0], [0.01, 1, 0, 0], [0, 0, 0, 0]]))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        driver = CHT(0.4, 1).attach(model, optimizer, steps_per_epoch=1, total_steps=9, seed=seed)
        driver.rewire()
        grown |= set(model[0].active().tolist()) - {0, 5}
    assert len(grown) > 1 and 4 not in grown


# ------------------------------------------------------------------------------------------ sharing


def test_shares_are_exact_proportional_and_capped():
    assert shared_out(10, {"a": 3.0, "b": 1.0}, {"a": 99, "b": 99}) == {
        "a": 8,
        "b": 2,
    }  # 7.5 and 2.5: the first of equals
    assert shared_out(10, {"a": 3.0, "b": 1.0, "c": 1.0}, {"a": 2, "b": 99, "c": 99}) == {"a": 2, "b": 4, "c": 4}
    assert shared_out(3, {"a": 0.0, "b": 0.0}, {"a": 2, "b": 2}) == {"a": 2, "b": 1}
    assert shared_out(5, {"a": 1.0, "b": 0.0}, {"a": 2, "b": 9}) == {"a": 2, "b": 3}
    assert shared_out(0, {"a": 1.0}, {"a": 0}) == {"a": 0}


def two_layers():
    """Two layers of 12 weights with 4 active ones each."""
    small = [[0.01, 0.02, 0.03, 0, 0, 0], [5.0, 0, 0, 0, 0, 0]]
    large = [[1.0, 2.0, 0], [3.0, 0, 0], [0, 0, 0], [4.0, 0, 0]]
    return nn.Sequential(linear(small), nn.Flatten(), nn.Linear(2, 3), linear(large))


def test_dsr_prunes_below_one_threshold_and_shares_by_survivors():
    model = two_layers()
    driver = attached(DSR(0.5, 1, until=1.0, threshold=0.1), model)
    driver.rewire()  # 3 of the first layer go; 1 and 4 survive: of 3, 3/5 → 1 and 12/5 → 2
    assert [len(layer.active()) for layer in driver.layers.values()] == [1 + 1, 4 + 2]
    assert all((layer.active_values() == 0).sum() == n for layer, n in zip(driver.layers.values(), (1, 2), strict=True))


@pytest.mark.parametrize(("threshold", "after"), [(0.1, 0.1), (0.011, 0.022), (2.5, 1.25)])
def test_dsr_doubles_and_halves_its_threshold(threshold, after):
    driver = attached(DSR(3 / 8, 1, until=1.0, threshold=threshold), two_layers())  # the aim is 3 of 8
    driver.rewire()  # prunes 3, 1, or 5 weights
    assert driver.threshold == pytest.approx(after)
    assert driver.state_dict()["threshold"] == driver.threshold


def test_dsr_keeps_its_threshold_when_nothing_can_be_rewired():
    model = two_layers()
    driver = attached(DSR(3 / 8, 1, until=1.0, threshold=0.011), model)
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    with pytest.raises(TrainingError, match="not finite"):
        driver.rewire()
    assert driver.threshold == 0.011


def test_sparse_momentum_shares_by_the_mean_momentum_of_active_weights():
    first, second = linear([[1.0, 2, 3, 4] + [0] * 8]), linear([[1.0, 2, 3, 4] + [0] * 8])
    model = nn.ModuleList([first, second])
    driver = attached(SparseMomentum(0.5, 1, decay="constant"), model)
    (first(torch.arange(1.0, 13)[None]) + second(torch.full((1, 12), 7.5))).sum().backward()
    driver.step()  # 2 + 2 are pruned; means 2.5 and 7.5 over the active weights: 1 and 3 grow
    assert [len(layer.active()) for layer in (first, second)] == [3, 5]
    assert 11 in first.active()  # of the first, the one with the largest gradient


def test_granet_prunes_over_all_layers_and_regenerates_in_each():
    first, second = linear([[1.0, 2, 3, 4] + [0] * 4]), linear([[5.0, 6, 7, 8] + [0] * 4])
    model = nn.ModuleList([first, second])
    driver = attached(GraNet(0.5, 2, until=1.0, decay="constant", start=0.5, sparsity=0.75), model, steps=5)
    assert driver.until == 4
    for _ in range(2):
        model.zero_grad()
        (first(torch.arange(1.0, 9)[None]) + second(torch.arange(1.0, 9)[None])).sum().backward()
        driver.step()
    # t = 2 of T = 4: density 1 − 0.75 + 0.25 / 8 leaves round(0.28125 · 16) = 4 of 8. The smallest 4 are the first
    # layer's; then half of the second layer's 4 are replaced, by the largest gradients.
    assert first.active().tolist() == [] and second.active().tolist() == [2, 3, 6, 7]


def test_layers_with_blocks_of_different_sizes_do_not_exchange_them():
    model = mask_model(network(), 0.5, structure=(2, 2))
    with pytest.raises(InvalidArgumentError, match="one size only"):
        attached(DSR(), model)


@pytest.mark.parametrize(
    ("recipe", "lost"),
    [(DSR(), "threshold"), (DSR(), "generator"), (DeepRewiring(), "generator")]
    + [(TopKAST(), lost) for lost in ("dense", "outside", "generator")],
)
def test_a_state_without_what_a_driver_needs_is_refused(recipe, lost):
    driver = attached(recipe, mask_model(network(), 0.8))
    state = driver.state_dict()
    del state[lost]
    with pytest.raises(InvalidArgumentError, match=lost):
        driver.load_state_dict(state)


# ------------------------------------------------------------------------------------------ SRigL


def test_fan_ins_are_constant_over_the_outputs_that_stay():
    assert fan_ins(np.array([3, 0, 2, 1]), 6, 9, needed=2).tolist() == [3, 0, 3, 0]
    assert fan_ins(np.array([3, 0, 2, 1]), 7, 9, needed=1).tolist() == [3, 0, 2, 2]
    assert fan_ins(np.array([3, 0, 2, 1]), 6, 2, needed=3).tolist() == [2, 0, 2, 2]  # three are needed for 6 weights
    assert fan_ins(np.array([0, 0]), 4, 9, needed=0).tolist() == [2, 2]


@pytest.mark.parametrize("salient", [0.0, 0.5])
def test_srigl_gives_up_neurons_without_salient_weights(salient):
    weight = [[9.0, 8, 7, 6, 0, 0, 0, 0], [0.1, 0.2, 0.3, 0.4, 0, 0, 0, 0], [0.5, 5, 5, 5, 0, 0, 0, 0]]
    first, last = linear(weight), linear([[1.0, 1, 1]])
    driver = attached(SRigL(5 / 12, 1, until=1.0, decay="constant", salient=salient), nn.Sequential(first, last))
    # The smallest 5 are all of row 1 and one of row 2. The largest 5 gradients are not in row 1.
    gradient = torch.tensor([[0.0] * 4 + [3, 4, 5, 0], [0.0] * 7 + [0.1], [0.0] * 4 + [0, 6, 7, 0]])
    (first.weight * first.mask).sum().backward()
    first.gradient_rows, first._recorded = lambda: iter([gradient]), [gradient]
    last.gradient_rows = lambda: iter([torch.zeros(1, 3)])
    driver.rewire()
    rows = [first.active()[first.active() // 8 == row] % 8 for row in range(3)]
    if salient:  # rows 0 and 2 share 12: 6 each; what row 2 has pruned does not return
        assert [row.tolist() for row in rows] == [[0, 1, 2, 3, 5, 6], [], [1, 2, 3, 4, 5, 6]]
    else:  # 4 each; row 2 replaces its smallest, and row 1 all, as far as it may
        assert [row.tolist() for row in rows] == [[0, 1, 2, 3], [4, 5, 6, 7], [1, 2, 3, 6]]


def test_srigl_makes_fan_ins_constant_from_any_topology():
    for step in walk(SRigL(every=EVERY, salient=0.0), "sparse")[EVERY:]:
        for active, (outputs, inputs) in zip(step, ((4, 9), (24, 256), (5, 24)), strict=True):
            fan_in = torch.bincount(active // inputs, minlength=outputs)
            assert fan_in.max() - fan_in.min() <= 1


# ------------------------------------------------------------------------------------------ Deep Rewiring


@pytest.mark.parametrize("kind", ["masked", "sparse"])
def test_deep_rewiring_replaces_the_connections_whose_sign_flips(kind):
    model = nn.Sequential(linear([[1.0, -1.0, 0.5, 0, 0, 0]]))
    model = sparsify(model) if kind == "sparse" else model
    driver = attached(DeepRewiring(l1=0.2, temperature=0.0), model)
    layer = driver.layers["0"]
    layer.set_active_values(torch.tensor([0.5, 0.3, 0.01]))  # the second flips; the third would by the prior of 0.02
    driver.step()
    active, values = layer.active().tolist(), layer.active_values()
    assert active[0] == 0 and len(active) == 3 and not {1, 2} & set(active)
    assert values[0] == pytest.approx(0.5 - 0.1 * 0.2) and torch.allclose(values[1:].abs(), torch.tensor(1e-12))


def test_deep_rewiring_walks_with_the_variance_of_its_temperature():
    model = nn.Sequential(MaskedLinear(1000, 20, bias=False))
    model[0].set_mask(torch.ones(20, 1000, dtype=torch.bool))
    before = model[0].weight.detach().clone()
    attached(DeepRewiring(l1=0.0, temperature=0.02), model, lr=0.5).step()
    assert (model[0].weight - before).detach().std() == pytest.approx(math.sqrt(2 * 0.5 * 0.02), rel=0.02)


def test_deep_rewiring_keeps_the_momentum_of_kept_weights_and_clears_that_of_new_ones():
    model = nn.Sequential(linear([[1.0, -1.0, 0, 0]]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    driver = DeepRewiring(0.0, 0.0).attach(model, optimizer, steps_per_epoch=1, total_steps=9, seed=0)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    model[0].set_active_values(torch.tensor([1.0, 1.0]))
    driver.step()
    state = optimizer.state[model[0].weight]["momentum_buffer"]
    assert state[0, 0] == 1 and state.count_nonzero() == 1


# ------------------------------------------------------------------------------------------ Top-KAST


def ranked(kind, recipe):
    """A layer of four connections of eight, the first two of which compute, and θ of the others by hand."""
    model = nn.Sequential(linear([[4.0, -3, 2, 1, 0, 0, 0, 0]]))
    model = sparsify(model) if kind == "sparse" else model
    driver = attached(recipe, model)
    driver.dense["0"][4:] = torch.tensor([1.5, 0.2, -0.1, 0.0])
    return model, driver


@pytest.mark.parametrize("kind", ["masked", "sparse"])
def test_top_kast_computes_with_the_largest_and_updates_more(kind):
    model, driver = ranked(kind, TopKAST(every=1, l2=0.5))
    y = model(torch.tensor([[1.0, -1, -20, 5, 0, 0, 0, 0]])).sum()
    assert y == 4 + 3  # the weights 2 and 1 are in B∖A
    y.backward()
    driver.optimizer.step()
    driver.step()
    # 0.1 times the gradient goes; then 0.1 · 0.5 of A, and, as D = 1/4, four times as much of B∖A:
    # 3.9 · 0.95, −2.9 · 0.95, 4 · 0.8, 0.5 · 0.8. The largest four are those and 1.5, without the last.
    assert model[0].active().tolist() == [0, 1, 2, 4]
    assert torch.allclose(driver.theta["0"], torch.tensor([3.705, -2.755, 3.2, 1.5]))
    assert torch.allclose(model[0].active_values(), torch.tensor([3.705, 0, 3.2, 0]))
    assert driver.state_dict()["dense"]["0"][3] == pytest.approx(0.4)  # it may come back


@pytest.mark.parametrize("kind", ["masked", "sparse"])
def test_top_kast_keeps_momentum_where_a_weight_enters_or_leaves_the_forward_set(kind):
    model, driver = ranked(kind, TopKAST(every=1, l2=0.0))
    driver.optimizer.param_groups[0]["momentum"] = 0.9
    model(torch.tensor([[1.0, -1, -20, 9, 0, 0, 0, 0]])).sum().backward()
    driver.optimizer.step()
    driver.step()
    state = driver.optimizer.state[model[0].weight_parameter]["momentum_buffer"]
    state = state[model[0].mask] if kind == "masked" else state
    assert state.tolist() == [1, -1, -20, 0]


def test_top_kast_ends_with_the_network_of_the_forward_set():
    model = sparsify(network(), 0.8)
    driver = attached(TopKAST(every=EVERY, l2=0.1), model)
    for x, y in batches():
        driver.optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        driver.optimizer.step()
        driver.step()
    small = sparsify(densify(model))
    sizes = [len(layer.active()) for layer in sparse_layers(small).values()]
    assert sizes == [round(len(layer.active()) / 2) for layer in driver.layers.values()]
    assert torch.allclose(small(x), model(x))


def test_top_kast_draws_the_others_below_the_forward_set():
    model = nn.Sequential(linear([[4.0, -3, 2, 1] + [0] * 400]))
    driver = attached(TopKAST(), model)
    drawn = driver.dense["0"][4:]
    assert 2.9 < drawn.max() < 3 and -3 < drawn.min() < -2.9 and drawn.std() == pytest.approx(3**0.5, rel=0.1)


@pytest.mark.parametrize("kind", ["masked", "sparse"])
def test_top_kast_takes_over_a_loaded_model(kind):
    model, driver = ranked(kind, TopKAST(every=1, l2=0.0))
    own = copy.deepcopy(model.state_dict())
    x = torch.tensor([[1.0, -1, -20, 5, 0, 0, 0, 0]])
    model(x).sum().backward()
    driver.optimizer.step()
    driver.step()
    assert model[0].active().tolist() == [0, 1, 2, 4]
    model.load_state_dict(own)
    assert model[0].active_values().tolist() == [4, -3, 0, 0]
    assert driver.theta["0"].tolist() == pytest.approx([4, -3, 4, 0.5])  # of B∖A the model's state says nothing


def test_top_kast_leaves_a_frozen_layer_alone_until_it_trains():
    model = nn.Sequential(linear([[4.0, 3, 2, 1, 0, 0]] * 3), linear([[4.0, 3, 2]]))
    model[0].weight.requires_grad_(False)
    driver = attached(TopKAST(every=1, l2=0.1), model)
    model(torch.ones(1, 6)).sum().backward()
    driver.step()
    assert model[0].active_values().tolist() == [4, 3, 2, 1] * 3 and 0 in model[1].active_values()
    model[0].weight.requires_grad_(True)
    model(torch.ones(1, 6)).sum().backward()
    driver.step()
    assert model[0].active_values().count_nonzero() == 6


def test_top_kast_refuses_a_weight_outside_of_the_forward_set_that_is_not_finite():
    model, driver = ranked("sparse", TopKAST(every=1))
    model[0].set_active_values(torch.tensor([4.0, -3, math.inf, 0]))
    with pytest.raises(TrainingError, match="weight of '0' is not finite"):
        driver.step()
    assert model[0].active().tolist() == [0, 1, 2, 3]


def test_top_kast_refuses_a_state_of_other_sizes():
    state = attached(TopKAST(), sparsify(network(), 0.8)).state_dict()
    with pytest.raises(InvalidArgumentError, match=r"state\['outside'\].*same sizes"):
        attached(TopKAST(), sparsify(network(), 0.9)).load_state_dict(state)


@pytest.mark.parametrize("recipe", [DeepRewiring(), TopKAST()], ids=["DeepRewiring", "TopKAST"])
def test_single_weights_are_ranked(recipe):
    with pytest.raises(InvalidArgumentError, match="structure"):
        attached(recipe, mask_model(network(), 0.5, structure=(2, 2)))


# ------------------------------------------------------------------------------------------ before training


def plain(*weights):
    layers = []
    for weight in weights:
        layer = nn.Linear(len(weight[0]), len(weight), bias=False)
        layer.weight.data = torch.tensor(weight)
        layers.append(layer)
    return nn.Sequential(*layers)


def kept(pruned):
    return [layer.active().tolist() for layer in sparse_layers(sparsify(pruned)).values()]


def test_snip_keeps_the_largest_products_of_weight_and_gradient():
    model = plain([[1.0, 3.0, -2.0]], [[2.0], [-1.0]])

    def loss(model):  # y₁ + 3 y₂
        return (model(torch.tensor([[5.0, 1.0, 1.0]])) * torch.tensor([1.0, 3.0])).sum()

    # ∂L/∂h = 2·1 − 1·3 = −1; h = 5 + 3 − 2 = 6. Scores: |1·5|, |3·1|, |2·1| and |2·6|, |−1·18|.
    assert kept(snip(model, loss, 0.4)) == [[0], [0, 1]]


def test_grasp_keeps_the_largest_products_of_weight_and_hessian_times_gradient():
    model = plain([[1.0, 2.0, -3.0, 0.5]])

    def loss(model):  # Σ aᵢ wᵢ² / 2: g = a w, H g = a² w
        return (torch.tensor([1.0, 2.0, 1.0, -6.0]) * model[0].weight.square()).sum() / 2

    # Scores a² w²: 1, 4·4, 9 and 36·0.25 = 9; of the equal ones the first.
    assert kept(grasp(model, loss, 0.5)) == [[1, 2]]


def test_grasp_prefers_weights_that_raise_the_gradient_norm():
    model = plain([[1.0, 1.0]])

    def loss(model):  # w₁³ − 3 w₂² + w₂³: g = (3, −3), H = (6, 0); scores 18 and −0
        w = model[0].weight[0]
        return w[0] ** 3 - 3 * w[1] ** 2 + w[1] ** 3

    assert kept(grasp(model, loss, 0.5)) == [[0]]


def test_synflow_keeps_the_weights_with_most_flow():
    model = plain([[-1.0, 2.0], [3.0, 0.5]], [[1.0, -1.0]])
    # Scores: |w| times the weight after it, 1, 2, 3, 0.5; and of the second layer 1 + 2 = 3, 3 + 0.5 = 3.5.
    assert kept(synflow(model, (2,), 0.5, rounds=1)) == [[2], [0, 1]]
    before = copy.deepcopy(model.state_dict())
    # Two rounds keep 4 and 3: first the scores 2, 3 and 3, 3.5, through which 2 and 3 flow in both layers; of the
    # equal ones the first.
    assert kept(synflow(model, (2,), 0.5, rounds=2)) == [[1, 2], [1]]
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_synflow_does_not_collapse_a_layer():
    model = nn.Sequential(
        nn.Linear(100, 100), nn.ReLU(), nn.BatchNorm1d(100), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 2)
    )
    assert all(kept(synflow(model, (100,), 0.995)))


@pytest.mark.parametrize("wrap", [sparsify, mask_model])
@pytest.mark.parametrize("method", ["snip", "grasp", "synflow"])
def test_budgets_are_exact_and_taken_over_by_both_kinds_of_layers(method, wrap):
    model, (x, y) = network(), next(batches())
    total = sum(layer.weight.numel() for layer in (model[0], model[3], model[5]))
    pruned = {
        "snip": lambda: snip(model, lambda m: F.cross_entropy(m(x), y), 0.9),
        "grasp": lambda: grasp(model, lambda m: F.cross_entropy(m(x) / 200, y), 0.9),
        "synflow": lambda: synflow(model, (1, 8, 8), 0.9),
    }[method]()
    layers = sparse_layers(wrap(pruned))
    assert sum(len(layer.active()) for layer in layers.values()) == round(0.1 * total)
    for name, layer in layers.items():
        assert torch.equal(layer.active_values(), model.get_submodule(name).weight.detach().flatten()[layer.active()])


def test_scores_that_are_no_numbers_choose_nothing():
    with pytest.raises(TrainingError, match="score of 'a'"):
        keep_largest({"a": torch.tensor([1.0, math.nan])}, 1)


def test_a_chosen_weight_of_zero_stays_in_the_topology():
    assert kept(with_topology(plain([[0.0, 1.0, 2.0]]), {"0": torch.tensor([0, 2])})) == [[0, 2]]


# ------------------------------------------------------------------------------------------ lottery tickets


@pytest.mark.parametrize("wrap", [sparsify, mask_model])
def test_a_lottery_ticket_is_pruned_by_trained_weights_and_rewound(wrap):
    seen = []

    def train(model):  # the trained weights: the k-th largest connection becomes the k-th smallest
        (layer,) = sparse_layers(model).values()
        seen.append((len(layer.active()), layer.active_values().tolist()))
        layer.set_active_values(torch.tensor([8.0, 7, 6, 5, 4, 3, 2, 1])[layer.active()])

    model = plain([[1.0, 2, 3, 4, 5, 6, 7, 8]])
    ticket = lottery_ticket(model, train, wrap, sparsity=0.75, rounds=2, warm_up=lambda m: m[0].weight.data.mul_(10))
    assert [count for count, _ in seen] == [8, 4]  # 8 · (1/4)^(1/2)
    assert seen[1][1] == [10.0, 20.0, 30.0, 40.0]  # rewound to the weights after the warm-up
    assert kept(ticket) == [[0, 1]] and model[0].weight[0, 0] == 1


# ------------------------------------------------------------------------------------------ settings and size


RECIPE_FILES = sorted(Path(all_recipes.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", RECIPE_FILES, ids=lambda path: path.stem)
def test_a_rule_and_each_part_of_a_driver_is_at_most_25_lines(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            documented = ast.get_docstring(node, clean=False)
            lines = node.end_lineno - node.lineno + 1 - len((documented or "").splitlines())
            assert lines <= 25, f"{node.name}: {lines} lines"


@pytest.mark.parametrize(("recipe", "message"), [(SRigL(grow="random"), "grow"), (SRigL(scope="global"), "scope")])
def test_settings_that_a_recipe_does_not_use_are_refused(recipe, message):
    with pytest.raises(InvalidArgumentError, match=message):
        attached(recipe, mask_model(network(), 0.8))


def test_another_growth_rule_of_cht_is_used():
    driver = attached(CHT(grow="random"), mask_model(network(), 0.8))
    assert isinstance(driver, DynamicSparsity) and driver.grow.initial_std == 0.01


def test_the_table_is_in_order_and_refers_to_itself():
    names = [method.name for method in METHODS]
    assert len(set(names)) == len(names) and [m.year for m in METHODS] == sorted(m.year for m in METHODS)
    assert all(set(method.builds_on) <= set(names[:place]) for place, method in enumerate(METHODS))
    assert all(method.link.startswith("https://") and method.claim and method.dense for method in METHODS)
