"""What the decade's methods cost: milliseconds of a step and of a rewiring, in turns, on MNIST at 95% sparsity.

python benchmarks/decade_cost.py      # some minutes; one thread, so leave the machine alone

The accuracies of ``benchmarks/decade.py`` come from runs side by side, whose times say little. Here each contender
trains alone for 150 steps and rewires every 50, and all take turns. Writes ``figures/decade_cost.json``.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time

import numpy as np
import torch
from decade_methods import DENSE, FROM_DENSE, TRULY_SPARSE
from typing_extensions import override

from truly_sparse.recipes import DynamicRecipe, Recipe
from truly_sparse.rules import grow_rule
from tutorial_lib import Digits, fit, load_data, save_result
from tutorial_lib.callbacks import Callback, Run
from tutorial_lib.contenders import Contender
from tutorial_lib.project import ROOT

CONTENDERS = TRULY_SPARSE | FROM_DENSE | DENSE
COMMAND = "python benchmarks/decade_cost.py"
SPARSITY, BATCH_SIZE = 0.95, 64
STEPS_OF_A_TRAINING = 9380  # of benchmarks/decade.py on all of MNIST
STEPS, EVERY, REPEATS = 150, 50, 3
AFTER = 2  # steps after a rewiring that may be slower: they prepare the new topology
FIRST = 2  # steps of a training that prepare


class Times(Callback):
    """Collects the seconds of each step, and which steps rewired."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.rewired: list[int] = []

    @override
    def after_step(self, run: Run) -> None:
        if run.rewired:
            self.rewired.append(len(self.seconds))
        self.seconds.append(run.seconds - sum(self.seconds))  # all of the training is one epoch


def costs(seconds: list[float], rewired: list[int], before: int) -> tuple[float, float]:
    """Return the median seconds of a plain step, and of what a rewiring adds to such steps; NaN without one.

    If every step is near a rewiring, all steps are plain: the rewiring is a part of them.

    Args:
        seconds: of each step.
        rewired: the steps that rewired, from 0.
        before: steps before a rewiring that record gradients for it.
    """
    times = np.array(seconds)
    windows = [range(max(0, at - before), min(len(times), at + AFTER + 1)) for at in rewired]
    plain = sorted(set(range(FIRST, len(times))).difference(*windows))
    if not plain:
        return float(np.median(times)), math.nan
    step = float(np.median(times[plain]))
    added = [float(np.sum(times[list(window)] - step)) for window in windows]
    return step, float(np.median(added)) if added else math.nan


def often(recipe: Recipe | None) -> Recipe | None:
    """Return a recipe that rewires often enough to be timed; one that rewires in every step stays as it is."""
    rewires = isinstance(recipe, DynamicRecipe) and recipe.prune_fraction > 0
    return dataclasses.replace(recipe, every=EVERY, until=1.0) if rewires else recipe


def measured(contender: Contender, data: Digits, seed: int) -> dict[str, float | None]:
    """Train once and return seconds before training, milliseconds of a step, and of a rewiring if there is one."""
    start = time.perf_counter()
    model, recipe = contender.build(SPARSITY, seed), often(contender.recipe(SPARSITY))
    before = time.perf_counter() - start
    times = Times()
    fit(
        model,
        data,
        epochs=1,
        batch_size=BATCH_SIZE,
        lr=contender.lr,
        schedule=contender.schedule,
        optimizer=contender.optimizer,
        sparsity=recipe,
        seed=seed,
        progress=False,
        callbacks=[times],
    )
    recording = grow_rule(recipe.grow).gradient_steps if isinstance(recipe, DynamicRecipe) else 0
    step, rewiring = costs(times.seconds, times.rewired, recording)
    return {
        "seconds before": before,
        "step ms": 1e3 * step,
        "rewiring ms": None if math.isnan(rewiring) else 1e3 * rewiring,
    }


def main() -> None:
    """Let all contenders take turns and write the result file."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    data = load_data("mnist", train_size=STEPS * BATCH_SIZE)
    data = dataclasses.replace(data, test_x=data.test_x[:100], test_y=data.test_y[:100])
    rows: dict[str, dict[str, list[float]]] = {name: {} for name in CONTENDERS}
    measured(CONTENDERS["RigL, common and own"], data, 0)  # compiles
    for repeat in range(REPEATS):
        for name, contender in CONTENDERS.items():
            for key, value in measured(contender, data, repeat).items():
                rows[name].setdefault(key, []).extend([] if value is None else [value])
    values = {"threads": 1, "sparsity": SPARSITY, "batch_size": BATCH_SIZE, "steps of a training": STEPS_OF_A_TRAINING}
    path = save_result("decade_cost", values | {"rows": rows}, command=COMMAND, data=data)
    print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
