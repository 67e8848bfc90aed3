"""The interface between layers and algorithms: what a layer that can be sparse reports and does.

Masked layers (``tutorial_lib.masked``) and truly sparse layers (``layers.py``) implement it. The algorithms
(``dst.py``) use nothing else, so they work on both alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol, TypeAlias
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import type_before_parametrizations

from .arguments import check_model, check_patterns
from .computed import has_known_weight
from .errors import InvalidArgumentError
from .structure import UNSTRUCTURED, Structure

# Moves one tensor of per-weight optimizer state to a new topology. ``carry(state, fresh)`` returns a tensor in which
# each kept weight has its old entry, and each grown weight (and each empty place) has the value ``fresh``.
Carry: TypeAlias = Callable[[torch.Tensor, float], torch.Tensor]

# Which layers: shell-style name patterns, or classes.
Names: TypeAlias = Sequence[str | type[nn.Module]]


class LoadWatcher(Protocol):
    """Who holds numbers that belong to the connections of a layer, as a driver does."""

    def topology_loaded(self, layer: SparsifiableLayer, before: torch.Tensor) -> None:
        """Take note that ``load_state_dict`` may have changed the topology; it was ``before``."""


class Units(Protocol):
    """What a rule may ask a layer: its connections or, where they exist in blocks, its blocks (``blocks.py``)."""

    @property
    def dense_shape(self) -> tuple[int, ...]:
        """How many units the dense layer has, in each dimension of its weight."""

    @property
    def weight_parameter(self) -> nn.Parameter:
        """The parameter that holds the weights."""

    def active(self) -> torch.Tensor:
        """Return the active units: int64 ``[n]``, sorted."""

    def active_values(self) -> torch.Tensor:
        """Return the weights of the active units, ``[n]``."""

    def gradient_rows(self) -> Iterator[torch.Tensor]:
        """Yield the gradient of all units, active or not, in consecutive whole rows."""

    def gradient_at(self, connections: torch.Tensor) -> torch.Tensor:
        """Return the gradient of some units, ``[len(connections)]``."""

    def gradient_above(self, bound: float, active: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the other units whose gradient reaches a bound in magnitude, and that gradient; None if not faster."""


# Not attributes of the layers, because these are copied and pickled.
_watchers: WeakKeyDictionary[SparsifiableLayer, WeakSet[LoadWatcher]] = WeakKeyDictionary()


class SparsifiableLayer(nn.Module, ABC):
    """A layer whose weight has a topology: the set of its active connections.

    A connection is named by its *flat index* into the dense weight (row-major). Lists of connections are int64, sorted
    and without duplicates. ``nnz`` is the number of active connections.
    """

    _record_gradient: bool = False
    _recorded: Sequence[Any] = ()  # what backward passes recorded

    #: The blocks in which connections exist; 1×1 for any connections.
    structure: Structure = UNSTRUCTURED

    @property
    @abstractmethod
    def dense_shape(self) -> tuple[int, ...]:
        """The shape of the dense weight, ``(out, in)`` or ``(out, in // groups, kernel_h, kernel_w)``."""

    @property
    @abstractmethod
    def weight_parameter(self) -> nn.Parameter:
        """The parameter that holds this layer's weights, as the optimizer sees it."""

    @property
    def record_gradient(self) -> bool:
        """While True, backward passes record what :meth:`gradient_rows` needs. Setting it discards the record."""
        return self._record_gradient

    @record_gradient.setter
    def record_gradient(self, value: bool) -> None:
        self._record_gradient, self._recorded = value, []

    @property
    def has_gradient(self) -> bool:
        """Whether the weights have a gradient and, while :attr:`record_gradient` is True, one is recorded as well."""
        return self.weight_parameter.grad is not None and (self.has_record or not self.record_gradient)

    @property
    def has_record(self) -> bool:
        """Whether a backward pass has recorded a gradient."""
        return len(self._recorded) > 0

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

    def gradient_above(self, bound: float, active: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the inactive connections whose gradient reaches a bound in magnitude, and that gradient.

        All connections whose gradient is not finite are returned too. Sums may be taken in another order than by
        :meth:`gradient_rows`.

        Args:
            bound: above 0.
            active: the connections to leave out, int64 ``[n]``, sorted.
            most: how many connections to return at most.

        Returns:
            Connections, sorted, and their gradient; None if there are more than ``most``, or if the layer has no faster
            way than :meth:`gradient_rows`.
        """
        return None

    def check_rewire(self, kept: torch.Tensor, grown: torch.Tensor, values: torch.Tensor) -> None:
        """Refuse what :meth:`rewire` would refuse because of how the weights are computed; no layer has changed then.

        Raises:
            InvalidArgumentError: the layer cannot hold these weights.
        """

    @abstractmethod
    def rewire(self, kept: torch.Tensor, grown: torch.Tensor, values: torch.Tensor) -> Carry:
        """Change the topology to ``kept ∪ grown`` in place. Kept weights keep their values; their number may change.

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

    def watch_loading(self, watcher: LoadWatcher) -> None:
        """Call ``watcher.topology_loaded`` after each ``load_state_dict``. A watcher is not kept alive."""
        _watchers.setdefault(self, WeakSet()).add(watcher)

    @property
    def is_watched(self) -> bool:
        """Whether somebody holds numbers that belong to the connections, and moves them with these."""
        return len(_watchers.get(self, ())) > 0

    def _before_loading(self, state_dict: Any, prefix: str, *more: Any) -> None:
        """Refuse a topology that the layer cannot hold, before it changes; then load what must be there first."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *more: Any) -> None:
        watchers = list(_watchers.get(self, ()))
        before = self.active() if watchers else torch.empty(0, dtype=torch.int64)
        try:
            self._before_loading(state_dict, prefix, *more)
            super()._load_from_state_dict(state_dict, prefix, *more)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{prefix[:-1]!r}: {error}" if prefix else str(error)) from error
        for watcher in watchers:
            watcher.topology_loaded(self, before)


WeightLayer: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | SparsifiableLayer
DENSE_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


def sparse_layers(model: nn.Module) -> dict[str, SparsifiableLayer]:
    """Return the model's sparsifiable layers by name, in the order of ``named_modules``."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SparsifiableLayer)}


def is_weight_layer(module: nn.Module) -> bool:
    """Tell whether ``module`` is a Linear, Conv1d, Conv2d or sparse layer.

    A subclass of a torch layer is none: it may use its weight in its own way. Nor is a layer whose weight is computed,
    except by ``torch.nn.utils.prune`` or ``weight_norm``.
    """
    known = type_before_parametrizations(module) in DENSE_LAYERS and has_known_weight(module)
    return isinstance(module, SparsifiableLayer) or known


def is_chosen(name: str, modules: Mapping[str, nn.Module], include: Names, exclude: Names) -> bool:
    """Tell whether a layer, or a module that contains it, is included, and none of them is excluded.

    Args:
        name: of the layer, as in ``named_modules``.
        modules: all modules of the model by name.
        include: see :func:`weight_layers`.
        exclude: see :func:`weight_layers`.
    """
    parts = name.split(".")
    around = {place: modules[place] for place in ("", *(".".join(parts[: n + 1]) for n in range(len(parts))))}
    return any(_means(each, around) for each in include) and not any(_means(each, around) for each in exclude)


def _means(wanted: str | type[nn.Module], modules: Mapping[str, nn.Module]) -> bool:
    """Tell whether a name pattern or class fits one of these modules."""
    if isinstance(wanted, str):
        return any(fnmatchcase(place, wanted) for place in modules)
    return any(issubclass(getattr(each, "adapted_from", type(each)), wanted) for each in modules.values())


def check_excluded(exclude: Names, modules: Mapping[str, nn.Module]) -> None:
    """Refuse a name pattern or class that fits none of these modules, as a misspelled one.

    Raises:
        InvalidArgumentError: see above.
    """
    for wanted in exclude:
        if not _means(wanted, modules):
            name = repr(wanted) if isinstance(wanted, str) else wanted.__name__
            some = [place for place, module in modules.items() if place and is_weight_layer(module)][:3]
            remedy = f"use names such as {', '.join(some)}, or classes" if some else "leave it out"
            raise InvalidArgumentError(f"exclude={name} matches no layer or module; {remedy}")


def weight_layers(model: nn.Module, include: Names = ("*",), exclude: Names = ()) -> dict[str, WeightLayer]:
    """Return the Linear, Conv1d, Conv2d and sparse layers of ``model`` by name, including nested ones.

    Subclasses of the torch layers are left out. A subclass may use its weight in its own way, as
    ``nn.MultiheadAttention`` does, and a mask would have no effect there.

    Args:
        model: any module; it may itself be such a layer (its name is then ``""``).
        include: shell-style name patterns and classes; at least one must fit a layer, or a module that contains it.
        exclude: the same; none must fit.

    Raises:
        InvalidArgumentError: no layer is left, or a layer is used in two places.
    """
    check_patterns("include", include)
    check_patterns("exclude", exclude)
    modules = dict(model.named_modules())
    layers: dict[str, Any] = {
        name: module
        for name, module in modules.items()
        if is_weight_layer(module) and is_chosen(name, modules, include, exclude)
    }
    if not layers:
        raise InvalidArgumentError(
            f"model={type(model).__name__} has no nn.Linear, nn.Conv1d or nn.Conv2d layer that matches "
            f"include={list(include)}, exclude={list(exclude)}; give a model that has one"
        )
    first_names = {layer: name for name, layer in layers.items()}
    for name, module in model.named_modules(remove_duplicate=False):
        first = first_names.get(module, name)
        if first != name:
            raise InvalidArgumentError(
                f"{first!r} and {name!r} are the same layer; give each place a layer of its own, or exclude it"
            )
    return layers


def untied_layers(model: nn.Module, include: Names = ("*",), exclude: Names = ()) -> dict[str, WeightLayer]:
    """Return those of :func:`weight_layers` that can become sparse: all that share no parameter with another module.

    The head of a language model whose weight is also its embedding is left out.

    Raises:
        InvalidArgumentError: no layer is left, or two layers share a parameter: a mask on one would not apply to the
            other.
    """
    layers, owners = weight_layers(model, include, exclude), owners_of(model)
    tied = set()
    for name in layers:
        for parameter in model.get_submodule(name).parameters():
            others = [other for other in owners[parameter] if not _is_inside(other, name)]
            if any(is_weight_layer(model.get_submodule(other.rpartition(".")[0])) for other in others):
                same = " and ".join(map(repr, owners[parameter]))
                raise InvalidArgumentError(
                    f"model={type(model).__name__}: {same} are the same parameter; "
                    "give each layer its own, or exclude these layers"
                )
            tied |= {name} if others else set()
    if len(tied) == len(layers):
        raise InvalidArgumentError(
            f"model={type(model).__name__}: {', '.join(tied)} share their weights with other modules, so nothing can "
            "be sparse; give a model with other layers"
        )
    return {name: layer for name, layer in layers.items() if name not in tied}


def owners_of(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Return all names of each parameter of ``model``."""
    owners: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter, []).append(name)
    return owners


def _is_inside(parameter: str, module: str) -> bool:
    return not module or parameter.startswith(f"{module}.")


def weight_shape(layer: WeightLayer) -> tuple[int, ...]:
    """Return the shape of the layer's dense weight."""
    return layer.dense_shape if isinstance(layer, SparsifiableLayer) else tuple(layer.weight.shape)


def check_has_numbers(model: nn.Module) -> None:
    """Refuse a model on the meta device, and a model with lazy layers that have not been called yet.

    Raises:
        InvalidArgumentError: a parameter or buffer is on the meta device, or has no shape yet; or it is no model.
    """
    check_model(model)
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
