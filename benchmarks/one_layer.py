"""One square layer, by all who have such a layer: dense, masked, torch CSR, sparselab and this project."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from truly_sparse import SparseLinear
from truly_sparse.cpu.memory import to_batch_innermost
from tutorial_lib import Benchmark, benchmark, torch_csr

OURS = "truly sparse (this project)"


class CSRProduct(torch.autograd.Function):
    """A linear layer with ReLU by torch's CSR products, as well as they can be put together; feature-major.

    The transposed weight is given, although training would have to build it anew in each step.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, values: torch.Tensor, bias: torch.Tensor, csr: Any, csr_t: Any) -> Any:
        """Map ``[in, B]`` to ``[out, B]``."""
        y = torch.addmm(bias[:, None], csr, x).relu_()
        ctx.save_for_backward(x, y)
        ctx.csr, ctx.csr_t = csr, csr_t
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        """Return the gradients of input, nonzeros and bias."""
        x, y = ctx.saved_tensors
        grad = grad * (y > 0)
        of_values = torch.sparse.sampled_addmm(ctx.csr, grad, x.t(), beta=0).values()
        return ctx.csr_t @ grad, of_values, grad.sum(1), None, None


class BareCSRProduct(torch.autograd.Function):
    """The same product alone, without bias and ReLU."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, values: torch.Tensor, csr: Any, csr_t: Any) -> Any:
        """Map ``[in, B]`` to ``[out, B]``."""
        ctx.save_for_backward(x)
        ctx.csr, ctx.csr_t = csr, csr_t
        return csr @ x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        """Return the gradients of input and nonzeros."""
        of_values = torch.sparse.sampled_addmm(ctx.csr, grad, ctx.saved_tensors[0].t(), beta=0).values()
        return ctx.csr_t @ grad, of_values, None, None


def linear_layer(
    width: int, batch: int, sparsity: float, runs: int, backward: bool, with_sparselab: bool = False
) -> Benchmark:
    """Time one square layer with ReLU, forward or forward and backward, for all who have such a layer.

    Each gets its input in the layout it likes best; sparselab's is batch first, as its users have it.
    """
    torch.manual_seed(0)
    sparse = SparseLinear(width, width, sparsity=sparsity, relu=True)
    weight = nn.Parameter(sparse.to_dense())
    bias = nn.Parameter(sparse.bias.detach().clone())
    csr, csr_t = torch_csr(weight), torch_csr(weight.T)
    csr_values = nn.Parameter(csr.values().clone())
    plain, upstream = torch.randn(batch, width), torch.randn(batch, width)
    by_feature, innermost = plain.T.contiguous(), to_batch_innermost(plain)
    g_by_feature, g_innermost = upstream.T.contiguous(), to_batch_innermost(upstream)
    mask = (weight.detach() != 0).float()

    def dense() -> torch.Tensor:
        x = plain.detach().requires_grad_(backward)
        y = F.relu(F.linear(x, weight, bias))
        if backward:
            y.backward(upstream)
        return y

    def masked() -> torch.Tensor:
        x = plain.detach().requires_grad_(backward)
        y = F.relu(F.linear(x, weight * mask, bias))
        if backward:
            y.backward(upstream)
        return y

    def ours() -> torch.Tensor:
        x = innermost.detach().requires_grad_(backward)
        y = sparse(x)
        if backward:
            y.backward(g_innermost)
        return y

    def csr_layer() -> torch.Tensor:
        x = by_feature.detach().requires_grad_(backward)
        y = CSRProduct.apply(x, csr_values, bias, csr, csr_t)
        if backward:
            y.backward(g_by_feature)
        return y.T

    candidates = {"dense": dense, "Dense+Mask": masked, "torch CSR": csr_layer, OURS: ours}
    if with_sparselab and has_sparselab():
        candidates["sparselab"] = sparselab_call(weight.detach(), bias, plain, upstream if backward else None)
    if backward:
        return benchmark(candidates, runs=runs, warmup=5, tolerance=1e-3)
    with torch.no_grad():
        return benchmark(candidates, runs=runs, warmup=5, tolerance=1e-3)


def has_sparselab() -> bool:
    """Return whether sparselab can be imported."""
    return importlib.util.find_spec("sparselab") is not None


def sparselab_layer(weight: torch.Tensor, bias: torch.Tensor) -> nn.Module:
    """Return sparselab's layer with this weight, whose zeros are its missing connections."""
    import sparselab

    layer: Any = sparselab.SparseLinear(weight.shape[1], weight.shape[0], sparsity=0.5)
    layer._csr = sparselab.layout.from_dense(weight)  # its constructor draws a topology and takes none
    layer._values = nn.Parameter(torch.from_numpy(np.asarray(layer._csr.values)))
    layer.bias = nn.Parameter(bias.detach().clone())
    return cast(nn.Module, layer)


def sparselab_call(
    weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor, upstream: torch.Tensor | None
) -> Callable[[], torch.Tensor]:
    """Return a call of that layer and ReLU; with ``upstream``, of their backward pass too."""
    layer = sparselab_layer(weight, bias)

    def call() -> torch.Tensor:
        y = F.relu(layer(x.detach().requires_grad_(upstream is not None)))
        if upstream is not None:
            y.backward(upstream)
        return y

    return call
