"""What blocks of weights buy: layers and a network in each structure beside the strongest rivals.

``python benchmarks/structures.py`` prints the rows and writes ``figures/structures.json``, in some minutes. Each row is
one interleaved run, in which each rival gets its input in the layout it likes best: dense torch the faster of two, a
dense network also compiled by torch, torch's CSR feature-major with 4-byte indices, sparselab (if installed) batch
first, sparse layers batch innermost.
Times are the fastest of many repeats, and the median beside them shows how busy the machine was.

``--quick`` measures small layers, to see that every row runs, and writes nothing.

With ``--table`` it measures more sizes and writes the table behind ``structure="auto"`` as well.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from dense_forms import fast_forms
from one_layer import BareCSRProduct, has_sparselab, sparselab_layer
from torch import nn

from truly_sparse import SparseConv2d, SparseLinear, TrainingStep, densify, fuse, sparsify, warmup
from truly_sparse.auto import TABLE
from truly_sparse.cpu.memory import to_batch_innermost
from tutorial_lib import Benchmark, TutorialCNN, benchmark, mask_model, save_result, torch_csr

STRUCTURES = ((1, 1), (4, 1), (4, 4), (8, 8), (16, 1))
FEW = "one weight an output"  # a convolution that moves the same activations and computes almost nothing
SPARSITY = 0.95
# For the table: outputs and inputs, channels on images of 16×16; blocks to choose from; how near to the fastest.
SIZES = {"linear": (64, 128, 256, 512, 1000, 2048, 4096), "convolution": (16, 32, 64, 128)}
CHOICES, NEAR, BATCH = ((1, 1), (4, 1), (4, 4), (8, 8)), 1.1, 64
# kind, size, batch, repeats forward and in both directions (0: not measured); a convolution is 3×3, from 64 to 64
# channels, on images of size × size
CASES = (
    ("linear", 1000, 1, 1000, 500),
    ("linear", 1000, 64, 300, 150),
    ("linear", 1000, 256, 100, 50),
    ("linear", 4096, 1, 100, 30),
    ("linear", 4096, 64, 20, 12),
    ("linear", 4096, 256, 8, 6),
    ("convolution", 16, 64, 30, 20),
)
QUICK = (("linear", 32, 16, 2, 2), ("linear", 32, 1, 2, 2), ("convolution", 4, 16, 2, 2))
INFERENCE, STEP, RUNS = 100, 64, 40  # images of the network's inference and of its training step, repeats
# One way to compute a layer: the function, its input, the gradient of its result, and its parameters.
Way: TypeAlias = tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor, torch.Tensor, list[torch.Tensor]]
Row: TypeAlias = dict[str, dict[str, float]]


def ways(kind: str, size: int, batch: int, both: bool, channels: int = 64) -> dict[str, Way]:
    """Return each rival's way to compute one layer, and that of a sparse layer in each structure that divides it."""
    torch.manual_seed(0)
    if kind == "convolution":
        shape, sizes = (batch, channels, size, size), (channels, channels, 3)
        sparse: dict[tuple[int, int], nn.Module] = {
            of: SparseConv2d(*sizes, padding=1, bias=False, **_of(of)) for of in STRUCTURES
        }
    else:
        shape, fitting = (batch, size), [of for of in STRUCTURES if size % of[0] == size % of[1] == 0]
        sparse = {of: SparseLinear(size, size, bias=False, **_of(of)) for of in fitting}
    x, g = torch.randn(shape), torch.randn(shape)
    for layer in sparse.values():
        torch.testing.assert_close(layer(x[:3]), layer.to_dense_layer()(x[:3]), rtol=1e-3, atol=1e-4)
    weights: nn.Module = sparse[1, 1]
    found = _dense_ways(weights, x, g)
    if kind == "linear":
        found |= _csr_ways(weights, x, g, both)
    innermost = (lambda t: t.clone()) if batch == 1 else to_batch_innermost
    for (rows, columns), layer in sparse.items():
        found[f"{rows}×{columns}"] = layer, innermost(x), innermost(g), list(layer.parameters())
    if kind == "convolution":
        few = SparseConv2d(*sizes, padding=1, bias=False, sparsity=1 - 1 / (9 * channels))
        found[FEW] = few, innermost(x), innermost(g), list(few.parameters())
    return found


def _of(structure: tuple[int, int]) -> dict[str, Any]:
    return {"sparsity": SPARSITY, "structure": structure}


def _dense_ways(layer: Any, x: torch.Tensor, g: torch.Tensor) -> dict[str, Way]:
    """Return torch's dense layer with the weights of a sparse one, in two memory formats."""
    dense = layer.to_dense_layer()
    found = {"dense contiguous": (dense, x.clone(), g, list(dense.parameters()))}
    if isinstance(layer, SparseConv2d):
        last = layer.to_dense_layer().to(memory_format=torch.channels_last)
        given = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
        found["dense channels_last"] = last, *given, list(last.parameters())
    else:
        found["dense feature-major"] = dense, x.T.contiguous().T, g.T.contiguous().T, list(dense.parameters())
    return found


def _csr_ways(layer: Any, x: torch.Tensor, g: torch.Tensor, both: bool) -> dict[str, Way]:
    """Return the products of a linear layer with the same weights, by torch's CSR and by sparselab."""
    weight = layer.to_dense()
    csr, csr_t = torch_csr(weight), torch_csr(weight.T)
    values = csr.values().clone().requires_grad_()

    def product(x: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, BareCSRProduct.apply(x, values, csr, csr_t)) if both else csr @ x

    by_feature = x[0] if len(x) == 1 and not both else x.T.contiguous()  # a vector is faster than one column
    torch.testing.assert_close(product(by_feature).view(-1, len(x)).T, layer(x), rtol=1e-3, atol=1e-4)
    found: dict[str, Way] = {"torch CSR": (product, by_feature, g.T.contiguous(), [values])}
    if has_sparselab():
        other = sparselab_layer(weight, weight.new_zeros(len(weight)))
        found["sparselab"] = other, x.clone(), g, list(other.parameters())
    return found


def measured(kind: str, size: int, batch: int, runs: int, both: bool, channels: int = 64) -> Row:
    """Return of each way its fastest and median time, its arithmetic rate and its speed relative to dense torch.

    Dense is the faster of its two memory formats. The rate counts the operations of the weights that exist.
    """
    found = ways(kind, size, batch, both, channels)

    def call(way: Way) -> Callable[[], Any]:
        compute, here, g, parameters = way
        if not both:
            return lambda: compute(here)
        inputs = [here.requires_grad_(), *parameters]
        return lambda: torch.autograd.grad(compute(here), inputs, g)[0]

    with torch.set_grad_enabled(both):
        timed = benchmark({name: call(way) for name, way in found.items()}, runs=runs, tolerance=None)
    pixels = size * size if kind == "convolution" else 1
    operations = {name: (3 if both else 1) * 2.0 * way[3][0].numel() * batch * pixels for name, way in found.items()}
    return _row(timed, operations)


def _row(timed: Benchmark, operations: dict[str, float]) -> Row:
    """Return the row of one interleaved run, in which "dense" stands for the fastest of all that begin with it."""
    fastest = {name: min(seconds) for name, seconds in timed.seconds.items()}
    dense = min((name for name in fastest if name.startswith("dense")), key=fastest.__getitem__)
    return {
        name.split()[0] if name == dense else name: {
            "fastest µs": 1e6 * fastest[name],
            "median µs": 1e6 * timed.median(name),
            "× dense": fastest[dense] / fastest[name],
        }
        | ({"GFLOP/s": operations[name] / fastest[name] / 1e9} if operations else {})
        for name in fastest
        if name == dense or not name.startswith("dense")
    }


def networks(scheme: str) -> dict[str, nn.Module]:
    """Return the tutorial's CNN masked, dense (contiguous, channels_last, compiled), and fused in each structure."""
    torch.manual_seed(0)
    masked = mask_model(TutorialCNN(), SPARSITY, scheme, seed=0)
    found = {"Dense+Mask": masked, "dense contiguous": densify(masked)} | fast_forms(masked)
    for of in (*STRUCTURES, "auto"):
        name = of if isinstance(of, str) else "{}×{}".format(*of)
        found[name] = fuse(sparsify(TutorialCNN(), SPARSITY, scheme, seed=0, structure=of))
    return found


def network_row(scheme: str, training: bool, runs: int) -> Row:
    """Time the network's inference, or its training step: sparse in one call, the others in torch's loop, with Adam."""
    x, y = torch.randn(STEP if training else INFERENCE, 1, 28, 28), torch.randint(10, (STEP,))

    def step(network: nn.Module, is_sparse: bool) -> Callable[[], Any]:
        optimizer = torch.optim.Adam(network.train().parameters(), lr=1e-4, fused=True)
        if is_sparse:
            train = TrainingStep(network, optimizer)
            return lambda: train(x, y)

        def loop() -> None:
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()

        return loop

    def inference(network: nn.Module) -> Callable[[], Any]:
        network.eval()
        return lambda: network(x)

    found = networks(scheme)
    if training:
        calls = {name: step(of, not name.lower().startswith("dense")) for name, of in found.items()}
    else:
        calls = {name: inference(of) for name, of in found.items()}
    with torch.set_grad_enabled(training):
        row = _row(benchmark(calls, runs=runs, warmup=3, tolerance=None), {})
    for numbers in row.values():
        numbers["× masked"] = row["Dense+Mask"]["fastest µs"] / numbers["fastest µs"]
    return row


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


def show(name: str, row: Row) -> None:
    """Print one row."""
    print(name)
    for layer, numbers in row.items():
        print(f"  {layer:10}", *(f"{value:10.1f} {unit}" for unit, value in numbers.items()), flush=True)


def main() -> None:
    """Print all rows and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help='also write the table behind structure="auto"')
    parser.add_argument("--quick", action="store_true", help="small layers; writes nothing")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    warmup()
    if arguments.table:
        TABLE.write_text(json.dumps(table(), indent=1) + "\n", encoding="utf-8")
    rows: dict[str, Row] = {}
    for kind, size, batch, *runs in QUICK if arguments.quick else CASES:
        for both in (False, True):
            name = f"{kind} {size}, batch {batch}, {'forward and gradients' if both else 'forward'}"
            rows[name] = measured(kind, size, batch, runs[both], both)
            show(name, rows[name])
    of_networks: dict[str, Row] = {}
    for scheme in ("uniform", "erk"):
        for training in (False, True):
            name = f"{scheme}, step of {STEP} images" if training else f"{scheme}, inference of {INFERENCE} images"
            of_networks[name] = network_row(scheme, training, 2 if arguments.quick else RUNS)
            show(name, of_networks[name])
    if not arguments.quick:
        values = {"rows": rows, "networks": of_networks, "sparsity": SPARSITY, "threads": torch.get_num_threads()}
        save_result("structures", values, command="python benchmarks/structures.py", seed=0)


if __name__ == "__main__":
    main()
