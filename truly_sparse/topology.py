"""Which connections exist: how many per layer, random draws, and masks ↔ sorted flat indices."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import nn

from .adapters import adapted
from .arguments import check_choice, check_count, check_memory, require, shown
from .auto import automatic
from .computed import pruning_mask, tensor_of
from .errors import InvalidArgumentError
from .interface import Carry, Names, SparsifiableLayer, WeightLayer, untied_layers, weight_shape
from .positions import check_connections, check_places, contained, largest, rewired, sorted_distinct, without
from .structure import (
    UNSTRUCTURED,
    Structure,
    StructureLike,
    as_structure,
    block_of,
    check_divides,
    fitting,
    sums_of_squares,
    whole_blocks,
)

SCHEMES = ("uniform", "er", "erk")
TOPOLOGIES = ("random", "magnitude")


def check_sparsity(sparsity: float) -> float:
    """Return ``sparsity`` as a float if it is a number in [0, 1), else raise InvalidArgumentError."""
    given: Any = sparsity
    if isinstance(given, torch.Tensor) and given.dim() == 0 and not given.is_meta:
        given = given.item()
    fits = isinstance(given, Real) and 0 <= float(given) < 1
    require(fits, "sparsity", sparsity, "use a number from 0 (dense) up to, not including, 1")
    return float(given)


def layer_nnz(
    model: nn.Module,
    sparsity: float,
    scheme: str = "uniform",
    include: Names = ("*",),
    exclude: Names = (),
    structure: StructureLike = UNSTRUCTURED,
) -> dict[str, int]:
    """Distribute a budget of active weights over the layers of a model. The counts add up to the budget exactly.

    Where weights exist in blocks, each layer has whole ones. The counts then stay below the budget by less than a block
    of each size, and only as long as there is a block for each layer.

    The budget is ``round((1 − sparsity) · weights)``, with Python's rounding: 67,173 of the tutorial network's
    1,343,456 weights at 95%. The ideal share of a layer is proportional to

    - ``uniform``: its size;
    - ``er``: ``(out + in) · kernel area`` (Erdős–Rényi; Mocanu et al., 2018, eq. 1, extended to convolutions);
    - ``erk``: ``out + in + kernel height + kernel width`` (Erdős–Rényi-Kernel; Evci et al., 2020, section 3).

    A layer whose share exceeds its size stays dense, and the rest is distributed again. Shares are rounded by the
    method of largest remainders.

    Layers pruned by ``torch.nn.utils.prune`` keep their masks; the budget is for the others. Layers that
    share a parameter with another module are left out (:func:`untied_layers`).

    Args:
        model: any module with ``nn.Linear``, ``nn.Conv1d`` or ``nn.Conv2d`` layers, nested or not.
        sparsity: share of the weights that are not active, in [0, 1).
        scheme: ``"uniform"``, ``"er"`` or ``"erk"``.
        include: name patterns or classes of the layers, or of modules that contain them; see :func:`weight_layers`.
        exclude: the same of layers that are left out.
        structure: outputs × inputs of the blocks in which the weights of dense layers are to exist, see
            :func:`structures_of`; masked and truly sparse layers have their own.

    Returns:
        Number of active weights by layer name, from one block to the layer's size.

    Raises:
        InvalidArgumentError: sparsity outside [0, 1), an unknown scheme, no such layers, or a budget below one
            weight or block per layer.
    """
    sparsity = check_sparsity(sparsity)
    check_choice("scheme", scheme, SCHEMES)
    layers = untied_layers(adapted(model, include, exclude), include, exclude)
    pruned = {name: int(mask.sum()) for name, layer in layers.items() if (mask := pruning_mask(layer)) is not None}
    areas = {name: of.area for name, of in structures_of(layers, structure).items() if name not in pruned}
    return {name: 0 for name in layers} | pruned | _shared_out(layers, areas, sparsity, scheme)


def structures_of(layers: Mapping[str, WeightLayer], structure: StructureLike) -> dict[str, Structure]:
    """Return the blocks in which each layer's weights exist, or are to exist.

    A layer that the blocks do not divide gets the largest smaller ones that do: of 8×8, a layer of 10 outputs and 84
    inputs gets 2×4. A layer pruned by ``torch.nn.utils.prune`` keeps single weights.

    Args:
        layers: by name.
        structure: wanted in dense layers, ``"auto"``: what was fastest in layers of that size (``auto.py``). Masked
            and truly sparse layers have their own.

    Raises:
        InvalidArgumentError: no layer gets blocks, because no part of them divides any layer.
    """
    if isinstance(structure, str):
        require(structure == "auto", "structure", structure, 'give outputs × inputs such as (4, 4), or "auto"')
    given = None if isinstance(structure, str) else as_structure(structure)

    free = {
        name: (weight_shape(layer), getattr(layer, "groups", 1))
        for name, layer in layers.items()
        if not isinstance(layer, SparsifiableLayer) and pruning_mask(layer) is None
    }
    if given is not None:
        check_divides(given, list(free.values()))
    wanted = {name: automatic(shape) if given is None else given for name, (shape, _) in free.items()}
    own = {name: getattr(layer, "structure", UNSTRUCTURED) for name, layer in layers.items()}
    return own | {name: fitting(wanted[name], *free[name]) for name in free}


def _shared_out(
    layers: Mapping[str, WeightLayer], areas: Mapping[str, int], sparsity: float, scheme: str
) -> dict[str, int]:
    """Distribute the budget over the layers for which the number of weights of a block is given."""
    shapes = {name: weight_shape(layers[name]) for name in areas}
    sizes = np.array([math.prod(shape) for shape in shapes.values()], dtype=np.int64)
    area = np.array(list(areas.values()), dtype=np.int64)
    budget = round((1 - sparsity) * int(sizes.sum()))
    if budget < area.sum():
        blocks = f"; a block for each needs {area.sum()}" if area.max() > 1 else ""
        raise InvalidArgumentError(
            f"sparsity={sparsity} leaves {budget} weights for {len(sizes)} layers{blocks}; lower it so that each layer "
            "has one"
        )
    ideal = share_out(np.array([_demand(shape, scheme) for shape in shapes.values()]), sizes, budget)
    return dict(zip(shapes, _in_blocks(ideal, sizes, area, budget).tolist(), strict=True))


def _demand(shape: tuple[int, ...], scheme: str) -> float:
    """Return a number that is proportional to the layer's ideal share of the active weights."""
    out_features, in_features, *kernel = shape
    if scheme == "uniform":
        return math.prod(shape)
    if scheme == "er":
        return (out_features + in_features) * math.prod(kernel)
    return out_features + in_features + sum(kernel)


def share_out(demand: np.ndarray, sizes: np.ndarray, budget: int) -> np.ndarray:
    """Return real-valued shares proportional to demand and at most ``sizes``; they add up to the budget."""
    capped = np.zeros(len(sizes), dtype=bool)
    while not capped.all():
        shares = demand * (budget - sizes[capped].sum()) / demand[~capped].sum()
        full = ~capped & (shares >= sizes)
        if not full.any():
            return np.where(capped, sizes, shares)
        capped |= full
    return sizes.astype(float)


def _in_blocks(ideal: np.ndarray, sizes: np.ndarray, area: np.ndarray, budget: int) -> np.ndarray:
    """Round ideal shares to whole blocks, at least one of each layer (largest remainder first).

    The counts add up to the budget, less what no further block fits into.
    """
    blocks, most = ideal / area, sizes // area
    counts = np.clip(np.floor(blocks).astype(np.int64), 1, most)
    while (over := (counts * area).sum() - budget) > 0:
        counts[np.argmax(np.where(counts > 1, counts - blocks, -np.inf))] -= 1
    while ((counts < most) & (area <= -over)).any():
        here = np.argmax(np.where((counts < most) & (area <= -over), blocks - counts, -np.inf))
        counts[here] += 1
        over += area[here]
    return counts * area


def generator_of(seed: int) -> torch.Generator:
    """Return a random generator on the CPU with this seed, any whole number that torch accepts."""
    return torch.Generator().manual_seed(operator.index(seed))


def saved_generator(state: Mapping[str, Any]) -> torch.Generator:
    """Return the generator whose state a driver has saved as ``state["generator"]``.

    Raises:
        InvalidArgumentError: there is none.
    """
    drawn = torch.Generator()
    try:
        drawn.set_state(state["generator"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise InvalidArgumentError(
            f"state={shown(state)} holds generator={shown(state.get('generator'))}; give what state_dict() returned"
        ) from error
    return drawn


def sample_distinct(population: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw ``count`` distinct whole numbers from ``range(population)`` uniformly: int64 ``[count]``, sorted.

    Memory is proportional to ``count``, unless more than half the population is drawn.

    Raises:
        InvalidArgumentError: count is negative or above the population, or the draw does not fit into memory.
    """
    check_count("population", population, least=0)
    check_count("count", count, least=0)
    require(count <= population, "count", count, f"use 0 to population={population}")
    require(isinstance(generator, torch.Generator), "generator", generator, "give a torch.Generator, to draw again")
    listed = population if 2 * count > population else 3 * count
    check_memory("count", count, 16 * listed, "cpu")
    if 2 * count > population:
        return torch.randperm(population, generator=generator)[:count].sort().values
    drawn = torch.empty(0, dtype=torch.int64)
    while len(drawn) < count:
        # Draw more than are missing, then drop a random part of the surplus: all subsets stay equally likely.
        more = torch.randint(population, (2 * (count - len(drawn)),), generator=generator)
        drawn = sorted_distinct(torch.cat([drawn, more]) if len(drawn) else more, population)
        del more  # these arrays can be large
    return without(drawn, torch.randperm(len(drawn), generator=generator)[count:])


def initial_topology(
    model: nn.Module,
    sparsity: float | None,
    scheme: str = "uniform",
    seed: int = 0,
    include: Names = ("*",),
    exclude: Names = (),
    topology: str = "random",
    structure: StructureLike = UNSTRUCTURED,
) -> dict[str, torch.Tensor]:
    """Choose the active connections of a model's layers; :func:`layer_nnz` decides how many each layer has.

    A layer pruned by ``torch.nn.utils.prune`` keeps its mask.

    Args:
        model: any module with ``nn.Linear``, ``nn.Conv1d`` or ``nn.Conv2d`` layers, nested or not.
        sparsity: share of the weights to leave out, in [0, 1); None: those that are zero now, and no others.
        scheme: how the layers share the remaining weights, see :func:`layer_nnz`.
        seed: seed of a random draw.
        include: see :func:`layer_nnz`.
        exclude: see :func:`layer_nnz`.
        topology: ``"random"``, or ``"magnitude"``: the largest weights of each layer, of equal ones the first.
        structure: see :func:`layer_nnz`. Of blocks, the largest are those of largest norm.

    Returns:
        Sorted flat indices, int64 ``[nnz]``, by layer name.

    Raises:
        InvalidArgumentError: see :func:`layer_nnz`; or blocks without a sparsity.
    """
    check_choice("topology", topology, TOPOLOGIES)
    model, generator = adapted(model, include, exclude), generator_of(seed)
    layers, chosen = untied_layers(model, include, exclude), {}
    if sparsity is None:
        require(structure in (1, UNSTRUCTURED), "structure", structure, "give sparsity as well")
        return {name: own_topology(layer) for name, layer in layers.items()}
    structures = structures_of(layers, structure)
    for name, nnz in layer_nnz(model, sparsity, scheme, include, exclude, structure).items():
        layer, shape, of = layers[name], weight_shape(layers[name]), structures[name]
        if pruning_mask(layer) is not None:
            chosen[name] = own_topology(layer)
            continue
        if topology == "random":
            blocks = sample_distinct(math.prod(shape) // of.area, nnz // of.area, generator)
        else:
            blocks = largest(_norms(tensor_of(layer, "weight"), of), nnz // of.area)
        chosen[name] = whole_blocks(blocks, shape, of)
    return chosen


def _norms(weight: torch.Tensor, structure: Structure) -> torch.Tensor:
    """Return the norm of each block of a dense weight, in the order of the grid of blocks."""
    if structure == UNSTRUCTURED:
        return weight.abs().reshape(-1)
    block = block_of(torch.arange(weight.numel(), device=weight.device), weight.shape, structure)
    return sums_of_squares(weight.reshape(-1), block, weight.numel() // structure.area).sqrt()


def own_topology(layer: nn.Module) -> torch.Tensor:
    """Return the topology that a dense layer has already: the mask of ``torch.nn.utils.prune``, or the nonzeros.

    Returns:
        Sorted flat indices, int64 ``[nnz]``.
    """
    mask = pruning_mask(layer)
    return to_connections(tensor_of(layer, "weight") != 0 if mask is None else mask)


def to_mask(connections: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the boolean mask of the given shape that is True at the flat indices ``connections``, in any order.

    Raises:
        InvalidArgumentError: an index is out of range, or the mask does not fit into memory.
    """
    require(not isinstance(shape, str), "shape", shape, "give whole numbers")
    shape = tuple(check_count("shape", size, least=0) for size in shape)
    check_places("connections", connections, shape)
    check_memory("shape", shape, math.prod(shape), connections.device)
    mask = torch.zeros(math.prod(shape), dtype=torch.bool, device=connections.device)
    mask[connections] = True
    return mask.view(shape)


def to_connections(mask: torch.Tensor) -> torch.Tensor:
    """Return the sorted flat indices, int64, at which the boolean ``mask`` is True.

    Raises:
        InvalidArgumentError: the mask is not boolean, or on the meta device.
    """
    if mask.dtype != torch.bool or mask.is_meta:
        raise InvalidArgumentError(f"mask={shown(mask)} on {mask.device}; give torch.bool on a device with numbers")
    return mask.reshape(-1).nonzero().squeeze(1)


def check_rewiring(
    layer: SparsifiableLayer, kept: torch.Tensor, grown: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Check the arguments of :meth:`SparsifiableLayer.rewire` before a layer changes anything.

    Returns:
        The new list of active connections, and where each was in ``torch.cat([active, grown])``.

    Raises:
        InvalidArgumentError: connections that are not sorted, unique, int64 and in range; kept ones that are not
            active, grown ones that are; or another number of values.
    """
    active = layer.active()
    for name, connections in (("kept", kept), ("grown", grown)):
        check_connections(name, connections, layer.dense_shape)
    changed = rewired(active, kept, grown)
    if values.shape != grown.shape or values.is_meta:
        raise InvalidArgumentError(
            f"values are {tuple(values.shape)} on {values.device} for {len(grown)} grown connections; give one for each"
        )
    return changed


def carry_between(before: torch.Tensor, after: torch.Tensor, shape: tuple[int, ...]) -> Carry:
    """Return the function that moves per-weight optimizer state from one topology to another.

    Args:
        before: int64, sorted.
        after: int64, sorted.
        shape: of the dense weight. State of this shape is that of a masked layer, other state one number per
            connection.
    """
    kept = contained(after, before)
    places = torch.searchsorted(before, after[kept])

    def carry(state: torch.Tensor, fresh: float) -> torch.Tensor:
        dense = state.shape == shape
        moved = state.new_full(after.shape, fresh)
        moved[kept] = (state[torch.unravel_index(before, shape)] if dense else state)[places]
        if not dense:
            return moved
        whole = torch.full_like(state, fresh)  # keeps the strides
        whole[torch.unravel_index(after, shape)] = moved
        return whole

    return carry


def check_values(values: torch.Tensor, count: int) -> None:
    """Refuse anything but a floating tensor of shape ``[count]`` with memory.

    Raises:
        InvalidArgumentError: another shape, no floating numbers, or on the meta device.
    """
    if values.shape != (count,) or not values.is_floating_point() or values.is_meta:
        raise InvalidArgumentError(
            f"values are {values.dtype} {tuple(values.shape)} on {values.device}; give {count} floating numbers"
        )
