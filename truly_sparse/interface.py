"""The interface between layers and algorithms: what a layer that can be sparse reports and does.

Masked layers (``tutorial_lib.masked``) and truly sparse layers (``layers.py``) implement it. The algorithms
(``dst.py``) use nothing else, so they work on both alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .arguments import check_patterns
from .errors import InvalidArgumentError

# Moves one tensor of per-weight optimizer state to a new topology. ``carry(state, fresh)`` returns a tensor in which
# each kept weight has its old entry, and each grown weight (and each empty place) has the value ``fresh``.
Carry: TypeAlias = Callable[[torch.Tensor, float], torch.Tensor]


class SparsifiableLayer(nn.Module, ABC):
    """A layer whose weight has a topology: the set of its active connections.

    A connection is named by its *flat index* into the dense weight (row-major). Lists of connections are int64, sorted
    and without duplicates. ``nnz`` is the number of active connections.
    """

    #: While True, backward passes record what :meth:`gradient_rows` needs. Setting it to False discards the record.
    record_gradient: bool = False

    #: Whether :meth:`rewire` may reduce the number of connections.
    can_shrink: bool = False

    @property
    @abstractmethod
    def dense_shape(self) -> tuple[int, ...]:
        """The shape of the dense weight, ``(out, in)`` or ``(out, in // groups, kernel_h, kernel_w)``."""

    @property
    @abstractmethod
    def weight_parameter(self) -> nn.Parameter:
        """The parameter that holds this layer's weights, as the optimizer sees it."""

    @property
    def index_bytes(self) -> int:
        """Bytes of the topology, in addition to the layer's parameters and buffers."""
        return 0

    @abstractmethod
    def active(self) -> torch.Tensor:
        """Return the active connections: int64 ``[nnz]``, sorted."""

    @abstractmethod
    def active_values(self) -> torch.Tensor:
        """Return the weights of the active connections, in the order of :meth:`active`: ``[nnz]``."""

    @abstractmethod
    def set_active_values(self, values: torch.Tensor) -> None:
        """Set the weights of the active connections, given in the order of :meth:`active`: ``[nnz]``."""

    @abstractmethod
    def fade_gradient(self, factor: float) -> None:
        """Multiply the recorded gradient by ``factor``; later backward passes add to it."""

    @abstractmethod
    def gradient_rows(self) -> Iterator[torch.Tensor]:
        """Yield the gradient of the dense weight in consecutive blocks of whole rows: ``[rows, in · kernel]`` each.

        It is the gradient with respect to *every* connection, active or not: the unmasked gradient.

        Raises:
            TrainingError: no backward pass ran while ``record_gradient`` was True.
        """

    @abstractmethod
    def gradient_at(self, connections: torch.Tensor) -> torch.Tensor:
        """Return the same gradient at the given connections only: ``[len(connections)]``.

        Raises:
            TrainingError: no backward pass ran while ``record_gradient`` was True.
        """

    @abstractmethod
    def rewire(self, kept: torch.Tensor, grown: torch.Tensor, values: torch.Tensor) -> Carry:
        """Change the topology to ``kept ∪ grown`` in place. Kept weights keep their values.

        Args:
            kept: int64, sorted; a subset of :meth:`active`.
            grown: int64, sorted; none of them active now.
            values: weights of the grown connections, ``[len(grown)]``.

        Returns:
            The function that moves per-weight optimizer state to the new topology.
        """

    @abstractmethod
    def to_dense_layer(self) -> nn.Module:
        """Return a dense torch layer that computes the same function."""


WeightLayer: TypeAlias = nn.Linear | nn.Conv2d | SparsifiableLayer


def sparse_layers(model: nn.Module) -> dict[str, SparsifiableLayer]:
    """Return the model's sparsifiable layers by name, in the order of ``named_modules``."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SparsifiableLayer)}


def weight_layers(
    model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> dict[str, WeightLayer]:
    """Return the Linear, Conv2d and sparse layers of ``model`` by name, including nested ones.

    Subclasses of the torch layers are left out. A subclass may use its weight in its own way, as
    ``nn.MultiheadAttention`` does, and a mask would have no effect there.

    Args:
        model: any module; it may itself be a Linear or Conv2d (its name is then ``""``).
        include: shell-style name patterns; a layer must match at least one.
        exclude: shell-style name patterns; a layer must match none.

    Raises:
        InvalidArgumentError: no layer is left, a layer is used in two places, or two layers share a parameter.
    """
    check_patterns("include", include)
    check_patterns("exclude", exclude)
    _check_places(model)
    layers: dict[str, WeightLayer] = {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, SparsifiableLayer) or type(module) is nn.Linear or type(module) is nn.Conv2d)
        and any(fnmatchcase(name, pattern) for pattern in include)
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
    }
    if not layers:
        raise InvalidArgumentError(
            f"model={type(model).__name__} has no nn.Linear or nn.Conv2d layer that matches include={list(include)}, "
            f"exclude={list(exclude)}; give a model that has one"
        )
    _check_owners(model, layers)
    return layers


def _check_places(model: nn.Module) -> None:
    """Refuse a model that uses one layer in two places: it would be replaced in one of them only."""
    places: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, (nn.Linear, nn.Conv2d, SparsifiableLayer)) and places.setdefault(module, name) != name:
            raise InvalidArgumentError(
                f"{places[module]!r} and {name!r} are the same layer; give each place a layer of its own"
            )


def _check_owners(model: nn.Module, layers: dict[str, WeightLayer]) -> None:
    """Refuse layers that share a parameter: a mask on one of them would not apply to the other."""
    owners: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter, []).append(name)
    for layer in layers:
        for parameter in model.get_submodule(layer).parameters(recurse=False):
            if len(owners[parameter]) > 1:
                same = " and ".join(map(repr, owners[parameter]))
                raise InvalidArgumentError(
                    f"model={type(model).__name__}: {same} are the same parameter; give each layer its own"
                )


def weight_shape(layer: WeightLayer) -> tuple[int, ...]:
    """Return the shape of the layer's dense weight."""
    return layer.dense_shape if isinstance(layer, SparsifiableLayer) else tuple(layer.weight.shape)


def check_has_numbers(model: nn.Module) -> None:
    """Refuse a model on the meta device, and a model with lazy layers that have not been called yet.

    Raises:
        InvalidArgumentError: a parameter or buffer is on the meta device, or has no shape yet.
    """
    tensors: list[tuple[str, Any]] = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if is_lazy(tensor):
            raise InvalidArgumentError(
                f"model={type(model).__name__} has {name!r}, whose shape is not known yet; call the model once before"
            )
        if tensor.is_meta:
            raise InvalidArgumentError(
                f"model={type(model).__name__} has {name!r} on the meta device, which holds no numbers; "
                "use a model on the CPU or a GPU"
            )
