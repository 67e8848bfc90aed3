"""What a call, a rewiring and the first compilation cost, and the bare product of every size and batch.

``bench.py`` runs these rows; ``python benchmarks/calls.py`` prints them alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from truly_sparse import (
    SET,
    DynamicSparsity,
    RigL,
    SparseConv2d,
    SparseLinear,
    Static,
    TrainingStep,
    fuse,
    sparsify,
    warmup,
)
from truly_sparse.cpu import chain, entry, passes, program, threads, workspace
from truly_sparse.cpu.memory import to_batch_innermost
from truly_sparse.eager import run_eagerly
from truly_sparse.ops import parameters_of, run, stages_in
from tutorial_lib import Benchmark, Digits, TutorialCNN, benchmark, fit, load_data, torch_csr

SIZES, BATCHES = (256, 512, 1000, 2048, 4096), (1, 16, 64, 256)
EVERY = 10  # steps between the measured rewirings


def product_map(sizes: tuple[int, ...], batches: tuple[int, ...], runs: int) -> pd.DataFrame:
    """Return microseconds of one 95% sparse square product without gradients, by size and batch.

    Each gets its input as it likes it best. Dense: the faster of batch first and feature-major. Torch CSR:
    feature-major, one sample as a vector, which is twice as fast as a matrix of one column. This project: batch
    innermost.
    """
    rows = []
    for size, batch in tqdm([(s, b) for s in sizes for b in batches], desc="products", disable=None):
        torch.manual_seed(0)
        ours = SparseLinear(size, size, sparsity=0.95, bias=False)
        weight = ours.to_dense()
        csr, x = torch_csr(weight), torch.randn(batch, size)
        by_feature, innermost = x.T.contiguous(), x if batch == 1 else to_batch_innermost(x)
        rows.append({"size": size, "batch": batch} | _products(weight, csr, ours, x, by_feature, innermost, runs))
    return pd.DataFrame(rows)


@torch.no_grad()
def _products(
    weight: torch.Tensor,
    csr: torch.Tensor,
    ours: nn.Module,
    x: torch.Tensor,
    by_feature: torch.Tensor,
    innermost: torch.Tensor,
    runs: int,
) -> dict[str, float]:
    candidates = {
        "batch first": lambda: F.linear(x, weight),
        "feature-major": lambda: (weight @ by_feature).T,
        "torch CSR": lambda: (csr @ x[0])[None] if len(x) == 1 else (csr @ by_feature).T,
        "ours": lambda: ours(innermost),
    }
    timed = benchmark(candidates, runs=runs, warmup=5, tolerance=1e-3)
    dense = min(timed.median(name) for name in ("batch first", "feature-major"))
    return {"dense": 1e6 * dense} | {name: 1e6 * timed.median(name) for name in ("torch CSR", "ours")}


def call_costs(runs: int) -> dict[str, dict[str, float]]:
    """Return microseconds of a small layer's call beside torch's own layer: 64×64 with batch 8, 8 channels of 6×6."""
    torch.manual_seed(0)
    kinds: dict[str, tuple[nn.Module, nn.Module, torch.Tensor]] = {
        "linear": (nn.Linear(64, 64), SparseLinear(64, 64, sparsity=0.95), torch.randn(8, 64)),
        "convolution": (nn.Conv2d(8, 8, 3), SparseConv2d(8, 8, 3, sparsity=0.95), torch.randn(8, 8, 6, 6)),
    }
    result = {}
    for kind, (dense, sparse, x) in kinds.items():
        for layout, given in (("batch first", x), ("batch innermost", to_batch_innermost(x))):
            forward = {"torch": (dense, x), "ours": (sparse, given)}
            with torch.no_grad():
                result[f"{kind}, {layout}"] = _medians({n: _forward(*of) for n, of in forward.items()}, runs)
            both = {name: _both(layer, of) for name, (layer, of) in forward.items()}
            result[f"{kind}, {layout}, with gradients"] = _medians(both, runs)
    return result


def _forward(layer: nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    return lambda: layer(x)


def _both(layer: nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    x = x.detach().requires_grad_()
    gradient = torch.ones_like(layer(x))
    return lambda: layer(x).backward(gradient)


def _medians(calls: dict[str, Callable[[], Any]], runs: int) -> dict[str, float]:
    """Return median microseconds of calls that are too short for ``benchmark``, taken in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            call()
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e6 * float(np.median(times)) for name, times in seconds.items()}


def call_path() -> dict[str, float]:
    """Return the microseconds of each part of a call without gradients: ``SparseLinear(64, 64)``, 8 samples."""
    torch.manual_seed(0)
    layer, x = SparseLinear(64, 64, sparsity=0.95), torch.randn(8, 64)
    stages, parameters = stages_in((layer,)), parameters_of((layer,))
    contiguous = False, False
    prepared = program.forward_program(stages, x, contiguous, remember=False)
    work, y = workspace.take(prepared, threads.use_threads()), prepared.empty_result()
    places, _alive = entry.addresses(stages, parameters, with_bias=True)

    def use_workspace() -> None:
        workspace.give_back(prepared, workspace.take(prepared, work.threads))

    parts = {
        "layer(x)": lambda: layer(x),
        "ops.run": lambda: run(x, (layer,)),
        "eager.run_eagerly": lambda: run_eagerly(x, stages, (layer,), parameters),
        "cpu.chain.forward, of which": lambda: chain.forward(x, stages, parameters),
        "entry.readable: check the input": lambda: entry.readable(x),
        "entry.addresses: check the parameters": lambda: entry.addresses(stages, parameters, with_bias=True),
        "program.forward_program: find the program": lambda: program.forward_program(
            stages, x, contiguous, remember=False
        ),
        "threads.use_threads": threads.use_threads,
        "Program.empty_result: make the result": prepared.empty_result,
        "workspace.take, give_back": use_workspace,
        "workspace.fill_in: write the addresses": lambda: workspace.fill_in(
            work.frame, ((program.X, x), (program.Y, y)), places
        ),
        "passes.run_pass: compiled code": lambda: passes.run_pass(prepared.address, work.frame, work.threads),
    }
    with torch.no_grad():
        return {name: 1e6 * min(timeit.repeat(part, number=3000, repeat=5)) / 3000 for name, part in parts.items()}


def rewirings(data: Digits, steps: int) -> dict[str, dict[str, float]]:
    """Return milliseconds of the tutorial's CNN at 95% (ERK), by growth rule: steps, and the rewiring between them."""
    return {grow: _rewiring(data, grow, steps) for grow in ("gradient", "sampled gradient", "random")}


def _rewiring(data: Digits, grow: str, steps: int) -> dict[str, float]:
    torch.manual_seed(0)
    model = fuse(sparsify(TutorialCNN(), sparsity=0.95, scheme="erk", seed=0))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    step = TrainingStep(model, optimizer)
    driver = DynamicSparsity(model, optimizer, prune_fraction=0.3, every=EVERY, grow=grow)
    of_step: list[list[float]] = [[] for _ in range(EVERY)]
    of_driver: list[float] = []
    for n in range(steps):
        first = n * 64 % (len(data.train_x) - 63)
        x, y = data.train_x[first : first + 64], data.train_y[first : first + 64]
        start = time.perf_counter()
        step(x, y)
        middle = time.perf_counter()
        rewired = driver.step()
        of_step[n % EVERY].append(middle - start)
        if rewired:
            of_driver.append(time.perf_counter() - middle)
    after, *plain, recording = (1e3 * float(np.median(times[1:])) for times in of_step)
    row = {"plain step": float(np.median(plain)), "step before": recording, "step after": after}
    row["rewiring"] = 1e3 * float(np.median(of_driver))
    return row | {"costs": row["rewiring"] + recording + after - 2 * row["plain step"]}


def large_rewirings(size: int, runs: int) -> dict[str, float]:
    """Return milliseconds of a 95% sparse ``size``² layer: forward and backward of 64 samples, and its rewirings."""
    torch.manual_seed(0)
    layer = SparseLinear(size, size, sparsity=0.95)
    x, result = torch.randn(64, size), {}
    for grow in ("gradient", "sampled gradient"):
        optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
        driver = DynamicSparsity(nn.Sequential(layer), optimizer, prune_fraction=0.3, every=1, grow=grow)
        passes_, rewiring = [], []
        for _ in range(runs + 1):
            start = time.perf_counter()
            layer(x).square().mean().backward()
            middle = time.perf_counter()
            driver.step()
            passes_.append(middle - start)
            rewiring.append(time.perf_counter() - middle)
        result["forward and backward, recording"] = 1e3 * float(np.median(passes_[1:]))
        result[grow] = 1e3 * float(np.median(rewiring[1:]))
    return result


def as_it_comes(x: torch.Tensor, y: torch.Tensor, runs: int) -> dict[str, Benchmark]:
    """Time the tutorial's CNN at 95% (ERK) as ``sparsify`` leaves it, beside dense and fused: inference and a step."""
    torch.manual_seed(0)
    dense = TutorialCNN()
    sparse = sparsify(dense, sparsity=0.95, scheme="erk", seed=0)
    networks = {"dense channels_last": dense.to(memory_format=torch.channels_last), "as it comes": sparse}
    networks["fused"] = fuse(sparse)
    images = x[:64]

    def stepper(network: nn.Module) -> Callable[[], float]:
        optimizer = torch.optim.Adam(network.parameters(), fused=True)

        def step() -> float:
            optimizer.zero_grad()
            F.cross_entropy(network(images), y[:64]).backward()
            optimizer.step()
            return 0.0

        return step

    @torch.no_grad()
    def infer(network: nn.Module) -> float:
        network(x)
        return 0.0

    inference = {name: lambda n=network: infer(n) for name, network in networks.items()}
    steps = {name: stepper(network) for name, network in networks.items()}
    return {
        "inference, as it comes": benchmark(inference, runs=runs, warmup=5),
        "training step, as it comes": benchmark(steps, runs=runs, warmup=5),
    }


def shares_as_it_comes(x: torch.Tensor, y: torch.Tensor, steps: int) -> dict[str, float]:
    """Return the largest shares, by torch's profiler, of a training step of the tutorial's CNN as it comes."""
    torch.manual_seed(0)
    network = sparsify(TutorialCNN(), sparsity=0.95, scheme="erk", seed=0)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(x[:64]), y[:64]).backward()
        optimizer.step()

    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        for _ in range(steps):
            step()
    own = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    largest = sorted(own, key=own.__getitem__, reverse=True)[:7]
    return {name: own[name] / sum(own.values()) for name in largest}


def whole_trainings(data: Digits, epochs: int, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of whole trainings of the tutorial's CNN at 95% (ERK), in turns: static, RigL, SET.

    RigL and SET rewire every 100 steps.
    """
    recipes = {"static": Static(), "RigL": RigL(every=100), "SET": SET(every=100)}
    seconds: dict[str, list[float]] = {name: [] for name in recipes}
    for seed in range(repeats):
        for name, recipe in recipes.items():
            torch.manual_seed(seed)
            model = fuse(sparsify(TutorialCNN(), sparsity=0.95, scheme="erk", seed=seed))
            start = time.perf_counter()
            fit(model, data, epochs=epochs, sparsity=recipe, progress=False)
            seconds[name].append(time.perf_counter() - start)
    return seconds


# Each in a process of its own, whose cache of compiled code is empty: seconds of the first result of a sparse layer, of
# what notebooks 05 and 07 use, and of all kernels.
FIRST = """
import sys, time, torch
from truly_sparse import DynamicSparsity, SparseLinear, TrainingStep, fuse, sparsify, warmup
from tutorial_lib import TutorialCNN
start = time.perf_counter()
layer = SparseLinear(100, 100)
with torch.no_grad():
    layer(torch.randn(32, 100))
first = time.perf_counter() - start
if sys.argv[1] == "notebooks":
    x, y = torch.randn(100, 1, 28, 28), torch.randint(10, (100,))
    model = sparsify(TutorialCNN(), sparsity=0.95, scheme="erk")
    fused = fuse(model)
    for network in (model, fused):
        with torch.no_grad():
            network(x)
        network(x).sum().backward()
    optimizer = torch.optim.Adam(fused.parameters())
    step, driver = TrainingStep(fused, optimizer), DynamicSparsity(fused, optimizer, every=2, grow="gradient")
    for batch in (64, 32, 64, 64):
        step(x[:batch], y[:batch])
        driver.step()
elif sys.argv[1] == "all":
    warmup()
print(first, time.perf_counter() - start)
"""


def first_compile(programs: tuple[str, ...] = ("notebooks", "all")) -> dict[str, float]:
    """Return seconds from an empty cache: a layer's first result, what notebooks 05 and 07 use, all kernels."""
    result = {}
    for what in programs:
        with tempfile.TemporaryDirectory() as cache:
            command, variables = [sys.executable, "-c", FIRST, what], os.environ | {"NUMBA_CACHE_DIR": cache}
            done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
        result["first result"], result[what] = map(float, done.stdout.split()[-2:])
    return result


def main() -> None:
    """Print all rows."""
    warmup()
    data = load_data()
    table = product_map(SIZES, BATCHES, runs=100)
    print(table.round(1).to_string(index=False))
    for name, row in call_costs(2000).items():
        print(f"{name}: torch {row['torch']:.1f} µs, ours {row['ours']:.1f} µs, {row['ours'] - row['torch']:+.1f}")
    print(pd.Series(call_path()).round(2).to_string())
    print(pd.DataFrame(rewirings(data, 400)).T.round(2).to_string())
    print(large_rewirings(4096, 7))
    for name, timed in as_it_comes(data.test_x[:100], data.test_y[:100], 40).items():
        print(f"{name}\n{timed.table().round(3).to_string()}")
    print(first_compile())


if __name__ == "__main__":
    main()
