"""Time the 95%-sparse network and one layer on an NVIDIA GPU, and measure memory and energy of training.

    python benchmarks/bench_gpu.py            # writes figures/bench_gpu.json
    python benchmarks/bench_gpu.py --check    # on the CPU, without graphs: do all rows compute the same? Writes nothing

Needs nothing but torch (2.6 or newer) and this file's neighbours: no network, no installation. Energy needs
``nvidia-ml-py`` too and is left out without it.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import gpu_formats
import gpu_training
import torch
from gpu_formats import Call, timed, with_graphs
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
IMAGES, SPARSITY = 100, 0.95


def tutorial_cnn(width: float = 1.0) -> nn.Module:
    """Return the tutorial's network, loaded without the package around it, which needs more than torch."""
    if "tutorial_lib" not in sys.modules:
        for name in ("tutorial_lib", "truly_sparse"):
            package = types.ModuleType(name)
            package.__path__ = [str(ROOT / name)]
            sys.modules[name] = package
    return importlib.import_module("tutorial_lib.models").TutorialCNN(width)


class Masked(nn.Module):
    """A network with every weight multiplied by its mask in each pass."""

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


def masked(model: nn.Module, device: str) -> Masked:
    """Return the network with random masks, which keep 5% of each layer's weights."""
    model = model.to(device)
    layers = {name: layer for name, layer in model.named_children() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    return Masked(model, {name: (torch.rand_like(x.weight) >= SPARSITY).float() for name, x in layers.items()})


def networks(device: str) -> dict[str, nn.Module]:
    """Return the same network in every form, by row name."""
    torch.manual_seed(0)
    simulated = masked(tutorial_cnn(), device)

    def folded() -> nn.Module:
        dense = tutorial_cnn().to(device)
        dense.load_state_dict(simulated.model.state_dict())
        for name, mask in simulated.masks.items():
            dense.get_submodule(name).weight.data *= mask
        return dense

    csr = folded()
    for name, layer in list(csr.named_children()):
        if isinstance(layer, nn.Linear):
            setattr(csr, name, CSRLinear(layer))
    return {
        "Dense+Mask": simulated,
        "dense": folded(),
        "dense channels_last": folded().to(memory_format=torch.channels_last),
        "CSR linear layers": csr,
    }


def check_same(rows: dict[str, Call]) -> None:
    """Stop unless all rows return the same numbers."""
    outputs = {name: call() for name, call in rows.items()}
    first = next(iter(outputs.values()))
    for name, output in outputs.items():
        difference = (output - first).abs().max().item()
        if not difference < 1e-3:
            raise SystemExit(f"{name!r} differs from the first row by {difference:.2g}: not the same work")


def inference(device: str) -> dict[str, Call]:
    """Return one pass of 100 images through the network in every form, after checking that all compute the same."""
    images = torch.randn(IMAGES, 1, 28, 28, device=device)
    models = networks(device)
    rows: dict[str, Call] = {name: lambda n=network: n(images) for name, network in models.items()}  # type: ignore[misc]
    check_same(rows)
    return rows


def show(title: str, times: dict[str, list[float]]) -> dict[str, list[float]]:
    """Print the median and the range of each row, in milliseconds."""
    print(title)
    for name, runs in times.items():
        print(f"  {name:36s} {statistics.median(runs):8.4f} ms ({min(runs):.4f} to {max(runs):.4f})", flush=True)
    return times


def commit() -> str:
    """Return the commit that is measured; in a copy the environment variable says it, ``GIT_COMMIT``."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return os.environ.get("GIT_COMMIT") or git.stdout.strip() or "not known"


def record(values: dict[str, Any]) -> None:
    """Write the result as one file, or leave the old one."""
    origin = {
        "command": "make bench-gpu",
        "git_commit": commit(),
        "date_utc": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "profile": "does not apply",
        "cpu": platform.processor() or platform.machine(),
        "gpu": torch.cuda.get_device_name(),
        "torch_threads": torch.get_num_threads(),
        "packages": {"torch": torch.__version__},
    }
    partial = ROOT / "figures" / ".bench_gpu.json.partial"
    partial.write_text(json.dumps({"values": values, "provenance": origin}, indent=1) + "\n", encoding="utf-8")
    partial.replace(ROOT / "figures" / "bench_gpu.json")


def main() -> None:
    """Measure, print, and write the result where there is a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare the rows' results on the CPU; time nothing")
    check = parser.parse_args().check
    for known in (
        "Sparse .* is in beta",
        "Sparse invariant checks",
        "The PyTorch API of Sparse",
        "bsr_dense_addmm uses non-optimal",
    ):
        warnings.filterwarnings("ignore", message=known)
    if not check and not torch.cuda.is_available():
        print("GPU rows: not measured (no NVIDIA GPU that torch can use)")
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # all rows in full float32
    with torch.no_grad():
        rows = inference("cpu" if check else "cuda")
        if check:
            gpu_formats.products(256, 64, "cpu")
            print(f"all {len(rows)} rows compute the same")
            return
        values: dict[str, Any] = {"ms": show("the tutorial's network, 100 images", timed(with_graphs(rows), each=1))}
        values["layer ms"] = {}
        for batch in gpu_formats.BATCHES:
            title = f"{gpu_formats.SIZE}², {batch} samples"
            values["layer ms"][str(batch)] = show(
                title, timed(with_graphs(gpu_formats.products(gpu_formats.SIZE, batch, "cuda")))
            )
    values["training"] = gpu_training.measure(tutorial_cnn, lambda model: masked(model, "cuda"))
    record(values)


if __name__ == "__main__":
    main()
