"""What blocks cost and buy: accuracy of static and rewired blocks against the time of a training step.

python benchmarks/co_design.py      # an hour on two cores, one thread per run; goes on where it was stopped

On all of MNIST and on 1,000 of its training images. Writes ``figures/co_design.json`` after each seed: one row per run,
with the time of a step (one call, batch 64) of its structure and sparsity. All step times are measured in one
interleaved run, before the trainings, with all threads.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import nn
from typing_extensions import override

from truly_sparse import SET, RigL, Static, Structure, TrainingStep, warmup
from tutorial_lib import TutorialCNN, benchmark, load_data, mask_model, save_result
from tutorial_lib.compare import Budget, Comparison, compare
from tutorial_lib.contenders import Contender, Gradual, Sparse
from tutorial_lib.project import ROOT

COMMAND = "python benchmarks/co_design.py"
FOLDER = ROOT / "build" / "co_design"
SINGLE, FOUR, EIGHT = (Structure(side, side) for side in (1, 4, 8))
STRUCTURES = (SINGLE, Structure(4, 1), FOUR, EIGHT, Structure(16, 1), "auto")
SPARSITIES = (0.9, 0.95, 0.98, 0.99, 0.995)
BATCH = 64  # samples of the timed step
# SET moves as many connections as RigL, as often.
RECIPES = {"static": Static(), "SET": SET(0.3, 100, until=0.75, decay="cosine"), "RigL": RigL()}


@dataclass(frozen=True)
class GradualBlocks(Gradual):
    """Gradual pruning of blocks, from a dense network; its steps cost as much as those of a dense one."""

    structure: Structure = SINGLE

    @override
    def build(self, sparsity: float, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return mask_model(TutorialCNN(), 0.0, structure=self.structure)


@dataclass(frozen=True)
class Race:
    """Networks that are trained under the same terms.

    Attributes:
        contenders: by structure and recipe.
        images: number of training images; None: all of MNIST.
        budget: of each run.
        sparsities: of the networks.
        seeds: from 0 on.
    """

    contenders: dict[str, Contender]
    images: int | None
    budget: Budget
    sparsities: tuple[float, ...]
    seeds: int


SPARSE: dict[str, Contender] = {
    f"{structure} {how}": Sparse(how=recipe, structure=structure)
    for structure in STRUCTURES
    for how, recipe in RECIPES.items()
}
GRADUAL: dict[str, Contender] = {f"{of} gradual": GradualBlocks(structure=of) for of in (SINGLE, FOUR, EIGHT)}
FULL, SMALL = Budget(epochs=10, batch_size=64), Budget(epochs=30, batch_size=16)  # as in decade.py
RACES = (
    Race(SPARSE, 1000, SMALL, SPARSITIES, 5),
    Race(SPARSE, None, FULL, SPARSITIES, 5),
    Race(GRADUAL, 1000, SMALL, (0.95, 0.99, 0.995), 3),
)


def step_seconds() -> dict[tuple[str, float], float]:
    """Return the median seconds of one training step of each structure at each sparsity, in one interleaved run."""
    x, y = torch.randn(BATCH, 1, 28, 28), torch.randint(10, (BATCH,))

    def step(structure: Structure | str, sparsity: float) -> Callable[[], Any]:
        model = Sparse(how=Static(), structure=structure).build(sparsity, seed=0)
        train = TrainingStep(model, torch.optim.Adam(model.parameters()))
        return lambda: train(x, y)

    cases = {(str(structure), sparsity): (structure, sparsity) for structure in STRUCTURES for sparsity in SPARSITIES}
    timed = benchmark({f"{a} {b}": step(*case) for (a, b), case in cases.items()}, runs=60, tolerance=None)
    return {case: timed.median(f"{case[0]} {case[1]}") for case in cases}


def rows_of(race: Race, found: Comparison, seconds: dict[tuple[str, float], float]) -> pd.DataFrame:
    """Return one row per run, with the time of a step; without, where the network is trained as a dense one."""
    runs = found.runs.copy()
    runs[["structure", "how"]] = runs.pop("contender").str.split(" ", expand=True)
    of_step = [1e6 * seconds[row.structure, row.sparsity] for row in runs.itertuples()]
    runs["step µs"] = [None if how == "gradual" else us for how, us in zip(runs["how"], of_step, strict=True)]
    kept = ["structure", "how", "sparsity", "seed", "accuracy", "step µs", "bytes", "weights", "exploration", "seconds"]
    return runs[kept].assign(images=race.images or 60_000, epochs=race.budget.epochs, batch_size=race.budget.batch_size)


def save(rows: list[pd.DataFrame]) -> None:
    """Write the result file."""
    together = pd.concat(rows).astype(object)
    together = together.where(together.notna(), None)
    values = {"threads": torch.get_num_threads(), "rows": together.to_dict(orient="records")}
    path = save_result("co_design", values, command=COMMAND, data=load_data("mnist"))
    print(f"wrote {path.relative_to(ROOT)}: {len(values['rows'])} runs")


def main() -> None:
    """Run race by race and seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs side by side, one thread each")
    workers = parser.parse_args().workers
    warmup()
    seconds, done = step_seconds(), []
    for race in RACES:
        data = load_data("mnist", train_size=race.images)
        for seeds in range(1, race.seeds + 1):
            terms = race.sparsities, range(seeds), race.budget
            rows = rows_of(race, compare(race.contenders, data, *terms, folder=FOLDER, workers=workers), seconds)
            save([*done, rows])
        done.append(rows)


if __name__ == "__main__":
    main()
