"""What is sparse in a model, and what stays dense."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import nn

from .errors import InvalidArgumentError
from .interface import Names, is_chosen, owners_of, sparse_layers
from .progress import progress_stream
from .structure import UNSTRUCTURED, Structure

NAMED = 6  # modules at most in the line about what stays dense


class LayerSparsity(NamedTuple):
    """Weights of one layer, or of a whole model.

    Attributes:
        shape: shape of the dense weight; ``()`` in the total.
        weights: entries of the dense weight.
        active: active connections; all of them in a dense layer.
        sparsity: share of the weights that are not active.
        structure: the blocks in which they exist.
    """

    shape: tuple[int, ...]
    weights: int
    active: int
    sparsity: float
    structure: Structure = UNSTRUCTURED


def sparsity_by_layer(model: nn.Module) -> dict[str, LayerSparsity]:
    """Return weights and active weights of each sparse layer, of each dense weight, and of all together (``"total"``).

    Every parameter of two or more dimensions is a weight, whatever holds it: an LSTM, an embedding, a layer that was
    excluded. Biases and the parameters of norms have one dimension and are not counted. A weight has the name of its
    parameter, without ``.weight`` at the end; one that is used in several places is counted once, under its first name.

    Raises:
        InvalidArgumentError: the model has no weights.
    """
    rows: dict[str, LayerSparsity] = {}
    sparse = {layer.weight_parameter: (name, layer) for name, layer in sparse_layers(model).items()}
    for name, parameter in model.named_parameters():
        module, _, own = name.rpartition(".")
        if parameter in sparse:
            place, layer = sparse[parameter]
            rows[place] = _row(layer.dense_shape, len(layer.active()), layer.structure)
        elif parameter.dim() > 1:
            rows[module if own == "weight" else name] = _row(tuple(parameter.shape), parameter.numel())
    if not rows:
        raise InvalidArgumentError(f"model={type(model).__name__} has no weights; give a model that has some")
    weights, active = (sum(getattr(row, column) for row in rows.values()) for column in ("weights", "active"))
    return rows | {"total": LayerSparsity((), weights, active, 1 - active / weights)}


def _row(shape: tuple[int, ...], active: int, structure: Structure = UNSTRUCTURED) -> LayerSparsity:
    weights = math.prod(shape)
    return LayerSparsity(shape, weights, active, 1 - active / weights, structure)


def tell_what_stays_dense(model: nn.Module, include: Names, exclude: Names) -> None:
    """Print one line that names the modules which were to become sparse and did not; nothing if there are none.

    A parameter that the model itself holds has its own name, others that of their module.

    Args:
        model: after its layers became sparse.
        include: see :func:`weight_layers`.
        exclude: see :func:`weight_layers`.
    """
    modules, sparse = dict(model.named_modules()), {layer.weight_parameter for layer in sparse_layers(model).values()}
    found: dict[str, str] = {}
    dense = 0
    for parameter, names in owners_of(model).items():
        places = {name: name.rpartition(".")[0] for name in names}
        chosen = [name for name, place in places.items() if is_chosen(place, modules, include, exclude)]
        if parameter in sparse or parameter.dim() < 2 or not chosen:
            continue
        dense += parameter.numel()
        for name in chosen:
            place = places[name]
            others = " and ".join(repr(other or own) for own, other in places.items() if other != place)
            shares = f", shares its weight with {others}" if others else ""
            kind = type(modules[place] if place else parameter)
            found[place or name] = f"{place or name} ({kind.__name__}{shares})"
    if found:
        more = f" and {len(found) - NAMED} more, see sparsity_report" if len(found) > NAMED else ""
        total = sparsity_by_layer(model)["total"].weights
        line = f"{dense:,} of {total:,} weights stay dense: {', '.join(list(found.values())[:NAMED])}{more}"
        print(line, file=progress_stream(), flush=True)
