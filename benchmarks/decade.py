"""The decade on equal terms: its methods, and what their papers claim, on MNIST and on 1,000 of its training images.

python benchmarks/decade.py      # hours on two cores, one thread per run; goes on where it was stopped

All have the same network, optimizer, schedule and number of steps, and most the same rule for first weights
(``decade_methods.py`` says which not). Where the connections are, and how they change, is all else that differs. Writes
``figures/decade_runs.json`` after each race and seed.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass

import pandas as pd
from decade_methods import (
    DENSE,
    FIRST_EPOCH,
    FROM_DENSE,
    LENGTH,
    SHARES,
    TICKET,
    TRULY_SPARSE,
    VARIATIONS,
    WIDTHS,
    data_of,
)

from tutorial_lib import load_result, save_result
from tutorial_lib.compare import Budget, Comparison, compare, save_runs
from tutorial_lib.contenders import Contender
from tutorial_lib.project import ROOT

COMMAND = "python benchmarks/decade.py"
FOLDER = ROOT / "build" / "decade"
FULL, SMALL = Budget(epochs=10, batch_size=64), Budget(epochs=30, batch_size=16)  # 9,380 and 1,890 steps


@dataclass(frozen=True)
class Race:
    """Contenders that are trained under the same terms.

    Attributes:
        question: what the race is for.
        contenders: by name.
        images: number of training images; None: all of MNIST.
        budget: of each run.
        sparsities: of the sparse ones.
        seeds: from 0 on.
    """

    question: str
    contenders: dict[str, Contender]
    images: int | None
    budget: Budget
    sparsities: tuple[float, ...]
    seeds: int


# Deep Rewiring rewires in every step, and a rewiring by link prediction takes as long as hundreds of steps.
SLOW = {name: TRULY_SPARSE[name] for name in ("Deep Rewiring, own", "CHT, common")}
SLOWEST = {"CHT, own": TRULY_SPARSE["CHT, own"]}
# Their layers change their number of weights.
EXCHANGING = {name: TRULY_SPARSE[name] for name in TRULY_SPARSE if name.startswith(("DSR", "SNFS, ", "GraNet"))}
QUICK = {name: how for name, how in TRULY_SPARSE.items() if name not in SLOW | SLOWEST | EXCHANGING}
GRID, TWO = (0.9, 0.95, 0.98, 0.99, 0.995), (0.95, 0.99)
# In the order in which they run: what most depends on comes first.
RACES = (
    Race("methods", QUICK | DENSE, 1000, SMALL, GRID, 5),
    Race("variations", VARIATIONS, 1000, SMALL, TWO, 3),
    Race("shares", SHARES, 1000, SMALL, TWO, 3),
    Race("first epoch", FIRST_EPOCH, None, Budget(epochs=1, batch_size=64), TWO, 3),
    Race("methods, exchanging", EXCHANGING, 1000, SMALL, GRID, 5),
    Race("methods, from dense", FROM_DENSE, 1000, SMALL, GRID, 5),
    Race("methods, slow ones", SLOW, 1000, SMALL, GRID, 5),
    Race("methods", QUICK, None, FULL, GRID, 5),
    Race("dense", DENSE, None, FULL, (0.95,), 5),
    Race("shares", SHARES, None, FULL, TWO, 3),
    Race("length", LENGTH, 1000, Budget(epochs=150, batch_size=16), TWO, 3),
    Race("tickets", TICKET, 1000, SMALL, TWO, 3),
    Race("widths", WIDTHS, 1000, SMALL, (0.95,), 3),
    Race("variations", VARIATIONS, None, FULL, TWO, 3),
    Race("methods, exchanging", EXCHANGING, None, FULL, TWO, 3),
    Race("methods, slowest", SLOWEST, 1000, SMALL, GRID, 3),
    Race("methods, slow ones", SLOW, None, FULL, TWO, 1),
    Race("methods, from dense", FROM_DENSE, None, FULL, TWO, 1),
)


def main() -> None:
    """Run what is missing and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs side by side, one thread each")
    workers = parser.parse_args().workers
    restore()
    found: list[pd.DataFrame] = []
    for race in RACES:
        for seeds in range(1, race.seeds + 1):
            runs = run(race, seeds, workers).runs
            save([*found, labelled(race, runs)], workers)
        found.append(labelled(race, runs))


def run(race: Race, seeds: int, workers: int) -> Comparison:
    """Run what is missing of the first seeds of a race."""
    return compare(
        race.contenders,
        data_of(race.images),
        race.sparsities,
        range(seeds),
        race.budget,
        folder=FOLDER,
        workers=workers,
    )


def labelled(race: Race, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with the terms of their race."""
    return runs.assign(race=race.question, images=race.images or 60_000, epochs=race.budget.epochs)


def save(found: list[pd.DataFrame], workers: int) -> None:
    """Write the result file."""
    values = {"threads_per_run": 1, "runs_side_by_side": workers, "runs": pd.concat(found).to_dict(orient="list")}
    path = save_result("decade_runs", values, command=COMMAND, data=data_of(None))
    print(f"wrote {path.relative_to(ROOT)}: {len(values['runs']['seed'])} runs, last {found[-1]['race'].iloc[0]!r}")


def restore() -> None:
    """Put the runs of an earlier result file where ``compare`` finds them."""
    if FOLDER.is_dir() or not (ROOT / "figures" / "decade_runs.json").is_file():
        return
    runs = pd.DataFrame(load_result("decade_runs")["runs"])
    for race in RACES:
        terms = {"race": race.question, "images": race.images or 60_000, "epochs": race.budget.epochs}
        mine = runs[(runs[list(terms)] == pd.Series(terms)).all(axis=1)].drop(columns=list(terms))
        if len(mine):
            save_runs(mine, FOLDER, race.contenders, data_of(race.images), race.budget)


if __name__ == "__main__":
    main()
