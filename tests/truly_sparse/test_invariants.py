"""The fourteen traps of dynamic sparse training: a check for each, and for each check code that it must reject."""

from __future__ import annotations

import functools
import itertools
import math
import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from truly_sparse import (
    CHT,
    DSR,
    ITOP,
    MEST,
    SET,
    SNFS,
    DeepRewiring,
    GradualMagnitudePruning,
    GraNet,
    PerWeightAdam,
    RigL,
    SparseMomentum,
    SRigL,
    Static,
    TopKAST,
    TrainingError,
    densify,
    gradient_grow,
    layer_nnz,
    sparse_init,
    sparsify,
)
from truly_sparse import layers as layers_module
from truly_sparse.topology import to_connections, to_mask
from tutorial_lib import load_checkpoint, mask_model, save_checkpoint

STEPS, EVERY, BATCH, SPARSITY, LR = 20, 4, 16, 0.8, 0.01  # a rewiring would be due at the last step as well
RECIPES = {
    "Static": Static(),
    "SET": SET(0.5, EVERY),
    "RigL": RigL(0.5, EVERY, until=1.0),
    "SNFS": SNFS(0.5, EVERY, until=1.0),
    "GMP": GradualMagnitudePruning(SPARSITY, "uniform", EVERY, until=1.0),
    "ITOP": ITOP(0.5, EVERY, until=1.0),
    "MEST": MEST(0.5, EVERY, until=1.0),
    "CHT": CHT(0.5, EVERY),
    "DSR": DSR(0.5, EVERY, until=1.0, threshold=0.2),
    "SparseMomentum": SparseMomentum(0.5, EVERY),
    "GraNet": GraNet(0.5, EVERY, until=1.0, sparsity=SPARSITY),
    "SRigL": SRigL(0.5, EVERY, until=1.0),
    "DeepR": DeepRewiring(l1=1e-2, temperature=1e-2),
    "Top-KAST": TopKAST(every=EVERY),
}
START = {"GMP": 0.0, "GraNet": 0.5}  # sparsity at the start, where it is another one
EXCHANGING = ("DSR", "SparseMomentum", "GraNet")  # the number of weights of a layer changes, the total is exact
RESIZING = ("GMP", *EXCHANGING)
SINGLE_WEIGHTS = ("SRigL", "DeepR", "Top-KAST", *EXCHANGING)  # no blocks, or none of different sizes as here
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=LR, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=0.1),
    "adam per weight": lambda p: PerWeightAdam(p, lr=LR),
}


# ------------------------------------------------------------------------------------------ one training run


def as_it_is(run: Run) -> None:
    """Leave the library's implementation as it is."""


@dataclass(frozen=True)
class Setup:
    """One combination to check; ``spoil`` turns a run of it into a deliberately wrong one."""

    recipe: str
    kind: str
    optimizer: str
    spoil: Callable[[Run], None] = as_it_is
    structure: tuple[int, int] = (1, 1)

    def __str__(self):
        wrong = [] if self.spoil is as_it_is else [self.spoil.__name__]
        blocks = [] if self.structure == (1, 1) else ["{}x{}".format(*self.structure)]
        return "-".join([self.recipe, self.kind, self.optimizer, *wrong, *blocks])

    def start(self, seed=0):
        return Run(self, seed)


class Run:
    """A training run that has not begun; the seed chooses the initial weights and topology."""

    def __init__(self, setup, seed):
        torch.manual_seed(seed)
        dense = [nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
        nn.init.constant_(dense[1].bias, 0.1)  # so that a channel without weights does not stand on ReLU's edge
        dense = nn.Sequential(*dense, nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        sparsity = START.get(setup.recipe, SPARSITY)
        masked = sparse_init(mask_model(dense, sparsity, seed=seed, structure=setup.structure), seed)
        self.model = masked if setup.kind == "masked" else sparsify(masked)
        self.optimizer = OPTIMIZERS[setup.optimizer](self.model.parameters())
        self.driver = RECIPES[setup.recipe].attach(
            self.model, self.optimizer, steps_per_epoch=STEPS, total_steps=STEPS, seed=0
        )
        self.layers = self.driver.layers
        setup.spoil(self)

    def backward(self, factor=1.0):
        """Compute the gradients of this step's batch and return the loss; ranks see different batches."""
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        rank = torch.distributed.get_rank() if ranks > 1 else 0
        self.optimizer.zero_grad()
        loss = F.cross_entropy(*self.forward(self.driver.steps * ranks + rank)) * factor
        loss.backward()
        if ranks > 1 and not isinstance(self.model, DistributedDataParallel):
            average_over_ranks([parameter.grad for parameter in self.model.parameters()])
        return loss

    def forward(self, batch):
        """Return logits and labels of one batch of scikit-learn's real digits."""
        x, y = real_digits()[batch]
        return self.model(x), y

    def train(self):
        """Take one optimizer step; the driver does not know of it yet."""
        loss = self.backward()
        self.optimizer.step()
        return loss

    def step(self):
        """Take one step and return whether the driver has rewired."""
        self.train()
        return self.driver.step()

    def topology(self):
        return [layer.active() for layer in self.layers.values()]

    def look(self):
        """Return, by layer, which connections are active and all numbers that belong to single connections."""
        return {name: (spread(layer).bool(), self.numbers(layer)) for name, layer in self.layers.items()}

    def numbers(self, layer):
        weight = layer.weight_parameter
        state = {key: s for key, s in self.optimizer.state[weight].items() if s.shape == weight.shape}
        return {key: spread(layer, numbers) for key, numbers in ({"weight": weight} | state).items()}

    def rewirings(self):
        """Train to the end; yield what each rewiring changed: layer, connections and numbers before and after."""
        for _ in range(STEPS):
            self.train()
            before = self.look()
            if self.driver.step():
                yield [(name, *before[name], *after) for name, after in self.look().items()]


@functools.cache
def real_digits():
    """Return the batches, each a tensor of its own."""
    images, labels = map(torch.from_numpy, load_digits(return_X_y=True))
    batches = zip((images.float().view(-1, 1, 8, 8) / 16).split(BATCH), labels.split(BATCH), strict=True)
    return [(x.clone(), y.clone()) for x, y in batches]


def average_over_ranks(gradients):
    """Do what data-parallel training does after each backward pass, in one message."""
    together = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(together)
    together /= torch.distributed.get_world_size()
    for gradient, mean in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def spread(layer, numbers=None):
    """Put one number per weight (by default: 1 per active one) where it belongs in the flat dense weight."""
    if numbers is not None and numbers.shape == layer.dense_shape:
        return numbers.detach().flatten().clone()
    flat = torch.zeros(math.prod(layer.dense_shape))
    flat[layer.active()] = 1.0 if numbers is None else numbers.detach()
    return flat


def fan_in(layer, connections):
    out, *rest = layer.dense_shape
    return torch.bincount(connections // math.prod(rest), minlength=out)


def same(one, other):
    return all(map(torch.equal, one, other))


# ------------------------------------------------------------------------------------------ combinations


def setups(*recipes, optimizers=("sgd", "adam", "adamw")):
    """Combine recipes, kinds of layer and optimizers."""
    return [Setup(*each) for each in itertools.product(recipes, ("masked", "sparse"), optimizers)]


def decade(*recipes):
    """Combine recipes with plain SGD alone: all optimizers are tried with the first recipes."""
    return setups(*recipes, optimizers=("sgd",))


def with_blocks(setups):
    """Add the same in blocks of 2×2 and of 2×1 weights, each with one optimizer."""
    of = {"adam": (2, 2), "sgd": (2, 1)}
    with_them = [each for each in setups if each.optimizer in of and each.recipe not in SINGLE_WEIGHTS]
    return setups + [replace(setup, structure=of[setup.optimizer]) for setup in with_them]


def of_kind(kind, setups):
    return [setup for setup in setups if setup.kind == kind]


def of_fixed_sizes(setups):
    """Return those without truly sparse layers whose number of weights changes: torch sees at once what spoils them."""
    return [setup for setup in setups if setup.kind == "masked" or setup.recipe not in RESIZING]


def spoiled(setups, *variants):
    return [replace(setup, spoil=variant) for variant in variants for setup in setups]


def on(setups):
    return pytest.mark.parametrize("setup", setups, ids=str)


def rejects(check, setup, symptom):
    with pytest.raises(AssertionError, match=symptom):
        check(setup)


FIRST = ("Static", "SET", "RigL", "SNFS", "GMP")
DECADE = [name for name in RECIPES if name not in FIRST]
ALL = setups(*FIRST) + decade(*DECADE)
WALKING = decade("DeepR", "Top-KAST")  # they move weights in a rewiring, too
REWIRING = setups("SET", "RigL", "SNFS", "GMP") + decade(*DECADE[:-2])  # the static topology never changes
# Gradual pruning grows nothing, SRigL by a rule of its own, and what Top-KAST grows has kept its value by design.
GROWING = setups("SET", "RigL", "SNFS") + decade("MEST", "CHT", *EXCHANGING)
BY_GRADIENT = setups("RigL", "SNFS") + decade("SparseMomentum", "GraNet")  # growth of the others sees no gradient


def change_plans(run, change):
    """Let every layer of a run rewire by ``change(layer, kept, grown, values)`` in place of what it was told."""
    for layer in run.layers.values():
        original = layer.rewire
        layer.rewire = lambda *plan, layer=layer, original=original: original(*change(layer, *plan))


def state_is_left_alone(run):
    """Rewires without telling the optimizer."""
    run.driver._carry_optimizer_state = lambda *_: None


# ------------------------------------------------------------------------------------------ 1


def check_masked_weights_never_move(setup):
    run = setup.start()
    for _ in range(STEPS):
        run.step()
        for name, layer in run.layers.items():
            stored = spread(layer, layer.weight_parameter)
            stored[layer.active()] = 0
            assert not stored.any(), f"{name}: a masked weight moved"


def gradient_is_not_masked(run):
    """Computes with masked weights, but lets the dense gradient through to the weight."""
    for layer in run.layers.values():
        layer.masked_weight = lambda w=layer.weight, layer=layer: w + (w * layer.mask - w).detach()


@on(with_blocks(ALL))
def test_masked_weights_never_move(setup):
    check_masked_weights_never_move(setup)


# Only masked layers store weights that could move; under a static mask there is no momentum from before.
@on(spoiled(of_kind("masked", ALL), gradient_is_not_masked) + spoiled(of_kind("masked", REWIRING), state_is_left_alone))
def test_masked_weights_that_move_are_noticed(setup):
    rejects(check_masked_weights_never_move, setup, "a masked weight moved")


# ------------------------------------------------------------------------------------------ 2


def check_grown_weights_start_afresh(setup):
    run, regrown = setup.start(), 0
    largest = 6 * run.driver.grow.initial_std
    last = {name: torch.zeros(math.prod(layer.dense_shape)) for name, layer in run.layers.items()}
    for changes in run.rewirings():
        for name, was, old, now, new in changes:
            last[name][was] = old["weight"][was]
            grown = now & ~was
            weight = new.pop("weight")[grown]
            woke = (weight == last[name][grown]) & (weight != 0)
            assert not woke.any() and (weight.abs() <= largest).all(), f"{name}: a grown weight has its old value"
            assert new and not any(state[grown].any() for state in new.values()), f"{name}: a grown weight has moments"
            regrown += int((last[name][grown] != 0).sum())
    assert regrown, "no weight grew where one had been: nothing could be seen"


def values_are_remembered(run):
    """Keeps pruned weights in the dark, as a mask over a dense weight does that is never written to."""
    memory = {layer: torch.zeros(math.prod(layer.dense_shape)) for layer in run.layers.values()}

    def wake(layer, kept, grown, values):
        memory[layer][layer.active()] = layer.active_values()
        return kept, grown, torch.where(memory[layer][grown] != 0, memory[layer][grown], values)

    change_plans(run, wake)


@on(with_blocks(GROWING))
def test_grown_weights_start_afresh(setup):
    check_grown_weights_start_afresh(setup)


@on(spoiled(GROWING, values_are_remembered))
def test_weights_that_wake_up_with_their_old_value_are_noticed(setup):
    rejects(check_grown_weights_start_afresh, setup, "a grown weight has its old value")


@on(spoiled(GROWING, state_is_left_alone))
def test_weights_that_wake_up_with_old_moments_are_noticed(setup):
    rejects(check_grown_weights_start_afresh, setup, "a grown weight has moments")


# ------------------------------------------------------------------------------------------ 3


def check_a_grown_weight_steps_like_a_new_one(setup):
    run, moved = setup.start(), []
    run.step()
    for state in run.optimizer.state.values():
        for count in state.keys() & {"step", "age"}:
            state[count] += 10_000  # as if trained for that long
    for changes in run.rewirings():
        run.train()
        for name, was, _, now, new in changes:
            layer = run.layers[name]
            gradient = spread(layer, layer.weight_parameter.grad)
            if setup.optimizer == "sgd":
                right = LR * (gradient + 0.1 * new["weight"]).abs()  # fresh momentum is this step's gradient
            else:
                right = torch.full_like(gradient, LR)  # Adam's first step, whatever the gradient
            step = (spread(layer, layer.weight_parameter) - new["weight"]).abs()
            seen = now & ~was & (gradient.abs() > 1e-4)
            moved.append((step / right)[seen])
        off = (torch.cat(moved) - 1).abs()
        assert off.max() < 0.01, f"a first step {torch.cat(moved)[off.argmax()]:.1f} times as long as a new weight's"
    assert len(torch.cat(moved)), "no grown weight had a gradient: nothing could be seen"


# torch's Adam and AdamW correct moments by a count of the whole tensor: here they are the wrong variants.
@on(setups("SET", "RigL", "SNFS", optimizers=["sgd", "adam per weight"]))
def test_a_grown_weight_steps_like_a_new_one(setup):
    check_a_grown_weight_steps_like_a_new_one(setup)


@on(setups("SET", "RigL", "SNFS", optimizers=["adam", "adamw"]))
def test_first_steps_that_are_too_large_are_noticed(setup):
    rejects(check_a_grown_weight_steps_like_a_new_one, setup, r"a first step 3\.2 times")


@on(spoiled(setups("SET", "RigL", "SNFS", optimizers=["sgd"]), state_is_left_alone))
def test_first_steps_by_old_momentum_are_noticed(setup):
    rejects(check_a_grown_weight_steps_like_a_new_one, setup, "a first step .* times")


# ------------------------------------------------------------------------------------------ 4


def check_numbers_stay_with_their_weight(setup):
    for changes in setup.start().rewirings():
        for name, was, old, now, new in changes:
            kept = was & now
            assert len(old) > 1, f"{name}: the optimizer has no state"
            for key in old:
                assert torch.equal(old[key][kept], new[key][kept]), f"{name}: {key} landed on another weight"


@on(with_blocks(REWIRING))
def test_optimizer_state_stays_with_its_weight(setup):
    check_numbers_stay_with_their_weight(setup)


# In a masked layer a slot belongs to one connection for ever.
@on(spoiled(of_kind("sparse", of_fixed_sizes(REWIRING)), state_is_left_alone))
def test_state_that_stays_in_its_slot_is_noticed(setup):
    rejects(check_numbers_stay_with_their_weight, setup, "landed on another weight")


# ------------------------------------------------------------------------------------------ 5


def check_a_resumed_run_trains_the_same_network(setup):
    run, resumed = setup.start(seed=0), setup.start(seed=1)
    while run.driver.steps < EVERY:  # right after a rewiring, where every driver is at rest
        run.step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        save_checkpoint(path, model=run.model, optimizer=run.optimizer, driver=run.driver)
        load_checkpoint(path, model=resumed.model, optimizer=resumed.optimizer, driver=resumed.driver)
    for _ in range(2 * EVERY):
        run.step(), resumed.step()
    assert same(run.topology(), resumed.topology()), "the resumed run trains another topology"
    assert same(run.model.parameters(), resumed.model.parameters()), "the resumed run ends with other weights"


def topology_is_not_saved(run):
    """Saves weights only, and takes whatever topology it finds for that of the weights it loads."""
    save, load = run.model.state_dict, run.model.load_state_dict
    run.model.state_dict = lambda: {key: v for key, v in save().items() if not key.endswith(("mask", "_extra_state"))}
    run.model.load_state_dict = functools.partial(load, strict=False)


@on(with_blocks(ALL))
def test_a_resumed_run_trains_the_same_network(setup):
    check_a_resumed_run_trains_the_same_network(setup)


@on(spoiled(of_fixed_sizes(ALL), topology_is_not_saved))
def test_a_topology_that_is_not_saved_is_noticed(setup):
    rejects(check_a_resumed_run_trains_the_same_network, setup, "trains another topology|ends with other weights")


# ------------------------------------------------------------------------------------------ 6


def check_nnz_is_exact(setup):
    run = setup.start()
    expected = {name: len(layer.active()) for name, layer in run.layers.items()}
    total = sum(expected.values())
    for _ in range(STEPS):
        run.train()
        for layer in run.layers.values():
            layer.set_active_values(torch.where(layer.active_values() < 0, -0.1, 0.1))  # no threshold can part ties
        if run.driver.step() and setup.recipe == "GMP":
            left = 1 - min(run.driver.steps / run.driver.until, 1)
            expected = layer_nnz(run.model, SPARSITY * (1 - left**3))
        nnz = {name: len(layer.active()) for name, layer in run.layers.items()}
        if setup.recipe == "GraNet" and (run.driver.steps % EVERY == 0 or run.driver.steps == run.driver.until):
            left = 1 - min(run.driver.steps / run.driver.until, 1)
            size = sum(math.prod(layer.dense_shape) for layer in run.layers.values())
            total = round((1 - SPARSITY - (START["GraNet"] - SPARSITY) * left**3) * size)
        exact = sum(nnz.values()) == total if setup.recipe in EXCHANGING else nnz == expected
        assert exact, "nnz drifted"


def growth_is_bernoulli(run):
    """Grows each inactive connection with the probability that gives the right number on average."""

    def draw(layer, kept, grown, values):
        free = (spread(layer) == 0).nonzero().squeeze(1)
        drawn = free[torch.rand(len(free)) < len(grown) / len(free)]
        return kept, drawn, torch.zeros(len(drawn))

    change_plans(run, draw)


def pruning_is_by_threshold(run):
    """Prunes every weight up to the largest one that has to go."""

    def cut(layer, kept, grown, values):
        size = spread(layer, layer.active_values()).abs()
        pruned = layer.active()[~torch.isin(layer.active(), kept)]
        return kept[size[kept] > size[pruned].max()] if len(pruned) else kept, grown, values

    change_plans(run, cut)


@on(with_blocks(ALL))
def test_nnz_is_exact(setup):
    check_nnz_is_exact(setup)


@on(spoiled(GROWING, growth_is_bernoulli) + spoiled(REWIRING, pruning_is_by_threshold))
def test_nnz_that_drifts_is_noticed(setup):
    rejects(check_nnz_is_exact, setup, "nnz drifted")


# ------------------------------------------------------------------------------------------ 7


def check_growth_follows_the_dense_gradient(setup):
    run = setup.start()
    score = dict.fromkeys(run.layers, 0.0)
    for _ in range(STEPS):
        for name, gradient in dense_gradients(run).items():
            score[name] = run.driver.grow.momentum * score[name] + gradient
        run.train()
        before = run.look()
        if not run.driver.step():
            continue
        for name, (now, _) in run.look().items():
            was, size = before[name][0], norms(run.layers[name], score[name])
            grown, passed_over = size[~was & now], size[~was & ~now]
            missed = (
                len(grown) and len(passed_over) and grown.min() < passed_over.max() * (1 - 1e-3)
            )  # sums differ in their last bits
            assert not missed, f"{name}: growth missed the largest gradients"
        score = dict.fromkeys(run.layers, 0.0)


def norms(layer, numbers):
    """Return for each number of a flat dense weight the norm of its block."""
    (rows, columns), (out, inputs, *kernel) = layer.structure, layer.dense_shape
    blocks = numbers.view(out // rows, rows, inputs // columns, columns, math.prod(kernel))
    return blocks.square().sum((1, 3), keepdim=True).sqrt().expand_as(blocks).flatten()


def dense_gradients(run):
    """Return the gradient of this step's loss for every connection, active or not, by plain autograd."""
    dense = Run.__new__(Run)
    dense.model, dense.driver = densify(run.model), run.driver
    dense.optimizer = torch.optim.SGD(dense.model.parameters())
    dense.backward()
    return {name: dense.model.get_submodule(name).weight.grad.flatten() for name in run.layers}


def growth_sees_the_masked_gradient(run):
    """Ranks connections by the gradient of the stored weight, which is zero wherever something could grow."""
    for layer in run.layers.values():
        layer.gradient_rows = lambda layer=layer: [spread(layer, layer.weight_parameter.grad)[None]]


@on(with_blocks(BY_GRADIENT))
def test_growth_follows_the_dense_gradient(setup):
    check_growth_follows_the_dense_gradient(setup)


@on(spoiled(BY_GRADIENT, growth_sees_the_masked_gradient))
def test_growth_by_the_masked_gradient_is_noticed(setup):
    rejects(check_growth_follows_the_dense_gradient, setup, "growth missed the largest gradients")


# ------------------------------------------------------------------------------------------ 8


def check_neurons_gain_and_lose_connections(setup):
    run = setup.start()
    before = {name: fan_in(layer, layer.active()) for name, layer in run.layers.items()}
    for _ in range(STEPS):
        run.step()
    for name, layer in run.layers.items():
        if len(layer.active()) < 5 * layer.structure.area:
            continue  # too few blocks to tell
        assert not torch.equal(fan_in(layer, layer.active()), before[name]), f"{name}: every neuron's fan-in is frozen"


def growth_is_per_row(run):
    """Grows as many connections in each row as were pruned there."""

    def balance(layer, kept, grown, values):
        free = (spread(layer) == 0).nonzero().squeeze(1)
        rows = free // math.prod(layer.dense_shape[1:])
        lost = fan_in(layer, layer.active()) - fan_in(layer, kept)
        return kept, torch.cat([free[rows == row][:count] for row, count in enumerate(lost.tolist())]), values

    change_plans(run, balance)


@on(with_blocks(GROWING))
def test_neurons_gain_and_lose_connections(setup):
    check_neurons_gain_and_lose_connections(setup)


@on(spoiled([each for each in GROWING if each.recipe not in EXCHANGING], growth_is_per_row))
def test_growth_per_row_is_noticed(setup):
    rejects(check_neurons_gain_and_lose_connections, setup, "every neuron's fan-in is frozen")


# ------------------------------------------------------------------------------------------ 9


def check_the_evaluated_topology_has_been_trained(setup):
    run = setup.start()
    for _ in range(STEPS):
        run.train()
        trained = run.topology()
        run.driver.step()
    assert same(trained, run.topology()), "rewired after the last step"


def driver_never_ends(run):
    """Rewires at regular intervals, whenever the training ends."""
    run.driver._due = lambda step: step % EVERY == 0
    run.driver.decay = lambda progress: 1.0  # the cosine would let the last rewiring replace nothing


@on(with_blocks(ALL))
def test_the_evaluated_topology_has_been_trained(setup):
    check_the_evaluated_topology_has_been_trained(setup)


@on(spoiled(REWIRING + WALKING, driver_never_ends))
def test_rewiring_after_the_last_step_is_noticed(setup):
    rejects(check_the_evaluated_topology_has_been_trained, setup, "rewired after the last step")


# ------------------------------------------------------------------------------------------ 10


def check_nothing_changes_on_gradients_that_are_no_numbers(setup):
    run = setup.start()
    while run.driver.steps < 2 * EVERY - 1:
        run.step()
    run.backward(math.nan)
    if setup not in BY_GRADIENT:  # for these the weights stay finite, as if a gradient scaler had skipped the step
        run.optimizer.step()
    before, refused = run.topology(), False
    try:
        run.driver.step()
    except TrainingError:
        refused = True
    assert same(before, run.topology()), "the topology changed on gradients that are no numbers"
    assert refused, "gradients that are no numbers were passed over in silence"


def numbers_are_made_up(run):
    """Takes what is not a number for zero."""
    for layer in run.layers.values():
        layer.active_values = lambda get=layer.active_values: get().nan_to_num()
        layer.gradient_rows = lambda get=layer.gradient_rows: [block.nan_to_num() for block in get()]


@on(with_blocks(REWIRING) + WALKING)
def test_nothing_changes_on_gradients_that_are_no_numbers(setup):
    check_nothing_changes_on_gradients_that_are_no_numbers(setup)


# MEST and sharing by momentum read the gradient of active connections in a second way, which refuses.
@on(spoiled([each for each in REWIRING if each.recipe not in ("MEST", "SparseMomentum")], numbers_are_made_up))
def test_rewiring_on_gradients_that_are_no_numbers_is_noticed(setup):
    rejects(check_nothing_changes_on_gradients_that_are_no_numbers, setup, "the topology changed on gradients")


# ------------------------------------------------------------------------------------------ 11


def check_ranks_walk_alike(walks):
    one, other = walks
    assert one["losses"] != other["losses"], "both ranks saw the same batches: nothing could be seen"
    assert all(map(same, one["topologies"], other["topologies"])), "the ranks walk through different topologies"


def every_rank_draws_for_itself(run):
    """Seeds each rank's generator with its number and grows by the gradient of its own batch."""
    run.driver.generator.manual_seed(torch.distributed.get_rank())
    if run.driver.grow.gradient_steps:
        run.driver.grow = replace(
            run.driver.grow, choose=lambda layer, active, count, _: gradient_grow(layer.gradient_rows(), active, count)
        )


TWO_RANKS = with_blocks(of_fixed_sizes(ALL))
TWO_RANKS_ALONE = spoiled(
    of_fixed_sizes(GROWING), every_rank_draws_for_itself
)  # where nothing grows, nothing is drawn on the way


def through_ddp(run):
    """Trains through torch's wrapper, which averages the gradients and broadcasts the buffers."""
    run.model = DistributedDataParallel(run.model)


THROUGH_DDP = spoiled(with_blocks(setups("SET", "RigL", optimizers=("adam",))), through_ddp)


def walk(setup):
    run, losses, topologies = setup.start(), [], []
    for _ in range(3 * EVERY):
        losses.append(run.train().item())
        if run.driver.step():
            topologies.append(run.topology())
    return {"losses": losses, "topologies": [*topologies, run.topology()]}


def walk_on_rank(rank, folder):
    """What each of the two processes does: train in all combinations, one after the other."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/store", timeout=timedelta(seconds=60), rank=rank, world_size=2
    )
    torch.save({str(setup): walk(setup) for setup in TWO_RANKS + TWO_RANKS_ALONE + THROUGH_DDP}, f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def walks(tmp_path_factory, processes):
    """For every combination, how each of two processes walked that train it together."""
    folder = tmp_path_factory.mktemp("ranks")
    ranks = [processes.Process(target=walk_on_rank, args=(rank, folder)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0, 0]
    one, other = (torch.load(folder / str(rank), weights_only=True) for rank in range(2))
    return {name: (one[name], other[name]) for name in one}


@on(THROUGH_DDP)
def test_ranks_walk_alike_through_torchs_wrapper(setup, walks):
    check_ranks_walk_alike(walks[str(setup)])
    for wrapped, by_hand in zip(walks[str(setup)], walks[str(replace(setup, spoil=as_it_is))], strict=True):
        assert wrapped["losses"] == pytest.approx(by_hand["losses"], rel=1e-4)
        assert all(map(same, wrapped["topologies"], by_hand["topologies"]))


@on(TWO_RANKS)
def test_ranks_walk_alike(setup, walks):
    check_ranks_walk_alike(walks[str(setup)])


@on(TWO_RANKS_ALONE)
def test_ranks_that_draw_for_themselves_are_noticed(setup, walks):
    rejects(check_ranks_walk_alike, walks[str(setup)], "different topologies")


# ------------------------------------------------------------------------------------------ 12


def check_weights_are_drawn_with_the_right_deviation(setup):
    run = setup.start()
    # U(−1 / √fan_in, 1 / √fan_in) has the variance 1 / (3 fan_in); every weight divided by its root has deviation 1.
    standard = torch.cat([layer.active_values() / right_deviation(layer) for layer in run.layers.values()]).std()
    assert 0.85 < standard < 1.15, f"initial weights have {standard:.2f} times the right deviation"
    if setup.recipe == "SET":  # the other recipes draw no weight later on
        changes = itertools.chain.from_iterable(run.rewirings())
        grown = torch.cat([new["weight"][now & ~was] for _, was, _, now, new in changes]).std()
        assert 0.009 < grown < 0.011, f"new weights have deviation {grown:.4f}, not 0.01"


def right_deviation(layer):
    """Return the right standard deviation of each active weight."""
    rows = layer.active() // math.prod(layer.dense_shape[1:])
    return (1 / (3 * fan_in(layer, layer.active())[rows])).sqrt()


def initial_deviation_is_the_variance(run):
    """Draws from a distribution whose deviation is 1 / (3 fan_in)."""
    for layer in run.layers.values():
        layer.set_active_values(layer.active_values() * right_deviation(layer))


def growth_takes_the_deviation_for_the_variance(run):
    """Draws new weights from N(0, 0.01)."""
    run.driver.grow = replace(run.driver.grow, initial_std=run.driver.grow.initial_std**0.5)


@on(with_blocks(ALL))
def test_weights_are_drawn_with_the_right_deviation(setup):
    check_weights_are_drawn_with_the_right_deviation(setup)


@on(spoiled(ALL, initial_deviation_is_the_variance))
def test_a_variance_for_a_deviation_is_noticed(setup):
    rejects(check_weights_are_drawn_with_the_right_deviation, setup, r"initial weights have 0\.\d+ times")


@on(spoiled(setups("SET"), growth_takes_the_deviation_for_the_variance))
def test_a_deviation_for_a_variance_is_noticed(setup):
    rejects(check_weights_are_drawn_with_the_right_deviation, setup, r"new weights have deviation 0\.(1|09)")


# ------------------------------------------------------------------------------------------ 13


def check_no_dense_weight_anywhere(setup):
    run, _ = setup.start(), real_digits()  # loaded by now, so that they are not seen below
    dense = max(math.prod(layer.dense_shape) for layer in run.layers.values())
    with (
        mock.patch.object(layers_module, "GRADIENT_BLOCK", dense // 2),
        LargestTensor() as seen,
    ):  # its documented bound
        for _ in range(2 * EVERY):
            logits, _ = run.forward(0)  # its graph still holds what a backward pass would read
            held = reachable((run.model, run.optimizer.state, logits.grad_fn), set())
            kept = max(part.size for part in held if part.dtype != np.uint8)
            assert kept < dense, f"a dense weight is kept: {kept} numbers"
            run.step()
            assert seen.numel < dense, f"a dense weight was made on the way: {seen.numel} numbers"


class LargestTensor(TorchDispatchMode):
    """Sees every tensor that an operation of torch reads or makes, and remembers the size of the largest one.

    Plain bytes do not count, here and above: the kernels keep a batch's activations in them.
    """

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, result)) if torch.is_tensor(x) and x.dtype != torch.uint8]
        self.numel = max([self.numel, *(x.numel() for x in tensors)])
        return result


def reachable(thing, seen):
    """Yield all arrays that modules, dictionaries, sequences and autograd graphs lead to, tensors as arrays too."""
    if id(thing) in seen or isinstance(thing, type(os)):
        return
    seen.add(id(thing))
    if torch.is_tensor(thing):
        yield thing.detach().numpy()
        parts = [thing.grad if thing.is_leaf else None, thing.grad_fn]
    elif isinstance(thing, np.ndarray):
        yield thing
        parts = []
    elif isinstance(thing, dict):
        parts = thing.values()
    elif isinstance(thing, (list, tuple, set)):
        parts = thing
    else:
        parts = [getattr(thing, name) for name in dir(thing) if name.startswith("_saved") or name == "next_functions"]
        parts += [getattr(thing, "saved_tensors", ()), getattr(thing, "__dict__", {})]
    for part in parts:
        yield from reachable(part, seen)


def a_dense_copy_is_kept(run):
    """Keeps the dense weight beside the sparse one."""
    for layer in run.layers.values():
        layer.dense = layer.to_dense()


def forward_is_dense(run):
    """Multiplies by a dense weight that is made for each pass."""
    layer = run.model[4]
    layer.forward = lambda x: F.linear(x, torch.zeros(2048).index_put((layer.active(),), layer.values).view(32, 64))


def places_are_looked_up_in_a_mask(run):
    """Rewires by way of a dense mask."""
    change_plans(run, lambda layer, kept, *grown: (to_connections(to_mask(kept, layer.dense_shape)), *grown))


# Masked layers are a simulation: they hold a dense weight, and say so. Top-KAST keeps all weights, on the side, and
# gradual pruning begins with all.
TRULY_SPARSE = [setup for setup in of_kind("sparse", ALL) if setup.recipe not in ("Top-KAST", "GMP")]


@on(TRULY_SPARSE)
def test_no_dense_weight_anywhere(setup):
    check_no_dense_weight_anywhere(setup)


@on(spoiled(TRULY_SPARSE, a_dense_copy_is_kept, forward_is_dense))
def test_a_dense_weight_that_is_kept_is_noticed(setup):
    rejects(check_no_dense_weight_anywhere, setup, "a dense weight is kept: 2048 numbers")


@on(spoiled([each for each in of_kind("sparse", REWIRING) if each in TRULY_SPARSE], places_are_looked_up_in_a_mask))
def test_a_dense_mask_on_the_way_is_noticed(setup):
    rejects(check_no_dense_weight_anywhere, setup, "a dense weight was made on the way: 2048 numbers")


# ------------------------------------------------------------------------------------------ 14


def check_biases_and_norms_stay_dense(setup):
    run = setup.start()
    for _ in range(STEPS):
        run.step()
    weights = {f"{name}.{key}" for name in run.layers for key in ("weight", "values")}
    others = {name: p for name, p in run.model.named_parameters() if name not in weights}
    sizes = {"0.bias": 4, "1.weight": 4, "1.bias": 4, "4.bias": 32, "6.bias": 10}
    assert {name: p.numel() for name, p in others.items()} == sizes, "a bias or norm lost entries"
    assert all(p.all() for p in others.values()), "a bias or norm has zeros"


def everything_is_masked(run):
    """Masks half of every parameter, for ever, whatever it belongs to."""
    for parameter in run.model.parameters():
        mask = torch.arange(len(parameter)).view(-1, *[1] * (parameter.dim() - 1)) % 2
        parameter.data *= mask
        parameter.register_hook(lambda gradient, mask=mask: gradient * mask)


@on(with_blocks(ALL))
def test_biases_and_norms_stay_dense(setup):
    check_biases_and_norms_stay_dense(setup)


@on(spoiled(of_fixed_sizes(ALL), everything_is_masked))
def test_sparse_biases_and_norms_are_noticed(setup):
    rejects(check_biases_and_norms_stay_dense, setup, "a bias or norm has zeros")
