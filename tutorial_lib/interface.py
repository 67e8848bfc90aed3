"""The one idea that holds the library together: what a sparsifiable layer can tell and do.

Simulated layers (``masked.py``) and truly sparse layers are two implementations of this interface. The algorithms
(``dst.py``) see nothing else, so they never ask which kind they drive.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import nn

from .validate import checked

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


@checked
def sparse_layers(model: nn.Module) -> dict[str, SparsifiableLayer]:
    """Return the model's sparsifiable layers by name, in the order of ``named_modules``."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SparsifiableLayer)}
