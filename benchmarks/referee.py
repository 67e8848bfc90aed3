"""Measure which algorithm is best: every recipe at every sparsity from every seed, on all of MNIST, 10 epochs.

python benchmarks/referee.py      # hours on two cores, one thread per run

Writes ``figures/referee.json`` after each seed, so that what it holds is always complete up to a seed. A study that was
stopped goes on where it was: with the runs in ``build/referee``, or, if these are gone, with the seeds in that file.
"""

from __future__ import annotations

import argparse
import os
import shutil

import pandas as pd

from truly_sparse import SET, SNFS, RigL, Static
from tutorial_lib import Digits, load_data, load_result, save_result
from tutorial_lib.compare import Budget, Comparison, compare, save_runs
from tutorial_lib.contenders import Contender, Dense, Gradual, SmallDense, Sparse
from tutorial_lib.project import ROOT

SPARSITIES = (0.9, 0.95, 0.98, 0.99, 0.995)
SEEDS = (0, 1, 2, 3, 4)
BUDGET = Budget(epochs=10, batch_size=64)
COMMAND = "python benchmarks/referee.py"
FOLDER = ROOT / "build" / "referee"  # one for all races: a contender of the same name is the same one

# The four sparse ones differ in how they grow, and in nothing else.
RANDOM_GROWTH = SET(prune_fraction=0.3, every=100, until=0.75, decay="cosine")
GRID: dict[str, Contender] = {
    "dense": Dense(),
    "static": Sparse(how=Static()),
    "SET": Sparse(how=RANDOM_GROWTH),
    "RigL": Sparse(how=RigL()),
    "SNFS": Sparse(how=SNFS()),
    "small-dense, same weights": SmallDense(same="weights"),
    "small-dense, same multiply-adds": SmallDense(same="multiply-adds"),
}
GRADUAL: dict[str, Contender] = {"gradual pruning": Gradual()}
GRADUAL_SPARSITIES, GRADUAL_SEEDS = (0.95, 0.98, 0.99), 3

# Variations of RigL above.
PER_WEIGHT = "RigL, a step count per weight in Adam"
TRIED: dict[str, Contender] = {
    "RigL, dense initialisation": Sparse(how=RigL(), init="dense"),
    PER_WEIGHT: Sparse(how=RigL(), optimizer="adam per weight"),
}
TRIED_SPARSITIES = (0.95, 0.99)

# From the published recipe to the best of those above, one change at a time: each row keeps the changes before it.
PUBLISHED = {"lr": 1e-3, "schedule": "constant"}
WATERFALL: dict[str, Contender] = {
    "published recipe": Sparse(how=SET(), scheme="uniform", init="dense", **PUBLISHED),
    "ERK densities": Sparse(how=SET(), init="dense", **PUBLISHED),
    "sparse-aware initialisation": Sparse(how=SET(), **PUBLISHED),
    "one-cycle learning rate, 3e-3": Sparse(how=SET()),
    "rewired every 100 steps": Sparse(how=SET(every=100)),
    "growth by gradient": Sparse(how=SET(every=100, grow="gradient")),
    "rewiring ends at 75%": Sparse(how=SET(every=100, grow="gradient", until=0.75)),
    "30% replaced, not 10%": Sparse(how=SET(0.3, every=100, grow="gradient", until=0.75)),
    "a share that falls by the cosine (RigL)": Sparse(how=RigL()),
    PER_WEIGHT: TRIED[PER_WEIGHT],
}


def races(seeds: int, gradual_seeds: int, data: Digits, workers: int) -> dict[str, Comparison]:
    """Run what is missing of the first seeds and return all of their runs."""

    def race(contenders: dict[str, Contender], sparsities: tuple[float, ...]) -> Comparison:
        chosen = gradual_seeds if contenders is GRADUAL else seeds
        return compare(contenders, data, sparsities, SEEDS[:chosen], BUDGET, folder=FOLDER, workers=workers)

    return {
        "grid": race(GRID, SPARSITIES),
        "waterfall": race(WATERFALL, (0.95,)),
        "tried": race(TRIED, TRIED_SPARSITIES),
        "gradual": race(GRADUAL, GRADUAL_SPARSITIES),
    }


def save(comparisons: dict[str, Comparison], seeds: int, workers: int, data: Digits) -> None:
    """Write ``figures/referee.json``: every run, without the columns that repeat."""
    values = {
        "epochs": BUDGET.epochs,
        "batch_size": BUDGET.batch_size,
        "seeds": list(SEEDS[:seeds]),
        "threads_per_run": 1,
        "runs_side_by_side": workers,
        "runs": {name: comparison.runs.to_dict(orient="list") for name, comparison in comparisons.items()},
    }
    path = save_result("referee", values, command=COMMAND, data=data)
    print(f"wrote {path.relative_to(ROOT)}, {seeds} of {len(SEEDS)} seeds")


def recall(data: Digits) -> None:
    """Put the recorded runs of an unfinished study where :func:`compare` looks for them."""
    recorded = load_result("referee")
    if recorded is None or is_complete(recorded["runs"]):
        return
    for columns in recorded["runs"].values():
        save_runs(pd.DataFrame(columns), FOLDER, GRID | GRADUAL | WATERFALL | TRIED, data, BUDGET)


def is_complete(runs: dict[str, dict[str, list]]) -> bool:
    """Tell whether recorded runs, by race and column, hold every contender at every sparsity from every seed."""
    races_planned = {
        "grid": (GRID, SPARSITIES, len(SEEDS)),
        "waterfall": (WATERFALL, (0.95,), len(SEEDS)),
        "tried": (TRIED, TRIED_SPARSITIES, len(SEEDS)),
        "gradual": (GRADUAL, GRADUAL_SPARSITIES, GRADUAL_SEEDS),
    }
    return all(
        {
            (name, 0.0 if contender.is_dense else sparsity, seed)
            for name, contender in contenders.items()
            for sparsity in sparsities
            for seed in SEEDS[:seeds]
        }
        <= set(zip(runs[race]["contender"], runs[race]["sparsity"], runs[race]["seed"], strict=True))
        for race, (contenders, sparsities, seeds) in races_planned.items()
    )


def main() -> None:
    """Run seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs side by side, one thread each")
    arguments = parser.parse_args()
    data = load_data("mnist")
    recall(data)
    # Gradual pruning is as slow as dense training: all but its first seed come last.
    for seeds, gradual_seeds in [*((n, 1) for n in range(1, len(SEEDS) + 1)), (len(SEEDS), GRADUAL_SEEDS)]:
        save(races(seeds, gradual_seeds, data, arguments.workers), seeds, arguments.workers, data)
    shutil.rmtree(FOLDER)  # what is recorded is done: the next study measures everything anew


if __name__ == "__main__":
    main()
