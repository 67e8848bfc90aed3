"""Measure the memory and the energy of training and inference: dense, masked and truly sparse, at three widths.

    python benchmarks/footprint.py        # about three minutes on two cores; writes figures/footprint.json

Each row is measured in a process of its own (Linux only). Energy is read from the CPU's counter (RAPL) where the system
lets programs read it; elsewhere it is *estimated* as CPU seconds times a stated power.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from truly_sparse import SparseConv2d, SparseLinear, TrainingStep, fuse
from truly_sparse.topology import initial_topology
from tutorial_lib import TutorialCNN, mask_model, save_result

NETWORKS, WIDTHS, BATCH, SPARSITY = ("dense", "masked", "truly sparse"), (1, 4, 10), 64, 0.95
WATTS = 10.0  # per busy core, for the estimate: a server core at load
COUNTER = Path("/sys/class/powercap/intel-rapl:0/energy_uj")
BYTES_OF_WEIGHT = 16  # float32 weight, gradient, and Adam's two moments


def sparse_network(width: float) -> nn.Module:
    """Return the tutorial's network with 5% of its weights, built without any dense weight."""
    with torch.device("meta"):
        shapes = TutorialCNN(width)
    layers: list[nn.Module] = []
    for name, active in initial_topology(shapes, SPARSITY).items():
        layer, settings = shapes.get_submodule(name), {"connections": active, "relu": name != "fc4"}
        if isinstance(layer, nn.Conv2d):
            layers.append(SparseConv2d(layer.in_channels, layer.out_channels, 3, padding=1, pool=True, **settings))
        else:
            layers += [nn.Flatten()] if name == "fc1" else []
            layers.append(SparseLinear(layer.in_features, layer.out_features, **settings))
    return fuse(nn.Sequential(*layers))


def network(name: str, width: float) -> nn.Module:
    """Return one of ``NETWORKS``."""
    torch.manual_seed(0)
    if name == "truly sparse":
        return sparse_network(width)
    return mask_model(TutorialCNN(width), SPARSITY) if name == "masked" else TutorialCNN(width)


def predicted_bytes(model: nn.Module) -> int:
    """Return what counting gives: weights, gradients, Adam's moments; masks and indices."""
    extras = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    extras += sum(module.index.nbytes for module in model.modules() if hasattr(module, "index"))
    return BYTES_OF_WEIGHT * sum(parameter.numel() for parameter in model.parameters()) + extras


def _status(field: str) -> int:
    """Return a memory figure of this process, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def _repeated(work: Callable[[], Any], seconds: float) -> dict[str, float | None]:
    """Return seconds, CPU seconds and joules (None where they cannot be read) of one run of the work."""
    work()
    before, cpu, start, runs = _joules(), time.process_time(), time.perf_counter(), 0
    while runs < 3 or time.perf_counter() - start < seconds:
        work()
        runs += 1
    spent, busy, after = time.perf_counter() - start, time.process_time() - cpu, _joules()
    joules = None if before is None or after is None or after < before else (after - before) / runs
    return {"seconds": spent / runs, "cpu_seconds": busy / runs, "joules": joules}


def _joules() -> float | None:
    try:
        return int(COUNTER.read_text(encoding="utf-8")) / 1e6
    except (OSError, ValueError):
        return None


def measure(name: str, width: float) -> dict[str, Any]:
    """Measure one network in this process: the peak beyond what the imports took, and the work of steps and passes."""
    x, y = torch.randn(BATCH, 1, 28, 28), torch.randint(10, (BATCH,))
    tiny = network(name, 0.1)
    TrainingStep(tiny, torch.optim.Adam(tiny.parameters(), fused=True))(x, y)  # libraries take memory at first
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forgets the peak so far
    before = _status("VmRSS")
    model = network(name, width)
    step = TrainingStep(model, torch.optim.Adam(model.parameters(), fused=True))
    work = _repeated(lambda: step(x, y), 4.0)
    peak = _status("VmHWM") - before

    @torch.no_grad()
    def infer() -> None:
        model(x)

    return {
        "network": name,
        "hidden": int(1000 * width),
        "peak_bytes": peak,
        "predicted_bytes": predicted_bytes(model),
        "step": work,
        "inference": _repeated(infer, 2.0),
    }


def main() -> None:
    """Measure all rows, each in a process of its own, and record them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, metavar=("NETWORK", "WIDTH"), help="measure one row and print it as JSON")
    one = parser.parse_args().one
    if one:
        print(json.dumps(measure(one[0], float(one[1]))))
        return
    rows = []
    for width in WIDTHS:
        for name in NETWORKS:
            command = [sys.executable, __file__, "--one", name, str(width)]
            rows.append(json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout))
            print(f"{name}, {rows[-1]['hidden']:,} hidden: {rows[-1]['peak_bytes'] / 1e6:,.0f} MB", flush=True)
    values = {"rows": rows, "batch": BATCH, "watts_per_core": WATTS}
    save_result("footprint", values, command="python benchmarks/footprint.py")


if __name__ == "__main__":
    main()
