"""The doors of the library: how each is called rightly, and what is wrong input for each of its arguments."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from torch import nn

import truly_sparse as engine
import tutorial_lib as lib
from truly_sparse import (
    adapters,
    convert,
    copies,
    dst,
    gradual,
    init,
    interface,
    optim,
    own_rule,
    recipes,
    reference,
    rules,
    topology,
)
from truly_sparse import backend as kernels
from truly_sparse.cpu import chain as cpu
from truly_sparse.cpu import index, memory
from truly_sparse.cpu.stage import Stage
from tutorial_lib import (
    bench,
    checkpoint,
    compare,
    contenders,
    cost,
    csr,
    data,
    exercises,
    masked,
    models,
    player,
    project,
    referee_plots,
    schematics,
    train,
    viz,
)
from tutorial_lib.exercises import checking
from tutorial_lib.exercises import predictions as predict


class Stranger:
    """What no function expects."""


class Unknown(nn.Module):
    """A kind of module that nothing is registered for."""


class Door(NamedTuple):
    """A public function or constructor.

    Attributes:
        call: the function.
        good: makes arguments that it takes.
        bad: wrong values by the argument's name.
    """

    call: Callable[..., Any]
    good: Callable[[], dict[str, Any]]
    bad: dict[str, list[Any]]


# ------------------------------------------------------------------------------------------ wrong values by kind

NOT_NUMBERS = [None, "0.5", b"1", [0.5], {"a": 1}, 1j, Stranger(), Stranger, True, torch.tensor(0.5), 10**400]
INTEGER = [*NOT_NUMBERS, 2.5, math.nan]
COUNT = [*INTEGER, -1]
POSITIVE = [*COUNT, 0]
SHARE = [*NOT_NUMBERS, -0.1, 1.0, 1.5, math.nan, math.inf, -math.inf]
NUMBER = [*NOT_NUMBERS, math.nan, math.inf]
TEXT = [None, 3, 2.5, b"x", ["x"], Stranger(), Stranger]
CHOICE = [*TEXT, "", "nonsense", "UNIFORM "]
NAMES = ["conv*", None, 3, [3], ["a", None], Stranger()]
FLAG = [None, 1, "yes", 0.0, Stranger()]
TENSOR = [None, "x", 3, 2.5, [1, 2], np.zeros(3), Stranger(), torch.Tensor]
DENSE_TENSOR = [*TENSOR, torch.eye(3).to_sparse(), torch.eye(3).to_sparse_csr()]
MODEL = [None, "model", 3, torch.zeros(2), nn.Linear, [nn.Linear(2, 2)], Stranger()]
SEED = [*INTEGER, -1, 2**64]
DEVICE = ["nonsense", "cpu:x", 3.5, Stranger(), "cuda"] if not torch.cuda.is_available() else ["nonsense", 3.5]
FUNCTION = [None, 3, "x", [1], Stranger()]
TABLE = [None, "x", 3, [1], {"a": 1}, pd.DataFrame(), pd.DataFrame({"other": [1.0]}), Stranger()]
ARRAY = [None, "x", 3, [1.0], torch.zeros(3), Stranger()]
MAPPING = [None, "x", 3, [1], Stranger(), {3: 4}]
PATH = [None, 3, b"x", ["x"], Stranger(), "a\0b", "a\ud800"]
FLAT = [*DENSE_TENSOR, torch.tensor([1.0]), torch.tensor([[1]]), torch.tensor([1], dtype=torch.int32), torch.tensor(1)]
FLAT += [torch.tensor([-1]), torch.tensor([10**9]), torch.zeros(1, dtype=torch.int64, device="meta")]
TOPOLOGY = [*FLAT, torch.tensor([2, 1]), torch.tensor([1, 1])]
META = nn.Linear(4, 3, device="meta")
LAZY = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
DENSE = nn.ReLU()  # no layer to make sparse


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 26 * 26, 10))


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def loss_of(model: nn.Module) -> torch.Tensor:
    return model(torch.ones(2, 4)).square().sum()


def sparse_net() -> nn.Module:
    return lib.mask_model(net(), 0.5)


def digits() -> lib.Digits:
    x, y = torch.zeros(12, 1, 28, 28), torch.arange(12) % 10
    return lib.Digits(x, y, x, y, "digits", "made up")


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters())


def driver(**more: Any) -> dict[str, Any]:
    model = sparse_net()
    return {"model": model, "optimizer": adam(model), **more}


def layer() -> engine.SparseLinear:
    torch.manual_seed(0)
    return engine.SparseLinear(4, 3, connections=ACTIVE)


def masked_layer() -> lib.MaskedLinear:
    torch.manual_seed(0)
    made = lib.MaskedLinear(4, 3)
    made.set_mask(topology.to_mask(ACTIVE, (3, 4)))
    return made


def recorded(made: Any) -> Any:
    made.record_gradient = True
    made(BATCH).sum().backward()
    return made


def history() -> lib.History:
    return lib.History([1.0], [50.0], [1.0], [50.0], [0.1])


def runs() -> pd.DataFrame:
    row = {"contender": "a", "sparsity": 0.9, "seed": 0, "accuracy": 97.0, "seconds": 1.0, "bytes": 10.0}
    rows = [{**row, "contender": name, "seed": seed} for name in "ab" for seed in range(3)]
    return pd.DataFrame(rows).assign(low=96.0, high=98.0)


def stored(places: list[int]) -> pd.DataFrame:
    """What a layer holds for each of its connections."""
    return pd.DataFrame({("layer", "value"): 1.0, ("optimizer", "mean"): 0.5}, index=places)


def tied() -> nn.Module:
    """Two layers with one weight, as an autoencoder may have them."""
    made = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    made[1].weight = made[0].weight
    return made


def uncopyable() -> nn.Module:
    """A model that holds a lock, which cannot be copied."""
    made = nn.Sequential(nn.Linear(4, 4), lib.MaskedLinear(4, 4))
    made.lock = threading.Lock()
    return made


def recorder() -> lib.TopologyRecorder:
    made = lib.TopologyRecorder()
    made.record(interface.sparse_layers(sparse_net()), 0)
    return made


AVERAGED = sparse_net()
ACTIVE = torch.tensor([0, 5, 7, 11])
WRONG_RUNS = [runs().assign(accuracy="x"), runs().assign(accuracy=math.nan), runs().assign(contender=1.0)]
LINEAR = index.LinearIndex.build(ACTIVE, (3, 4))
CONV = index.ConvIndex.build(torch.tensor([0, 3, 7]), (2, 1, 2, 2))
STAGES = [Stage(LINEAR)]
FOUR = torch.arange(4.0)
BATCH = torch.arange(8.0).reshape(2, 4)
INPUTS = [*TENSOR, torch.zeros(4), torch.zeros(2, 5), torch.zeros(2, 3), torch.zeros(2, 4, device="meta")]
INPUTS += [torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.complex64)]
IMAGE = torch.zeros(1, 1, 4, 4)
IMAGES = [*TENSOR, torch.zeros(4), torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 1, 4), torch.zeros(1, 4)]
VALUES = [torch.zeros(3), torch.zeros(2, 2), torch.zeros(4, device="meta"), FOUR.double()]
DRIVER_BAD = {"model": [*MODEL, DENSE], "optimizer": [None, "adam", 3, Stranger(), adam(nn.Linear(2, 2))]}
DRIVER_BAD["optimizer"] += [torch.optim.LBFGS(nn.Linear(2, 2).parameters()), nn.Linear(2, 2)]
RECIPE = {
    "prune_fraction": [*NOT_NUMBERS],
    "every": [None, "x", 2.5, True, Stranger(), [1]],
    "until": NOT_NUMBERS,
    "grow": [None, 3, [1], Stranger()],
    "decay": TEXT,
    "prune": [None, 3, [1], Stranger()],
    "scope": TEXT,
}
CONTENDER = {"lr": [*NUMBER, 0, -1.0], "schedule": CHOICE, "optimizer": CHOICE}
IMAGES_BAD = [
    *DENSE_TENSOR,
    torch.zeros(0, 1, 28, 28),
    torch.zeros(12, 784),
    torch.zeros(12, 1, 28, 28, dtype=torch.int64),
]
LABELS_BAD = [*DENSE_TENSOR, torch.zeros(11, dtype=torch.int64), torch.zeros(12), torch.zeros(12, 1, dtype=torch.int64)]
STRUCTURE = [None, "x", 0, (0, 1), (1.5, 1), (1, 2, 3), (-1, 4), ["a", 2], Stranger()]
PAIR = ["3", None, 2.5, (1, 2, 3), (1,), [1.5, 2], Stranger(), -1, (1, -2)]


def array_fields(made: Any) -> dict[str, Any]:
    fields = [field.name for field in dataclasses.fields(made) if field.init]
    return {name: getattr(made, name) for name in fields if name not in ("number", "programs", "_places")}


def broken(made: Any, *names: str) -> dict[str, list[Any]]:
    """Arrays that point outside, are too short, or of another type."""
    out = {}
    for name in names:
        array = getattr(made, name)
        outside = array.copy()
        outside.flat[-1] = 2**15
        out[name] = [None, "x", array.tolist(), outside, array[:-1], array.astype(np.float64), Stranger()]
    return out


DOORS = [
    # which connections exist
    Door(topology.check_sparsity, lambda: {"sparsity": 0.5}, {"sparsity": SHARE}),
    Door(
        interface.check_excluded,
        lambda: {"exclude": ["0"], "modules": dict(net().named_modules())},
        {"exclude": [["nothing"], [nn.LSTM], [3]], "modules": [None, 3]},
    ),
    Door(
        interface.weight_layers,
        lambda: {"model": net()},
        {"model": [*MODEL, DENSE], "include": NAMES, "exclude": NAMES},
    ),
    Door(interface.weight_shape, lambda: {"layer": nn.Linear(2, 3)}, {"layer": [*MODEL, DENSE]}),
    Door(
        topology.layer_nnz,
        lambda: {"model": net(), "sparsity": 0.5},
        {
            "model": [*MODEL, DENSE],
            "sparsity": [*SHARE, 0.999999],
            "scheme": CHOICE,
            "include": [*NAMES, ["nothing"]],
            "exclude": [*NAMES, ["nothing"]],
            "structure": [*STRUCTURE, (7, 11)],
        },
    ),
    Door(
        topology.sample_distinct,
        lambda: {"population": 9, "count": 3, "generator": torch.Generator()},
        {
            "population": [*INTEGER, -1, 2, 2**63],
            "count": [*COUNT, 10],
            "generator": [None, 0, "x", np.random.default_rng(), Stranger()],
        },
    ),
    Door(
        topology.to_mask,
        lambda: {"connections": torch.tensor([1, 0]), "shape": (2, 3)},
        {"connections": FLAT, "shape": [None, 3, "23", (2.5, 3), (-2, 3), (10**9, 10**9), Stranger()]},
    ),
    Door(
        topology.to_connections,
        lambda: {"mask": torch.ones(2, 2, dtype=torch.bool)},
        {"mask": [*DENSE_TENSOR, torch.zeros(2, 2), torch.ones(2, dtype=torch.bool, device="meta")]},
    ),
    Door(
        topology.check_rewiring,
        lambda: {
            "layer": layer(),
            "kept": torch.tensor([0, 5, 7]),
            "grown": torch.tensor([1]),
            "values": torch.zeros(1),
        },
        {
            "layer": MODEL,
            "kept": [*TOPOLOGY, torch.tensor([2])],
            "grown": [*DENSE_TENSOR, torch.tensor([5])],
            "values": [*DENSE_TENSOR, torch.zeros(2), torch.zeros(1, device="meta")],
        },
    ),
    Door(interface.check_has_numbers, lambda: {"model": net()}, {"model": [*MODEL, META]}),
    Door(copies.copied, lambda: {"model": net()}, {"model": [uncopyable()]}),
    Door(interface.sparse_layers, lambda: {"model": net()}, {"model": MODEL}),
    # simulated and truly sparse layers
    Door(
        masked.MaskedLinear,
        lambda: {"in_features": 4, "out_features": 3},
        {"in_features": [*COUNT, 10**12], "out_features": [*COUNT, 10**12], "bias": FLAG, "device": DEVICE}
        | {"dtype": ["float32", 3, torch.int64, torch.complex64, Stranger()]},
    ),
    Door(
        masked.MaskedConv2d,
        lambda: {"in_channels": 2, "out_channels": 4, "kernel_size": 3},
        {
            "in_channels": [*COUNT, 10**12],
            "out_channels": [*COUNT, 10**12],
            "kernel_size": [*PAIR, 0],
            "stride": [*PAIR, 0],
            "padding": PAIR,
            "dilation": [*PAIR, 0],
            "groups": [*POSITIVE, 3],
            "bias": FLAG,
            "padding_mode": CHOICE,
            "device": DEVICE,
        },
    ),
    Door(
        masked.mask_model,
        lambda: {"model": net()},
        {
            "model": [*MODEL, DENSE, META, LAZY, sparse_net(), tied()],
            "sparsity": SHARE,
            "scheme": CHOICE,
            "seed": SEED,
            "include": NAMES,
            "exclude": NAMES,
            "structure": STRUCTURE,
        },
    ),
    Door(
        topology.structures_of,
        lambda: {"layers": {"0": nn.Linear(4, 4)}, "structure": (2, 2)},
        {"layers": [None, 3, [1], {"0": None}, {"0": 3}], "structure": STRUCTURE},
    ),
    Door(convert.densify, lambda: {"model": sparse_net()}, {"model": [*MODEL, META, uncopyable()]}),
    Door(masked.sparsity_report, lambda: {"model": sparse_net()}, {"model": [*MODEL, DENSE]}),
    Door(
        engine.SparseLinear,
        lambda: {"in_features": 4, "out_features": 3},
        {
            "in_features": [*COUNT, 10**12],
            "out_features": [*COUNT, 10**12],
            "bias": FLAG,
            "connections": TOPOLOGY[1:],
            "sparsity": SHARE,
            "structure": [*STRUCTURE, (2, 1), "auto"],
            "relu": FLAG,
            "device": DEVICE,
            "dtype": ["float32", 3, torch.int64, torch.complex64, Stranger()],
        },
    ),
    Door(
        engine.SparseConv2d,
        lambda: {"in_channels": 2, "out_channels": 4, "kernel_size": 3},
        {
            "in_channels": [*COUNT, 10**12],
            "out_channels": [*COUNT, 10**12],
            "kernel_size": [*PAIR, 0],
            "stride": [*PAIR, 0],
            "padding": PAIR,
            "dilation": [*PAIR, 0],
            "groups": [*POSITIVE, 3],
            "bias": FLAG,
            "connections": TOPOLOGY[1:],
            "sparsity": SHARE,
            "structure": [*STRUCTURE, (3, 1), "auto"],
            "relu": FLAG,
            "pool": FLAG,
            "device": DEVICE,
        },
    ),
    Door(
        engine.sparsify,
        lambda: {"model": net(), "sparsity": 0.5},
        {
            "model": [*MODEL, DENSE, META, LAZY, tied(), uncopyable()],
            "sparsity": [value for value in SHARE if value is not None],
            "exclude": [*NAMES, ["cnov*"], [nn.LSTM]],
            "structure": [value for value in STRUCTURE if value not in (1, (1, 1))],
        },
    ),
    Door(
        adapters.register_adapter,
        lambda: {"kind": Unknown, "adapt": lambda module: None},
        {"kind": [None, "x", 3, Stranger, nn.Linear(2, 2)], "adapt": [None, 3, "x", [1]]},
    ),
    Door(
        engine.Attention,
        lambda: {"attention": nn.MultiheadAttention(4, 2)},
        {"attention": [*MODEL, nn.MultiheadAttention(4, 2, add_zero_attn=True)]},
    ),
    Door(
        engine.SparseConv1d,
        lambda: {"in_channels": 2, "out_channels": 4, "kernel_size": 3},
        {
            "in_channels": [*COUNT, 10**12],
            "out_channels": [*COUNT, 10**12],
            "kernel_size": [*COUNT, 0],
            "stride": [*COUNT, 0],
            "padding": COUNT,
            "dilation": [*COUNT, 0],
            "groups": [*POSITIVE, 3],
            "bias": FLAG,
            "connections": TOPOLOGY[1:],
            "sparsity": SHARE,
            "relu": FLAG,
            "device": DEVICE,
        },
    ),
    Door(engine.fuse, lambda: {"model": engine.sparsify(net())}, {"model": [*MODEL, uncopyable()]}),
    # kernels
    Door(
        index.LinearIndex,
        lambda: array_fields(LINEAR),
        broken(LINEAR, "indptr", "cols", "t_indptr", "t_rows", "t_perm", "row_chunks", "col_chunks"),
    ),
    Door(index.ConvIndex, lambda: array_fields(CONV), broken(CONV, "indptr", "cols")),
    Door(
        index.LinearIndex.build,
        lambda: {"flat": torch.tensor([1, 2]), "shape": (3, 4)},
        {
            "flat": TOPOLOGY,
            "shape": [None, 3, (3,), (1, 2, 3), (-1, 4), (3.5, 4), "34"],
            "structure": [None, "x", (0, 1), (2, 1), (1, 3), (3, 1), (1.5, 1), (1, 2, 3)],
        },
    ),
    Door(
        index.ConvIndex.build,
        lambda: {"flat": torch.tensor([1, 2]), "shape": (2, 1, 2, 2)},
        {
            "flat": TOPOLOGY,
            "shape": [None, 3, (3, 4), (-1, 1, 2, 2)],
            "stride": [None, 1, (0, 1), (1,), (1.5, 1)],
            "padding": [None, 1, (-1, 1), "same"],
            "dilation": [None, 1, (0, 1)],
            "groups": [*POSITIVE, 3],
            "structure": [None, "x", (0, 1), (3, 1), (1, 2), (2, 1), (1.5, 1)],
        },
    ),
    Door(memory.row_lanes, lambda: {"batch": 3}, {"batch": [None, "x", 2.5, -1, Stranger()]}),
    Door(memory.row_floats, lambda: {"batch": 3}, {"batch": [None, "x", 2.5, -1, Stranger()]}),
    Door(memory.is_batch_innermost, lambda: {"x": BATCH}, {"x": [*TENSOR, torch.zeros(4), torch.zeros(2, 2, 2)]}),
    Door(memory.to_batch_innermost, lambda: {"x": BATCH}, {"x": [*TENSOR, torch.zeros(4), torch.zeros(2, 2, 2)]}),
    Door(kernels.kernels_for, lambda: {"x": BATCH}, {"x": [*TENSOR, BATCH.long(), BATCH.to(torch.complex64)]}),
    *(
        Door(
            forward,
            lambda: {"x": BATCH, "stages": STAGES, "parameters": [FOUR, None]},
            {"x": INPUTS, "stages": [[], STAGES * 2], "parameters": [[], [FOUR], [None, None]]},
        )
        for forward in (cpu.forward, reference.forward)
    ),
    Door(
        reference.linear_forward,
        lambda: {"x": BATCH, "values": FOUR, "bias": None, "index": LINEAR},
        {"x": INPUTS, "values": [*TENSOR, *VALUES], "index": [None, "x", CONV], "relu": FLAG}
        | {"bias": [torch.zeros(4), torch.zeros(3).double(), "x"]},
    ),
    Door(
        reference.conv_forward,
        lambda: {"x": IMAGE, "values": torch.zeros(3), "bias": None, "index": CONV},
        {"x": IMAGES, "values": [*TENSOR, torch.zeros(4)], "index": [None, "x", LINEAR], "relu": FLAG, "pool": FLAG},
    ),
    Door(
        reference.linear_backward,
        lambda: {"grad": torch.zeros(2, 3), "x": BATCH, "y": None, "values": FOUR, "index": LINEAR},
        {"grad": [*TENSOR, torch.zeros(2, 4)], "x": INPUTS, "values": [*TENSOR, *VALUES], "index": [None, CONV]},
    ),
    Door(
        reference.conv_backward,
        lambda: (
            {"grad": torch.zeros(1, 2, 3, 3), "x": IMAGE, "y": None, "winners": None, "values": torch.zeros(3)}
            | {"index": CONV}
        ),
        {"grad": [*TENSOR, torch.zeros(1, 2, 4, 3)], "x": IMAGES, "values": [*TENSOR, torch.zeros(4)]},
    ),
    Door(
        reference.before_activation,
        lambda: {"grad": torch.zeros(2, 3), "y": None, "winners": None, "index": LINEAR},
        {"grad": TENSOR, "y": [torch.zeros(3), "x"], "index": [None, 3]},
    ),
    # dynamic sparse training
    Door(
        rules.magnitude_prune,
        lambda: {"values": FOUR, "count": 2},
        {"values": [*DENSE_TENSOR, BATCH, torch.zeros(4, device="meta"), FOUR * math.nan], "count": [*COUNT, 5]},
    ),
    Door(
        rules.random_grow,
        lambda: {"active": torch.tensor([1, 2]), "size": 9, "count": 2, "generator": torch.Generator()},
        {"active": TOPOLOGY, "size": [*INTEGER, -1, 2], "count": [*COUNT, 8], "generator": [None, 0, Stranger()]},
    ),
    Door(
        rules.gradient_grow,
        lambda: {"gradient_rows": [BATCH], "active": torch.tensor([1, 2]), "count": 2},
        {
            "gradient_rows": [
                None,
                3,
                "x",
                [None],
                [BATCH.to_sparse()],
                [BATCH.long()],
                [BATCH * math.nan],
                [BATCH.to("meta")],
            ],
            "active": TOPOLOGY,
            "count": [*COUNT, 7],
        },
    ),
    Door(
        rules.GrowRule,
        lambda: {"choose": len},
        {"choose": FUNCTION, "gradient_steps": COUNT, "momentum": [*NUMBER, -1.0], "initial_std": [*NUMBER, -1.0]},
    ),
    Door(dst.Epochs, lambda: {"count": 2}, {"count": NUMBER}),
    Door(
        dst.DynamicSparsity,
        driver,
        DRIVER_BAD
        | {
            "prune_fraction": [*NUMBER, -0.1, 1.1],
            "every": [None, "x", 2.5, 0, -1, Stranger(), dst.Epochs(1)],
            "until": ["x", 2.5, -1, Stranger(), dst.Epochs(1)],
            "prune": [None, 3, "nonsense", Stranger()],
            "scope": CHOICE,
            "grow": [None, 3, "nonsense", Stranger()],
            "decay": [*CHOICE, "cosine"],
            "seed": SEED,
            "steps_per_epoch": ["x", 2.5, Stranger()],
        },
    ),
    Door(
        gradual.GradualPruning,
        lambda: driver(sparsity=0.8, until=5),
        DRIVER_BAD | {"sparsity": SHARE, "until": POSITIVE, "every": POSITIVE, "scheme": CHOICE},
    ),
    *(
        Door(kind, dict, RECIPE)
        for kind in (
            *(recipes.Static, recipes.SET, recipes.RigL, recipes.SNFS, recipes.ITOP, recipes.MEST, recipes.CHT),
            recipes.SparseMomentum,
        )
    ),
    Door(recipes.DSR, dict, RECIPE | {"threshold": [*NOT_NUMBERS, 0, -1.0, math.nan]}),
    Door(recipes.SRigL, dict, RECIPE | {"salient": [*NOT_NUMBERS, -0.1, 1.1, math.nan]}),
    Door(recipes.GraNet, dict, RECIPE | {"start": SHARE, "sparsity": SHARE}),
    Door(
        recipes.DeepRewiring,
        dict,
        {"l1": [*NUMBER, -1.0], "temperature": [*NUMBER, -1.0], "until": NOT_NUMBERS},
    ),
    Door(
        recipes.TopKAST,
        dict,
        {"forward": [*NUMBER, 0, -0.1, 1.1], "l2": [*NUMBER, -1.0]}
        | {name: RECIPE[name] for name in ("every", "until")},
    ),
    Door(
        recipes.snip,
        lambda: {"model": small_net(), "loss": loss_of, "sparsity": 0.5},
        {"model": [*MODEL, DENSE, META, sparse_net()], "loss": FUNCTION, "sparsity": SHARE},
    ),
    Door(
        recipes.grasp,
        lambda: {"model": small_net(), "loss": loss_of, "sparsity": 0.5},
        {"model": [*MODEL, DENSE, META, sparse_net()], "loss": FUNCTION, "sparsity": SHARE},
    ),
    Door(
        recipes.synflow,
        lambda: {"model": small_net(), "shape": (4,), "sparsity": 0.5},
        {
            "model": [*MODEL, DENSE, META, sparse_net()],
            "shape": [None, 3, "x", (5,), (-1,), Stranger()],
            "sparsity": SHARE,
            "rounds": POSITIVE,
        },
    ),
    Door(
        recipes.lottery_ticket,
        lambda: {"model": small_net(), "train": id, "wrap": lib.mask_model, "sparsity": 0.5, "rounds": 2},
        {
            "model": [*MODEL, DENSE, META],
            "train": FUNCTION,
            "wrap": [*FUNCTION, id, lambda model: model],
            "sparsity": SHARE,
            "rounds": POSITIVE,
            "warm_up": FUNCTION[1:],
        },
    ),
    Door(
        recipes.DynamicRecipe,
        lambda: {"prune_fraction": 0.1, "every": 1, "until": 1.0, "grow": "random", "decay": "constant"},
        RECIPE,
    ),
    Door(
        recipes.GradualMagnitudePruning,
        lambda: {"sparsity": 0.5},
        {"sparsity": NOT_NUMBERS, "scheme": TEXT, "every": INTEGER, "until": NOT_NUMBERS},
    ),
    Door(
        own_rule.rule_faults,
        dict,
        {"grow": [None, 3, "nonsense", Stranger()], "prune": [None, 3, "nonsense", Stranger()]},
    ),
    Door(init.sparse_init, lambda: {"model": sparse_net()}, {"model": [*MODEL, DENSE], "seed": SEED}),
    Door(
        optim.PerWeightAdam,
        lambda: {"params": list(net().parameters())},
        {"params": [None, 3, "x", [], [3], Stranger()], "lr": [*NUMBER, 0, -1.0], "eps": [*NUMBER, 0, -1.0]}
        | {"betas": [None, 3, (0.9,), (0.9, 1.0), (0.9, math.nan), "ab", (-0.1, 0.9)]},
    ),
    Door(
        optim.decay_groups,
        lambda: {"model": sparse_net(), "weight_decay": 0.1},
        {"model": [*MODEL, net().parameters()], "weight_decay": [*NUMBER, -1.0]},
    ),
    Door(
        engine.AveragedSparseModel.update_parameters,
        lambda: {"self": engine.AveragedSparseModel(AVERAGED), "model": AVERAGED},
        {"model": [*MODEL, net()]},
    ),
    # CSR and costs
    Door(
        csr.CSRProduct,
        lambda: {"matrix": BATCH, "mask": BATCH > 2, "backend": "torch"},
        {
            "matrix": [*DENSE_TENSOR, FOUR, BATCH.long(), BATCH.to("meta"), BATCH.half(), torch.zeros(4, 2)],
            "mask": [*DENSE_TENSOR, BATCH, BATCH[:1] > 2],
            "backend": CHOICE,
        },
    ),
    Door(
        csr.CSRLinear,
        lambda: {"product": csr.CSRProduct(BATCH, BATCH > 2, "torch"), "bias": None},
        {"product": [None, 3, DENSE], "bias": ["x", 3, torch.zeros(3), torch.zeros(2).long()]},
    ),
    Door(
        csr.CSRConv2d,
        lambda: {"product": csr.CSRProduct(BATCH, BATCH > 2, "torch"), "bias": None, "layer": nn.Conv2d(1, 2, 2)},
        {
            "product": [None, 3, DENSE],
            "bias": ["x", torch.zeros(3)],
            "layer": [None, DENSE, nn.Conv2d(1, 3, 2), nn.Conv2d(1, 2, 2, padding="same")],
        },
    ),
    Door(csr.to_csr, lambda: {"model": sparse_net()}, {"model": [*MODEL, DENSE, uncopyable()], "backend": CHOICE}),
    Door(cost.storage_bytes, lambda: {"model": net()}, {"model": MODEL}),
    Door(
        cost.multiply_adds,
        lambda: {"model": net(), "input_shape": (1, 28, 28)},
        {"model": [*MODEL, DENSE], "input_shape": [None, 3, "x", (3, 28, 28), (28,), (-1, 28, 28), (1, 10**7, 10**7)]},
    ),
    Door(
        cost.training_multiply_adds,
        lambda: {"model": net(), "input_shape": (1, 28, 28), "images": 5},
        {"model": MODEL, "input_shape": [None, (28,)], "images": COUNT, "growth_images": COUNT},
    ),
    # models and data
    Door(models.TutorialCNN, lambda: {"width": 0.1}, {"width": [*NUMBER, 0, -1, 1e6, 1e12, 1e307]}),
    Door(models.count_parameters, lambda: {"model": net()}, {"model": MODEL}),
    Door(contenders.weight_count, lambda: {"model": net()}, {"model": [*MODEL, DENSE]}),
    Door(contenders.multiply_add_count, lambda: {"model": net()}, {"model": [*MODEL, DENSE, nn.Linear(3, 3)]}),
    Door(contenders.small_dense, lambda: {"limit": 5000}, {"limit": [*COUNT, 3], "measure": FUNCTION}),
    Door(
        project.Profile,
        lambda: {"name": "quick", "train_size": None, "steps": 1},
        {"name": TEXT, "train_size": ["x", 2.5], "steps": INTEGER},
    ),
    Door(
        data.Digits,
        lambda: {key: getattr(digits(), key) for key in ("train_x", "train_y", "test_x", "test_y", "name", "source")},
        {"train_x": IMAGES_BAD, "train_y": LABELS_BAD, "test_x": IMAGES_BAD, "test_y": LABELS_BAD, "name": TEXT}
        | {"source": TEXT},
    ),
    Door(
        data.load_data,
        lambda: {"name": "digits", "train_size": 50},
        {
            "name": CHOICE,
            "train_size": [*COUNT[1:], 9],
            "root": [*PATH[1:], "~nobody of that name"],
            "seed": [*SEED, 2**32],
        },
    ),
    # training, checkpoints
    Door(engine.TrainingStep, driver, DRIVER_BAD | {"model": MODEL}),
    Door(
        engine.TrainingStep(**driver()).__call__,
        lambda: {"x": torch.randn(6, 1, 28, 28), "y": torch.arange(6)},
        {"x": [*TENSOR, torch.tensor(1.0)], "y": [*TENSOR, torch.arange(5), torch.zeros(6), torch.zeros(6, 1)]},
    ),
    Door(
        train.fit,
        lambda: {"model": net(), "data": digits(), "epochs": 1, "batch_size": 6, "progress": False},
        {
            "model": [*MODEL, DENSE, META, LAZY, nn.Linear(3, 3), nn.Sequential(nn.Flatten(), nn.Linear(784, 5))],
            "data": [None, "mnist", torch.zeros(2), Stranger()],
            "epochs": POSITIVE,
            "lr": [*NUMBER, 0, -1e-3],
            "batch_size": POSITIVE,
            "optimizer": CHOICE,
            "schedule": CHOICE,
            "sparsity": ["rigl", 0.5, recipes.SET, Stranger()],
            "seed": SEED,
            "device": [*DEVICE, "meta"],
            "progress": FLAG,
            "checkpoint": PATH[1:],
        },
    ),
    Door(
        train.evaluate,
        lambda: {"model": net(), "data": digits()},
        {"model": [*MODEL, DENSE, META, nn.Linear(3, 3)], "data": [None, "mnist", torch.zeros(2), Stranger()]},
    ),
    Door(train.History, dict, {"train_loss": [None, "x", 3, ["x"]], "seconds": ["x", [None]], "topology": [None, 3]}),
    Door(
        checkpoint.save_checkpoint,
        lambda: {"path": "PATH"},
        {"path": [*PATH, "", ".", ".."], "part": [Stranger(), len, Stranger]},
    ),
    Door(checkpoint.load_checkpoint, lambda: {"path": "SAVED"}, {"path": [*PATH, "missing"], "part": [None, 3]}),
    Door(checkpoint.read_checkpoint, lambda: {"path": "SAVED"}, {"path": [*PATH, "missing", "."]}),
    # comparisons and measurements
    Door(compare.Budget, dict, {"epochs": POSITIVE, "batch_size": POSITIVE}),
    Door(contenders.Dense, dict, CONTENDER),
    Door(contenders.SmallDense, dict, CONTENDER | {"same": TEXT}),
    Door(
        contenders.Sparse, lambda: {"how": recipes.SET()}, CONTENDER | {"how": [None, "SET", recipes.SET], "init": TEXT}
    ),
    Door(contenders.Gradual, dict, CONTENDER | {"scheme": TEXT}),
    Door(compare.Comparison, lambda: {"runs": runs()}, {"runs": TABLE[:5]}),
    Door(
        compare.interval,
        lambda: {"samples": [1.0, 2.0]},
        {"samples": [None, 3, "12", [], ["a"], [math.nan], [1.0, math.inf]], "level": [*NUMBER, 0, 1, 95]},
    ),
    Door(compare.in_words, lambda: {"mean": 1.0, "low": 0.5, "high": 1.5}, {"mean": NOT_NUMBERS, "low": NOT_NUMBERS}),
    Door(
        compare.paired_difference,
        lambda: {"runs": runs(), "ours": "a", "theirs": "b", "sparsity": 0.9},
        {
            "runs": [*TABLE, *WRONG_RUNS],
            "ours": [*TEXT, "c"],
            "theirs": [*TEXT, "c"],
            "sparsity": [*NOT_NUMBERS, 0.5, math.nan],
        },
    ),
    Door(
        compare.compare,
        lambda: (
            {"contenders": {"small": contenders.SmallDense()}, "data": digits(), "sparsities": [0.99], "seeds": [0]}
            | {"budget": compare.Budget(1, 6), "progress": False}
        ),
        {
            "contenders": [*MAPPING, {}, {"a": 3}],
            "data": [None, "mnist", Stranger()],
            "sparsities": [None, 0.9, "x", [], [1.5], [math.nan], [0.9, 0.9], ["x"]],
            "seeds": [None, 0, "x", [], [-1], [2.5], [0, 0], [2**64]],
            "budget": [None, 3, Stranger()],
            "folder": PATH[1:],
            "workers": POSITIVE,
            "progress": FLAG,
        },
    ),
    Door(
        bench.Benchmark,
        lambda: {"seconds": {"a": [1.0]}, "threads": 1, "device": "cpu"},
        {"seconds": [*MAPPING, {"a": []}, {"a": [math.nan]}, {"a": [-1.0]}], "threads": INTEGER, "device": TEXT},
    ),
    Door(
        bench.benchmark,
        lambda: {"candidates": {"a": lambda: FOUR}, "runs": 1, "warmup": 0},
        {
            "candidates": [
                *MAPPING,
                {},
                {"a": 3},
                {"a": lambda: "x"},
                {"a": lambda: FOUR, "b": lambda: BATCH},
                {"a": lambda: FOUR, "b": lambda: FOUR + 1},
                {"a": lambda: FOUR * math.nan},
                {"a": lambda: FOUR.to_sparse()},
                {"a": lambda: FOUR.to("meta")},
                {"a": lambda: [[1], [1, 2]]},
                {"a": lambda: FOUR > 1, "b": lambda: FOUR > 2},
            ],
            "runs": POSITIVE,
            "warmup": COUNT,
            "tolerance": [*NOT_NUMBERS[1:], -1.0, math.nan],
        },
    ),
    Door(bench.provenance, lambda: {"command": "x"}, {"command": TEXT, "seed": ["x", 2.5], "data": ["x", 3]}),
    Door(
        bench.save_result,
        lambda: {"name": "x", "values": {}, "command": "x", "folder": "PATH"},
        {
            "name": [*TEXT, "", "../x", "a/b", "/x", "a\0b", "\ud800", "n" * 300],
            "values": [*MAPPING, {"a": math.nan}, {"a": Stranger()}, {"a": torch.zeros(2)}],
            "command": TEXT,
            "folder": PATH,
        },
    ),
    Door(bench.load_result, lambda: {"name": "x"}, {"name": [*TEXT, "", "../x", "/x"], "folder": PATH}),
    # figures, player, predictions
    Door(
        viz.plot_mask,
        lambda: {"mask": np.eye(3)},
        {
            "mask": [
                *ARRAY,
                np.zeros(3),
                np.zeros((0, 3)),
                np.full((2, 2), 7),
                np.full((2, 2), np.nan),
                np.array([["a"]]),
            ],
            "title": TEXT,
        },
    ),
    Door(
        viz.mask_states,
        lambda: {"before": np.eye(3), "after": np.eye(3)},
        {"before": [*ARRAY, np.eye(2), np.full((3, 3), 7)], "after": [*ARRAY, np.eye(2)]},
    ),
    Door(
        viz.plot_mask_evolution,
        lambda: {"masks": [np.eye(3)] * 2},
        {
            "masks": [None, 3, [], [np.eye(3)], [np.eye(3), np.eye(2)], [np.eye(3), None], [np.zeros(3)] * 2],
            "labels": ["ab", ["a"], [1, 2]],
            "title": TEXT,
            "palette": CHOICE,
            "columns": [3, "x", slice(9, 12)],
        },
    ),
    Door(
        viz.plot_training,
        lambda: {"histories": {"a": history()}},
        {"histories": [*MAPPING, {}, {"a": 3}, {"a": lib.History()}]},
    ),
    Door(
        viz.plot_benchmark,
        lambda: {"result": bench.Benchmark({"a": [1.0]}, 1, "cpu")},
        {"result": [None, 3, bench.Benchmark({}, 1, "cpu")], "title": TEXT},
    ),
    Door(
        viz.plot_densities,
        lambda: {"nnz": {"erk": {"fc": 3}}, "sizes": {"fc": 9}},
        {
            "nnz": [*MAPPING, {}, {"erk": {}}, {"erk": {"fc": 0}}, {"erk": {"fc": 10}}, {"erk": 3}],
            "sizes": [*MAPPING, {}, {"other": 3}, {"fc": "x"}],
        },
    ),
    Door(
        viz.plot_crossover,
        lambda: {
            "rows": [
                {
                    "width": 8,
                    "batch": 2,
                    "sparsity": s,
                    "dense": 1.0,
                    "Dense+Mask": 2.0,
                    "torch CSR": 1.5,
                    "us": 1.1 - s,
                }
                for s in (0.1, 0.5)
            ],
            "ours": "us",
        },
        {"rows": [None, 3, [], [3], [{"width": 1}]], "ours": [*TEXT, "other"]},
    ),
    Door(
        referee_plots.plot_referee, lambda: {"table": runs().assign(contender="RigL")}, {"table": [*TABLE, *WRONG_RUNS]}
    ),
    Door(
        referee_plots.plot_waterfall,
        lambda: {"table": runs()[:2], "published": 90.0},
        {"table": [*TABLE, *WRONG_RUNS], "published": NUMBER},
    ),
    Door(
        referee_plots.plot_tradeoff,
        lambda: {"table": runs().assign(contender="RigL")},
        {"table": [*TABLE, *WRONG_RUNS]},
    ),
    Door(
        viz.break_even,
        lambda: {"sparsity": np.array([0.1, 0.5]), "ratio": np.array([2.0, 0.5])},
        {
            "sparsity": [*ARRAY, np.array([]), np.array([0.5, 0.1]), np.eye(2), np.array([False, True])],
            "ratio": [*ARRAY, np.array([1.0]), np.array([np.nan, 1.0]), np.array([0.0, 1.0]), np.array([1j, 1.0])],
        },
    ),
    Door(
        schematics.draw_rewiring,
        lambda: {"weight": torch.eye(3), "pruned": torch.tensor([4]), "grown": torch.tensor([1])},
        {
            "weight": [None, "x", torch.eye(3).flatten(), Stranger()],
            "pruned": [None, 4, torch.tensor([1]), torch.tensor([9]), torch.tensor([-1]), torch.tensor([4, 4])],
            "grown": [None, 1, torch.tensor([4]), torch.tensor([9]), torch.tensor([1.0]), torch.tensor([1, 1])],
        },
    ),
    Door(
        schematics.draw_gradients,
        lambda: {"mask": torch.eye(3) > 0, "stored": torch.eye(3), "product": torch.ones(3, 3)},
        {
            "mask": [None, "x", torch.ones(2, 3) > 0, torch.ones(3) > 0],
            "stored": [None, torch.ones(2, 3), 3],
            "product": [None, torch.ones(2, 3), 3],
        },
    ),
    Door(schematics.draw_csr, lambda: {"matrix": scipy.sparse.csr_matrix(np.eye(2))}, {"matrix": [*ARRAY, 3]}),
    Door(
        schematics.draw_layouts,
        lambda: {"layouts": {"a": torch.ones(2, 3)}, "feature": 1},
        {
            "layouts": [*MAPPING, {}, {"a": 3}, {"a": torch.ones(4, 3)[::2]}, {"a": torch.ones(3)}],
            "feature": [None, 3, -1, "x"],
        },
    ),
    Door(
        schematics.draw_owners,
        lambda: {"before": stored([0, 1]), "after": stored([1, 2])},
        {"before": TABLE[:5], "after": [*TABLE[:5], stored([1, 2])[[]]]},
    ),
    Door(player.Player, lambda: {"html": "x"}, {"html": TEXT}),
    Door(
        player.topology_player,
        lambda: {"recorder": recorder()},
        {
            "recorder": [None, 3, lib.TopologyRecorder(), Stranger()],
            "layers": ["0", [], ["nothing"], [3], 3],
            "title": TEXT,
        },
    ),
    Door(
        predict.Prediction,
        lambda: {"question": "Q?"},
        {"question": TEXT, "unit": TEXT, "options": ["ab", [1], None, ["a", "a"]]},
    ),
    Door(
        predict.ask,
        lambda: {"question": "Q?"},
        {"question": TEXT, "unit": TEXT, "options": ["ab", [1]], "guess": ["many", math.nan, True, [1], Stranger()]},
    ),
    Door(
        predict.reconcile,
        lambda: {"prediction": lib.ask("Q?"), "measured": 3},
        {"prediction": [None, "x", 3], "measured": [None, [1], Stranger()]},
    ),
    Door(checking.exercise, lambda: {"check": lambda answer: None}, {"check": FUNCTION}),
    *(
        Door(getattr(exercises, name), lambda: {"answer": lambda: ...}, {"answer": FUNCTION})
        for name in vars(exercises)
        if name.startswith("check_")
    ),
    # methods that take input
    Door(
        layer().forward,
        lambda: {"x": BATCH},
        {"x": [*DENSE_TENSOR, torch.zeros(2, 5), torch.tensor(1.0), BATCH.long(), BATCH.double(), BATCH.to("meta")]},
    ),
    Door(
        engine.SparseConv2d(1, 2, 2).forward,
        lambda: {"x": IMAGE},
        {"x": [*DENSE_TENSOR, torch.zeros(4), torch.zeros(1, 2, 4, 4), IMAGE[..., :1], IMAGE.long()]},
    ),
    Door(
        csr.CSRProduct(BATCH, BATCH > 2, "scipy").forward,
        lambda: {"x": torch.ones(4, 2)},
        {"x": [*DENSE_TENSOR, torch.ones(3, 2), torch.ones(4), torch.ones(4, 2).double(), torch.ones(4, 2).to("meta")]},
    ),
    *(
        Door(
            made.set_active_values,
            lambda: {"values": FOUR},
            {"values": [*DENSE_TENSOR, torch.zeros(3), torch.zeros(2, 2), FOUR.long(), FOUR.to("meta")]},
        )
        for made in (layer(), masked_layer())
    ),
    *(
        Door(
            made.rewire,
            lambda: {"kept": ACTIVE, "grown": ACTIVE[:0], "values": FOUR[:0]},
            {
                "kept": [*TOPOLOGY, torch.tensor([0, 2, 7, 11])],
                "grown": [*DENSE_TENSOR, torch.tensor([5])],
                "values": [*DENSE_TENSOR, torch.zeros(2), FOUR[:0].to("meta")],
            },
        )
        for made in (layer(), masked_layer())
    ),
    *(
        Door(made.gradient_at, lambda: {"connections": torch.tensor([3, 0])}, {"connections": FLAT})
        for made in (recorded(layer()), recorded(masked_layer()))
    ),
    Door(
        recorded(layer()).gradient_above,
        lambda: {"bound": 0.5, "active": ACTIVE, "most": 12},
        {"bound": [*NUMBER, 0.0, -1.0], "active": TOPOLOGY, "most": COUNT},
    ),
    *(
        Door(made.fade_gradient, lambda: {"factor": 0.9}, {"factor": NUMBER})
        for made in (recorded(layer()), recorded(masked_layer()))
    ),
    Door(
        masked_layer().set_mask,
        lambda: {"mask": BATCH[:1].expand(3, 4) > 2},
        {"mask": [*DENSE_TENSOR, torch.zeros(3, 4), torch.zeros(4, 3, dtype=torch.bool)]},
    ),
    Door(layer().set_extra_state, lambda: {"state": ACTIVE}, {"state": [*TOPOLOGY, ACTIVE[:3]]}),
    Door(digits().to, lambda: {"device": "cpu"}, {"device": DEVICE}),
    Door(player.Player("x").save, lambda: {"path": "PATH"}, {"path": [*PATH, "missing/x", "."]}),
    Door(bench.Benchmark({"a": [1.0]}, 1, "cpu").median, lambda: {"name": "a"}, {"name": CHOICE}),
    Door(dst.Epochs(1e300).in_steps, lambda: {"steps_per_epoch": 9}, {"steps_per_epoch": [*INTEGER, 0, -1]}),
    Door(
        history().load_state_dict,
        lambda: {"state": history().state_dict()},
        {"state": [None, 3, {}, history().state_dict() | {"seconds": 3}, history().state_dict() | {"topology": 3}]},
    ),
    Door(predict.Prediction("Q?").said, lambda: {"answer": 3}, {"answer": [[1], {}, Stranger(), True]}),
    Door(
        dst.DynamicSparsity(**driver()).load_state_dict,
        lambda: {"state": dst.DynamicSparsity(**driver()).state_dict()},
        {"state": [None, 3, "x", {}, {"steps": 1}, {"steps": -1, "rewirings": 0, "generator": FOUR}]},
    ),
]
