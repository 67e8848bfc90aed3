"""What a driver refuses: optimizers, saved states and results of rules that do not fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from .arguments import require
from .errors import InvalidArgumentError, TrainingError
from .interface import SparsifiableLayer
from .positions import are_outside
from .rules import GROW_RULES, PRUNE_SCORES, GrowRule, is_distributed

NAMED = 3  # layers at most in an error


def check_attached(model: object, optimizer: object) -> None:
    """Refuse a model and an optimizer in each other's place, and an optimizer whose state cannot move.

    Raises:
        InvalidArgumentError: see above.
    """
    names = f"model={type(model).__name__}, optimizer={type(optimizer).__name__}"
    if isinstance(model, torch.optim.Optimizer) and isinstance(optimizer, nn.Module):
        raise InvalidArgumentError(f"{names} are swapped; give the model first")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise InvalidArgumentError(
            "optimizer=LBFGS keeps one state for all weights, which cannot move with connections; "
            "use an optimizer with a state per weight, such as AdamW"
        )


def check_holds(optimizer: torch.optim.Optimizer, layers: Mapping[str, SparsifiableLayer]) -> None:
    """Refuse an optimizer that does not hold the weights of all layers that train.

    Raises:
        InvalidArgumentError: see above.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trained = {name: p for name, layer in layers.items() if (p := layer.weight_parameter).requires_grad}
    missing = [name for name, parameter in trained.items() if id(parameter) not in held]
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise InvalidArgumentError(
            f"optimizer={type(optimizer).__name__} does not hold the weights of {', '.join(missing[:NAMED])}{more}; "
            "build it from the parameters of the model that sparsify (or mask_model) returned, or freeze these layers"
        )


def check_sizes_may_change(layers: Mapping[str, SparsifiableLayer]) -> None:
    """Refuse truly sparse layers whose number of weights cannot change.

    Raises:
        InvalidArgumentError: see above.
    """
    sparse = [name for name, layer in layers.items() if layer.weight_parameter.dim() == 1]
    computed = [name for name in sparse if is_parametrized(layers[name], "values")]
    if computed:
        raise InvalidArgumentError(
            f"the weights of {', '.join(computed[:NAMED])} are computed by parametrizations, so their number is fixed; "
            "remove these, or use a method that keeps the number of weights of each layer"
        )
    if sparse and is_distributed():
        raise InvalidArgumentError(
            f"{', '.join(sparse[:NAMED])}: data-parallel training needs parameters of fixed sizes; use masked layers, "
            "mask_model(model, sparsity=0.95), or a method that keeps the number of weights of each layer"
        )


def check_finite(layers: Mapping[str, SparsifiableLayer]) -> None:
    """Refuse weights that cannot be ranked.

    Raises:
        TrainingError: a weight is not finite.
    """
    for name, layer in layers.items():
        values = layer.active_values()
        # A sum is fast, and finite only if all are; it may overflow.
        if not math.isfinite(values.sum().item()) and not values.isfinite().all():
            half = layer.weight_parameter.dtype == torch.float16
            more = ", or keep weights in float32 and use torch.autocast" if half else ""
            raise TrainingError(f"a weight of {name!r} is not finite; lower the learning rate{more}")


def check_saved(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse a state that another driver has saved, or that no driver has. A longer training may take it.

    Args:
        state: as it was saved; states of earlier versions do not name the driver.
        own: the state of the driver that is to take it.

    Raises:
        InvalidArgumentError: see above.
    """
    for name in ("steps", "rewirings"):
        value = state.get(name)
        require(isinstance(value, int) and value >= 0, f"state[{name!r}]", value, "give what state_dict() returned")
    keys = [name for name in ("driver", "every") if name in state]
    if any(state[name] != own[name] for name in keys):
        raise InvalidArgumentError(
            f"state is of {_named({**own, **state})}, this driver is {_named(own)}; "
            "give the recipe the settings of the saved run, or attach a new driver without a state"
        )


def _named(state: Mapping[str, Any]) -> str:
    return f"{state['driver']}(every={state['every']})"


def checked_score(score: torch.Tensor, name: str, nnz: int) -> torch.Tensor:
    """Return the scores of a layer's active units after checking that there is one for each.

    Raises:
        InvalidArgumentError: another shape.
    """
    if score.shape != (nnz,):
        raise InvalidArgumentError(
            f"the prune rule returned scores of shape {tuple(score.shape)} for {name!r}; "
            f"it must return one per active connection, [{nnz}]"
        )
    return score


def check_grown(grown: torch.Tensor, active: torch.Tensor, count: int, size: int) -> None:
    """Refuse connections of a custom grow rule that would change the layer's nnz.

    Raises:
        InvalidArgumentError: see above.
    """
    if len(grown) != count or not are_outside(grown, active, size):
        raise InvalidArgumentError(
            f"the grow rule returned {len(grown)} connections; "
            f"it must return {count} sorted, distinct, inactive ones, int64"
        )


def check_rules(prune: object, grow: object) -> None:
    """Refuse what is neither the name of a rule nor a rule.

    Raises:
        InvalidArgumentError: see above.
    """
    if not callable(prune) and prune not in PRUNE_SCORES:
        raise InvalidArgumentError(f"prune={prune!r}; use one of {', '.join(PRUNE_SCORES)}, or a function of a layer")
    if not callable(grow) and not isinstance(grow, GrowRule) and grow not in GROW_RULES:
        raise InvalidArgumentError(f"grow={grow!r}; use one of {', '.join(GROW_RULES)}, a function, or a GrowRule")
