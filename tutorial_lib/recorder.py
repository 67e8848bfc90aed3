"""Recording of the topologies of a training run, as compressed differences, and their analysis."""

from __future__ import annotations

import itertools
import math
import numbers
import operator
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from truly_sparse.arguments import check_memory, shown
from truly_sparse.errors import InvalidArgumentError
from truly_sparse.interface import SparsifiableLayer


class TopologyRecorder:
    """The topologies of a model's sparse layers at a series of moments.

    A *moment* is a position in :attr:`steps`: 0 is the first recording, -1 the last, as in lists. Connections are flat
    indices into the dense weight, as in :class:`SparsifiableLayer`. ``layer=None`` means all layers together.

    Attributes:
        steps: the training step of each moment.
        shapes: layer name → shape of the dense weight.
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._packed: dict[str, list[bytes]] = {}
        # The last topologies, uncompressed: the next moment is stored as the difference from them.
        self._last: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        """Return the number of recorded moments."""
        return len(self.steps)

    def __repr__(self) -> str:
        return f"TopologyRecorder(moments={len(self)}, layers={list(self.shapes)})"

    @property
    def nbytes(self) -> int:
        """Bytes of the compressed moments, without the uncompressed copy of the last one."""
        return sum(len(packed) for moments in self._packed.values() for packed in moments)

    def record(self, layers: Mapping[str, SparsifiableLayer], step: int) -> None:
        """Append the current topologies of ``layers``. The first call fixes the names and shapes.

        Args:
            layers: layers by name, as ``sparse_layers(model)`` returns them.
            step: the training step, above that of the previous moment.

        Raises:
            InvalidArgumentError: no layers, names or shapes that differ from the first call's, or a step that is not
                above the previous one.
        """
        shapes = {name: tuple(layer.dense_shape) for name, layer in layers.items()}
        if not shapes:
            raise InvalidArgumentError("layers is empty; record a model that mask_model() or sparsify() returned")
        if self.steps and shapes != self.shapes:
            raise InvalidArgumentError(
                f"the layers are {shapes}, but {self.shapes} were recorded first; use one recorder per model"
            )
        _check_steps([*self.steps[-1:], step])
        now = {name: layer.active().cpu().numpy() for name, layer in layers.items()}
        empty = np.empty(0, dtype=np.int64)
        packed = {name: _pack(_changed(self._last.get(name, empty), active)) for name, active in now.items()}
        for name, moment in packed.items():
            self._packed.setdefault(name, []).append(moment)
        self._last, self.shapes = now, shapes
        self.steps.append(int(step))

    def topologies(self, layer: str) -> Iterator[np.ndarray]:
        """Return an iterator over the active connections at each moment: int64 ``[nnz]``, sorted.

        Raises:
            InvalidArgumentError: no such layer.
        """
        self._check_layer(layer)
        return _add_up(map(_unpack, self._packed[layer]))

    def connections(self, layer: str, moment: int) -> np.ndarray:
        """Return the active connections of a layer at a moment: int64 ``[nnz]``, sorted.

        Raises:
            InvalidArgumentError: no such layer or moment.
        """
        topologies, position = self.topologies(layer), self._position(moment)
        return next(itertools.islice(topologies, position, None))

    def mask(self, layer: str, moment: int) -> np.ndarray:
        """Return the mask of a layer at a moment: bool, in the shape of the dense weight.

        Raises:
            InvalidArgumentError: no such layer or moment.
        """
        connections = self.connections(layer, moment)
        check_memory("layer", layer, math.prod(self.shapes[layer]), "cpu")
        mask = np.zeros(math.prod(self.shapes[layer]), dtype=bool)
        mask[connections] = True
        return mask.reshape(self.shapes[layer])

    def exploration(self, layer: str | None = None) -> np.ndarray:
        """Return the exploration rate: the share of all connections that have been active up to each moment.

        Shares are from 0 to 1: float64 ``[moments]``.

        Raises:
            InvalidArgumentError: no such layer.
        """
        size = sum(math.prod(self.shapes[name]) for name in self._chosen(layer))
        ever = itertools.accumulate(self._together(layer), _union)
        return np.array([len(connections) / size for connections in ever])

    def overlaps(self, moments: Sequence[int], layer: str | None = None) -> np.ndarray:
        """Return which share of the connections of each moment (rows) is active at each other (columns).

        Shares are from 0 to 1, or NaN in the row of a moment without connections: float64 ``[moments, moments]``.

        Raises:
            InvalidArgumentError: no such layer or moment.
        """
        places = [self._position(moment) for moment in moments]
        found = {moment: active for moment, active in enumerate(self._together(layer)) if moment in places}
        shares = [[_share(_among(found[a], found[b]).sum(), len(found[a])) for b in places] for a in places]
        return np.array(shares, dtype=np.float64).reshape(len(places), len(places))

    def survival(self, layer: str | None = None) -> pd.DataFrame:
        """Return survival curves: the share of the connections born at one moment that are still alive at another.

        A connection is *born* at a moment if it is active then and was not at the previous moment; all connections of
        moment 0 are born then. It lives until it is pruned. A connection that grows back is born again.

        Returns:
            One row per moment of birth, one column per moment. Shares are from 0 to 1; NaN before birth and for
            moments at which no connection was born.

        Raises:
            InvalidArgumentError: no such layer.
        """
        alive = np.zeros((len(self), len(self)))
        before = born = np.empty(0, dtype=np.int64)
        for moment, connections in enumerate(self._together(layer)):
            birth = np.full(len(connections), moment)
            birth[_among(connections, before)] = born[_among(before, connections)]
            alive[:, moment] = np.bincount(birth, minlength=len(self))
            before, born = connections, birth
        shares = _share(alive, np.diagonal(alive)[:, None])
        shares[np.tril_indices(len(self), -1)] = np.nan
        moments = range(len(self))
        return pd.DataFrame(shares, index=pd.Index(moments, name="birth"), columns=pd.Index(moments, name="moment"))

    def degrees(self, layer: str, moment: int) -> tuple[np.ndarray, np.ndarray]:
        """Count the connections of each unit at a moment.

        Returns:
            ``(fan_in, fan_out)``: connections per output unit, int64 ``[out]``, and per input unit, int64 ``[in]``. In
            a convolution a unit is a channel, and each weight of a kernel is a connection. With groups, ``[in]`` is
            ``in // groups``, the columns of the weight; each column counts the connections of all groups.

        Raises:
            InvalidArgumentError: no such layer or moment.
        """
        return _degrees(self.connections(layer, moment), self.shapes[layer])

    def dead_neurons(self, layer: str) -> pd.DataFrame:
        """Count the units of a layer without connections, one row per step.

        Returns:
            Columns ``without_input`` (output units without incoming connections) and ``without_output`` (input units,
            as in :meth:`degrees`, without outgoing connections).

        Raises:
            InvalidArgumentError: no such layer.
        """
        rows = [
            [int((degrees == 0).sum()) for degrees in _degrees(connections, self.shapes[layer])]
            for connections in self.topologies(layer)
        ]
        index = pd.Index(self.steps, name="step", dtype=np.int64)
        return pd.DataFrame(rows, index=index, columns=["without_input", "without_output"])

    def input_map(self, layer: str, moment: int, shape: Sequence[int]) -> np.ndarray:
        """Return the number of connections per input unit, reshaped to the shape of the input: int64.

        Args:
            layer: a layer that reads flattened images or feature maps.
            moment: the moment.
            shape: the shape of the input before it was flattened, such as ``(28, 28)``.

        Raises:
            InvalidArgumentError: no such layer or moment.
            ValueError: the shape has a different number of input units.
        """
        _, fan_out = self.degrees(layer, moment)
        return fan_out.reshape(shape)

    def state_dict(self) -> dict[str, Any]:
        """Return the recording as plain Python values and uint8 tensors, for ``torch.save``."""
        return {
            "steps": list(self.steps),
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "lengths": {name: [len(packed) for packed in moments] for name, moments in self._packed.items()},
            "packed": {
                name: torch.frombuffer(bytearray(b"".join(moments)), dtype=torch.uint8)
                for name, moments in self._packed.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the recording by one that :meth:`state_dict` returned.

        Raises:
            InvalidArgumentError: ``state`` is not such a value, or is damaged. The recorder is then unchanged.
        """
        try:
            steps, shapes, packed, last = _read_state(state)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, zlib.error) as error:
            raise InvalidArgumentError(
                f"state={shown(state)} is not what TopologyRecorder.state_dict() returned, or is damaged ({error!r}); "
                "load another checkpoint, or record the run again"
            ) from error
        self.steps, self.shapes, self._packed, self._last = steps, shapes, packed, last

    def _position(self, moment: int) -> int:
        """Return a moment as a non-negative position in ``steps``."""
        try:
            return range(len(self))[operator.index(moment)]
        except (IndexError, TypeError):
            choices = f"use {-len(self)} to {len(self) - 1}" if self.steps else "nothing has been recorded yet"
            raise InvalidArgumentError(f"moment={moment!r}; {choices}") from None

    def _check_layer(self, layer: str) -> None:
        if layer not in self.shapes:
            choices = ", ".join(map(repr, self.shapes)) or "none: nothing has been recorded yet"
            raise InvalidArgumentError(f"no recorded layer {shown(layer)}; choose among {choices}")

    def _chosen(self, layer: str | None) -> list[str]:
        """Return a list of the one layer, or of all layers for None."""
        if layer is None:
            return list(self.shapes)
        self._check_layer(layer)
        return [layer]

    def _together(self, layer: str | None) -> Iterator[np.ndarray]:
        """Return an iterator over the connections at each moment, with the layers' index ranges one after another."""
        names = self._chosen(layer)
        each = [self.topologies(name) for name in names]
        starts = list(itertools.accumulate((math.prod(self.shapes[name]) for name in names[:-1]), initial=0))
        return (
            np.concatenate([connections + start for connections, start in zip(moment, starts, strict=True)])
            for moment in zip(*each, strict=True)
        )


def _pack(indices: np.ndarray) -> bytes:
    """Compress sorted distinct indices: one byte with the bytes per gap, then the gaps, compressed by zlib."""
    gaps = np.diff(indices, prepend=0)
    gaps = gaps.astype(np.min_scalar_type(gaps.max(initial=0)))
    return bytes([gaps.itemsize]) + zlib.compress(gaps.tobytes(), 1)  # 9 is no smaller here, and seven times slower


def _unpack(packed: bytes) -> np.ndarray:
    """Return the indices that :func:`_pack` compressed: int64, sorted."""
    return np.frombuffer(zlib.decompress(packed[1:]), dtype=f"u{packed[0]}").cumsum(dtype=np.int64)


def _changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the indices that are in exactly one of two topologies: int64, sorted."""
    return np.setxor1d(before, after, assume_unique=True)


def _add_up(changes: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Return an iterator over the topologies that result from each change, starting from an empty topology."""
    return itertools.accumulate(changes, _changed)


def _among(connections: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return for each connection whether it is in ``others``: bool ``[len(connections)]``."""
    return np.isin(connections, others, assume_unique=True)


def _union(connections: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the indices that are in at least one of two topologies: int64, sorted."""
    return _changed(connections, others[~_among(others, connections)])


def _share(part: np.ndarray, whole: np.ndarray | int) -> np.ndarray:
    """Return ``part / whole``, NaN where both are 0."""
    with np.errstate(invalid="ignore"):
        return np.true_divide(part, whole)


def _degrees(connections: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the connections per row and per column of a dense weight."""
    rows, columns, *kernel = shape
    pairs = connections // math.prod(kernel)
    return np.bincount(pairs // columns, minlength=rows), np.bincount(pairs % columns, minlength=columns)


def _check_steps(steps: Sequence[int]) -> None:
    for step in steps:
        if not isinstance(step, numbers.Integral) or step < 0:
            raise InvalidArgumentError(f"step={shown(step)}; use a whole number of at least 0")
    for before, step in itertools.pairwise(steps):
        if step <= before:
            raise InvalidArgumentError(f"step={step} after step {before}; record each step once, in increasing order")


def _read_state(
    state: Mapping[str, Any],
) -> tuple[list[int], dict[str, tuple[int, ...]], dict[str, list[bytes]], dict[str, np.ndarray]]:
    """Return (steps, shapes, compressed moments, last topologies) from a ``state_dict``, fully validated."""
    steps = list(state["steps"])
    _check_steps(steps)
    shapes = {name: tuple(shape) for name, shape in state["shapes"].items()}
    if not (shapes.keys() == state["lengths"].keys() == state["packed"].keys()) or bool(shapes) != bool(steps):
        raise ValueError("its parts have different layers")
    packed, last = {}, {}
    for name, shape in shapes.items():
        joined, lengths = state["packed"][name].cpu().numpy().tobytes(), state["lengths"][name]
        if len(lengths) != len(steps) or sum(lengths) != len(joined) or min(lengths) < 1:
            raise ValueError(f"the moments of {name!r} are incomplete")
        ends = list(itertools.accumulate(lengths))
        packed[name] = [joined[end - length : end] for end, length in zip(ends, lengths, strict=True)]
        for connections in _add_up(map(_unpack, packed[name])):
            _check_connections(connections, name, shape)
            last[name] = connections
    return steps, shapes, packed, last


def _check_connections(connections: np.ndarray, name: str, shape: tuple[int, ...]) -> None:
    if len(shape) < 2 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(f"shape {shape} of {name!r}")
    if (np.diff(connections, prepend=-1) < 1).any() or connections[-1:].sum() >= math.prod(shape):
        raise ValueError(f"connections of {name!r} lie outside its shape {shape}")
