"""One layer's product on an NVIDIA GPU in every format that torch has: dense, CSR, blocks, 2:4."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F

SIZE, BATCHES, SPARSITY, BLOCKS, RUNS = 4096, (64, 1024), 0.95, (16, 32, 64), 50

Call: TypeAlias = Callable[[], torch.Tensor]
Stored: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


def graphed(call: Call) -> Call:
    """Return a replay of a call, captured as a CUDA graph: the GPU's work without Python's."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()

    def replay() -> torch.Tensor:
        graph.replay()
        return output

    return replay


def with_graphs(rows: dict[str, Call]) -> dict[str, Call]:
    """Return the rows, and each of them once more as a CUDA graph where it can be captured."""
    graphs: dict[str, Call] = {}
    for name, call in rows.items():
        try:
            graphs[f"{name}, CUDA graph"] = graphed(call)
        except RuntimeError as error:
            print(f"{name}: cannot be captured as a CUDA graph ({str(error).splitlines()[0]})")
    return rows | graphs


def milliseconds(call: Call, each: int) -> float:
    """Time a call with CUDA events, ``each`` calls in a row; return milliseconds of one."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(each):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / each


def timed(rows: dict[str, Call], each: int = 20) -> dict[str, list[float]]:
    """Return the milliseconds of each row, ``RUNS`` times in turns, after a warm-up."""
    for _ in range(10):
        for call in rows.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(RUNS):
        for name, call in rows.items():
            call()
            times[name].append(milliseconds(call, each))
    return times


def _blocks_of(weight: torch.Tensor, block: int) -> torch.Tensor:
    """Return the weight with 95% of its blocks set to zero."""
    rows, columns = (size // block for size in weight.shape)
    kept = torch.rand(rows, columns, device=weight.device) >= SPARSITY
    return weight * kept.repeat_interleave(block, 0).repeat_interleave(block, 1)


def _two_of_four(weight: torch.Tensor) -> torch.Tensor:
    """Return the weight with the two smallest of each four neighbours in a row set to zero."""
    fours = weight.reshape(-1, 4)
    kept = torch.zeros_like(fours, dtype=torch.bool).scatter_(1, fours.abs().topk(2).indices, True)
    return (fours * kept).reshape(weight.shape)


def _csr(weight: torch.Tensor) -> torch.Tensor:
    """Return the weight as CSR with 4-byte indices."""
    csr = weight.to_sparse_csr()
    pointers, columns = csr.crow_indices().int(), csr.col_indices().int()
    return torch.sparse_csr_tensor(pointers, columns, csr.values(), csr.shape, check_invariants=False)


def _bsr(block: int, weight: torch.Tensor) -> torch.Tensor:
    return weight.bfloat16().to_sparse_bsr(block)


def _semi_structured(weight: torch.Tensor) -> torch.Tensor:
    half: torch.Tensor = torch.sparse.to_sparse_semi_structured(weight.bfloat16())
    return half


def products(size: int, batch: int, device: str) -> dict[str, Call]:
    """Return the product of a ``size``² weight and ``batch`` samples in every format that runs on this device.

    Each format has a weight of its own structure; its result is compared with the dense product of the same weight.
    All are at 95% sparsity, but 2:4, which is at 50%. bfloat16 is what tensor cores multiply; CSR is in float32.
    """
    torch.manual_seed(0)
    weight = torch.randn(size, size, device=device) / size**0.5
    single = weight * (torch.rand_like(weight) >= SPARSITY)
    x = torch.randn(batch, size, device=device)
    x16, features = x.bfloat16(), x.t().contiguous()

    def multiply(stored: torch.Tensor) -> torch.Tensor:
        return F.linear(x16, stored)

    # Of each format: the dense weight, how it is stored, and the product with the stored one.
    formats: dict[str, tuple[torch.Tensor, Stored, Callable[[torch.Tensor], torch.Tensor]]] = {
        "dense float32": (single, lambda w: w, lambda w: F.linear(x, w)),
        "CSR float32": (single, _csr, lambda csr: (csr @ features).t()),
        "dense bfloat16": (single, torch.Tensor.bfloat16, multiply),
        "2:4 (50% sparse), bfloat16": (_two_of_four(weight), _semi_structured, multiply),
    }
    for block in BLOCKS:
        name, store = f"blocks of {block}×{block}, bfloat16", functools.partial(_bsr, block)
        formats[name] = (_blocks_of(weight, block), store, multiply)
    rows: dict[str, Call] = {}
    for name, (dense, store, product) in formats.items():
        try:
            call = functools.partial(product, store(dense))
            difference = (call().float() - F.linear(x, dense)).abs().max().item()
        except (RuntimeError, NotImplementedError) as error:
            print(f"{name}: does not run here ({str(error).splitlines()[0]})")
            continue
        if not difference < (1e-3 if "float32" in name else 0.2):
            raise SystemExit(f"{name!r} differs from dense by {difference:.2g}: not the same work")
        rows[name] = call
    return rows
