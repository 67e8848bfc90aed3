"""What a sparsifiable layer reports and does, and how a model's layers are found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .errors import InvalidArgumentError

# Moves one tensor of per-weight optimizer state to a new topology: ``carry(state, fresh)`` returns a tensor in which
# every kept weight has its old entry and every grown weight (and every empty place) has the value ``fresh``.
Carry = Callable[[torch.Tensor, float], torch.Tensor]


class SparsifiableLayer(ABC):
    """A layer whose weight has a topology: the set of its active connections.

    Connections are named by their *flat index* into the dense weight, row-major: int64, sorted, unique.
    ``nnz`` is the number of active connections.
    """

    #: While True, backward passes leave behind what :meth:`gradient_rows` needs; setting False forgets it.
    record_gradient: bool = False

    #: Whether :meth:`rewire` may leave fewer connections than there were.
    can_shrink: bool = False

    @property
    @abstractmethod
    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the dense weight: ``(out, in)`` or ``(out, in // groups, kernel_h, kernel_w)``."""

    @property
    @abstractmethod
    def weight_parameter(self) -> nn.Parameter:
        """The parameter that an optimizer holds for this layer's weights."""

    @property
    def index_bytes(self) -> int:
        """Bytes of what tells where the active weights are, beyond the layer's parameters and buffers."""
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
        """Multiply what backward passes have left behind by ``factor``; further ones add to it."""

    @abstractmethod
    def gradient_rows(self) -> Iterator[torch.Tensor]:
        """Yield the dense weight's gradient in consecutive blocks of whole rows, ``[rows, in·kernel]`` each.

        The gradient is that of the loss for *every* connection, active or not: the unmasked gradient.

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
        """Change the topology to ``kept ∪ grown`` in place; kept weights keep their values.

        Args:
            kept: int64, sorted; a subset of :meth:`active`.
            grown: int64, sorted; none of them active now.
            values: weights of the grown connections, ``[len(grown)]``.

        Returns:
            How a tensor of per-weight optimizer state follows its weights.
        """

    @abstractmethod
    def to_dense_layer(self) -> nn.Module:
        """Return a plain ``nn.Linear`` or ``nn.Conv2d`` that computes the same function."""


def sparse_layers(model: nn.Module) -> dict[str, SparsifiableLayer]:
    """Return the model's sparsifiable layers by name, in the order of ``named_modules``."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SparsifiableLayer)}


def weight_layers(
    model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> dict[str, nn.Linear | nn.Conv2d | SparsifiableLayer]:
    """Return the Linear, Conv2d and sparse layers of ``model`` by name, nested ones too.

    Subclasses of the torch layers do not count: one may use its weight in its own way (``nn.MultiheadAttention``
    does), and a mask would silently miss it.

    Args:
        model: any module; it may itself be a Linear or Conv2d (its name is then ``""``).
        include: shell-style name patterns of which a layer must match at least one.
        exclude: shell-style name patterns of which a layer may match none.

    Raises:
        InvalidArgumentError: no layer is left, or one is used in two places, or shares a parameter with another.
    """
    places: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, (nn.Linear, nn.Conv2d, SparsifiableLayer)) and places.setdefault(module, name) != name:
            raise InvalidArgumentError(
                f"{places[module]!r} and {name!r} are the same layer; give each place a layer of its own"
            )
    layers = {
        name: module
        for name, module in model.named_modules()
        if (type(module) in (nn.Linear, nn.Conv2d) or isinstance(module, SparsifiableLayer))
        and any(fnmatchcase(name, pattern) for pattern in include)
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
    }
    if not layers:
        raise InvalidArgumentError(
            f"model={type(model).__name__} has no nn.Linear or nn.Conv2d layer that matches include={list(include)}, "
            f"exclude={list(exclude)}; give one that has, there is nothing to make sparse"
        )
    owners: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter, []).append(name)
    for layer in layers.values():
        for parameter in layer.parameters(recurse=False):
            if len(owners[parameter]) > 1:
                same = " and ".join(map(repr, owners[parameter]))
                raise InvalidArgumentError(
                    f"model={type(model).__name__}: {same} are the same parameter; give each layer its own"
                )
    return layers


def weight_shape(layer: nn.Linear | nn.Conv2d | SparsifiableLayer) -> tuple[int, ...]:
    """Return the shape of the layer's weight, as if it were dense."""
    return layer.dense_shape if isinstance(layer, SparsifiableLayer) else tuple(layer.weight.shape)


def check_has_numbers(model: nn.Module) -> None:
    """Refuse a model on the meta device, and one whose lazy layers have never been called.

    Raises:
        InvalidArgumentError: a parameter or buffer is on the meta device, or has no shape yet.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise InvalidArgumentError(
                f"model={type(model).__name__} has {name!r}, whose shape is not known yet; call the model once before"
            )
        if tensor.is_meta:
            raise InvalidArgumentError(
                f"model={type(model).__name__} has {name!r} on the meta device, which holds no numbers; "
                "use a model on the CPU or a GPU"
            )
