"""What blocks of weights buy: one layer in each structure beside dense torch, forward and in both directions.

``python benchmarks/structures.py`` prints the rows and writes ``figures/structures.json``. Each row is one interleaved
run, in which dense torch gets its input batch first and sparse layers batch innermost. Times are the fastest of many
repeats, and the median beside them shows how busy the machine was.

With ``--table`` it measures more sizes and writes the table behind ``structure="auto"`` as well.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from truly_sparse import SparseConv2d, SparseLinear, warmup
from truly_sparse.auto import TABLE
from truly_sparse.cpu.memory import to_batch_innermost
from tutorial_lib import benchmark, save_result

STRUCTURES = ((1, 1), (4, 1), (4, 4), (8, 8), (16, 1))
SPARSITY = 0.95
# For the table: outputs and inputs, channels on images of 16×16; blocks to choose from; how near to the fastest.
SIZES = {"linear": (64, 128, 256, 512, 1000, 2048, 4096), "convolution": (16, 32, 64, 128)}
CHOICES, NEAR, BATCH = ((1, 1), (4, 1), (4, 4), (8, 8)), 1.1, 64
# kind, size, batch, repeats; a convolution is 3×3, from 64 to 64 channels, on images of size × size
CASES = (
    ("linear", 1000, 1, 1000),
    ("linear", 1000, 64, 400),
    ("linear", 1000, 256, 100),
    ("linear", 4096, 1, 100),
    ("linear", 4096, 64, 20),
    ("convolution", 16, 64, 20),
)


def layers(kind: str, size: int, channels: int = 64) -> dict[str, nn.Module]:
    """Return dense torch's layer, and a sparse one for each structure that divides it."""
    if kind == "convolution":
        sizes = channels, channels, 3
        dense: nn.Module = nn.Conv2d(*sizes, padding=1, bias=False)
        sparse = {of: SparseConv2d(*sizes, padding=1, bias=False, **_of(of)) for of in STRUCTURES}
    else:
        dense = nn.Linear(size, size, bias=False)
        fitting = [of for of in STRUCTURES if size % of[0] == size % of[1] == 0]
        sparse = {of: SparseLinear(size, size, bias=False, **_of(of)) for of in fitting}
    return {"dense": dense} | {f"{rows}×{columns}": layer for (rows, columns), layer in sparse.items()}


def _of(structure: tuple[int, int]) -> dict[str, Any]:
    return {"sparsity": SPARSITY, "structure": structure}


def work(layer: nn.Module, kind: str, size: int, batch: int) -> float:
    """Return the floating-point operations of a layer's forward pass."""
    weights = layer.values if isinstance(layer, (SparseLinear, SparseConv2d)) else layer.weight
    return 2.0 * weights.numel() * batch * (size * size if kind == "convolution" else 1)


def measured(
    kind: str, size: int, batch: int, runs: int, both: bool, channels: int = 64
) -> dict[str, dict[str, float]]:
    """Return of each layer its fastest and median time, its arithmetic rate and its speed relative to dense torch."""
    torch.manual_seed(0)
    found = layers(kind, size, channels)
    shape = (batch, channels, size, size) if kind == "convolution" else (batch, size)
    x, gradient = torch.randn(shape), torch.randn(shape)

    def call(layer: nn.Module) -> Callable[[], Any]:
        plain = isinstance(layer, (nn.Linear, nn.Conv2d)) or batch == 1
        here, g = (t.clone() if plain else to_batch_innermost(t) for t in (x, gradient))
        if not both:
            return lambda: layer(here)
        here.requires_grad_()
        parameters = [here, *layer.parameters()]
        return lambda: torch.autograd.grad(layer(here), parameters, g)[0]

    for layer in found.values():
        if isinstance(layer, (SparseLinear, SparseConv2d)):
            torch.testing.assert_close(layer(x[:3]), layer.to_dense_layer()(x[:3]), rtol=1e-3, atol=1e-4)
    with torch.set_grad_enabled(both):
        timed = benchmark({name: call(layer) for name, layer in found.items()}, runs=runs, tolerance=None)
    fastest = {name: min(seconds) for name, seconds in timed.seconds.items()}
    return {
        name: {
            "fastest µs": 1e6 * fastest[name],
            "median µs": 1e6 * timed.median(name),
            "GFLOP/s": (3 if both else 1) * work(layer, kind, size, batch) / fastest[name] / 1e9,
            "× dense": fastest["dense"] / fastest[name],
        }
        for name, layer in found.items()
    }


def table() -> dict[str, list[dict[str, Any]]]:
    """Return for each kind and size of layer the smallest blocks whose training step is nearly the fastest."""
    found: dict[str, list[dict[str, Any]]] = {}
    for kind, sizes in SIZES.items():
        for size in sizes:
            runs = max(20, 100_000 // size)
            of = (kind, 16, BATCH, 20, True, size) if kind == "convolution" else (kind, size, BATCH, runs, True)
            seconds = {name: row["fastest µs"] for name, row in measured(*of).items()}
            times = {choice: seconds["{}×{}".format(*choice)] for choice in CHOICES}
            chosen = next(choice for choice in CHOICES if times[choice] <= NEAR * min(times.values()))
            found.setdefault(kind, []).append({"outputs": size, "inputs": size, "structure": chosen})
            print(kind, size, {"{}×{}".format(*of): round(us, 1) for of, us in times.items()}, "→", chosen, flush=True)
    return found


def main() -> None:
    """Print all rows and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help='also write the table behind structure="auto"')
    arguments = parser.parse_args()
    warmup()
    if arguments.table:
        TABLE.write_text(json.dumps(table(), indent=1) + "\n", encoding="utf-8")
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for kind, size, batch, runs in CASES:
        for both in (False, True):
            name = f"{kind} {size}, batch {batch}, {'forward and gradients' if both else 'forward'}"
            rows[name] = measured(kind, size, batch, runs // 2 if both else runs, both)
            print(name)
            for layer, row in rows[name].items():
                print(f"  {layer:6}", *(f"{value:10.1f} {unit}" for unit, value in row.items()), flush=True)
    values = {"rows": rows, "sparsity": SPARSITY, "threads": torch.get_num_threads()}
    save_result("structures", values, command="python benchmarks/structures.py", seed=0)


if __name__ == "__main__":
    main()
