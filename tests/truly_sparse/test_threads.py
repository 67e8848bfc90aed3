"""Python threads that use layers at once get what each gets alone, with every threading layer that numba can use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tutorial_lib.project import ROOT

PROGRAM = """
import copy, sys, threading
import torch
from torch import nn
from truly_sparse import RigL, DynamicSparsity, SparseLinear, TrainingStep, fuse, sparsify

try:
    import numba
    numba.set_num_threads(2)
except ValueError as error:
    print("not here:", error)
    sys.exit()
torch.set_num_threads(2)
torch.manual_seed(0)
STEPS, THREADS = 8, 4
shared, small = SparseLinear(600, 600, sparsity=0.9), SparseLinear(8, 8, sparsity=0.5)
inputs = [torch.randn(128, 600) for _ in range(THREADS)]
networks = [sparsify(nn.Sequential(nn.Linear(600, 300), nn.ReLU(), nn.Linear(300, 10)), sparsity=0.9)] * THREADS
networks = [fuse(copy.deepcopy(network)) for network in networks]
y = torch.randint(10, (128,))


def work(n, network):
    found = []
    with torch.no_grad():
        found += [shared(inputs[n]) for _ in range(STEPS)] + [small(inputs[n][:, :8])]
    x = inputs[n].clone().requires_grad_()
    for _ in range(STEPS):
        found += torch.autograd.grad(shared(x).square().sum(), (x, shared.values))
    optimizer = torch.optim.Adam(network.parameters())
    step = TrainingStep(network, optimizer)
    driver = DynamicSparsity(network, optimizer, prune_fraction=0.3, every=3, grow="gradient", seed=n)
    for _ in range(STEPS):
        found.append(torch.tensor(step(inputs[n], y)[0]))
        driver.step()
    results[n] = [*found, *network.state_dict().values()]


# Together first: then several threads load the same compiled code at once.
copies, results = copy.deepcopy(networks), {}
threads = [threading.Thread(target=work, args=pair) for pair in enumerate(networks)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
together, results = results, {}
for pair in enumerate(copies):
    work(*pair)
same = [torch.equal(a, b) for n in range(THREADS) for a, b in zip(together[n], results[n], strict=True)]
print(numba.threading_layer(), len(same), all(same))
"""


@pytest.mark.parametrize("layer", ["omp", "tbb", "workqueue"])
def test_threads_do_not_disturb_each_other(layer):
    environment = dict(os.environ, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2", OMP_WAIT_POLICY="PASSIVE")
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    if done.stdout.startswith("not here"):
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stderr[-2000:]
    used, count, same = done.stdout.split()
    assert used == layer and int(count) > 100 and same == "True"
