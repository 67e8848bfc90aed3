"""Measure the results table: each recipe on all of MNIST, 10 epochs, 3 seeds. An interrupted study goes on
where it stopped.

python benchmarks/study.py        # about an hour on two cores; writes figures/results.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from truly_sparse import SET, RigL, Static
from truly_sparse.recipes import Recipe
from tutorial_lib import TutorialCNN, fit, load_data, mask_model, save_result
from tutorial_lib.project import ROOT

SEEDS = (0, 1, 2)
EPOCHS = 10
SPARSITY = 0.95


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the table: the published recipe (Adam 1e-3 constant, batch 64) with this sparsity."""

    scheme: str | None
    recipe: Recipe | None


VARIANTS = {
    "dense": Variant(None, None),
    "set_uniform": Variant("uniform", SET()),  # the published Dense+Mask recipe
    "static_erk": Variant("erk", Static()),  # the control: the same densities, never rewired
    "rigl_erk": Variant("erk", RigL()),
}


def summarize(samples: list[float]) -> dict[str, Any]:
    """Return the mean of repeated measurements, their extremes ``low`` and ``high``, and all of them."""
    return {"mean": float(np.mean(samples)), "low": min(samples), "high": max(samples), "samples": samples}


def train(name: str, seed: int) -> dict[str, list[float]]:
    """Train one variant from one seed and return its history, on one thread so that runs can go side by side."""
    torch.set_num_threads(1)
    variant = VARIANTS[name]
    torch.manual_seed(seed)
    model = TutorialCNN()
    if variant.scheme is not None:
        model = mask_model(model, SPARSITY, variant.scheme, seed=seed)
    history = fit(model, load_data("mnist"), epochs=EPOCHS, sparsity=variant.recipe, seed=seed, progress=False)
    return history.table().to_dict(orient="list")


def run_missing(folder: Path, workers: int) -> None:
    """Run every variant and seed that has no file in ``folder`` yet."""
    folder.mkdir(parents=True, exist_ok=True)
    todo = [(name, seed) for name in VARIANTS for seed in SEEDS if not (folder / f"{name}-{seed}.json").exists()]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool, tqdm(total=len(todo), unit="run") as bar:
        jobs = {pool.submit(train, name, seed): (name, seed) for name, seed in todo}
        for job in as_completed(jobs):
            name, seed = jobs[job]
            partial = folder / f"{name}-{seed}.partial"
            partial.write_text(json.dumps(job.result()))
            partial.replace(folder / f"{name}-{seed}.json")
            bar.set_postfix_str(f"{name} seed {seed}: {job.result()['test_accuracy'][-1]:.2f}%")
            bar.update()


def collect(folder: Path) -> dict[str, dict[str, object]]:
    """Return mean and range of the last epoch's test accuracy and loss over the seeds, per variant."""
    results = {}
    for name, variant in VARIANTS.items():
        runs = [json.loads((folder / f"{name}-{seed}.json").read_text()) for seed in SEEDS]
        results[name] = {
            "densities": variant.scheme or "dense",
            "recipe": "dense" if variant.recipe is None else type(variant.recipe).__name__,
            "test_accuracy": summarize([run["test_accuracy"][-1] for run in runs]),
            "test_loss": summarize([run["test_loss"][-1] for run in runs]),
            "test_accuracy_by_epoch": [run["test_accuracy"] for run in runs],
        }
    return results


def main() -> None:
    """Run what is missing, then write ``figures/results.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs side by side, one thread each")
    arguments = parser.parse_args()
    folder = ROOT / "build" / "study"
    run_missing(folder, arguments.workers)
    values = {
        "epochs": EPOCHS,
        "sparsity": SPARSITY,
        "seeds": list(SEEDS),
        "threads_per_run": 1,
        "variants": collect(folder),
    }
    path = save_result("results", values, command="python benchmarks/study.py", data=load_data("mnist"))
    shutil.rmtree(folder)  # what is recorded is done: the next study measures everything anew
    print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
