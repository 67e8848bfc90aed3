"""Fusion: consecutive sparse layers, with the ReLU and pooling between them, become one operation."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.parametrize import type_before_parametrizations as _kind

from .copies import copied
from .errors import InvalidArgumentError
from .layers import SparseConv2d, SparseLinear
from .ops import run
from .sparse_layer import SparseLayer

RELU = (F.relu, torch.relu, "relu")
MAX_POOL = (F.max_pool2d, torch.max_pool2d)
VIEW = (torch.reshape, "reshape", "view")
Modules: TypeAlias = dict[Any, nn.Module]  # by name, as the targets of graph nodes


@dataclass(frozen=True)
class Chain:
    """A fused model that is a single chain of layers.

    Attributes:
        layers: their names.
        flattens: whether the input is flattened before the first layer.
        names: of all modules that the model calls: the layers, and the one that flattens if it is a module.
    """

    layers: tuple[str, ...]
    flattens: bool
    names: tuple[str, ...]


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        super().__init__(autowrap_functions=(run_chain,))  # so that a fused model can be fused again

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, SparseLayer) or super().is_leaf_module(m, module_qualified_name)


def fuse(model: nn.Module) -> fx.GraphModule:
    """Return a copy of ``model`` in which each sparse layer also computes the ReLU and 2×2 max-pool that follow it.

    Consecutive layers, with or without a flattening between them (``nn.Flatten()``, ``x.flatten(1)``,
    ``x.view(x.size(0), -1)``), then become one call of :func:`run_chain`, so that Python runs once for all of them. The
    function, the names of the layers and their parameters stay the same. A layer that is called twice stays as it is. A
    layer whose result is used in a second place absorbs nothing and ends its chain.

    Args:
        model: made by :func:`sparsify`. ``torch.fx`` must be able to trace its ``forward`` (no branches that depend on
            the data).

    Raises:
        InvalidArgumentError: ``torch.fx`` cannot trace the model.
    """
    model = copied(model)
    modules: Modules = dict(model.named_modules())
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # the model's own code may raise anything when it is traced
        raise InvalidArgumentError(
            f"model={type(model).__name__}: torch.fx cannot trace its forward ({str(error)[:200]}); "
            "use one without branches that depend on the data"
        ) from error
    # Subclasses of the sparse layers may compute more, so they stay as they are.
    calls = [
        node
        for node in graph.nodes
        if node.op == "call_module" and _kind(modules[node.target]) in (SparseLinear, SparseConv2d)
    ]
    targets = [node.target for node in calls]
    for node in calls:
        layer: Any = modules[node.target]
        if targets.count(node.target) == 1:
            if not layer.relu and not getattr(layer, "pool", False):
                layer.relu = _absorb(graph, node, modules, _is_relu)
            if isinstance(layer, SparseConv2d) and not layer.pool:
                layer.pool = _absorb(graph, node, modules, _is_pool)
    once = {target for target in targets if targets.count(target) == 1}
    in_chain: set[fx.Node] = set()
    for node in calls:
        if node.target in once and node not in in_chain and len(node.args) == 1:
            chain = _chain_from(node, modules, once)
            in_chain.update(chain)
            if len(chain) > 1:
                _call_at_once(graph, chain, modules)
    return fx.GraphModule(model, graph)


def chain_of(model: nn.Module) -> Chain | None:
    """Return the chain that a fused model is, with or without a flattening of its input; None for any other model."""
    nodes = list(model.graph.nodes) if isinstance(model, fx.GraphModule) else []
    *before, call = [node for node in nodes if node.op not in ("placeholder", "get_attr", "output")] or [None]
    if call is None or call.target is not run_chain or sum(node.op == "placeholder" for node in nodes) != 1:
        return None
    x, layers = cast(tuple[fx.Node, tuple[fx.Node, ...]], call.args)
    names = tuple(str(layer.target) for layer in layers)
    flattening = _flattening(x, dict(model.named_modules()))
    source = cast(fx.Node, flattening[0].args[0]) if flattening else x
    if (source, nodes[-1].args[0]) != (nodes[0], call) or set(before) != set(flattening):
        return None
    return Chain(
        names, bool(flattening), names + tuple(str(node.target) for node in before if node.op == "call_module")
    )


def _chain_from(node: fx.Node, modules: Modules, once: set[Any]) -> list[fx.Node]:
    chain = [node]
    while (following := _next_layer(chain[-1], modules)) is not None and following.target in once:
        chain.append(following)
    return chain


def _call_at_once(graph: fx.Graph, chain: list[fx.Node], modules: Modules) -> None:
    with graph.inserting_after(chain[-1]):
        call = graph.call_function(run_chain)
    with graph.inserting_before(call):
        call.args = (chain[0].args[0], tuple(graph.get_attr(str(node.target)) for node in chain))
    chain[-1].replace_all_uses_with(call)
    for node, before in zip(reversed(chain), (*reversed(chain[:-1]), None), strict=True):
        between = cast(fx.Node, node.args[0])
        graph.erase_node(node)
        if before is not None and between is not before:
            for flattening in _flattening(between, modules):
                graph.erase_node(flattening)


def _next_layer(node: fx.Node, modules: Modules) -> fx.Node | None:
    """Return the call of the sparse layer that is the only user of the result of ``node``; None if there is none."""
    kind, users = _kind(modules[node.target]), tuple(node.users)
    flattening = next((found for user in users if (found := _flattening(user, modules))), [])
    if kind is SparseConv2d and flattening and {*users, *(u for n in flattening[1:] for u in n.users)} <= {*flattening}:
        kind, users = SparseLinear, tuple(flattening[0].users)
    if len(users) != 1 or users[0].op != "call_module" or _kind(modules[users[0].target]) is not kind:
        return None
    return users[0] if len(users[0].args) == 1 and not users[0].kwargs else None


def _absorb(graph: fx.Graph, node: fx.Node, modules: Modules, wanted: Any) -> bool:
    """Remove the only user of ``node`` from the graph if ``wanted`` accepts it. Return whether it was removed."""
    users = list(node.users)
    if len(users) != 1 or not wanted(users[0], modules):
        return False
    users[0].replace_all_uses_with(node)
    graph.erase_node(users[0])
    return True


def _is_relu(node: fx.Node, modules: Modules) -> bool:
    if node.op == "call_module":
        return isinstance(modules[node.target], nn.ReLU)
    return node.op in ("call_function", "call_method") and node.target in RELU


def _is_pool(node: fx.Node, modules: Modules) -> bool:
    if node.op == "call_module":
        pool = modules[node.target]
        if not isinstance(pool, nn.MaxPool2d):
            return False
        arguments = {
            name: getattr(pool, name) for name in ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        }
        return not pool.return_indices and _is_two_by_two(**arguments)
    called = node.op == "call_function" and node.target in MAX_POOL and bool(node.args)
    return called and _is_two_by_two(*cast(Any, node.args[1:]), **cast(Any, node.kwargs))


def _flattening(node: fx.Node, modules: Modules) -> list[fx.Node]:
    """Return the nodes that flatten all but the first dimension: ``node``, and those that look up the batch size.

    Examples are ``x.flatten(1)`` and ``x.view(x.size(0), -1)``. Nothing is returned for any other node.
    """
    if _is_flatten(node, modules):
        return [node]
    if node.op not in ("call_function", "call_method") or node.target not in VIEW or node.kwargs:
        return []
    x, *sizes = node.args
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = [*sizes[0]]
    first = sizes[0] if len(sizes) == 2 and sizes[1] == -1 else None
    if not isinstance(first, fx.Node):
        return []
    if first.target == "size" and first.args == (x, 0):
        return [node, first]
    if first.target is not operator.getitem or first.args[1] != 0:
        return []
    shape = cast(fx.Node, first.args[0])
    of_x = (shape.target, shape.args) in ((getattr, (x, "shape")), ("size", (x,)))
    return [node, first, shape] if of_x else []


def _is_flatten(node: fx.Node, modules: Modules) -> bool:
    if node.op == "call_module":
        flatten = modules[node.target]
        return isinstance(flatten, nn.Flatten) and (flatten.start_dim, flatten.end_dim) == (1, -1)
    if node.op == "call_function" and node.target is not torch.flatten:
        return False
    if node.op == "call_method" and node.target != "flatten":
        return False
    called = node.op in ("call_function", "call_method") and bool(node.args)
    return called and _from_first(*cast(Any, node.args[1:]), **cast(Any, node.kwargs))


def _from_first(start_dim: int = 0, end_dim: int = -1) -> bool:
    return start_dim == 1 and end_dim == -1


def _is_two_by_two(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> bool:
    plain = padding in (0, (0, 0)) and dilation in (1, (1, 1)) and not ceil_mode and not return_indices
    return plain and kernel_size in (2, (2, 2)) and stride in (None, 2, (2, 2), [])


def run_chain(x: torch.Tensor, layers: tuple[nn.Module, ...]) -> torch.Tensor:
    """Return the result of consecutive layers. A linear layer flattens the result of a convolution before it.

    The layers are called one by one if one of them has hooks or was replaced by a dense layer, or if ``x`` is no plain
    batch.

    Args:
        x: input of the first layer, ``[B, C, H, W]`` for a convolution, else ``[B, in]``.
        layers: sparse layers, in order.
    """
    if len(layers) > 1 and not _can_run_at_once(x, layers):
        for before, layer in zip((None, *layers), layers, strict=False):
            flat = before is not None and _is_linear(layer) and not _is_linear(before)
            x = layer(x.flatten(1) if flat else x)
        return x
    return run(x, cast("tuple[SparseLayer, ...]", layers))


def _can_run_at_once(x: torch.Tensor, layers: tuple[nn.Module, ...]) -> bool:
    plain = x.dim() == (2 if _is_linear(layers[0]) else 4)
    return plain and all(isinstance(layer, SparseLayer) and not any(hooks_of(layer)) for layer in layers)


def _is_linear(layer: nn.Module) -> bool:
    weight_dim = len(layer.dense_shape) if isinstance(layer, SparseLayer) else next(layer.parameters()).dim()
    return weight_dim == 2


def hooks_of(module: nn.Module) -> tuple[dict[int, Any], ...]:
    """Return the module's hook dictionaries."""
    return module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
