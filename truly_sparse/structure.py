"""Structures: connections that exist in blocks of outputs × inputs, and how blocks are numbered.

A block is named by its flat index in the *grid* of blocks, ``(out / rows, in / columns, *kernel)``. In a convolution a
block has so many output × input channels at one position of the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias, cast

import torch

from .arguments import pair, require
from .errors import InvalidArgumentError


class Structure(NamedTuple):
    """The size of the blocks in which connections exist: outputs × inputs (or input channels); 1×1 is unstructured."""

    rows: int = 1
    columns: int = 1

    @property
    def area(self) -> int:
        """The number of weights of a block."""
        return self.rows * self.columns

    def __str__(self) -> str:
        return f"{self.rows}×{self.columns}"


UNSTRUCTURED = Structure()

# A structure as users give it: outputs × inputs, one number for both, or "auto" (see ``auto.py``).
StructureLike: TypeAlias = int | tuple[int, int] | str


def as_structure(structure: StructureLike) -> Structure:
    """Return a structure given as a pair, or as one number for both.

    Raises:
        InvalidArgumentError: a size below 1, or a text.
    """
    remedy = "give outputs × inputs such as (4, 4); only sparsify and mask_model take 'auto'"
    require(not isinstance(structure, str), "structure", structure, remedy)
    return Structure(*pair("structure", cast("tuple[int, int]", structure), 1))


def check_structure(structure: StructureLike, shape: Sequence[int], groups: int = 1) -> Structure:
    """Return ``structure`` after checking that such blocks divide a weight ``(out, in, …)``."""
    checked = as_structure(structure)
    if shape[0] // groups % checked.rows or shape[1] % checked.columns:
        of_group = f" in each of {groups} groups" if groups > 1 else ""
        raise InvalidArgumentError(
            f"structure={tuple(checked)} does not divide {shape[0] // groups} outputs and {shape[1]} inputs{of_group}; "
            "give divisors of both."
        )
    return checked


def fitting(structure: Structure, shape: Sequence[int], groups: int = 1) -> Structure:
    """Return the largest block that divides both ``structure`` and a weight: of 8×8, 2×4 in one of (10, 84)."""
    return Structure(math.gcd(structure.rows, shape[0] // groups), math.gcd(structure.columns, shape[1]))


def check_divides(structure: Structure, layers: Sequence[tuple[Sequence[int], int]]) -> None:
    """Refuse blocks of which no part but single weights divides any layer.

    Args:
        structure: wanted.
        layers: shape of the weight, and groups, of each layer.

    Raises:
        InvalidArgumentError: see above.
    """
    if layers and structure.area > 1 and all(fitting(structure, *layer).area == 1 for layer in layers):
        shape, groups = layers[0]
        sizes = shape[0] // groups, shape[1]
        blocks = Structure(*(common if (common := math.gcd(4, size)) > 1 else size for size in sizes))
        remedy = f"give divisors of their sizes such as {blocks}" if blocks.area > 1 else "leave it out"
        raise InvalidArgumentError(f"structure={structure} divides none of these layers; {remedy}")


def grid(shape: Sequence[int], structure: tuple[int, int]) -> tuple[int, ...]:
    """Return how many blocks a weight ``(out, in, *kernel)`` has: ``(out / rows, in / columns, *kernel)``."""
    return shape[0] // structure[0], shape[1] // structure[1], *shape[2:]


def whole_blocks(blocks: torch.Tensor, shape: Sequence[int], structure: tuple[int, int]) -> torch.Tensor:
    """Return the flat indices of all weights of some blocks, sorted.

    Args:
        blocks: flat indices of the blocks in their grid, int64 ``[n]``.
        shape: of the dense weight, ``(out, in, *kernel)``.
        structure: rows and columns of a block.

    Returns:
        int64 ``[n · rows · columns]``.
    """
    if structure == (1, 1):
        return blocks
    (rows, columns), taps, across = structure, max(1, math.prod(shape[2:])), max(1, shape[1] // structure[1])
    block, tap = blocks[:, None, None] // taps, blocks[:, None, None] % taps
    row = block // across * rows + torch.arange(rows, device=blocks.device)[:, None]
    column = block % across * columns + torch.arange(columns, device=blocks.device)
    return ((row * shape[1] + column) * taps + tap).flatten().sort().values


def block_of(connections: torch.Tensor, shape: Sequence[int], structure: tuple[int, int]) -> torch.Tensor:
    """Return the block of each connection: int64 ``[n]``.

    Args:
        connections: flat indices into the dense weight, int64 ``[n]``.
        shape: of the dense weight, ``(out, in, *kernel)``.
        structure: rows and columns of a block.
    """
    if structure == (1, 1):
        return connections
    (rows, columns), taps = structure, max(1, math.prod(shape[2:]))
    place, tap = connections // taps, connections % taps
    row, column = place // shape[1] // rows, place % shape[1] // columns
    return (row * (shape[1] // columns) + column) * taps + tap


def active_blocks(
    connections: torch.Tensor, shape: Sequence[int], structure: Structure
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the blocks that connections consist of, sorted, and which of them each connection belongs to.

    Args:
        connections: flat indices into the dense weight, int64 ``[n]``.
        shape: of the dense weight, ``(out, in, *kernel)``.
        structure: rows and columns of a block.

    Raises:
        InvalidArgumentError: a block is there in part, as in a topology of another structure.
    """
    blocks, inverse = block_of(connections, shape, structure).unique(return_inverse=True)
    if len(blocks) * structure.area != len(connections):
        raise InvalidArgumentError(
            f"{len(connections)} connections are not whole blocks of structure={structure}; "
            "load a topology of this structure"
        )
    return blocks, inverse


def sums_of_squares(values: torch.Tensor, block: torch.Tensor, count: int) -> torch.Tensor:
    """Return the sum of the squares of each block's numbers: ``[count]``.

    Args:
        values: one number per connection, ``[n]``.
        block: which of the ``count`` sums each belongs to, int64 ``[n]``.
        count: number of sums.
    """
    wide = values if values.dtype == torch.float64 else values.float()
    return wide.new_zeros(count).index_add_(0, block, wide.square())


def in_grid_rows(rows: Iterable[torch.Tensor], structure: tuple[int, int], taps: int) -> Iterator[torch.Tensor]:
    """Turn rows of a dense weight's gradient into the sums of squares of each block, row by row of the grid.

    Args:
        rows: ``[any, in · taps]`` each.
        structure: rows and columns of a block.
        taps: positions in the kernel.

    Yields:
        ``[rows of the grid, in / columns · taps]`` each.
    """
    (tall, wide), left = structure, None
    for part in rows:
        part = part if left is None else torch.cat([left, part])
        whole = len(part) // tall * tall
        numbers = part[:whole] if part.dtype == torch.float64 else part[:whole].float()
        left = part[whole:]
        shape = whole // tall, tall, part.shape[1] // (wide * taps), wide, taps
        yield numbers.reshape(shape).square().sum((1, 3)).flatten(1)
