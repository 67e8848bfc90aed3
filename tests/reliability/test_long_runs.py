"""Long runs: thousands of rewirings without drift or growing memory, and runs that go wrong and say where."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from truly_sparse import RigL, TrainingError, fuse, sparsify, step
from tutorial_lib import fit, load_checkpoint, mask_model
from tutorial_lib.project import ROOT

REWIRINGS = """
import os, sys
import numpy as np
import torch
from torch import nn
from truly_sparse import RigL, SET, SNFS, sparsify
from tutorial_lib import mask_model
from truly_sparse import sparse_layers

torch.set_num_threads(1)
torch.manual_seed(0)
parts = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 20), nn.ReLU(), nn.Linear(20, 4)
model = sparsify(mask_model(nn.Sequential(*parts), 0.7))
layers = list(sparse_layers(model).values())
nnz = [len(layer.values) for layer in layers]
recipe = {"SET": SET(every=1), "RigL": RigL(every=1, until=1.0), "SNFS": SNFS(every=1, until=1.0)}[sys.argv[1]]
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
driver = recipe.attach(model, optimizer, steps_per_epoch=100, total_steps=2001, seed=0)

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1])

def by_input(index):
    \"\"\"The flat places of a linear layer's weights, by its transposed index, in the order of the values.\"\"\"
    places = np.empty(index.nnz, np.int64)
    c = np.repeat(np.tile(np.arange(index.shape[1]), index.blocks), np.diff(index.t_indptr))
    places[index.t_perm] = index.t_rows.astype(np.int64) * index.shape[1] + c
    return torch.from_numpy(places)

for rewiring in range(1, int(sys.argv[2]) + 1):
    optimizer.zero_grad()
    model(torch.randn(8, 1, 8, 8)).square().sum().backward()
    optimizer.step()
    before = [layer.to_dense().flatten() for layer in layers]
    was = [layer.active() for layer in layers]
    assert driver.step()
    for layer, dense, old, count in zip(layers, before, was, nnz):
        active = layer.active()
        assert len(active) == len(layer.values) == count
        assert len(layer.dense_shape) > 2 or torch.equal(by_input(layer.index), active)
        after = layer.to_dense().flatten()
        stayed = active[torch.isin(active, old)]
        assert torch.equal(after[stayed], dense[stayed])
        assert torch.equal(after[active], layer.values.detach()) and int((after != 0).sum()) <= count
    if rewiring == int(sys.argv[2]) // 4:
        early = resident()
print(driver.rewirings, resident() / early)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("recipe", ["SET", "RigL", "SNFS"])
def test_thousands_of_rewirings(recipe, at_length, survived):
    many = at_length(400, 2000)
    command = [sys.executable, "-c", REWIRINGS, recipe, str(many)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rewirings, growth = done.stdout.split()[-2:]
    assert int(rewirings) == many and float(growth) < 1.05
    survived("long runs", int(rewirings))


def small():
    torch.manual_seed(0)
    return fuse(
        sparsify(mask_model(nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, 10)), 0.8))
    )


@pytest.fixture
def by_torch(monkeypatch):
    """Steps are torch's operations, which can be made to go wrong."""
    monkeypatch.setattr(step.TrainingStep, "_compiled", lambda *_: None)


def run(digits, path, lr=1e-3):
    model = small()
    fit(model, digits, epochs=3, lr=lr, sparsity=RigL(every=4), progress=False, checkpoint=path)
    return model.state_dict()


def test_a_loss_that_is_not_a_number_stops_and_the_run_can_go_on(survived, digits, tmp_path, monkeypatch, by_torch):
    whole, steps = run(digits, tmp_path / "whole"), []

    def spoiled(logits, y, **options):
        steps.append(torch.is_grad_enabled())
        loss = F.cross_entropy(logits, y, **options)
        return loss * math.nan if sum(steps) == 8 and steps[-1] else loss

    with monkeypatch.context() as patch:
        patch.setattr(step, "F", type("F", (), {"cross_entropy": staticmethod(spoiled)}))
        with pytest.raises(TrainingError, match=r"loss is nan at step 8 \(epoch 2\)"):
            run(digits, tmp_path / "run")
    assert load_checkpoint(tmp_path / "run")["history"]["seconds"]  # one epoch
    resumed = run(digits, tmp_path / "run")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    survived("long runs")


def test_weights_that_are_not_numbers_are_never_saved(survived, digits, tmp_path, monkeypatch, by_torch):
    """The loss of the epoch's last step is fine; what it does to the weights would show one step later."""
    whole, steps, step = run(digits, tmp_path / "whole"), [], torch.optim.Adam.step

    def spoiled(self, *args, **options):
        steps.append(1)
        if len(steps) == 10:
            self.param_groups[0]["params"][0].grad.fill_(math.inf)
        return step(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", spoiled)
        with pytest.raises(TrainingError, match=r"not finite after step 10 \(epoch 2\)"):
            run(digits, tmp_path / "run")
    resumed = run(digits, tmp_path / "run")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    survived("long runs")


def test_a_loss_that_explodes_says_where(survived, digits):
    with pytest.raises(TrainingError, match=r"step \d+ \(epoch \d\)"):
        fit(small(), digits, epochs=5, lr=1e30, optimizer="sgd", sparsity=RigL(every=2), progress=False)
    survived("long runs")
