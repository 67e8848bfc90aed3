"""Measure truly sparse layers against everything a user could pick instead, in one interleaved run.

python benchmarks/bench.py            # the whole table; writes figures/bench.json
python benchmarks/bench.py --quick    # small sizes, to see that every row runs; writes nothing
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from bound import seconds_to_read
from dense_forms import fast_forms
from one_layer import OURS, linear_layer
from overheads import LONG, SHORT, Scale, judge_into, overheads, verdict
from torch import nn
from tqdm import tqdm

from truly_sparse import SET, SparseLinear, TrainingStep, densify, fuse, sparsify, warmup
from truly_sparse.cpu.memory import to_batch_innermost
from tutorial_lib import (
    Benchmark,
    Digits,
    TutorialCNN,
    benchmark,
    fit,
    load_data,
    mask_model,
    save_result,
    storage_bytes,
    to_csr,
    viz,
)

FOLDED = "dense eager = Dense+Mask folded"  # the mask multiplied in once and for all leaves a plain dense network
DENSE = (FOLDED, "dense channels_last", "dense compiled")
IN_TORCH = "truly sparse, in torch's loop"


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured."""

    runs: int
    epochs: int
    train_size: int | None
    widths: tuple[int, ...]
    batches: tuple[int, ...]
    nnz: tuple[int, ...]
    giant: tuple[int, int, int]  # features, nonzeros, steps
    overheads: Scale


FULL = Size(
    runs=60,
    epochs=10,
    train_size=None,
    widths=(256, 1000, 2000),
    batches=(16, 64, 256),
    nnz=(10**4, 10**5, 10**6, 10**7),
    giant=(200_000, 10**7, 100),
    overheads=LONG,
)
QUICK = Size(
    runs=3,
    epochs=1,
    train_size=1000,
    widths=(128,),
    batches=(16,),
    nnz=(10**4, 10**5),
    giant=(10_000, 10**5, 5),
    overheads=SHORT,
)
SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.995)


def networks(masked: nn.Module) -> dict[str, nn.Module]:
    """Return the same network in every form, by row name."""
    return {"Dense+Mask": masked, FOLDED: densify(masked)} | fast_forms(masked) | {OURS: fuse(sparsify(masked))}


def trained_network(data: Digits, scheme: str) -> nn.Module:
    """Return a masked 95%-sparse network after a short training."""
    torch.manual_seed(0)
    masked = mask_model(TutorialCNN(), 0.95, scheme, seed=0)
    few = dataclasses.replace(data, train_x=data.train_x[:6000], train_y=data.train_y[:6000])
    fit(masked, few, epochs=1, sparsity=SET(), progress=False)
    return masked.to(memory_format=torch.contiguous_format)


def inference(masked: nn.Module, images: torch.Tensor, size: Size) -> Benchmark:
    """Time the whole network on 100 images."""
    rows = {name: network.eval() for name, network in networks(masked).items()}
    rows |= {"torch CSR": to_csr(masked, "torch"), "scipy CSR": to_csr(masked, "scipy")}

    def call(network: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return network(images)

    return benchmark({name: lambda n=network: call(n) for name, network in rows.items()}, runs=size.runs, warmup=5)


def training_step(masked: nn.Module, x: torch.Tensor, y: torch.Tensor, size: Size) -> Benchmark:
    """Time one step: forward, backward, Adam. The first step's losses are compared: same function, same batch.

    This project's is timed twice: as one compiled call, and in the same loop as the others.
    """

    def stepper(network: nn.Module) -> Callable[[], torch.Tensor]:
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)

        def step() -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(network(x), y)
            loss.backward()
            optimizer.step()
            return loss

        return step

    steppers = {name: stepper(network.train()) for name, network in networks(masked).items()}
    ours = fuse(sparsify(masked)).train()
    step = TrainingStep(ours, torch.optim.Adam(ours.parameters(), lr=1e-4, fused=True))
    rows = steppers | {OURS: lambda: step(x, y)[0], IN_TORCH: steppers[OURS]}
    return benchmark(rows, runs=size.runs, warmup=5, tolerance=1e-3)


def whole_training(data: Digits, size: Size) -> dict[str, float]:
    """Return the seconds of a whole training, batches, rewiring and evaluation included: dense and truly sparse."""
    seconds = {}
    for name in ("dense", OURS):
        torch.manual_seed(0)
        model = TutorialCNN() if name == "dense" else fuse(sparsify(mask_model(TutorialCNN(), 0.95, "uniform")))
        start = time.perf_counter()
        history = fit(model, data, epochs=size.epochs, sparsity=None if name == "dense" else SET(), progress=False)
        seconds[name] = time.perf_counter() - start
        seconds[f"{name}, accuracy %"] = history.test_accuracy[-1]
    return seconds


def training_bytes(model: nn.Module) -> int:
    """Return the bytes of weights, indices, gradients and Adam's two moments."""
    return storage_bytes(model) + 3 * sum(p.numel() * p.element_size() for p in model.parameters())


def time_per_nonzero(size: Size, batch: int) -> dict[str, float]:
    """Return nanoseconds per nonzero of forward and backward, for layers from small to huge at 99%."""
    result = {}
    for nnz in size.nnz:
        width = round((nnz / 0.01) ** 0.5)
        layer = SparseLinear(width, width, sparsity=0.99, relu=True)
        x, g = to_batch_innermost(torch.randn(batch, width)), to_batch_innermost(torch.randn(batch, width))

        def step(layer: SparseLinear = layer, x: torch.Tensor = x, g: torch.Tensor = g) -> float:
            layer(x.detach().requires_grad_()).backward(g)
            return 0.0

        run = benchmark({"ours": step}, runs=max(5, size.runs // 3), warmup=2)
        result[str(layer.index.nnz)] = 1e9 * run.median("ours") / layer.index.nnz
    return result


# Peak resident kilobytes. getrusage would not do: a process inherits the peak of the one that started it.
PEAK = """
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
# Run in a process of its own, so that its peak memory is its own.
GIANT = """
import sys, time, torch
from truly_sparse import DynamicSparsity, SparseLinear
features, nnz, steps = map(int, sys.argv[1:])
torch.manual_seed(0)
layer = SparseLinear(features, features, sparsity=1 - nnz / features**2)
optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
driver = DynamicSparsity(
    torch.nn.Sequential(layer), optimizer, prune_fraction=0.1, every=max(1, steps // 4), grow="sampled gradient"
)
x = torch.randn(32, features)
layer(x).sum().backward()
start = time.perf_counter()
for _ in range(steps):
    optimizer.zero_grad()
    layer(x).square().mean().backward()
    optimizer.step()
    driver.step()
seconds = (time.perf_counter() - start) / steps
print(seconds, peak() / 1e6, driver.rewirings)
"""


def giant_layer(size: Size) -> dict[str, float]:
    """Train a layer that dense could not allocate; return seconds a step, peak GB of its process, and rewirings."""
    command = [sys.executable, "-c", PEAK + GIANT, *map(str, size.giant)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, peak, rewirings = done.stdout.split()[-3:]
    return {"seconds a step": float(seconds), "peak GB": float(peak), "rewirings": int(rewirings)}


# Baseline, then the peak after training for two epochs; in a process of its own for the same reason.
MEMORY = """
import sys, torch
from truly_sparse import RigL, fuse, sparsify, warmup
from tutorial_lib import TutorialCNN, fit, load_data, mask_model
warmup()
data = load_data("digits")
before = peak() / 1e3
sparse = sys.argv[1] == "sparse"
model = fuse(sparsify(mask_model(TutorialCNN(), 0.95))) if sparse else TutorialCNN()
fit(model, data, epochs=2, sparsity=RigL() if sparse else None, progress=False)
print(before, peak() / 1e3)
"""


def peak_memory() -> dict[str, dict[str, float]]:
    """Return the peak resident MB of a process that trains the network, before and after: dense and truly sparse."""
    result = {}
    for name in ("dense", "sparse"):
        done = subprocess.run([sys.executable, "-c", PEAK + MEMORY, name], capture_output=True, text=True, check=True)
        before, peak = map(float, done.stdout.split()[-2:])
        result[name] = {"before": before, "peak": peak}
    return result


def crossover(size: Size) -> list[dict[str, float]]:
    """Return milliseconds of forward and backward by width, batch and sparsity."""
    rows = []
    grid = [(w, b, s) for w in size.widths for b in size.batches for s in SPARSITIES]
    for width, batch, sparsity in tqdm(grid, desc="crossover", disable=None):
        run = linear_layer(width, batch, sparsity, runs=max(3, size.runs // 4), backward=True)
        place = {"width": width, "batch": batch, "sparsity": sparsity}
        rows.append(place | {name: 1e3 * run.median(name) for name in run.seconds})
    return rows


def main() -> None:
    """Measure, print, and unless quick write ``figures/bench.json`` and two more with names that begin so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes; writes nothing")
    size = QUICK if parser.parse_args().quick else FULL
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    warmup()
    data = load_data(train_size=size.train_size)
    targets: list[dict[str, str | float | bool]] = []
    timings: dict[str, dict[str, list[float]]] = {}

    judge = judge_into(targets)

    def note(name: str, run: Benchmark, aims: dict[str, tuple[float, tuple[str, ...]]]) -> None:
        timings[name] = run.seconds
        print(f"\n{name}\n{run.table().round(3).to_string()}", flush=True)
        for rival, (factor, rows) in aims.items():
            if any(row in run.seconds for row in rows):
                judge(f"{name}: faster than {rival}", verdict(run, rows), factor)

    for scheme in ("uniform", "erk"):
        masked = trained_network(data, scheme)
        run = inference(masked.eval(), data.test_x[:100], size)
        aims = {"Dense+Mask": (30, ("Dense+Mask",)), "fastest dense": (15, DENSE), "torch CSR": (5, ("torch CSR",))}
        note(f"inference, 100 images, {scheme}", run, aims)
        run = training_step(masked, data.train_x[:64], data.train_y[:64], size)
        note(f"training step, batch 64, {scheme}", run, {"fastest dense": (12 if scheme == "uniform" else 10, DENSE)})
    both = {"dense": (12, ("dense",)), "sparselab": (8, ("sparselab",)), "torch CSR": (4, ("torch CSR",))}
    speed = {}
    for backward, aims in ((False, {"dense": (15, ("dense",))}), (True, both)):
        name = f"fc 1000×1000, batch 64, forward{' and backward' if backward else ''}"
        run = linear_layer(1000, 64, 0.95, size.runs, backward, with_sparselab=True)
        note(name, run, aims)
        operations = (3 if backward else 1) * 2 * 64
        speed[name] = {row: operations * n / run.median(row) / 1e9 for row, n in (("dense", 10**6), (OURS, 50_000))}
        dense, ours = speed[name]["dense"], speed[name][OURS]
        print(f"useful GFLOP/s: dense {dense:.1f}, this project {ours:.1f}, {ours / dense:.0%} of what dense reaches")
    reading = seconds_to_read(SparseLinear(1000, 1000, sparsity=0.95), size.runs)
    forward = timings["fc 1000×1000, batch 64, forward"]
    share = reading / float(np.median(forward[OURS]))
    print(
        f"to read each weight's row of inputs alone takes {1e6 * reading:.0f} µs, {share:.0%} of this project's forward"
    )

    seconds = whole_training(data, size)
    judge(f"training, {size.epochs} epochs: faster than dense", seconds["dense"] / seconds[OURS], 8)
    dense_bytes = training_bytes(TutorialCNN())
    sparse_bytes = training_bytes(sparsify(mask_model(TutorialCNN(), 0.95)))
    judge("bytes of weights, gradients, Adam, indices: fewer than dense", dense_bytes / sparse_bytes, 12)
    per_nonzero = {f"batch {batch}": time_per_nonzero(size, batch) for batch in (64, 256)}
    for batch, times in per_nonzero.items():
        spread = max(times.values()) / min(times.values())
        judge(f"time per nonzero, {batch}, slowest over fastest size", spread, 2, most=True)
        print(f"\nns per nonzero, forward and backward, {batch}: { ({n: round(t, 1) for n, t in times.items()}) }")
    giant = giant_layer(size)
    judge(f"{size.giant[0]:,}² layer, {size.giant[1]:,} nonzeros", giant["seconds a step"], 1, "s a step", most=True)
    judge(f"{size.giant[0]:,}² layer, peak of its process", giant["peak GB"], 2, "GB", most=True)
    memory = peak_memory()
    print(f"peak MB of a process that trains, before and after: {memory}")
    around = overheads(size.overheads, data)
    rows = crossover(size)
    print(f"\nfaster than dense from this sparsity on (width, batch)\n{viz.break_evens(rows, OURS).to_string()}")
    print(f"\n{pd.DataFrame(targets).round(2).to_string(index=False)}")
    if size is FULL:
        values = {
            "seconds": timings,
            "gflops": speed,
            "seconds_to_read": reading,
            "whole_training": seconds,
            "bytes": {"dense": dense_bytes, "sparse": sparse_bytes},
            "peak_mb": memory,
            "ns_per_nonzero": per_nonzero,
            "giant_layer": giant,
            "targets": targets,
        }
        save_result("bench", values, command="make bench", seed=0, data=data)
        save_result("bench_overheads", around, command="make bench", seed=0, data=data)
        save_result("bench_crossover", {"milliseconds": rows}, command="make bench", seed=0)


if __name__ == "__main__":
    main()
