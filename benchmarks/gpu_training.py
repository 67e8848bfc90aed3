"""Memory and energy of training on an NVIDIA GPU: dense beside Dense+Mask, at three widths of the network."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

WIDTHS = (1, 4, 10)  # hidden layers of 1,000, 4,000 and 10,000 neurons
BATCH, SECONDS = 64, 6.0  # the energy counter moves every tenth of a second


def _counter() -> Callable[[], float] | None:
    """Return a function that reads the joules that the GPU has used so far; None where NVML is missing."""
    try:
        import pynvml

        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
        pynvml.nvmlDeviceGetTotalEnergyConsumption(device)
    except Exception as error:  # the module or the counter may be missing
        print(f"energy: not measured ({error})")
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(device) / 1000  # type: ignore[no-any-return]


def _repeated(work: Callable[[], Any], joules: Callable[[], float] | None) -> dict[str, float | None]:
    """Return seconds and joules of one run, over ``SECONDS`` of runs."""
    for _ in range(5):
        work()
    torch.cuda.synchronize()
    before, start, runs = joules() if joules else 0.0, time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        for _ in range(10):
            work()
        torch.cuda.synchronize()
        runs += 10
    seconds = time.perf_counter() - start
    return {"seconds": seconds / runs, "joules": (joules() - before) / runs if joules else None}


def measure(dense: Callable[[float], nn.Module], mask: Callable[[nn.Module], nn.Module]) -> list[dict[str, Any]]:
    """Return, of each network and width, the peak bytes of training and the seconds and joules of steps and inference.

    The peak is what torch's allocator has handed out at most, beyond what was there before the network was made.
    """
    joules, rows = _counter(), []
    x, y = torch.randn(BATCH, 1, 28, 28, device="cuda"), torch.randint(10, (BATCH,), device="cuda")
    F.cross_entropy(dense(1).cuda()(x), y).backward()  # the libraries take memory at their first call
    for width in WIDTHS:
        for name, build in (("dense", lambda w: dense(w).cuda()), ("Dense+Mask", lambda w: mask(dense(w)))):
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            network = build(width)
            optimizer = torch.optim.Adam(network.parameters(), fused=True)

            def step(network: nn.Module = network, optimizer: torch.optim.Optimizer = optimizer) -> None:
                optimizer.zero_grad()
                F.cross_entropy(network(x), y).backward()
                optimizer.step()

            @torch.no_grad()
            def infer(network: nn.Module = network) -> None:
                network(x)

            stepping = _repeated(step, joules)
            peak = torch.cuda.max_memory_allocated() - before
            row = {"network": name, "hidden": 1000 * width, "peak_bytes": peak, "step": stepping}
            rows.append(row | {"inference": _repeated(infer, joules), "batch": BATCH})
            print(row, flush=True)
            del network, optimizer, step, infer
            torch.cuda.empty_cache()
    return rows
