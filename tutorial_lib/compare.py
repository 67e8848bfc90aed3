"""Fair comparison of contenders: the same data in the same order, the same budget, several seeds, and intervals."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from tqdm import tqdm

from truly_sparse.arguments import check_choice, check_count, require, shown
from truly_sparse.errors import InvalidArgumentError
from truly_sparse.interface import SparsifiableLayer, weight_layers, weight_shape
from truly_sparse.progress import progress_stream
from truly_sparse.recipes import DynamicRecipe, Recipe, describe
from truly_sparse.rules import GROW_RULES, GrowRule
from truly_sparse.topology import check_sparsity

from .checkpoint import CheckpointError
from .contenders import IMAGE, Contender
from .cost import storage_bytes, training_multiply_adds
from .data import Digits
from .project import check_path
from .recorder import TopologyRecorder
from .train import fit

# Tensors of a weight's shape that each optimizer keeps.
STATE_TENSORS = {"adam": 2, "adamw": 2, "sgd": 1, "adam per weight": 3}


@dataclass(frozen=True)
class Budget:
    """What every contender may spend."""

    epochs: int = 10
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            check_count(name, getattr(self, name), least=1)


Job = tuple[str, float, int]  # contender, sparsity, seed


@dataclass(frozen=True)
class Comparison:
    """The runs of a comparison, one row each.

    Attributes:
        runs: columns ``contender``, ``sparsity``, ``seed``, ``accuracy`` (percent, test set, after the last epoch),
            ``loss``, ``seconds`` (training only), ``weights`` (active), ``bytes`` (weights, gradients, optimizer state,
            indices and masks), ``forward``, ``backward``, ``growth`` (multiply-adds of the whole training; growth is
            counted as dense gradients of whole batches, which custom and sampling rules may not need),
            ``exploration`` (share of all connections that were ever active), ``rewirings``.
    """

    runs: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """Return one row per contender and sparsity: mean accuracy with its 95% interval, and means of the rest.

        Seconds are medians, because another program on the machine can delay a single run.
        """
        columns = ("contender", "sparsity", "seed", "accuracy", "seconds")
        check_columns("runs", self.runs, columns)
        rows = []
        for (contender, sparsity), part in self.runs.groupby(["contender", "sparsity"], sort=False):
            low, high = interval(part["accuracy"].tolist())
            others = part.drop(columns=["contender", "sparsity", "seed"]).mean(numeric_only=True)
            others["seconds"] = part["seconds"].median()
            row = {"contender": contender, "sparsity": sparsity, "seeds": len(part), "accuracy": others.pop("accuracy")}
            rows.append(row | {"low": low, "high": high} | others.to_dict())
        return pd.DataFrame(rows)


def interval(samples: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return the two-sided confidence interval of a mean, by Student's t; (nan, nan) for a single sample.

    Raises:
        InvalidArgumentError: no samples, one that is not finite, or a level outside (0, 1).
    """
    finite = len(samples) > 0 and all(map(math.isfinite, samples))
    require(finite, "samples", samples, "give at least one finite number")
    require(0 < level < 1, "level", level, "use a number between 0 and 1")
    if len(samples) < 2:
        return math.nan, math.nan
    error = stats.sem(samples)
    if error == 0:
        return samples[0], samples[0]
    low, high = stats.t.interval(level, len(samples) - 1, loc=sum(samples) / len(samples), scale=error)
    return float(low), float(high)


def in_words(mean: float, low: float, high: float) -> str:
    """Return a mean with its interval as text, such as ``99.24 (99.18 to 99.30)``."""
    return f"{mean:.2f} (one seed)" if math.isnan(low) else f"{mean:.2f} ({low:.2f} to {high:.2f})"


def paired_difference(runs: pd.DataFrame, ours: str, theirs: str, sparsity: float) -> tuple[float, float, float]:
    """Return the difference in accuracy between two contenders, paired by seed: mean and 95% interval, in points.

    Args:
        runs: see :class:`Comparison`.
        ours: a contender.
        theirs: another one.
        sparsity: at which to compare.

    Raises:
        InvalidArgumentError: there is no seed that both were run with, or a column is missing.
    """
    check_columns("runs", runs, ("contender", "sparsity", "seed", "accuracy"))
    dense = runs["sparsity"] == 0.0  # the same at every sparsity
    at = runs[(runs["sparsity"] == sparsity) | dense].set_index(["contender", "seed"])["accuracy"]
    both = [at[name] if name in at.index.get_level_values(0) else pd.Series(dtype=float) for name in (ours, theirs)]
    difference = (both[0] - both[1]).dropna()
    if difference.empty:
        raise InvalidArgumentError(
            f"no seed was run with both {ours!r} and {theirs!r} at sparsity={shown(sparsity)}; choose what was run"
        )
    return float(difference.mean()), *interval(difference.tolist())


def compare(
    contenders: Mapping[str, Contender],
    data: Digits,
    sparsities: Sequence[float],
    seeds: Sequence[int],
    budget: Budget = Budget(),
    *,
    folder: str | Path | None = None,
    workers: int = 1,
    progress: bool = True,
) -> Comparison:
    """Train every contender at every sparsity with every seed; a dense contender once per seed.

    A seed sets the network's first weights, its first topology and the order of the data, so that all contenders have
    equal conditions.

    Args:
        contenders: by name.
        data: the digits.
        sparsities: shares of weights removed.
        seeds: at least one; two or more for intervals.
        budget: epochs and batch size of each run.
        folder: where finished runs and the checkpoints of unfinished ones are written. Runs with the same settings that
            are there already are not trained again, so an interrupted comparison continues. Custom rules and
            contenders are the same as long as their code is.
        workers: number of processes, with one thread each; 1: this process, with all threads. Custom rules must come
            from a file that the processes can import, not from a notebook.
        progress: whether to show a progress bar.

    Raises:
        InvalidArgumentError: nothing to compare, or a seed or sparsity twice.
        CheckpointError: a run in the folder is damaged, or none can be written there.
    """
    jobs = _jobs(contenders, sparsities, seeds)
    check_count("workers", workers, least=1)
    if workers > 1:
        _check_importable(contenders)
    files = None if folder is None else _Files(folder, contenders, data, budget)
    done = {job: files.load(job) if files else None for job in jobs}
    todo = {job: contenders[job[0]] for job in jobs if done[job] is None}
    with tqdm(
        total=len(jobs), initial=len(jobs) - len(todo), disable=not progress, file=progress_stream(), unit="run"
    ) as bar:
        for job, result in _run_all(todo, data, budget, files, workers):
            done[job] = result
            if files:
                files.save(result)
            bar.set_postfix_str(f"{job[0]} {job[1]:.1%} seed {job[2]}: {result['accuracy']:.2f}%")
            bar.update()
    order = {name: place for place, name in enumerate(contenders)}
    rows = [done[job] for job in sorted(jobs, key=lambda job: (order[job[0]], job[1], job[2]))]
    return Comparison(pd.DataFrame(rows))


def _jobs(contenders: Mapping[str, Contender], sparsities: Sequence[float], seeds: Sequence[int]) -> list[Job]:
    """Return the runs seed by seed, so that an interrupted comparison is already a fair one."""
    for sparsity in sparsities:
        check_sparsity(sparsity)
    if not (len(contenders) and len(sparsities) and len(seeds)):
        raise InvalidArgumentError(
            f"{len(contenders)} contenders, sparsities={list(sparsities)}, seeds={list(seeds)}; "
            "give at least one of each"
        )
    if len({*sparsities}) < len(sparsities) or len({*seeds}) < len(seeds):
        raise InvalidArgumentError(f"sparsities={list(sparsities)}, seeds={list(seeds)}; name each once")
    return [
        (name, 0.0 if contender.is_dense else sparsity, seed)
        for seed, (name, contender), sparsity in itertools.product(map(int, seeds), contenders.items(), sparsities)
        if not contender.is_dense or sparsity == sparsities[0]
    ]


def _run_all(
    todo: dict[Job, Contender], data: Digits, budget: Budget, files: _Files | None, workers: int
) -> Iterator[tuple[Job, dict[str, Any]]]:
    checkpoints = {job: files.path(job, "checkpoint") if files else None for job in todo}
    if workers == 1:
        for job, contender in todo.items():
            yield job, train_one(job, contender, data, budget, checkpoints[job])
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, _start_worker, (data,)) as pool:
        futures: dict[Future[dict[str, Any]], Job] = {
            pool.submit(_train_in_worker, job, contender, budget, checkpoints[job]): job
            for job, contender in todo.items()
        }
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            _cancel(pool)


def _cancel(pool: Executor) -> None:
    """Drop the runs that have not begun, after an error or Ctrl-C."""
    pool.shutdown(wait=False, cancel_futures=True)


_data: list[Digits] = []  # of a worker process: sent once, not for each run


def _start_worker(data: Digits) -> None:
    torch.set_num_threads(1)
    _data.append(data)


def _train_in_worker(job: Job, contender: Contender, budget: Budget, checkpoint: Path | None) -> dict[str, Any]:
    return train_one(job, contender, _data[0], budget, checkpoint)


def train_one(job: Job, contender: Contender, data: Digits, budget: Budget, checkpoint: Path | None) -> dict[str, Any]:
    """Train one contender once and return its row; see :class:`Comparison`."""
    name, sparsity, seed = job
    model, recipe = contender.build(sparsity, seed), contender.recipe(sparsity)
    history = fit(
        model,
        data,
        epochs=budget.epochs,
        batch_size=budget.batch_size,
        lr=contender.lr,
        schedule=contender.schedule,
        optimizer=contender.optimizer,
        sparsity=recipe,
        seed=seed,
        progress=False,
        checkpoint=checkpoint,
    )
    rewirings = max(0, len(history.topology) - 1)
    growth_images = _growth_batches(history.topology, recipe) * budget.batch_size
    layers = weight_layers(model).values()
    active = sum(
        len(layer.active()) if isinstance(layer, SparsifiableLayer) else math.prod(weight_shape(layer))
        for layer in layers
    )
    parameters = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return {
        "contender": name,
        "sparsity": sparsity,
        "seed": seed,
        "accuracy": history.test_accuracy[-1],
        "loss": history.test_loss[-1],
        "seconds": sum(history.seconds),
        "weights": active,
        "bytes": storage_bytes(model) + (1 + STATE_TENSORS[contender.optimizer]) * parameters,
        **training_multiply_adds(model, IMAGE, budget.epochs * len(data.train_x), growth_images),
        "exploration": float(history.topology.exploration()[-1]) if len(history.topology) else 1.0,
        "rewirings": rewirings,
    }


def _check_importable(contenders: Mapping[str, Contender]) -> None:
    for name, contender in contenders.items():
        how = getattr(contender, "how", None)
        rules = [getattr(how, "prune", None), getattr(how, "grow", None)]
        rules = [rule.choose if isinstance(rule, GrowRule) else rule for rule in rules]
        if any(callable(rule) and rule.__module__ == "__main__" for rule in rules):
            raise InvalidArgumentError(
                f"{name!r} has a rule that other processes cannot import; put it into a file, or use workers=1"
            )


def _growth_batches(topology: TopologyRecorder, recipe: Recipe | None) -> int:
    """Return the number of batches whose dense gradient was computed for growth."""
    if not isinstance(recipe, DynamicRecipe):
        return 0
    rule = GROW_RULES[recipe.grow] if isinstance(recipe.grow, str) else recipe.grow
    steps = rule.gradient_steps if isinstance(rule, GrowRule) else GrowRule(rule).gradient_steps
    return sum(min(steps, after - before) for before, after in itertools.pairwise(topology.steps))


class _Files:
    """The runs of a comparison in a folder. Runs with other settings have other file names."""

    def __init__(self, folder: str | Path, contenders: Mapping[str, Contender], data: Digits, budget: Budget) -> None:
        self.folder = check_path("folder", folder)
        terms = f"{budget} {data.sha256()}"
        settings = {name: describe(each) + _own_methods(type(each)) for name, each in contenders.items()}
        self.digests = {name: _digest(f"{name} {text} {terms}") for name, text in settings.items()}

    def path(self, job: Job, ending: str) -> Path:
        name, sparsity, seed = job
        readable = "".join(c if c.isalnum() else "_" for c in name)
        return self.folder / f"{readable}-{sparsity:g}-{seed}-{self.digests[name]}.{ending}"

    def load(self, job: Job) -> dict[str, Any] | None:
        path = self.path(job, "json")
        if not path.is_file():
            return None
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            if (row["contender"], row["sparsity"], row["seed"]) == job:
                return row
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        raise CheckpointError(f"{path} is damaged or another run's; delete it to train that run again")

    def save(self, row: dict[str, Any]) -> None:
        job = row["contender"], row["sparsity"], row["seed"]
        partial = self.path(job, "partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(row), encoding="utf-8")
            partial.replace(self.path(job, "json"))
            self.path(job, "checkpoint").unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(f"folder={str(self.folder)!r} cannot be written ({error}); choose another") from error


def _own_methods(kind: type) -> str:
    """Return a text that changes with the methods of a contender's class; "" for a class of this package."""
    own = [each for each in kind.__mro__ if issubclass(each, Contender) and not each.__module__.startswith(__package__)]
    return "".join(describe(m) for each in own for m in vars(each).values() if isinstance(m, FunctionType))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def save_runs(
    runs: pd.DataFrame, folder: Path, contenders: Mapping[str, Contender], data: Digits, budget: Budget
) -> None:
    """Write runs of an earlier comparison into a folder, where ``compare`` with the same settings finds them.

    Raises:
        InvalidArgumentError: a run of a contender that is not among them, or a column is missing.
    """
    check_columns("runs", runs, ("contender", "sparsity", "seed"))
    for name in runs["contender"]:
        check_choice("runs['contender']", name, contenders)
    files = _Files(folder, contenders, data, budget)
    for row in runs.to_dict(orient="records"):
        files.save(row)


def check_columns(name: str, table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Check that a table has rows and the given columns, with texts for contenders and numbers elsewhere.

    Raises:
        InvalidArgumentError: no rows, a column is missing, one (but the contender's) does not hold numbers, or an
            accuracy is not finite.
    """
    missing = [column for column in columns if column not in table.columns]
    if missing or not len(table):
        raise InvalidArgumentError(
            f"{name} has {len(table)} rows and the columns {shown(list(table.columns))}; "
            f"give at least one row, and {', '.join(map(repr, columns))}"
        )
    for column in columns:
        held = table[column]
        if column == "contender":
            fits = held.map(type).eq(str).all()
        else:
            fits = pd.api.types.is_numeric_dtype(held) and (column != "accuracy" or np.isfinite(held).all())
        what = "texts" if column == "contender" else "finite numbers"
        require(fits, f"{name}[{column!r}]", held.tolist(), f"give {what}")
