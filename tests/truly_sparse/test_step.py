"""A step as one compiled call does what torch's loop does, and leaves to torch whatever it does not do."""

import contextlib
import copy
import functools
import operator
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from truly_sparse import (
    SET,
    DynamicSparsity,
    InvalidArgumentError,
    RigL,
    SparseLinear,
    TrainingStep,
    fuse,
    sparse_layers,
    sparsify,
    warmup,
)
from truly_sparse.cpu import training
from truly_sparse.cpu.memory import to_batch_innermost
from truly_sparse.fuse import Chain, chain_of
from tutorial_lib import TutorialCNN, callbacks, fit, mask_model


@pytest.fixture
def compiled_steps(monkeypatch):
    """Count the steps that were compiled calls."""
    warmup()  # which makes one
    steps, run = [], training._run_step
    monkeypatch.setattr(training, "_run_step", lambda *arguments: steps.append(1) or run(*arguments))
    return steps


FLATTENINGS = {
    "a module": nn.Flatten(),
    "a method": lambda x: x.flatten(1),
    "a function": lambda x: torch.flatten(x, 1),
    "size": lambda x: x.view(x.size(0), -1),
    "shape": lambda x: x.reshape(x.shape[0], -1),
    "a tuple": lambda x: torch.reshape(x, (x.size()[0], -1)),
}


def perceptron():
    parts = nn.Linear(36, 50, bias=False), nn.ReLU(), nn.Linear(50, 40), nn.ReLU(), nn.Linear(40, 10)
    return sparse(nn.Sequential(*parts))


def sparse(model, scheme="uniform"):
    return fuse(sparsify(mask_model(model, 0.8, scheme, seed=0)))


class Tiny(nn.Module):
    """A convolution and two linear layers: small, but of every kind."""

    def __init__(self, flatten=FLATTENINGS["a method"]):
        super().__init__()
        self.conv, self.fc, self.out = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(36, 30, bias=False), nn.Linear(30, 10)
        self.flatten = flatten

    def forward(self, x):
        x = torch.max_pool2d(torch.relu(self.conv(x)), 2)
        return self.out(torch.relu(self.fc(self.flatten(x))))


class OfImages(nn.Module):
    """Linear layers whose input is flattened first."""

    def __init__(self, flatten=FLATTENINGS["a module"]):
        super().__init__()
        self.fc, self.out, self.flatten = nn.Linear(36, 30), nn.Linear(30, 10), flatten

    def forward(self, x):
        return self.out(torch.relu(self.fc(self.flatten(x))))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return sparse(Tiny())


def batches(*sizes):
    generator = torch.Generator().manual_seed(1)
    for size in sizes:
        yield torch.randn(size, 1, 6, 6, generator=generator), torch.randint(10, (size,), generator=generator)


def by_torch(model, optimizer, x, y):
    optimizer.zero_grad()
    logits = model(x)
    loss = nn.functional.cross_entropy(logits, y)
    loss.backward()
    optimizer.step()
    return loss.item(), (logits.argmax(1) == y).sum().item()


def numbers(model, optimizer):
    """Everything that a step changes."""
    for parameter in model.parameters():
        yield parameter.detach()
        yield parameter.grad
        yield from optimizer.state[parameter].values()


def assert_same(one, other, rtol=1e-4, atol=1e-6):
    for a, b in zip(numbers(*one), numbers(*other), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


OPTIMIZERS = {
    "Adam": (torch.optim.Adam, {}),
    "Adam, fused": (torch.optim.Adam, {"fused": True}),
    "Adam, other numbers": (torch.optim.Adam, {"betas": (0.8, 0.95), "eps": 1e-4}),
    "AdamW": (torch.optim.AdamW, {"weight_decay": 0.3}),
}
MODELS = {
    "convolution": lambda: sparse(Tiny()),
    "linear": perceptron,
    "flattened": lambda: sparse(OfImages()),
    "ERK": lambda: sparse(Tiny(), "erk"),
}


def given(model, images):
    return images if hasattr(model, "conv") or chain_of(model).flattens else images.flatten(1)


@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_weights_gradients_state_and_loss_are_torchs_to_rounding(make, kind, compiled_steps):
    torch.manual_seed(0)
    model, (optimizer, settings) = make(), kind
    twin = copy.deepcopy(model)
    ours, theirs = (optimizer(m.parameters(), lr=1e-3, **settings) for m in (model, twin))
    step = TrainingStep(model, ours)
    sizes = (64, 64, 1, 16, 33, 100, 64, 31, 32, 64)
    for x, y in batches(*sizes):
        x = given(model, x)
        loss, right = step(x, y)
        expected, expected_right = by_torch(twin, theirs, x, y)
        assert loss == pytest.approx(expected, rel=1e-5) and right == expected_right
        assert_same((model, ours), (twin, theirs))
    assert len(compiled_steps) == len(sizes) - 1  # the first makes the optimizer's state


@pytest.mark.parametrize("left_out", [(), (0,), (0, 2)])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_recorded_batches_are_torchs_to_rounding(make, left_out, compiled_steps):
    torch.manual_seed(0)
    model = make()
    twin = copy.deepcopy(model)
    ours, theirs = (torch.optim.Adam(m.parameters(), lr=1e-3) for m in (model, twin))
    step = TrainingStep(model, ours)
    sizes = (64, 64, 64, 33, 1, 100)
    for number, (x, y) in enumerate(batches(*sizes)):
        x = given(model, x)
        for network in (model, twin):
            for at, layer in enumerate(sparse_layers(network).values()):
                if number in (1, 4):  # from then on two batches, or three, are recorded
                    layer.record_gradient = number == 1 and at not in left_out
        step(x, y)
        by_torch(twin, theirs, x, y)
        for layer, other in zip(sparse_layers(model).values(), sparse_layers(twin).values(), strict=True):
            assert len(layer._recorded) == len(other._recorded) == (number if layer.record_gradient else 0)
            for pair in zip(layer._recorded, other._recorded, strict=True):
                for found, expected in zip(*pair, strict=True):
                    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
            if layer.has_record:
                for found, expected in zip(layer.gradient_rows(), other.gradient_rows(), strict=True):
                    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert len(compiled_steps) == len(sizes) - 1


def test_a_fused_network_is_a_chain_and_anything_around_it_is_not():
    names = "conv1", "conv2", "fc1", "fc2", "fc3", "fc4"
    assert chain_of(fuse(sparsify(mask_model(TutorialCNN(), 0.95)))) == Chain(names, False, names)
    for other in (TutorialCNN(), sparsify(mask_model(Tiny(), 0.8)), fuse(nn.Identity()), fuse(nn.Flatten())):
        assert chain_of(other) is None
    for around in (nn.Sequential(nn.Dropout(), Tiny()), nn.Sequential(Tiny(), nn.Softmax(1))):
        assert chain_of(fuse(sparsify(mask_model(around, 0.8)))) is None


@pytest.mark.parametrize("kind", FLATTENINGS)
def test_a_flattening_is_part_of_a_chain(kind, compiled_steps):
    layers, flat = ("conv", "fc", "out"), ("flatten",) if kind == "a module" else ()
    for network, chain in (
        (Tiny, Chain(layers, False, layers)),
        (OfImages, Chain(layers[1:], True, layers[1:] + flat)),
    ):
        plain = sparsify(mask_model(network(FLATTENINGS[kind]), 0.8, seed=0))
        model = fuse(plain)
        assert chain_of(model) == chain
        step = started(model)
        for layer, trained in zip(sparse_layers(plain).values(), sparse_layers(model).values(), strict=True):
            layer.load_state_dict(trained.state_dict())
        x, y = next(batches(33))
        torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)
        step(x.to(memory_format=torch.channels_last), y)
    assert len(compiled_steps) == 2


@pytest.mark.parametrize(
    "other",
    [
        lambda x: x.view(-1, 36),
        lambda x: x.view(x.size(1) * 64, -1),
        lambda x: x.flatten(1, 3),
        lambda x: x.view(x.size(0), 36),
        lambda x: x.flatten(1) * x.size(0),
        lambda x: x.view(x.size(0), -1) * x.size(0),
        lambda x: torch.relu(x.flatten(1)),
        lambda x: x.flatten(1) + x.sum().reshape(()),
        lambda x: x.view((64, -1)),
    ],
)
def test_anything_else_before_the_first_layer_is_no_part_of_a_chain(other, compiled_steps):
    model = sparse(OfImages(other))
    assert chain_of(model) is None
    step = started(model)
    step(*next(batches(64)))
    assert not compiled_steps


def test_a_hook_on_what_flattens_or_another_one_is_left_to_torch(compiled_steps):
    for change in (
        lambda model: model.flatten.register_forward_hook(lambda _, __, y: 2 * y),
        lambda model: setattr(model, "flatten", nn.Sequential(nn.Flatten(), nn.Tanh())),
    ):
        step = started(sparse(OfImages()))
        step(*next(batches(64)))
        seen = len(compiled_steps)
        change(step.model)
        step(*next(batches(64)))
        assert len(compiled_steps) == seen > 0


def started(model, optimizer=torch.optim.Adam, **settings):
    """Return a step whose next call could be compiled."""
    step = TrainingStep(model, optimizer(model.parameters(), lr=1e-3, **settings))
    step(*next(batches(64)))
    return step


def double_the_result(model):
    *_, output = model.graph.nodes
    with model.graph.inserting_before(output):
        output.args = (model.graph.call_function(operator.mul, (output.args[0], 2)),)
    model.recompile()


UNUSUAL = {
    "a hook on the model": lambda step: step.model.register_forward_hook(lambda *_: None),
    "a hook on a layer": lambda step: step.model.fc.register_forward_pre_hook(lambda *_: None),
    "a hook on a gradient": lambda step: step.model.fc.values.register_hook(lambda gradient: 2 * gradient),
    "a hook on an accumulated gradient": lambda step: step.model.fc.values.register_post_accumulate_grad_hook(
        lambda parameter: parameter.grad.mul_(2)
    ),
    "a hook before the optimizer": lambda step: step.optimizer.register_step_pre_hook(lambda *_: None),
    "a hook after the optimizer": lambda step: step.optimizer.register_step_post_hook(lambda *_: None),
    "a frozen weight": lambda step: step.model.fc.values.requires_grad_(False),
    "two groups": lambda step: step.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]}),
    "state of another type": lambda step: step.optimizer.state[step.model.fc.values].update(
        step=step.optimizer.state[step.model.fc.values]["step"].double()
    ),
    "a weight that the optimizer lost": lambda step: step.optimizer.param_groups[0]["params"].pop(),
    "a weight that two layers share": lambda step: setattr(step.model.fc, "values", step.model.out.values),
    "a layer made dense": lambda step: setattr(step.model, "out", step.model.out.to_dense_layer()),
    "AMSGrad": lambda step: step.optimizer.param_groups[0].update(amsgrad=True),
    "ascent": lambda step: step.optimizer.param_groups[0].update(maximize=True),
    "a learning rate that is a tensor": lambda step: step.optimizer.param_groups[0].update(lr=torch.tensor(1e-3)),
    "another group in the same list": lambda step: step.optimizer.param_groups.__setitem__(
        0, step.optimizer.param_groups[0] | {"params": [*step.model.out.parameters()]}
    ),
    "a step of one's own": lambda step: setattr(step.optimizer, "step", lambda: None),
    "a forward of one's own": lambda step: setattr(step.model, "forward", functools.partial(step.model.forward)),
    "another graph": lambda step: double_the_result(step.model),
    "other dictionaries of hooks": lambda step: (
        setattr(step.model, "_forward_hooks", OrderedDict()),
        step.model.register_forward_hook(lambda *_: None),
    ),
    "Adam's own decay": lambda step: step.optimizer.param_groups[0].update(weight_decay=0.1),
}


@pytest.mark.parametrize("change", UNUSUAL.values(), ids=UNUSUAL)
def test_what_is_unusual_is_left_to_torch(model, change, compiled_steps):
    step = started(model)
    step(*next(batches(64)))
    assert len(compiled_steps) == 1
    change(step)
    with contextlib.suppress(RuntimeError, KeyError, InvalidArgumentError):  # where this cannot be trained at all
        step(*next(batches(64)))
    assert len(compiled_steps) == 1


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam])
def test_other_optimizers_are_torchs(model, optimizer, compiled_steps):
    twin = copy.deepcopy(model)
    step, theirs = started(model, optimizer), optimizer(twin.parameters(), lr=1e-3)
    for x, y in batches(64):
        by_torch(twin, theirs, x, y)
    assert not compiled_steps
    assert_same((model, step.optimizer), (twin, theirs), rtol=0, atol=0)


def test_float64_is_torchs(model, compiled_steps):
    model.double()
    step = TrainingStep(model, torch.optim.Adam(model.parameters()))
    losses = [step(x.double(), y)[0] for x, y in [*batches(64)] * 5]
    assert not compiled_steps and losses[-1] < losses[0]


def test_the_gradient_of_the_input_is_torchs(model, compiled_steps):
    step, (x, y) = started(model), next(batches(64))
    step(x.requires_grad_(), y)
    assert not compiled_steps and x.grad.abs().sum() > 0


@pytest.mark.parametrize("wrong", [10, -1, 2**40])
@pytest.mark.parametrize("size", [5, 64])
def test_a_label_that_is_no_class_is_torchs_error_and_changes_nothing(model, wrong, size):
    step, (x, y) = started(model), next(batches(size))
    before = [n.clone() for n in numbers(model, step.optimizer)]
    y[size // 2] = wrong
    with pytest.raises(IndexError, match="out of bounds"):
        step(x, y)
    after = [p.detach() for p in model.parameters()]
    assert all(map(torch.equal, before[::5], after))


def test_a_label_to_be_ignored_is_ignored(model):
    twin = copy.deepcopy(model)
    step, theirs = started(model), torch.optim.Adam(twin.parameters(), lr=1e-3)
    by_torch(twin, theirs, *next(batches(64)))
    x, y = next(batches(64))
    y[3] = -100
    assert step(x, y)[0] == pytest.approx(by_torch(twin, theirs, x, y)[0])
    assert_same((model, step.optimizer), (twin, theirs))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("size", [5, 64])
def test_a_loss_that_is_not_finite_updates_nothing(model, value, size):
    step, (x, y) = started(model), next(batches(size))
    before = [p.detach().clone() for p in model.parameters()]
    x[1] = value
    loss, _ = step(x, y)
    assert not loss < float("inf")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_number_of_threads_does_not_change_a_bit(model):
    results, threads = [], torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        twin = copy.deepcopy(model)
        step = TrainingStep(twin, torch.optim.Adam(twin.parameters(), lr=1e-3))
        outcome = [step(x, y) for x, y in batches(100, 100, 20, 100)]
        results.append((outcome[1:], [p.detach() for p in twin.parameters()]))
    torch.set_num_threads(threads)
    (one, weights), (other, others) = results
    assert one == other and all(map(torch.equal, weights, others))


def test_inputs_may_lie_in_any_way(model, compiled_steps):
    (x, y), results = next(batches(64)), []
    wide = torch.randn(64, 1, 6, 12)
    wide[..., ::2] = x
    for form in (x, to_batch_innermost(x), x.to(memory_format=torch.channels_last), wide[..., ::2]):
        twin = copy.deepcopy(model)
        step = started(twin)
        results.append(step(form, y))
    assert len(compiled_steps) == len(results) and len(set(results)) == 1


def test_weights_and_moments_may_move_between_steps(model, compiled_steps):
    twin = copy.deepcopy(model)
    step, theirs = started(model), torch.optim.Adam(twin.parameters(), lr=1e-3)
    by_torch(twin, theirs, *next(batches(64)))
    for x, y in batches(64, 64, 64, 64):
        step(x, y)
        by_torch(twin, theirs, x, y)
        old = model.fc.values.data
        model.fc.values.data = old.clone()  # the same parameter elsewhere
        old.fill_(torch.nan)
        step.optimizer.load_state_dict(copy.deepcopy(step.optimizer.state_dict()))
    assert_same((model, step.optimizer), (twin, theirs))
    assert len(compiled_steps) == 4


def test_a_graph_that_saved_a_weight_notices_the_step(model):
    step, (x, y) = started(model), next(batches(64))
    before = model(x).sum()
    step(x, y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        before.backward()


def test_numbers_that_moved_within_their_memory_are_left_alone(model, compiled_steps):
    step, values = started(model), model.fc.values
    whole = torch.randn(2 * len(values))
    values.data = whole[: len(values)]
    step(*next(batches(64)))
    values.data = whole[::2]
    between = whole[1::2].clone()
    with pytest.raises(InvalidArgumentError, match="contiguous"):
        step(*next(batches(64)))
    assert torch.equal(whole[1::2], between) and len(compiled_steps) == 1


def test_a_copy_looks_for_itself(model, compiled_steps):
    step = started(model)
    step(*next(batches(64)))
    other = copy.deepcopy(step)
    other.optimizer.load_state_dict(copy.deepcopy(step.optimizer.state_dict()))
    other(*next(batches(64)))
    counts = [each.optimizer.state[each.model.out.bias]["step"].item() for each in (step, other)]
    assert counts == [2, 3] and len(compiled_steps) == 2
    other.model.fc.record_gradient = True
    other(*next(batches(64)))
    assert len(compiled_steps) == 3 and next(other.model.fc.gradient_rows()).shape[1] == 36


def test_hooks_on_all_modules_and_optimizers_are_called(model, compiled_steps):
    step, seen = started(model), []
    for register in (
        torch.nn.modules.module.register_module_forward_hook,
        register_optimizer_step_post_hook,
    ):
        hook = register(lambda *_: seen.append(1))
        step(*next(batches(64)))
        hook.remove()
        assert seen and not compiled_steps
        seen.clear()


def test_means_do_not_end_among_the_slowest_numbers(model):
    step = started(model)
    for state in step.optimizer.state.values():
        state["exp_avg"].fill_(1e-40)
        state["exp_avg_sq"].fill_(1e-40)
    (x, y) = next(batches(64))
    step(torch.zeros_like(x), y)
    means = step.optimizer.state[model.conv.values]["exp_avg"]
    assert (step.optimizer.state[model.conv.values]["exp_avg_sq"] == 0).all() and (means == 0).all()


@pytest.mark.parametrize("kind", ["SET", "RigL"])
def test_the_walk_through_topologies_is_that_of_the_masked_network(kind, compiled_steps):
    """Both kinds from one seed; where growth reads gradients, torch's loop takes that step."""
    torch.manual_seed(0)
    masked = mask_model(Tiny(), 0.8, "erk", seed=0)
    ours, walks = fuse(sparsify(masked)), []
    for model in (masked, ours):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        driver = DynamicSparsity(model, optimizer, every=3, grow="random" if kind == "SET" else "gradient", seed=3)
        step, walk = TrainingStep(model, optimizer), []
        for x, y in batches(*[48] * 66):
            step(x, y)
            if driver.step():
                walk.append([layer.active() for layer in driver.layers.values()])
        walks.append(walk)
    assert len(walks[0]) == 22 and len(compiled_steps) >= 40
    assert all(torch.equal(a, b) for one, other in zip(*walks, strict=True) for a, b in zip(one, other, strict=True))
    for a, b in zip(*(sparse_layers(model).values() for model in (masked, ours)), strict=True):
        torch.testing.assert_close(a.active_values(), b.active_values(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("schedule", ["constant", "onecycle"])
def test_fit_learns_the_same_as_with_torchs_loop(digits, schedule, compiled_steps, monkeypatch):
    histories = []
    for at_once in (True, False):
        if not at_once:
            monkeypatch.setattr(TrainingStep, "_compiled", lambda *_: None)
        torch.manual_seed(0)
        model = fuse(sparsify(mask_model(TutorialCNN(), 0.9, "erk", seed=0)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            histories.append(fit(model, digits, epochs=2, sparsity=RigL(every=5), schedule=schedule, progress=False))
        compiled_steps.append(None)
    assert compiled_steps.index(None) > 5 and compiled_steps[-2:] == [None, None]
    one, other = histories
    assert one.train_loss == pytest.approx(other.train_loss, rel=1e-3)
    assert one.test_accuracy == pytest.approx(other.test_accuracy, abs=0.5)


def test_a_stopped_run_of_compiled_steps_goes_on_to_the_same_bits(digits, tmp_path, compiled_steps):
    def make():
        torch.manual_seed(0)
        return fuse(sparsify(mask_model(TutorialCNN(), 0.9, "erk", seed=0)))

    common = {"sparsity": SET(every=5), "schedule": "onecycle", "progress": False}
    whole, stopped, resumed = make(), make(), make()
    fit(whole, digits, epochs=2, checkpoint=tmp_path / "whole", **common)
    saves = []

    def stop_after_the_first(*arguments, **parts):
        save(*arguments, **parts)
        saves.append(1)
        raise KeyboardInterrupt

    save = callbacks.save_checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "save_checkpoint", stop_after_the_first)
        with pytest.raises(KeyboardInterrupt):
            fit(stopped, digits, epochs=2, checkpoint=tmp_path / "run", **common)
    fit(resumed, digits, epochs=2, checkpoint=tmp_path / "run", **common)
    assert saves == [1] and len(compiled_steps) == 18
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))


def test_an_optimizer_that_was_used_before_may_get_a_schedule(digits):
    """The scheduler would warn that it goes first if no step of the optimizer's own were seen."""
    torch.manual_seed(0)
    model = fuse(sparsify(mask_model(TutorialCNN(), 0.9, seed=0)))
    driver = DynamicSparsity(model, torch.optim.Adam(model.parameters(), lr=1e-3))
    fit(model, digits, epochs=1, sparsity=driver, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(model, digits, epochs=1, sparsity=driver, schedule="onecycle", progress=False)


def test_a_single_sparse_layer_is_trained_by_torch(compiled_steps):
    model = nn.Sequential(SparseLinear(36, 10, sparsity=0.5))
    step = TrainingStep(model, torch.optim.Adam(model.parameters(), lr=0.01))
    losses = [step(x.flatten(1), y)[0] for x, y in [*batches(64)] * 10]
    assert losses[-1] < losses[0] and not compiled_steps
