"""A layer as rules see it: where connections exist in blocks, each block counts as one connection."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from .interface import SparsifiableLayer, Units
from .rules import over_all_ranks
from .structure import active_blocks, block_of, grid, in_grid_rows, sums_of_squares, whole_blocks


def units_of(layer: SparsifiableLayer) -> Units:
    """Return what a rule chooses among: the layer's connections, or its blocks."""
    return layer if layer.structure == (1, 1) else BlocksOf(layer)


class BlocksOf:
    """A layer's blocks, with the methods of its connections, so that rules for single weights work unchanged.

    A block's weight, and its gradient, is the root mean square over the weights of the block: the norm, divided by a
    constant that makes blocks of different sizes comparable.
    """

    def __init__(self, layer: SparsifiableLayer) -> None:
        self._layer, self.structure, self.dense_shape = layer, layer.structure, grid(layer.dense_shape, layer.structure)

    @property
    def weight_parameter(self) -> nn.Parameter:
        """The parameter that holds the layer's weights."""
        return self._layer.weight_parameter

    def active(self) -> torch.Tensor:
        """Return the active blocks: flat indices in the grid of blocks, int64 ``[n]``, sorted.

        Raises:
            InvalidArgumentError: a block is active in part, as after loading a mask of another structure.
        """
        return self._active()[0]

    def _active(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the active blocks, and which of them each active connection belongs to."""
        return active_blocks(self._layer.active(), self._layer.dense_shape, self.structure)

    def active_values(self) -> torch.Tensor:
        """Return the root mean square of each active block's weights, in the order of :meth:`active`."""
        blocks, inverse = self._active()
        return self._root(sums_of_squares(self._layer.active_values(), inverse, len(blocks)))

    def gradient_rows(self) -> Iterator[torch.Tensor]:
        """Yield the root mean square of each block's gradient, row by row of the grid of blocks.

        The gradient is summed over all processes before it is squared.
        """
        rows, taps = map(over_all_ranks, self._layer.gradient_rows()), math.prod(self.dense_shape[2:])
        return map(self._root, in_grid_rows(rows, self.structure, taps))

    def gradient_at(self, connections: torch.Tensor) -> torch.Tensor:
        """Return the same of some blocks only, in their order.

        Args:
            connections: flat indices in the grid of blocks, int64 ``[n]``.
        """
        blocks, back = connections.unique(return_inverse=True)
        single = whole_blocks(blocks, self._layer.dense_shape, self.structure)
        of = torch.searchsorted(blocks, block_of(single, self._layer.dense_shape, self.structure))
        gradient = over_all_ranks(self._layer.gradient_at(single))
        return self._root(sums_of_squares(gradient, of, len(blocks)))[back]

    def gradient_above(self, bound: float, active: torch.Tensor, most: int) -> None:
        """Return None: for blocks there is no faster way than :meth:`gradient_rows`."""

    def _root(self, squares: torch.Tensor) -> torch.Tensor:
        return (squares / self.structure.area).sqrt()
