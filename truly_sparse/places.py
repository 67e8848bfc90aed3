"""The positions of a layer's weights as operators take them: tensors and plain numbers, and the index they stand for.

An operator of torch takes no Python objects. It takes the two arrays of an index from which all others follow, as
tensors that share the index's memory, and the layer's sizes as numbers. The index itself is looked up by tensor.
Tensors of another origin, such as those of a loaded program, are checked and indexed anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.weak import WeakIdKeyDictionary

from .arguments import require
from .cpu.blocks import joined
from .cpu.index import ConvIndex, LinearIndex
from .cpu.stage import Stage

Places = tuple[torch.Tensor, torch.Tensor]


class Sizes(NamedTuple):
    """The plain numbers of a layer.

    Attributes:
        outputs: rows of the dense weight.
        inputs: columns of the dense weight, or channels of one group.
        kernel_y, kernel_x: size of the kernel; 0 for a linear layer.
        stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x, groups: of a convolution.
        tall, wide: outputs × inputs of the blocks in which weights exist.
        bias, relu, pool: 1 if the layer has a bias, applies ReLU, applies 2×2 max-pooling; else 0.
    """

    outputs: int
    inputs: int
    kernel_y: int = 0
    kernel_x: int = 0
    stride_y: int = 1
    stride_x: int = 1
    padding_y: int = 0
    padding_x: int = 0
    dilation_y: int = 1
    dilation_x: int = 1
    groups: int = 1
    tall: int = 1
    wide: int = 1
    bias: int = 0
    relu: int = 0
    pool: int = 0

    @property
    def linear(self) -> bool:
        """Whether this is a linear layer."""
        return self.kernel_y == 0 and self.kernel_x == 0

    def result(self, shape: Sequence[int]) -> list[int]:
        """Return the shape of the layer's result for an input of this shape, whose sizes may be symbolic.

        Raises:
            InvalidArgumentError: the layer does not accept such an input.
        """
        if self.linear:
            fits = len(shape) in (2, 4) and math.prod(shape[1:]) == self.inputs
            require(fits, "x", list(shape), f"give [B, {self.inputs}]")
            return [shape[0], self.outputs]
        channels = self.inputs * self.groups
        require(len(shape) == 4 and shape[1] == channels, "x", list(shape), f"give [B, {channels}, H, W]")
        height = (shape[2] + 2 * self.padding_y - self.dilation_y * (self.kernel_y - 1) - 1) // self.stride_y + 1
        width = (shape[3] + 2 * self.padding_x - self.dilation_x * (self.kernel_x - 1) - 1) // self.stride_x + 1
        require(height >= 1 and width >= 1, "x", list(shape), "pad it; it is smaller than the kernel")
        return [shape[0], self.outputs, height // (1 + self.pool), width // (1 + self.pool)]


COUNT = len(Sizes._fields)


def sizes_of(numbers: Sequence[int]) -> list[Sizes]:
    """Return the sizes of each layer of a chain.

    Args:
        numbers: the fields of :class:`Sizes` of each layer in turn.

    Raises:
        InvalidArgumentError: a length that is no multiple of the number of fields.
    """
    require(numbers and len(numbers) % COUNT == 0, "sizes", list(numbers), f"give {COUNT} numbers for each layer")
    return [Sizes(*numbers[at : at + COUNT]) for at in range(0, len(numbers), COUNT)]


def stages_of(places: Sequence[torch.Tensor], layers: Sequence[Sizes]) -> list[Stage]:
    """Return what each layer of a chain computes.

    Args:
        places: the two tensors of each layer in turn.
        layers: the sizes of each.

    Raises:
        InvalidArgumentError: tensors that are no positions of such a layer.
    """
    require(
        len(places) == 2 * len(layers), "places", list(places), f"give two tensors for each of {len(layers)} layers"
    )
    return [
        Stage(_index(pointers, positions, sizes), bool(sizes.relu), bool(sizes.pool))
        for pointers, positions, sizes in zip(places[::2], places[1::2], layers, strict=True)
    ]


def places_of(index: LinearIndex | ConvIndex) -> Places:
    """Return the positions of an index as tensors that share its memory. They must not be changed.

    Returns:
        Where the weights of each block row of ``R`` outputs begin, int64 ``[out / R + 1]``; their positions in a row of
        the dense weight, int16 or int32 ``[nnz / R]`` (to be read without sign).
    """
    with torch.inference_mode(False):  # tensors of inference mode cannot be saved for a backward pass
        pointers, positions = torch.from_numpy(index.indptr), torch.from_numpy(_signed(index))
    _remember(pointers, positions, index)
    return pointers, positions


class _Known(NamedTuple):
    pointers: torch.Tensor
    versions: tuple[int, int]
    of: LinearIndex | ConvIndex


# The index of the tensors of ``places_of``; it holds none of them, so an entry is deleted with its tensor.
_known: WeakIdKeyDictionary = WeakIdKeyDictionary()


def _remember(pointers: torch.Tensor, positions: torch.Tensor, index: LinearIndex | ConvIndex) -> None:
    if not (pointers.is_inference() or positions.is_inference()):  # changes of these in place cannot be seen
        _known[positions] = _Known(pointers, (pointers._version, positions._version), index)


def _recalled(pointers: torch.Tensor, positions: torch.Tensor, sizes: Sizes) -> LinearIndex | ConvIndex | None:
    """Return the index of these tensors if it is known, and they were not changed in place since."""
    known: _Known | None = _known.get(positions)
    if known is None or known.pointers is not pointers:
        return None
    same = known.versions == (pointers._version, positions._version) and _geometry(sizes) == _geometry_of(known.of)
    return known.of if same else None


def _signed(index: LinearIndex | ConvIndex) -> np.ndarray:
    """Return an index's positions as an array of signed numbers: most operations of torch know no others."""
    return index.cols.view(np.dtype(f"int{8 * index.cols.itemsize}"))


def _index(pointers: torch.Tensor, positions: torch.Tensor, sizes: Sizes) -> LinearIndex | ConvIndex:
    """Return the index that two tensors stand for: the known one, or a new one after a check of all positions."""
    index = _recalled(pointers, positions, sizes)
    if index is None:
        index = _rebuilt(pointers, positions, sizes)
        _remember(pointers, positions, index)
    return index


def _geometry(sizes: Sizes) -> tuple[int, ...]:
    return sizes[: COUNT - 3]


def _geometry_of(index: LinearIndex | ConvIndex) -> tuple[int, ...]:
    if isinstance(index, LinearIndex):
        sizes = Sizes(*index.shape)
    else:
        sizes = Sizes(*index.shape, *index.stride, *index.padding, *index.dilation, index.groups)
    return _geometry(sizes._replace(tall=index.structure[0], wide=index.structure[1]))


def _rebuilt(pointers: torch.Tensor, positions: torch.Tensor, sizes: Sizes) -> LinearIndex | ConvIndex:
    """Return a new index of positions from elsewhere.

    Raises:
        InvalidArgumentError: they are no positions of a layer of these sizes.
    """
    starts, places = pointers.detach().cpu().numpy(), positions.detach().cpu().numpy()
    listed, tall = len(places), max(1, sizes.tall)
    inputs = sizes.inputs * (1 if sizes.linear else sizes.kernel_y * sizes.kernel_x)
    block_rows = sizes.outputs // tall
    right = starts.dtype == np.int64 and starts.shape == (block_rows + 1,) and starts[0] == 0 and starts[-1] == listed
    require(
        right and (np.diff(starts) >= 0).all(), "pointers", pointers, f"give the borders of {listed} weights, int64"
    )
    unsigned = places.view(np.uint16 if inputs <= 2**16 else np.uint32) if places.ndim == 1 else places
    fits = unsigned.shape == (listed,) and unsigned.itemsize == places.itemsize
    require(fits and (unsigned < inputs).all(), "positions", positions, f"give positions below {inputs}")
    flat, structure = torch.from_numpy(joined(starts, unsigned, inputs, tall)), (sizes.tall, sizes.wide)
    if sizes.linear:
        return LinearIndex.build(flat, (sizes.outputs, sizes.inputs), structure)
    shape = sizes.outputs, sizes.inputs, sizes.kernel_y, sizes.kernel_x
    stride, padding = (sizes.stride_y, sizes.stride_x), (sizes.padding_y, sizes.padding_x)
    dilation = sizes.dilation_y, sizes.dilation_x
    return ConvIndex.build(flat, shape, stride, padding, dilation, sizes.groups, structure)
