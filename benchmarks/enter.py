"""Enter a method of your own: check it, train it as the decade's methods were, and see where it ranks among them.

    python benchmarks/enter.py my_rule.py --sparsity 0.99      # a minute on two cores

The file defines ``grow`` (a growth rule), ``prune`` (a prune score), or both; they take the place of RigL's, with the
common settings. Or it defines ``recipe``, which decides everything. ``docs/your-own-rule.md`` has a template. The task
is that with 1,000 training images, from the recorded seeds; the others are those of ``figures/decade_runs.json``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from decade_methods import contender_of, data_of
from decade_ranks import equal_terms, mean_and_interval, mean_ranks, ranks

from truly_sparse import GradualMagnitudePruning, InvalidArgumentError, RigL, TrainingError, rule_faults
from truly_sparse.recipes import DynamicRecipe, Recipe
from tutorial_lib import load_result
from tutorial_lib.compare import Budget, compare, in_words, paired_difference
from tutorial_lib.data import DataError

IMAGES, BUDGET = 1000, Budget(epochs=30, batch_size=16)
RIVALS = ("static", "RigL, common and own")
PARTS = ("recipe", "grow", "prune")


class EntryError(Exception):
    """What keeps a file from being entered, in words for its author."""


def parts_of(path: Path) -> dict[str, Any]:
    """Return what a file defines of :data:`PARTS`. Its folder becomes importable, for other processes too.

    Raises:
        EntryError: the file is not there, does not run, or defines none of them, or a recipe and a rule.
    """
    if not path.is_file():
        raise EntryError(f"{path}: there is no such file")
    sys.path.append(str(path.resolve().parent))
    try:
        module = importlib.import_module(path.stem)
    except Exception as error:  # whatever the file raises
        raise EntryError(f"{path} does not run: {type(error).__name__}: {error}") from error
    if Path(module.__file__ or "").resolve() != path.resolve():
        raise EntryError(f"{path}: another module is called {path.stem!r}; rename the file")
    found = {name: getattr(module, name) for name in PARTS if hasattr(module, name)}
    if not found or (len(found) > 1 and "recipe" in found):
        what = f"{path} defines {' and '.join(found) or 'nothing to enter'}"
        raise EntryError(f"{what}; define grow or prune or both, or recipe alone (docs/your-own-rule.md)")
    return found


def recipe_of(parts: dict[str, Any]) -> Recipe:
    """Return the recipe to train: the file's own, or RigL's with its rules.

    Raises:
        EntryError: the recipe is none, a rule has faults, or other processes cannot import one.
    """
    try:
        recipe = parts["recipe"] if "recipe" in parts else RigL(**parts)
        if not isinstance(recipe, Recipe) or isinstance(recipe, GradualMagnitudePruning):
            raise EntryError(
                f"recipe={recipe!r} cannot be entered; give a recipe such as RigL(every=50). Choices before training, "
                "such as snip, and gradual pruning can be added in benchmarks/decade_methods.py"
            )
        faults = rule_faults(recipe.grow, recipe.prune) if isinstance(recipe, DynamicRecipe) else []
    except InvalidArgumentError as error:
        raise EntryError(str(error)) from error
    if faults:
        raise EntryError("\n".join(["the rules have faults:", *(f"- {fault}" for fault in faults)]))
    try:
        pickle.dumps(recipe)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise EntryError(f"other processes cannot import the rules ({error}); write functions, not lambdas") from error
    return recipe


def recorded(sparsity: float) -> pd.DataFrame:
    """Return the recorded runs on 1,000 images at one sparsity, and those of the dense network.

    Raises:
        EntryError: there are none.
    """
    found = load_result("decade_runs")
    runs = pd.DataFrame(found["runs"] if found else {"race": [], "images": [], "sparsity": []})
    runs = equal_terms(runs, IMAGES)
    if not (runs["sparsity"] == sparsity).any():
        there = ", ".join(f"{s:g}" for s in sorted(set(runs["sparsity"]) - {0.0})) or "none; run benchmarks/decade.py"
        raise EntryError(f"--sparsity {sparsity:g}: no run is recorded there; recorded are {there}")
    return runs[runs["sparsity"].isin((sparsity, 0.0))]


def standing(runs: pd.DataFrame, name: str, sparsity: float) -> pd.DataFrame:
    """Return a row per contender, best first: mean accuracy with its 95% interval, and how far ahead the entry is.

    Args:
        runs: at one sparsity, and those of the dense network.
        name: of the entry; its differences to the others are paired by seed.
        sparsity: of the runs.
    """
    rows = {}
    for contender, part in runs.groupby("contender", sort=False):
        accuracy = mean_and_interval(part["accuracy"])
        ahead = "" if contender == name else in_words(*paired_difference(runs, name, str(contender), sparsity))
        rows[contender] = [accuracy[0], in_words(*accuracy), part["seed"].nunique(), ahead]
    columns = ["mean", "accuracy %", "seeds", "entry − this, points"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns).sort_values("mean", ascending=False)
    table.insert(0, "place", range(1, len(table) + 1))
    return table.drop(columns="mean")


def rank_words(runs: pd.DataFrame, name: str) -> str:
    """Return the entry's mean rank over its seeds, among the sparse contenders that were trained from all of them."""
    runs = runs[runs["seed"].isin(runs.loc[runs["contender"] == name, "seed"])]
    seeds = runs.groupby("contender")["seed"].nunique()
    places = ranks(runs[runs["contender"].map(seeds) == seeds[name]])
    mean, low, high = mean_ranks(places).loc[name]
    return f"Mean rank over {len(places)} seeds: {in_words(mean, low, high)} of {places.shape[1]} sparse contenders."


def entered(path: Path, sparsity: float, workers: int) -> str:
    """Check, train and compare a file, and return what to print.

    Raises:
        EntryError: see the other functions; or the training stops, or there are no data.
    """
    parts = parts_of(path)
    others, recipe = recorded(sparsity), recipe_of(parts)
    seeds = sorted(set(others.loc[others["contender"].isin(RIVALS), "seed"]))
    name = path.name  # no contender ends in .py
    try:
        mine = compare({name: contender_of(recipe)}, data_of(IMAGES), (sparsity,), seeds, BUDGET, workers=workers).runs
    except (InvalidArgumentError, TrainingError, DataError) as error:
        raise EntryError(f"the training stopped: {error}") from error
    runs = pd.concat([others, mine], ignore_index=True)
    table = standing(runs, name, sparsity)
    lines = [table.to_string(), "", f"{name}: place {table.loc[name, 'place']} of {len(table)} by mean accuracy."]
    lines.append(rank_words(runs, name))
    for rival in RIVALS:
        mean, low, high = paired_difference(runs, name, rival, sparsity)
        verdict = "better" if low > 0 else "worse" if high < 0 else "no difference seen"
        against = rival.partition(",")[0]
        lines.append(f"Against {against}, paired by seed: {in_words(mean, low, high)} points, {verdict}.")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print where a file ranks; return 1 if it cannot be entered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="defines grow, prune or both, or recipe")
    parser.add_argument("--sparsity", type=float, default=0.99, help="a recorded one, such as 0.9 or 0.99")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs side by side, one thread each")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)  # as the recorded runs, also with a single worker
    try:
        print(entered(asked.file, asked.sparsity, asked.workers))
    except EntryError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
