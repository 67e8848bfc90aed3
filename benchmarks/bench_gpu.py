"""Time inference of the same 95%-sparse network on an NVIDIA GPU: dense, masked and CSR, eager and as a CUDA graph.

    python benchmarks/bench_gpu.py            # writes figures/bench_gpu.json
    python benchmarks/bench_gpu.py --check    # on the CPU, without graphs: do all rows compute the same? Writes nothing

Needs nothing but torch (2.6 or newer) and this file's neighbours: no network, no installation.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
IMAGES, RUNS, SPARSITY = 100, 50, 0.95


def tutorial_cnn() -> nn.Module:
    """Return the tutorial's network, loaded without the package around it, which needs more than torch."""
    package = types.ModuleType("tutorial_lib")
    package.__path__ = [str(ROOT / "tutorial_lib")]
    sys.modules[package.__name__] = package
    return importlib.import_module("tutorial_lib.models").TutorialCNN()


class Masked(nn.Module):
    """The network with every weight multiplied by its mask in each pass."""

    def __init__(self, model: nn.Module, masks: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.model, self.masks = model, masks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images to logits."""
        weights = {f"{name}.weight": self.model.get_parameter(f"{name}.weight") * m for name, m in self.masks.items()}
        return torch.func.functional_call(self.model, weights, (x,))


class CSRLinear(nn.Module):
    """A linear layer whose weight is a torch CSR tensor."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight.detach().to_sparse_csr(), layer.bias.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, in]`` to ``[B, out]``."""
        return (self.weight @ x.t()).t() + self.bias


def networks(device: str) -> dict[str, nn.Module]:
    """Return the same network in every form, by row name."""
    torch.manual_seed(0)
    model = tutorial_cnn()
    layers = {name: layer for name, layer in model.named_children() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    masks = {name: (torch.rand_like(layer.weight) >= SPARSITY).float() for name, layer in layers.items()}
    masks = {name: mask.to(device) for name, mask in masks.items()}

    def folded() -> nn.Module:
        dense = tutorial_cnn().to(device)
        dense.load_state_dict(model.state_dict())
        for name, mask in masks.items():
            dense.get_submodule(name).weight.data *= mask
        return dense

    csr = folded()
    for name, layer in list(csr.named_children()):
        if isinstance(layer, nn.Linear):
            setattr(csr, name, CSRLinear(layer))
    return {
        "Dense+Mask": Masked(model.to(device), masks),
        "dense": folded(),
        "dense channels_last": folded().to(memory_format=torch.channels_last),
        "CSR linear layers": csr,
    }


def graphed(network: nn.Module, images: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return a replay of one pass, captured as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            network(images)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = network(images)

    def replay() -> torch.Tensor:
        graph.replay()
        return output

    return replay


def milliseconds(call: Callable[[], torch.Tensor]) -> float:
    """Time one call with CUDA events."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def check_same(rows: dict[str, Callable[[], torch.Tensor]]) -> None:
    """Stop unless all rows return the same numbers."""
    outputs = {name: call() for name, call in rows.items()}
    first = next(iter(outputs.values()))
    for name, output in outputs.items():
        difference = (output - first).abs().max().item()
        if not difference < 1e-3:
            raise SystemExit(f"{name!r} differs from the first row by {difference:.2g}: not the same work")


@torch.no_grad()
def main() -> None:
    """Measure, print, and write the result where there is a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare the rows' results on the CPU; time nothing")
    check = parser.parse_args().check
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    if not check and not torch.cuda.is_available():
        print("GPU rows: not measured (no NVIDIA GPU that torch can use)")
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # all rows in full float32
    device = "cpu" if check else "cuda"
    images = torch.randn(IMAGES, 1, 28, 28, device=device)
    models = networks(device)
    rows = {name: lambda n=network: n(images) for name, network in models.items()}
    check_same(rows)
    if check:
        print(f"all {len(rows)} rows compute the same")
        return
    for name, network in models.items():
        try:
            rows[f"{name}, CUDA graph"] = graphed(network, images)
        except RuntimeError as error:
            print(f"{name}: cannot be captured as a CUDA graph ({str(error).splitlines()[0]})")
    for _ in range(10):
        for call in rows.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(RUNS):
        for name, call in rows.items():
            call()
            times[name].append(milliseconds(call))
    for name, runs in times.items():
        print(f"{name:32s} {statistics.median(runs):8.3f} ms ({min(runs):.3f} to {max(runs):.3f})")
    machine = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "command": "make bench-gpu"}
    partial = ROOT / "figures" / ".bench_gpu.json.partial"
    partial.write_text(json.dumps({"values": {"ms": times}, "provenance": machine}, indent=1) + "\n", encoding="utf-8")
    partial.replace(ROOT / "figures" / "bench_gpu.json")


if __name__ == "__main__":
    main()
