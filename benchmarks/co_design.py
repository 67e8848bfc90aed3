"""What blocks cost and buy: accuracy of static and rewired blocks against the time of a training step, on all of MNIST.

python benchmarks/co_design.py      # about half an hour on two cores, one thread per run; goes on where it was stopped

Writes ``figures/co_design.json`` after each seed: one row per run, with the time of a step (one call, batch 64) of its
structure and sparsity. All step times are measured in one interleaved run, after the trainings, with all threads.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch

from truly_sparse import RigL, Static, Structure, TrainingStep, warmup
from tutorial_lib import Digits, benchmark, load_data, save_result
from tutorial_lib.compare import Budget, Comparison, compare
from tutorial_lib.contenders import Contender, Sparse
from tutorial_lib.project import ROOT

STRUCTURES = (*(Structure(*size) for size in ((1, 1), (4, 1), (4, 4), (8, 8), (16, 1))), "auto")
SPARSITIES = (0.9, 0.95, 0.98, 0.99, 0.995)
SEEDS = (0, 1, 2, 3, 4)
BUDGET = Budget(epochs=10, batch_size=64)
COMMAND = "python benchmarks/co_design.py"
FOLDER = ROOT / "build" / "co_design"
RECIPES = {"static": Static(), "RigL": RigL()}


def contenders() -> dict[str, Contender]:
    """Return a contender for each structure and recipe."""
    return {
        f"{structure} {how}": Sparse(how=recipe, structure=structure)
        for structure in STRUCTURES
        for how, recipe in RECIPES.items()
    }


def step_seconds() -> dict[tuple[str, float], float]:
    """Return the median seconds of one training step of each structure at each sparsity, in one interleaved run."""
    x, y = torch.randn(BUDGET.batch_size, 1, 28, 28), torch.randint(10, (BUDGET.batch_size,))

    def step(structure: Structure | str, sparsity: float) -> Callable[[], Any]:
        model = Sparse(how=Static(), structure=structure).build(sparsity, seed=0)
        train = TrainingStep(model, torch.optim.Adam(model.parameters()))
        return lambda: train(x, y)

    cases = {(str(structure), sparsity): (structure, sparsity) for structure in STRUCTURES for sparsity in SPARSITIES}
    timed = benchmark({f"{a} {b}": step(*case) for (a, b), case in cases.items()}, runs=60, tolerance=None)
    return {case: timed.median(f"{case[0]} {case[1]}") for case in cases}


def save(comparison: Comparison, seconds: dict[tuple[str, float], float], seeds: int, data: Digits) -> None:
    """Write the result file."""
    runs = comparison.runs.copy()
    runs[["structure", "how"]] = runs.pop("contender").str.split(" ", expand=True)
    runs["step µs"] = [1e6 * seconds[row.structure, row.sparsity] for row in runs.itertuples()]
    kept = ["structure", "how", "sparsity", "seed", "accuracy", "step µs", "bytes", "weights", "exploration", "seconds"]
    values = {
        "epochs": BUDGET.epochs,
        "batch_size": BUDGET.batch_size,
        "seeds": list(SEEDS[:seeds]),
        "threads": torch.get_num_threads(),
        "rows": pd.DataFrame(runs)[kept].to_dict(orient="records"),
    }
    path = save_result("co_design", values, command=COMMAND, data=data)
    print(f"wrote {path.relative_to(ROOT)}, {seeds} of {len(SEEDS)} seeds")


def main() -> None:
    """Run seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs side by side, one thread each")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help=f"1 to {len(SEEDS)}; finished runs are kept")
    arguments = parser.parse_args()
    data = load_data("mnist")
    warmup()
    for seeds in range(1, arguments.seeds + 1):
        found = compare(contenders(), data, SPARSITIES, SEEDS[:seeds], BUDGET, folder=FOLDER, workers=arguments.workers)
    save(found, step_seconds(), arguments.seeds, data)


if __name__ == "__main__":
    main()
