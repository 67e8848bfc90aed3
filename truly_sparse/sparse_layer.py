"""What the two truly sparse layers share: the active weights and their positions, and no dense weight."""

from __future__ import annotations

import copy
import gc
import math
from collections import defaultdict
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from .arguments import check_memory, require, shown
from .computed import is_trained
from .cpu.index import MOST, ConvIndex, LinearIndex
from .errors import InvalidArgumentError, TrainingError
from .interface import Carry, SparsifiableLayer
from .interrupt import undivided
from .ops import numbered
from .parametrized import Parametrizations, check_computed, originals_of, parameter_of, steps_of
from .places import Places, Sizes, places_of
from .seal import Seal
from .structure import whole_blocks
from .topology import check_rewiring, check_sparsity, check_values, sample_distinct

NO_WEIGHT = "a truly sparse layer has no dense weight"
USE_INSTEAD = "use layer.values, the parameter of the active weights, or layer.to_dense(), a copy"
# Attributes that copies and pickles make anew.
OF_ONE_OBJECT = ("_pointers", "_positions", "number")


class DenseWeight:
    """What other code may ask about the dense weight of a truly sparse layer: there is no such tensor.

    Code that looks at ``layer.weight`` before it chooses its way, as ``nn.TransformerEncoderLayer`` does, gets an
    answer and leaves the computation to the layer. torch's functions refuse it.

    Attributes:
        shape: of the dense weight.
        ndim: the number of its dimensions.
        dtype, device, requires_grad: of the active weights.
    """

    def __init__(self, shape: tuple[int, ...], values: torch.Tensor) -> None:
        self.shape, self.ndim = torch.Size(shape), len(shape)
        self.dtype, self.device, self.requires_grad = values.dtype, values.device, values.requires_grad

    def dim(self) -> int:
        """Return the number of dimensions."""
        return self.ndim

    def size(self, dim: int | None = None) -> torch.Size | int:
        """Return the shape, or one of its numbers."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        """Return the number of weights of a dense layer."""
        return math.prod(self.shape)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{NO_WEIGHT}, and so no weight.{name}; {USE_INSTEAD}")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse every function of torch.

        Raises:
            InvalidArgumentError: always.
        """
        name = getattr(func, "__name__", str(func))
        raise InvalidArgumentError(f"{NO_WEIGHT}, which {name} would read; {USE_INSTEAD}")


class SparseLayer(SparsifiableLayer):
    """Common base of SparseLinear and SparseConv2d.

    Attributes:
        values: parameter, the active weights in the order of their flat indices, ``[nnz]``; or the tensor that
            ``torch.nn.utils.parametrize`` computes (``parametrized.py``).
        bias: parameter ``[out]`` or None.
        index: the positions of the weights, in the orders that the kernels need.
        relu: whether the layer applies ReLU to its result.
        structure: outputs × inputs (or channels) of the blocks in which weights exist; ``(1, 1)`` for any weights.
        pool: whether the layer reduces its result by 2×2 max-pooling (convolutions only).
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    index: LinearIndex | ConvIndex
    relu: bool = False
    pool: bool = False
    _recorded: list[tuple[torch.Tensor, torch.Tensor]]

    def __init__(self) -> None:
        super().__init__()
        self._record_gradient = False
        self._recorded = []
        self.number = numbered(self)

    def build_index(self, connections: torch.Tensor) -> LinearIndex | ConvIndex:
        """Return the index of sorted flat ``connections`` after checking them."""
        raise NotImplementedError

    @property
    def sizes(self) -> Sizes:
        """The layer's plain numbers, as operators take them."""
        raise NotImplementedError

    @property
    def places(self) -> Places:
        """The positions of the weights as tensors that share the index's memory; they must not be changed."""
        return self._pointers, self._positions

    def _hold(self, index: LinearIndex | ConvIndex) -> None:
        self.index = index
        self._pointers, self._positions = places_of(index)
        self.seal = Seal(self, self.places)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; torch sets ``parametrizations`` when the first one is registered."""
        super().__setattr__(name, Parametrizations() if name == "parametrizations" else value)

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseLayer:
        """Return a copy. torch replaces ``__getstate__`` where a parametrization computes a parameter."""
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__setstate__(copy.deepcopy(SparseLayer.__getstate__(self), memo))
        return made

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy or a pickle, which makes its own of what belongs to this object."""
        return {name: value for name, value in vars(self).items() if name not in OF_ONE_OBJECT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy or a pickle."""
        super().__setstate__(state)
        self._pointers, self._positions = places_of(self.index)
        self.number = numbered(self)

    def _start(
        self,
        connections: torch.Tensor | None,
        sparsity: float,
        bias: bool,
        device: str | torch.device | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Draw the topology if none is given, and draw values and bias as a dense torch layer does."""
        size, out = math.prod(self.dense_shape), self.dense_shape[0]
        check_sparsity(sparsity)
        area = math.prod(self.structure)
        least = min(1, size)  # blocks: a layer that could hold a weight holds one
        count = max(least, round((1 - sparsity) * size / area))
        nnz = area * count if connections is None else len(connections)
        remedy = f"it leaves {nnz:,} weights of {self.dense_shape}; use a higher one, or a smaller layer"
        require(nnz < MOST, "sparsity", sparsity, remedy)
        needed = 64 * nnz + 32 * (out + size // max(1, out))  # positions, two orders, pointers to rows and columns
        check_memory("shape", self.dense_shape, needed, "cpu")
        if connections is None:
            blocks = sample_distinct(size // area, count, torch.default_generator)
            connections = whole_blocks(blocks, self.dense_shape, self.structure)
        self._hold(self.build_index(connections))
        bound = 1 / math.sqrt(max(1, math.prod(self.dense_shape[1:])))
        values = torch.empty(self.index.nnz, device=device, dtype=dtype)
        require(values.is_floating_point(), "dtype", dtype, "use a floating type such as torch.float32")
        self.values = nn.Parameter(values.uniform_(-bound, bound))
        drawn = torch.empty(out, device=device, dtype=dtype).uniform_(-bound, bound) if bias else None
        self.register_parameter("bias", None if drawn is None else nn.Parameter(drawn))

    @property
    @override
    def weight_parameter(self) -> nn.Parameter:
        return parameter_of(self)

    @property
    def weight(self) -> DenseWeight:
        """Shape, dtype, device and ``requires_grad`` of the dense weight, which does not exist itself."""
        return DenseWeight(self.dense_shape, self.values)

    @property
    @override
    def index_bytes(self) -> int:
        return self.index.nbytes

    @override
    def active(self) -> torch.Tensor:
        return self.index.flat().to(self.values.device)

    @override
    def active_values(self) -> torch.Tensor:
        return self.values.detach().clone()

    def record(self, x: torch.Tensor, gradient: torch.Tensor) -> None:
        """Store a batch: the layer's input, and the gradient of its result before ReLU and pooling."""
        self._recorded.append((x, gradient))

    @override
    def set_active_values(self, values: torch.Tensor) -> None:
        check_values(values, self.index.nnz)
        with torch.no_grad():
            self.weight_parameter.copy_(originals_of(self, values.to(self.values)))

    @override
    def fade_gradient(self, factor: float) -> None:
        require(math.isfinite(factor), "factor", factor, "use a finite number")
        self._recorded = [(x, grad * factor) for x, grad in self._recorded]

    def _batches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        if not self._recorded:
            raise TrainingError("no gradient was recorded; set record_gradient = True before forward and backward")
        return self._recorded

    @override
    def check_rewire(self, kept: torch.Tensor, grown: torch.Tensor, values: torch.Tensor) -> None:
        if steps_of(self) is not None:
            after, was = check_rewiring(self, kept, grown, values)
            if len(after) != self.index.nnz:
                raise InvalidArgumentError(
                    f"kept={shown(kept)} and grown={shown(grown)} are {len(after)} connections; a parametrization "
                    f"computes this layer's weights, so it holds exactly {self.index.nnz}, give as many"
                )
            new = torch.cat([self.weight_parameter, originals_of(self, values)])
            check_computed(self, new.index_select(0, was), torch.cat([self.values, values]).index_select(0, was))

    @override
    def rewire(self, kept: torch.Tensor, grown: torch.Tensor, values: torch.Tensor) -> Carry:
        self.check_rewire(kept, grown, values)
        after, was = check_rewiring(self, kept, grown, values)
        new, index = originals_of(self, values), self.build_index(after)
        del after  # a large layer's is large

        def carry(state: torch.Tensor, fresh: float) -> torch.Tensor:
            return torch.cat([state, state.new_full((len(grown),), fresh)]).index_select(0, was)

        with torch.inference_mode(False), torch.no_grad():
            self._hold_both(index, torch.cat([self.weight_parameter, new]).index_select(0, was))
        return carry

    def _hold_both(self, index: LinearIndex | ConvIndex, numbers: torch.Tensor) -> None:
        """Take over a topology and its weights. The parameter remains the same object, as an optimizer holds it.

        If there are more or fewer weights than before, it gets other memory and loses its gradient.

        Raises:
            InvalidArgumentError: there are, and an optimizer has state for the former number, which nobody moves.
        """
        parameter = self.weight_parameter
        resized, numbers = parameter.shape != numbers.shape, numbers.to(parameter)
        if resized and not self.is_watched and _has_state(parameter):
            raise InvalidArgumentError(
                f"this layer would hold {index.nnz} weights instead of {len(parameter)}, for which an optimizer has "
                "state; build the optimizer afterwards, or attach a driver to it first, which moves its state"
            )
        with undivided():
            self._hold(index)
            if resized:
                parameter.grad = None
                # Unlike setting .data, this tells autograd of the new size. torch's hints lack this form.
                parameter.set_(numbers)  # type: ignore[call-overload]
            else:
                parameter.copy_(numbers)

    def to_dense(self) -> torch.Tensor:
        """Return the dense weight, for inspection; no computation uses it."""
        dense = self.values.detach().new_zeros(math.prod(self.dense_shape))
        dense[self.active()] = self.values.detach()
        return dense.view(self.dense_shape)

    def _with_activation(self, dense: nn.Linear | nn.Conv1d | nn.Conv2d) -> nn.Module:
        """Give a dense layer this layer's tensors, and add modules for ReLU and pooling."""
        dense.weight = nn.Parameter(self.to_dense(), is_trained(self, "values"))
        dense.bias = None if self.bias is None else nn.Parameter(self.bias.detach().clone(), is_trained(self, "bias"))
        parts = [dense, *([nn.ReLU()] if self.relu else []), *([nn.MaxPool2d(2)] if self.pool else [])]
        return dense if len(parts) == 1 else nn.Sequential(*parts)

    def _description(self) -> str:
        blocks = f", structure={self.structure}" if self.structure != (1, 1) else ""
        return f"active={self.index.nnz}/{math.prod(self.dense_shape)}{blocks}"

    @override
    def _before_loading(self, state_dict: Any, prefix: str, *more: Any) -> None:
        steps, topology = steps_of(self), f"{prefix}_extra_state"
        if topology in state_dict:  # torch reads it after the values
            self._with_room(state_dict[topology], state_dict.get(f"{prefix}values"))
        if steps is not None:  # torch loads them after this layer, and who watches it reads its weights before that
            steps._load_from_state_dict(state_dict, f"{prefix}parametrizations.values.", *more[:2], [], [], [])

    def get_extra_state(self) -> torch.Tensor:
        """Return the topology for ``state_dict``: flat indices, int64 ``[nnz]``."""
        return self.index.flat()

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Restore a saved topology.

        Raises:
            InvalidArgumentError: it is not a valid topology of this layer.
        """
        self._hold(self._with_room(state, self.values))

    def _with_room(self, state: torch.Tensor, saved: object) -> LinearIndex | ConvIndex:
        """Return the index of a saved topology, and take over it and as many zeros if the layer has more or fewer.

        Raises:
            InvalidArgumentError: it is not a valid topology of this layer, or the saved values do not fit.
        """
        index = self.build_index(state)
        if index.nnz == len(self.values):
            return index
        if not torch.is_tensor(saved) or saved.shape != (index.nnz,) or steps_of(self) is not None:
            raise InvalidArgumentError(
                f"state={shown(state)}: the saved topology has {index.nnz} connections, this layer {len(self.values)}, "
                "and there are no values for them; give a state with both, or use the same sparsity, scheme, structure "
                "and exclude"
            )
        with torch.inference_mode(False), torch.no_grad():
            self._hold_both(index, self.values.new_zeros(index.nnz))
        return index


def _has_state(parameter: nn.Parameter) -> bool:
    """Tell whether an optimizer has state for a parameter. Fused ones would read it without a look at its size."""
    states = [by.get(parameter) for by in gc.get_referrers(parameter) if isinstance(by, defaultdict)]
    return any(isinstance(state, dict) and len(state) > 0 for state in states)
