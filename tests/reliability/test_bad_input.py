"""Bad input to every public function: refused with an error, or taken for the plain value that it stands for.

Never a crash, a hang, a silent wrong result, or half a change. An error of this project's own names the argument, its
value, and what to do.
"""

import contextlib
import dataclasses
import importlib
import inspect
import itertools
import math
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import truly_sparse
import tutorial_lib
from tests.reliability.bad_input_cases import DOORS
from truly_sparse import Epochs, GrowRule, SparseTrainingError
from truly_sparse.arguments import is_dense, shown
from truly_sparse.cpu.index import ConvIndex
from truly_sparse.recipes import DynamicRecipe, Recipe
from tutorial_lib import Benchmark, History, mask_model, save_checkpoint
from tutorial_lib.compare import Comparison
from tutorial_lib.contenders import Contender
from tutorial_lib.exercises.checking import CheckFailedError

ENGINE = (
    "adapters attention averages backend conv1d convert copies driver_checks dst fuse gradual init layers optim "
    "own_rule recipes.base recipes.before_training recipes.classic recipes.decade recipes.deep_rewiring "
    "recipes.fan_in recipes.gradual recipes.links recipes.lottery_ticket recipes.sharing recipes.top_kast "
    "reference rules step topology cpu.chain cpu.index cpu.memory"
)
LIBRARY = (
    "bench checkpoint compare contenders cost csr data masked models player project recorder referee_plots schematics "
    "train viz exercises.checking exercises.predictions exercises.reading"
)
MODULES = [
    f"{package}.{name}"
    for package, names in (("truly_sparse", ENGINE), ("tutorial_lib", LIBRARY))
    for name in names.split()
]
# Names that take no case of their own, and why.
WITHOUT_CASES = {
    "start": "takes no argument",
    "break_evens": "takes what make bench recorded",
    "torch_csr": "torch's own conversion, in torch's own words",
    "warmup": "takes no argument",
    "profile": "takes no argument",
    "default_device": "takes no argument",
    "TopologyRecorder": "takes no argument; its methods are tested in test_recorder.py",
    "MaskedLayer": "abstract",
    "SparseLayer": "abstract",
    "Rewirer": "abstract",
    "Recipe": "abstract",
    "AdaptiveThreshold": "built by DSR",
    "ConstantFanIn": "built by SRigL",
    "LinkPrediction": "built by CHT",
    "MomentumSharing": "built by SparseMomentum",
    "PruneAndRegenerate": "built by GraNet",
    "SignKeeping": "built by DeepRewiring",
    "ForwardAndBackwardSet": "built by TopKAST",
    "Method": "a row of a table",
    "MagnitudeAndGradient": "a score that MEST uses",
    "ch3_l3_rows": "used by CHT",
    "check_attached": "a check",
    "check_exchange": "a check",
    "check_finite": "a check",
    "check_grown": "a check",
    "check_holds": "a check",
    "check_interval": "a check",
    "check_rules": "a check",
    "check_sizes_may_change": "a check",
    "is_distributed": "takes nothing",
    "check_saved": "a check",
    "checked_score": "a check",
    "fan_ins": "used by SRigL",
    "keep_largest": "used by snip and others",
    "last_step": "used by recipes",
    "learning_rate": "used by recipes",
    "link_grow": "used by CHT",
    "lowest_of_all": "used by drivers",
    "outside_of_largest": "used by TopKAST",
    "rooms_of": "used by drivers",
    "share_out": "called by layer_nnz; tested through it",
    "saved_generator": "called by load_state_dict of drivers; tested through it",
    "shared_out": "used by drivers",
    "with_topology": "used by snip and others",
    "Contender": "abstract",
    "CheckFailedError": "an exception",
    "describe": "takes anything",
    "Structure": "a pair of numbers; as_structure checks them",
    "pair": "called by constructors; tested through them",
    "SparsifiableLayer": "abstract",
    "check_columns": "a check",
    "check_path": "a check",
    "check_values": "a check",
    "alike": "used by the checks of exercises",
    "array": "used by the checks of exercises",
    "call": "used by the checks of exercises",
    "close": "used by the checks of exercises",
    "diagnose": "used by the checks of exercises",
    "draws": "used by the checks of exercises",
    "fresh": "used by the checks of exercises",
    "in_short": "used by the checks of exercises",
    "number": "used by the checks of exercises",
    "positions": "used by the checks of exercises",
    "precision": "used by the checks of exercises",
    "shuffled": "used by the checks of exercises",
    "finish": "used by the figures",
    "literal": "used by the figures",
    "plain_ticks": "used by the figures",
    "generator_of": "called with a seed; torch refuses others",
    "expect": "used by the checks of exercises",
    "result": "used by the checks of exercises",
    "grow_rule": "called by DynamicSparsity",
    "initial_topology": "called by sparsify and mask_model",
    "own_topology": "called by sparsify and mask_model",
    "adapted": "called by sparsify and mask_model",
    "unadapted": "called by densify",
    "carry_between": "called by drivers",
    "over_all_ranks": "called by drivers and rules",
    "MaskedConv1d": "made by mask_model",
    "AveragedSparseModel": "its arguments are torch's",
    "smallest": "called by magnitude_prune and DynamicSparsity",
    "run_chain": "called in every pass; test_sparse.py",
    "hooks_of": "called in every pass; test_step.py",
    "Chain": "made by chain_of",
    "chain_of": "asked by TrainingStep, which checks the model; test_step.py",
    "strides": "called in every pass with shapes that were checked; test_kernels.py",
    "borrow": "called in every pass with a size of its own; test_kernels.py",
    "empty_batch_innermost": "called in every pass with shapes that were checked; test_kernels.py",
    "empty_in_format": "called in every pass with shapes that were checked; test_kernels.py",
    "in_format_of": "called with tensors that the reference has checked; test_kernels.py",
    "backward": "takes what forward returned; test_kernels.py",
    "train_one": "one job of compare(), which checks it",
    "save_runs": "takes what compare() takes and returned",
}
CASES = [
    pytest.param(door, name, value, id=f"{door.call.__module__}.{door.call.__qualname__}-{name}-{place}")
    for door in DOORS
    for name, values in door.bad.items()
    for place, value in enumerate(values)
]
REMEDY = (
    r"\b(give|use|set|pass|choose|call|ask|train|build|repeat|take|return|name|start|lower|raise|write|measure|load|"
    r"leave|mask|keep|grow|compare|pad|save|create)\b"
)

# What messages call an argument, where not by its name.
CALLED = {
    "candidates": "returns",  # the one that does
    "cols": "indptr",  # which no longer fits
    "connections": "flat indices",
    "count": "cannot draw",
    "every": "steps_per_epoch",
    "grad": "gradient",
    "gradient_rows": "gradient",
    "guess": "no finite number",
    "in_channels": "weights",
    "in_features": "weights",
    "layer": "Conv2d",
    "layers": "layer",
    "matrix": "mask",
    "model": "Linear",
    "name": "data set",
    "ours": "run with|columns",
    "out_channels": "weights",
    "out_features": "weights",
    "bias": "a tensor",
    "before": "masks",
    "after": "masks",
    "parameters": "values",
    "population": "cannot draw",
    "seeds": "seed",
    "size": "active",
    "sizes": "nnz",
    "sparsities": "sparsity",
    "state": "state|flat indices",
    "theirs": "run with",
    "until": "steps_per_epoch",
    "values": "weights?",
    "x": "activations|input",
}


def arguments(door, tmp_path, **changed):
    """Return the door's good arguments, with files in a folder of this test, and what is changed."""
    places = {"PATH": tmp_path / "new", "SAVED": tmp_path / "saved"}
    good = {name: places.get(value, value) if isinstance(value, str) else value for name, value in door.good().items()}
    if good.get("path") is places["SAVED"]:
        save_checkpoint(places["SAVED"], part=1)
    return good | changed


def traces(value: Any) -> Iterator[str]:
    """Yield the words by which a message may tell a value: as ``shown`` prints it, or the part of it that is wrong."""
    yield shown(value)
    if isinstance(value, (torch.Tensor, np.ndarray)):
        shape = tuple(value.shape)
        yield from (
            str(value.dtype),
            str(value.dtype).removeprefix("torch."),
            str(shape),
            f"[B, {', '.join(map(str, shape[1:]))}]",
            "×".join(map(str, shape[2:])),
        )
        told = isinstance(value, np.ndarray) or (is_dense(value) and not value.is_meta)
        if told and math.prod(shape) <= 8:
            yield from map(str, value.reshape(-1).tolist())
    elif isinstance(value, pd.DataFrame):
        yield from (f"{len(value)} rows", *(shown(value[column].tolist()) for column in value))
    elif isinstance(value, (Mapping, list, tuple)):
        yield str(len(value))
        for part in itertools.chain(value, value.values()) if isinstance(value, Mapping) else value:
            yield from traces(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from traces(vars(value))
    elif not isinstance(value, (str, bytes, int, float, complex, type(None))):
        yield value.__name__ if isinstance(value, type) else type(value).__name__


@pytest.mark.parametrize("door", DOORS, ids=lambda door: f"{door.call.__module__}.{door.call.__qualname__}")
def test_good_arguments_are_taken(door, tmp_path):
    door.call(**arguments(door, tmp_path))


# Arguments that are only stored, printed or given to torch, and counts that may be as large as one likes.
STORED = {
    "Benchmark": "device threads",
    "Comparison": "runs",
    "Digits": "name source",
    "History": "train_loss train_accuracy test_loss test_accuracy seconds topology",
    "Player": "html",
    "Prediction": "question unit",
    "Profile": "name train_size steps",
    "DynamicSparsity": "seed",
    "MaskedLinear": "dtype",
    "ask": "question unit",
    "decay_groups": "weight_decay",
    "compare": "seeds",
    "fit": "seed",
    "in_words": "mean",
    "load_data": "train_size",
    "mask_model": "seed",
    "provenance": "command seed",
    "save_result": "command values",
    "small_dense": "limit",
    "sparse_init": "seed",
    "topology_player": "title",
}


def readings(value: Any) -> Iterator[Any]:
    """Yield the plain values that a caller can have meant.

    Python and torch take many kinds of numbers for a number, lists for tuples, and any object for a flag or a text.
    That is no fault as long as the outcome is that of the plain value.
    """
    if isinstance(value, (bool, np.bool_)):
        yield int(value)
    if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim == 0 and not getattr(value, "is_meta", False):
        yield value.item()
    if isinstance(value, np.ndarray) and value.ndim == 1:
        yield value.tolist()
    if isinstance(value, (list, tuple)):
        yield tuple(value)
        yield list(value)
    if isinstance(value, float) and value.is_integer():
        yield int(value)
    if isinstance(value, int):
        yield (value, value)
    if isinstance(value, (str, bytes, Mapping)):
        yield list(value)
    if not isinstance(value, (torch.Tensor, np.ndarray, pd.DataFrame)) or getattr(value, "size", 0) == 1:
        yield bool(value)
    yield str(value)


def used(result: Any) -> Any:
    """Use settings, which may be refused only then: attach a recipe or a rule and rewire, build a contender."""
    if isinstance(result, ConvIndex):
        return result.flat(), result.shape, result.stride, result.padding, result.dilation, result.groups
    if isinstance(result, Epochs):
        return result.in_steps(10)
    if isinstance(result, GrowRule):
        result = DynamicRecipe(0.5, 1, 1.0, result, "constant")
    if isinstance(result, Recipe):
        torch.manual_seed(0)
        model = mask_model(torch.nn.Sequential(torch.nn.Linear(20, 10), torch.nn.Linear(10, 5)), 0.5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        driver = result.attach(model, optimizer, steps_per_epoch=2, total_steps=6, seed=0)
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.ones(3, 20)).square().sum().backward()
            optimizer.step()
            driver.step()
        return [layer.active() for layer in driver.layers.values()]
    if isinstance(result, Contender):
        return result.build(0.9, 0), float(result.lr)
    if isinstance(result, torch.optim.Optimizer):
        for parameter in result.param_groups[0]["params"]:
            parameter.grad = torch.ones_like(parameter)
        result.step()
        return result.param_groups[0]["params"]
    return WITHOUT_TIMES.get(type(result), lambda same: same)(result)


# What of a result does not depend on the clock.
WITHOUT_TIMES = {
    History: lambda history: history.train_loss,
    Comparison: lambda comparison: comparison.runs.drop(columns="seconds", errors="ignore"),
    Benchmark: lambda benchmark: {name: len(runs) for name, runs in benchmark.seconds.items()},
}


def alike(a: Any, b: Any) -> bool:
    """Tell whether two results are the same: tensors and modules by what they hold, the rest by what they say."""
    if isinstance(a, torch.nn.Module):
        a, b = a.state_dict(), b.state_dict()
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, (torch.Tensor, np.ndarray)):
        return a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())
    if isinstance(a, pd.DataFrame):
        return a.equals(b)
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and alike(vars(a), vars(b))
    return type(a) is type(b) and (a == b or ADDRESS.sub("", repr(a)) == ADDRESS.sub("", repr(b)))


ADDRESS = re.compile(r" at 0x[0-9a-f]+|\d+(\.\d+)? s\b")


def check_message(error: SparseTrainingError, name: str, value: Any) -> None:
    """Hold that an error of this project's own names the argument, tells its value, and says what to do."""
    assert not isinstance(error, CheckFailedError)
    message = str(error)
    assert "\n" not in message and len(message) < 900, "one sentence"
    assert re.search(REMEDY, message), f"no remedy: {message}"
    assert re.search(rf"\b({name}|{CALLED.get(name, name)})\b", message), f"{name} is not named: {message}"
    told = ["indptr=ndarray"] if CALLED.get(name) == "indptr" else []
    told += [rf"(?<!\w){re.escape(trace)}(?!\w)" for trace in traces(value) if trace]
    assert re.search("|".join(told), message, re.IGNORECASE), f"the value is not told: {message}"


class Hangs(BaseException):
    """The time of one case is over; no ``except Exception`` may swallow it."""


@pytest.fixture
def no_hang():
    """End a case that takes more than ten seconds, where the system has alarms."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def ring(*_):
        raise Hangs

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("no_hang")
@pytest.mark.parametrize(("door", "name", "value"), CASES)
def test_bad_input_is_refused_or_means_what_it_says(door, name, value, tmp_path, survived):
    def outcome(given: Any) -> Any:
        torch.manual_seed(0)
        return used(door.call(**arguments(door, tmp_path, **{name: given})))

    try:
        result = outcome(value)
    except SparseTrainingError as error:
        check_message(error, name, value)
    except Exception as error:  # Python's own or torch's
        assert not isinstance(error, (SystemError, MemoryError, RecursionError)), error
    else:
        stored = name in STORED.get(door.call.__qualname__, "").split()
        assert stored or any(same_outcome(result, outcome, plain) for plain in readings(value)), (
            f"{name}={shown(value)} is taken without a word"
        )
    survived("bad input")


def same_outcome(result: Any, outcome: Callable[[Any], Any], plain: Any) -> bool:
    """Tell whether a plain value is taken and leads to the same result."""
    with contextlib.suppress(Exception):
        return alike(result, outcome(plain))
    return False


def public(module):
    """Return the names of a module's own public functions and classes."""
    return {
        name
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and getattr(thing, "__module__", None) == module.__name__
        and (inspect.isfunction(thing) or inspect.isclass(thing))
    }


def test_every_public_function_and_constructor_has_cases():
    tested = {door.call.__name__ for door in DOORS}
    names = set().union(*(public(importlib.import_module(name)) for name in MODULES))
    exported = {name: package for package in (truly_sparse, tutorial_lib) for name in package.__all__}
    modules = {name for name, package in exported.items() if inspect.ismodule(getattr(package, name))}
    callables = {name for name, package in exported.items() if callable(getattr(package, name))}
    errors = {name for name in names | callables if name.endswith("Error")}
    missing = (names | callables) - modules - errors - tested - WITHOUT_CASES.keys()
    assert not missing, f"write cases for {sorted(missing)} in tests/reliability/bad_input_cases.py"
    assert len(CASES) >= 500
