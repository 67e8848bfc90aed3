"""What is broken in a rule of one's own: a check of growth rules and prune scores, before they are trained with."""

from __future__ import annotations

import contextlib
import math
import random
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from .blocks import units_of
from .driver_checks import check_rules
from .dst import DynamicSparsity
from .errors import TrainingError
from .interface import Units
from .layers import SparseConv2d, SparseLinear
from .positions import contained
from .rules import PRUNE_SCORES, GrowChoice, GrowRule, PruneScore, grow_rule
from .sparse_layer import SparseLayer
from .topology import generator_of

LARGE = 2**12  # inputs and outputs of the layer on which memory is watched


def rule_faults(grow: str | GrowChoice | GrowRule = "random", prune: str | PruneScore = "magnitude") -> list[str]:
    """Return what is wrong with a growth rule and a prune score, a sentence for each fault; none were found if empty.

    Both are called with a linear layer, a convolution and a layer of 2×2 blocks, all truly sparse and with a recorded
    gradient. Looked for are: a wrong number of connections, duplicates, connections that are active or out of range;
    randomness from elsewhere than the given generator; changes of the layer or of the global random state; growth on
    gradients that are not numbers; errors in a short training; and, where that has passed, tensors and arrays as large
    as a dense weight. It takes a few seconds.

    Args:
        grow: as :class:`DynamicSparsity` takes it.
        prune: the same.

    Raises:
        InvalidArgumentError: neither the name of a rule nor a function.
    """
    check_rules(prune, grow)
    rule, score = grow_rule(grow), PRUNE_SCORES[prune] if isinstance(prune, str) else prune
    faults: list[str] = []
    with _random_state():
        for kind in _LAYERS:
            faults += [f"{kind}: {fault}" for fault in [*_grow_faults(rule, kind), *_prune_faults(score, kind)]]
        faults += _training_faults(rule, score) or _memory_faults(rule, score)
    return faults


# ------------------------------------------------------------------------------------------ the layers


_LAYERS: dict[str, Callable[[], SparseLayer]] = {
    "linear layer": lambda: SparseLinear(24, 16, sparsity=0.75),
    "convolution": lambda: SparseConv2d(6, 8, 3, padding=1, sparsity=0.75),
    "2×2 blocks": lambda: SparseLinear(24, 16, sparsity=0.75, structure=(2, 2)),
}


def _layer(kind: str, factor: float = 1.0) -> SparseLayer:
    """Return a layer that has recorded the gradient of one batch, multiplied by ``factor``."""
    torch.manual_seed(0)
    layer = _LAYERS[kind]()
    layer.record_gradient = True
    x = torch.randn(3, 6, 5, 5) if isinstance(layer, SparseConv2d) else torch.randn(3, 24)
    (layer(x).square().sum() * factor).backward()
    return layer


# ------------------------------------------------------------------------------------------ calls


@contextlib.contextmanager
def _random_state() -> Iterator[None]:
    """Restore the global random states at the end."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def _global_state(seed: int | None = None) -> str:
    """Return the global random states as a text, after seeding them."""
    if seed is not None:
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
    return f"{torch.get_rng_state().tolist()} {np.random.get_state()} {random.getstate()}"


def _called(call: Callable[[Units, torch.Tensor], Any], kind: str) -> tuple[Any, list[str]]:
    """Call a rule twice, under different global seeds. Return its first result and what is wrong with the calls."""
    results, faults = [], []
    for seed in (1, 2):
        layer = _layer(kind)
        active, values = layer.active(), layer.active_values()
        units = units_of(layer)
        given = units.active()
        before = _global_state(seed)
        try:
            results.append(call(units, given))
        except Exception as error:  # whatever the rule raises
            return None, [f"it raises {type(error).__name__}: {error}"]
        if _global_state() != before:
            faults.append("it advances a global random state; draw from the generator that it is given")
        if not (torch.equal(layer.active(), active) and torch.equal(layer.active_values(), values)):
            faults.append("it changes the layer")
        if not torch.equal(given, units.active()):
            faults.append("it changes the list of active connections that it is given")
    same = isinstance(results[0], torch.Tensor) and torch.equal(results[0], results[1])
    if isinstance(results[0], torch.Tensor) and not same:
        faults.append("two calls with equal generators differ; draw from nothing but the generator")
    return results[0], sorted(set(faults))


def _grow_faults(rule: GrowRule, kind: str) -> Iterator[str]:
    units = units_of(_layer(kind))
    size, active = math.prod(units.dense_shape), units.active()
    for count in (1, (size - len(active)) // 3, size - len(active)):

        def call(units: Units, active: torch.Tensor, count: int = count) -> Any:
            return rule.choose(units, active, count, generator_of(0))

        chosen, faults = _called(call, kind)
        faults += [] if chosen is None and faults else list(_list_faults(chosen, active, count, size))
        yield from (f"growth of {count}: {fault}" for fault in faults)
        if faults:
            return
    if _refuses(rule, kind, None) and not _refuses(rule, kind, math.nan):
        yield "growth takes gradients that are not numbers; raise TrainingError, as gradient_grow does"


def _refuses(rule: GrowRule, kind: str, factor: float | None) -> bool:
    """Tell whether a rule raises TrainingError with this factor on the gradient, or without a gradient."""
    layer = _layer(kind, 1.0 if factor is None else factor)
    if factor is None:
        layer.record_gradient = False
    units = units_of(layer)
    try:
        rule.choose(units, units.active(), 1, generator_of(0))
    except TrainingError:
        return True
    return False


def _list_faults(chosen: Any, active: torch.Tensor, count: int, size: int) -> Iterator[str]:
    """Yield what keeps a result from being a list of connections to grow."""
    if not isinstance(chosen, torch.Tensor) or chosen.dtype != torch.int64 or chosen.dim() != 1:
        what = f"{chosen.dtype} {tuple(chosen.shape)}" if isinstance(chosen, torch.Tensor) else type(chosen).__name__
        yield f"it returns {what}; return flat indices, int64 [count]"
        return
    if len(chosen) != count:
        yield f"it returns {len(chosen)} connections"
    distinct = chosen.unique()
    if len(distinct) < len(chosen):
        yield f"{len(chosen) - len(distinct)} of its connections are duplicates"
    elif not torch.equal(distinct, chosen):
        yield "its connections are not sorted"
    if len(distinct) and (int(distinct[0]) < 0 or int(distinct[-1]) >= size):
        yield f"a connection is out of range; there are {size}"
    elif contained(distinct, active).any():
        yield f"{int(contained(distinct, active).sum())} of its connections are active already"


def _prune_faults(score: PruneScore, kind: str) -> Iterator[str]:
    scores, faults = _called(lambda units, active: score(units), kind)
    count = len(units_of(_layer(kind)).active())
    if not isinstance(scores, torch.Tensor):
        faults = faults or [f"it returns {type(scores).__name__}; return a tensor"]
    elif scores.shape != (count,):
        faults.append(f"it returns {tuple(scores.shape)} for {count} active connections; return one score each")
    elif not scores.isfinite().all():
        faults.append("a score is not finite")
    yield from (f"prune score: {fault}" for fault in faults)


# ------------------------------------------------------------------------------------------ in use


def _training_faults(rule: GrowRule, score: PruneScore) -> list[str]:
    torch.manual_seed(0)
    model = nn.Sequential(SparseLinear(12, 16, sparsity=0.5), nn.ReLU(), SparseLinear(16, 4, sparsity=0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    try:
        driver = DynamicSparsity(model, optimizer, prune_fraction=0.3, every=2, grow=rule, prune=score)
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.randn(8, 12)).square().mean().backward()
            optimizer.step()
            driver.step()
    except Exception as error:  # whatever the rule raises
        return [f"training: it raises {type(error).__name__}: {error}"]
    return []


class _LargestTensor(TorchDispatchMode):
    """Remembers how many numbers the largest tensor has that an operation of torch makes."""

    numel = 0

    @override
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(x.numel() for x in tree_leaves(result) if torch.is_tensor(x))])
        return result


def _memory_faults(rule: GrowRule, score: PruneScore) -> list[str]:
    torch.manual_seed(0)
    dense = LARGE**2
    layer = SparseLinear(LARGE, LARGE, bias=False, sparsity=1 - 4 / LARGE)
    layer.record_gradient = True
    layer(torch.randn(1, LARGE)).square().sum().backward()
    active, faults = layer.active(), []
    calls: dict[str, Callable[[], Any]] = {
        "growth": lambda: rule.choose(layer, active, 100, generator_of(0)),
        "prune score": lambda: score(layer),
    }
    for what, call in calls.items():
        with _LargestTensor() as seen:
            tracemalloc.start()
            call()
            arrays = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        if seen.numel >= dense or arrays >= 4 * dense:  # bytes; a block of gradient_rows takes less
            made = f"a tensor of {seen.numel:,} numbers" if seen.numel >= dense else f"arrays of {arrays / 1e6:,.0f} MB"
            faults.append(
                f"{what}: it makes {made} for a layer with {len(active):,} of {dense:,} weights; read "
                "layer.gradient_rows() block by block, or layer.gradient_at(candidates)"
            )
    return faults
