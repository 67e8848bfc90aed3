"""Recipes, gradual pruning, Adam by the age of a weight, sparse-aware initialisation, and narrow dense networks."""

import copy
import math

import pytest
import torch
from torch import nn

from truly_sparse import (
    SNFS,
    DynamicSparsity,
    GradualMagnitudePruning,
    GradualPruning,
    InvalidArgumentError,
    PerWeightAdam,
    RigL,
    SparseLinear,
    TrainingError,
    densify,
    layer_nnz,
    random_grow,
    rules,
    sparse_init,
    sparse_layers,
    sparsify,
)
from truly_sparse.blocks import units_of
from truly_sparse.cpu import gradient_above
from truly_sparse.cpu.memory import to_batch_innermost
from truly_sparse.topology import generator_of
from tutorial_lib import TutorialCNN, mask_model
from tutorial_lib.contenders import multiply_add_count, small_dense, weight_count


def one_step(model, optimizer, driver, seed=0):
    generator = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    model(torch.randn(8, 1, 28, 28, generator=generator)).square().mean().backward()
    optimizer.step()
    return driver.step()


@pytest.fixture(params=["masked", "sparse"])
def model(request, small_cnn):
    masked = mask_model(small_cnn, 0.8)
    return masked if request.param == "masked" else sparsify(masked)


# ------------------------------------------------------------------------------------------ growth by momentum


def test_momentum_growth_ranks_by_the_fading_sum_of_the_last_20_gradients(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    hidden, sums, seen = sparse_layers(model)["hidden"], None, {}

    def look(layer, active, count, generator):
        if layer is hidden:
            seen["hidden"] = torch.cat(list(layer.gradient_rows()))
        return random_grow(active, math.prod(layer.dense_shape), count, generator)

    rule = DynamicSparsity(model, optimizer, grow="momentum").grow
    rule = type(rule)(look, rule.gradient_steps, rule.momentum)
    driver = DynamicSparsity(model, optimizer, every=30, grow=rule)
    for step in range(30):
        if step >= 10:
            sums = dense_gradient(model, step) + (0 if sums is None else 0.9 * sums)
        one_step(model, optimizer, driver, seed=step)
    assert torch.allclose(seen["hidden"], sums, atol=1e-6)


def dense_gradient(model, seed):
    """Return the gradient of ``hidden``'s dense weight for the batch of :func:`one_step`, without a trace in it."""
    dense = densify(model).train()
    dense(torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
    return dense.hidden.weight.grad


def test_snfs_and_rigl_differ_in_the_growth_rule_alone():
    assert RigL(grow="momentum") == RigL(**vars(SNFS()))


# ------------------------------------------------------------------------------------------ own rules, scopes, decays


@pytest.mark.parametrize("bound", ["estimated", "too high", "none"])
@pytest.mark.parametrize("count", [0, 1, 40, 300, 540])
def test_a_large_gradient_is_sampled_first_and_the_choice_is_the_same(monkeypatch, bound, count):
    torch.manual_seed(0)
    layer = SparseLinear(20, 30, sparsity=0.9)
    layer.record_gradient = True
    layer(torch.randn(8, 20)).square().sum().backward()
    magnitude = torch.cat(list(layer.gradient_rows())).flatten().abs()
    magnitude[layer.active()] = -1
    expected = magnitude.topk(count).indices.sort().values
    monkeypatch.setattr(rules, "LARGE", 0)
    if bound != "estimated":
        monkeypatch.setattr(rules, "_estimated_bound", lambda *_: 1e9 if bound == "too high" else 0.0)
    chosen = rules.GROW_RULES["gradient"].choose(layer, layer.active(), count, generator_of(0))
    assert torch.equal(chosen, expected)


def recorded(inputs, outputs, batches, innermost=False):
    """Return a layer with batches of whole numbers, whose sums are exact in any order, so that many are equal."""
    layer = SparseLinear(inputs, outputs, sparsity=0.9)
    layer.record_gradient = True
    for batch in batches:
        numbers = [torch.randint(-3, 4, (batch, size)).float() for size in (inputs, outputs)]
        layer.record(*(to_batch_innermost(each) if innermost else each for each in numbers))
    return layer


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("innermost", [False, True])
@pytest.mark.parametrize("batches", [[1], [13], [64], [5, 16, 3]])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (20, 30), (64, 16), (65, 17), (150, 3), (3, 150)])
def test_large_numbers_of_a_gradient_are_found(inputs, outputs, batches, innermost, threads, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(gradient_above, "use_threads", lambda: threads)
    layer = recorded(inputs, outputs, batches, innermost)
    gradient, active = torch.cat(list(layer.gradient_rows())).flatten(), layer.active()
    large = gradient.abs() >= 4
    large[active] = False
    most = int(large.sum())
    places, found = layer.gradient_above(4.0, active, most)
    assert torch.equal(places, large.nonzero().flatten()) and torch.equal(found, gradient[places])
    assert most == 0 or layer.gradient_above(4.0, active, most - 1) is None
    assert len(layer.gradient_above(1e9, active, most)[0]) == 0


@pytest.mark.parametrize("way", ["compiled", "too many", "many samples"])
def test_the_choice_is_the_same_however_large_numbers_are_found(monkeypatch, way):
    torch.manual_seed(0)
    layer = recorded(70, 50, [16])
    active, count = layer.active(), 300
    magnitude = torch.cat(list(layer.gradient_rows())).flatten().abs()
    magnitude[active] = -1
    expected = magnitude.sort(descending=True, stable=True).indices[:count].sort().values  # of equal ones the first
    monkeypatch.setattr(rules, "LARGE", 0)
    if way == "too many":
        monkeypatch.setattr(rules, "_estimated_bound", lambda *_: 1e-9)
    elif way == "many samples":
        monkeypatch.setattr(gradient_above, "MOST_SAMPLES", 15)
    else:
        monkeypatch.setattr(layer, "gradient_rows", None)  # is not asked
    assert torch.equal(rules.GROW_RULES["gradient"].choose(layer, active, count, generator_of(0)), expected)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("active", [True, False])
def test_a_large_gradient_that_is_not_finite_is_refused(monkeypatch, number, active):
    layer = recorded(70, 50, [2])
    (x, grad), place = layer._recorded[0], int(layer.active()[40]) if active else 1000
    grad[0, place // 70] = x[0, place % 70] = 1e30 if number == math.inf else -1e30  # their product overflows
    grad[0, place // 70] *= 1 if number > 0 else -1
    if math.isnan(number):
        grad[:, place // 70] = number
    monkeypatch.setattr(rules, "LARGE", 0)
    monkeypatch.setattr(rules, "_estimated_bound", lambda *_: 8.0)
    with pytest.raises(TrainingError, match=f"not finite \\({number}\\)"):
        rules.GROW_RULES["gradient"].choose(layer, layer.active(), 10, generator_of(0))


def test_only_the_compiled_kernels_find_large_numbers_by_themselves():
    layer = SparseLinear(20, 30, dtype=torch.float64)
    layer.record_gradient = True
    layer.record(torch.ones(2, 20, dtype=torch.float64), torch.ones(2, 30, dtype=torch.float64))
    assert layer.gradient_above(1.0, layer.active(), 600) is None
    blocks = units_of(SparseLinear(20, 30, structure=(2, 2)))
    assert blocks.gradient_above(1.0, blocks.active(), 600) is None
    with pytest.raises(InvalidArgumentError, match="bound"):
        layer.gradient_above(0.0, layer.active(), 600)


@pytest.mark.parametrize("count", [0, 1, 7, 100, 199, 200, 1000])
def test_candidates_are_one_of_each_part_of_the_inactive_connections(count):
    active, generator = torch.arange(0, 400, 2), generator_of(0)
    inactive = torch.arange(1, 400, 2)
    count, seen = min(count, 200), torch.zeros(400)
    for _ in range(200):
        candidates = rules._one_in_each_part(active, 400, count, generator)
        ranks = torch.searchsorted(inactive, candidates)
        assert torch.equal(inactive[ranks], candidates) and len(ranks) == count and (ranks.diff() > 0).all()
        assert (ranks.diff() < 2 * math.ceil(200 / max(1, count))).all()
        seen[candidates] += 1
    assert (seen[inactive] - count).abs().max() <= 6 * count**0.5


def test_a_plain_function_is_a_grow_rule_and_sees_the_gradient(model):
    def strongest_column(layer, active, count, generator):
        assert sum(len(rows) for rows in layer.gradient_rows()) == layer.dense_shape[0]
        return random_grow(active, math.prod(layer.dense_shape), count, generator)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    assert one_step(model, optimizer, DynamicSparsity(model, optimizer, every=1, grow=strongest_column))


def test_a_plain_function_is_a_prune_rule(model):
    def first_come(layer):
        return torch.arange(len(layer.active()), dtype=torch.float32)

    layer = sparse_layers(model)["hidden"]
    before = layer.active()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    one_step(model, optimizer, DynamicSparsity(model, optimizer, every=1, prune_fraction=0.25, prune=first_come))
    count = len(before) // 4
    assert not torch.isin(before[:count], layer.active()).any() and torch.isin(before[count:], layer.active()).all()


@pytest.mark.parametrize(
    ("score", "message"),
    [(lambda layer: torch.ones(3), "one per active"), (lambda layer: layer.active_values() * math.nan, "NaN")],
)
def test_a_prune_rule_that_is_wrong_changes_nothing(model, score, message):
    before = {name: layer.active() for name, layer in sparse_layers(model).items()}
    driver = DynamicSparsity(model, torch.optim.SGD(model.parameters(), lr=0.1), prune=score)
    with pytest.raises((InvalidArgumentError, TrainingError), match=message):
        driver.rewire()
    assert all(torch.equal(before[name], layer.active()) for name, layer in sparse_layers(model).items())


def test_global_pruning_takes_the_smallest_of_all_layers(model):
    layers = sparse_layers(model)
    with torch.no_grad():  # the weights of one layer are all smaller than those of the others
        for name, layer in layers.items():
            scale = 1e-3 if name == "hidden" else 1.0
            layer.set_active_values(scale * (1 + torch.rand(len(layer.active()))))
    before = {name: layer.active() for name, layer in layers.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    DynamicSparsity(model, optimizer, prune_fraction=0.3, scope="global").rewire()
    gone = {name: int((~torch.isin(before[name], layer.active())).sum()) for name, layer in layers.items()}
    assert gone == {name: sum(int(0.3 * len(a)) for a in before.values()) * (name == "hidden") for name in layers}
    assert all(len(layer.active()) == len(before[name]) for name, layer in layers.items())


@pytest.mark.parametrize(("decay", "halfway"), [("constant", 0.4), ("linear", 0.2), ("cosine", 0.2)])
def test_decays(model, decay, halfway):
    driver = DynamicSparsity(
        model, torch.optim.SGD(model.parameters(), lr=0.1), prune_fraction=0.4, until=10, decay=decay
    )
    assert driver.fraction() == pytest.approx(0.4)
    driver.steps = 5
    assert driver.fraction() == pytest.approx(halfway)
    driver.steps = 10
    assert driver.fraction() == pytest.approx(0.4 if decay == "constant" else 0.0)


@pytest.mark.parametrize(
    ("settings", "message"), [({"scope": "net"}, "scope='net'"), ({"prune": "big"}, "prune='big'")]
)
def test_bad_settings(model, settings, message):
    with pytest.raises(InvalidArgumentError, match=message):
        DynamicSparsity(model, torch.optim.SGD(model.parameters(), lr=0.1), **settings)


# ------------------------------------------------------------------------------------------ gradual pruning


def test_gradual_pruning_follows_its_cubic_schedule_and_ends_on_the_budget(small_cnn):
    model = mask_model(small_cnn, 0.0)
    optimizer = torch.optim.Adam(model.parameters())
    driver = GradualMagnitudePruning(0.9, "erk", every=10).attach(
        model, optimizer, steps_per_epoch=10, total_steps=100, seed=0
    )
    layers, sizes = sparse_layers(model), []
    for step in range(1, 101):
        one_step(model, optimizer, driver, seed=step)
        sizes.append(sum(len(layer.active()) for layer in layers.values()))
    total = sum(math.prod(layer.dense_shape) for layer in layers.values())
    for step in range(10, 75, 10):
        assert sizes[step - 1] == round((1 - 0.9 * (1 - (1 - step / 75) ** 3)) * total)
    assert {name: len(layer.active()) for name, layer in layers.items()} == layer_nnz(model, 0.9, "erk")
    assert sizes[74] == sizes[-1] and driver.rewirings == 8
    assert all((layer.weight[~layer.mask] == 0).all() for layer in layers.values())


def test_gradual_pruning_keeps_the_largest(small_cnn):
    model = mask_model(small_cnn, 0.0)
    before = model.hidden.weight.detach().abs().clone()
    driver = GradualPruning(model, torch.optim.SGD(model.parameters(), lr=0.1), sparsity=0.5, until=1)
    driver.step()
    assert before[model.hidden.mask].min() >= before[~model.hidden.mask].max()


@pytest.mark.parametrize("settings", [{"sparsity": 1.0}, {"until": 0}, {"every": 0}, {"scheme": "x"}])
def test_gradual_pruning_with_bad_settings(small_cnn, settings):
    model = mask_model(small_cnn, 0.0)
    with pytest.raises(InvalidArgumentError):
        GradualPruning(model, torch.optim.SGD(model.parameters(), lr=0.1), **{"sparsity": 0.9, "until": 10} | settings)


# ------------------------------------------------------------------------------------------ Adam, initialisation


def test_per_weight_adam_is_adam_until_something_grows():
    ours = nn.Sequential(nn.Linear(20, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    torchs = copy.deepcopy(ours)
    mine = PerWeightAdam(ours.parameters(), lr=1e-2)
    reference = torch.optim.Adam(torchs.parameters(), lr=1e-2)
    for step in range(5):
        x = torch.randn(8, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        for model, optimizer in ((ours, mine), (torchs, reference)):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), torchs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("wrong", [{"lr": 0}, {"eps": 0.0}, {"betas": (0.9, 1.0)}])
def test_per_weight_adam_with_bad_settings(wrong):
    with pytest.raises(InvalidArgumentError, match="betas"):
        PerWeightAdam([nn.Parameter(torch.ones(1))], **wrong)


def test_sparse_init_scales_with_the_fan_in_that_is_there(model):
    sparse_init(model, seed=1)
    layer = sparse_layers(model)["hidden"]
    row = layer.active() // math.prod(layer.dense_shape[1:])
    for neuron in range(16):
        values, fan_in = layer.active_values()[row == neuron], int((row == neuron).sum())
        assert values.abs().max() <= 1 / math.sqrt(fan_in)
        assert values.std().item() == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.25)


def test_sparse_init_is_the_same_on_both_kinds(small_cnn):
    masked = mask_model(small_cnn, 0.8)
    sparse = sparsify(masked)
    for a, b in zip(
        sparse_layers(sparse_init(masked)).values(), sparse_layers(sparse_init(sparse)).values(), strict=True
    ):
        assert torch.equal(a.active_values(), b.active_values())


def test_sparse_init_of_a_dense_model(small_cnn):
    with pytest.raises(InvalidArgumentError, match="call sparsify"):
        sparse_init(small_cnn)


# ------------------------------------------------------------------------------------------ small-dense


@pytest.mark.parametrize("measure", [weight_count, multiply_add_count])
def test_small_dense_is_the_widest_that_fits(measure):
    limit = measure(TutorialCNN(0.3)) + 1
    assert measure(small_dense(limit, measure)) == measure(TutorialCNN(0.3))
    assert weight_count(small_dense(67_173)) <= 67_173 < 1.02 * weight_count(small_dense(67_173))


def test_small_dense_at_its_ends():
    assert weight_count(small_dense(10**9)) == weight_count(TutorialCNN()) == 1_343_456
    with pytest.raises(InvalidArgumentError, match="limit=10"):
        small_dense(10)
    with pytest.raises(InvalidArgumentError, match="width=0"):
        TutorialCNN(0)
