"""What surrounds the arithmetic, beside what was aimed at: rows of ``bench.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import calls
import numpy as np
import pandas as pd
from one_layer import OURS, linear_layer

from tutorial_lib import Benchmark, Digits


class Scale(NamedTuple):
    """How much is measured."""

    runs: int
    products: tuple[int, ...]  # sizes of the bare products
    calls: int  # runs of a small layer's call
    rewirings: int
    epochs: int  # of whole trainings
    repeats: int
    large: int  # features of the layer that is rewired
    compiled: tuple[str, ...]  # what is compiled from an empty cache


LONG = Scale(60, calls.SIZES, 3000, 40, 10, 3, 4096, ("notebooks", "all"))
SHORT = Scale(3, (1000,), 20, 3, 1, 1, 256, ("first result",))


def judge_into(targets: list[dict[str, str | float | bool]]) -> Callable[..., None]:
    """Return a function that adds a measurement beside what was aimed at."""

    def judge(work: str, measured: float, to_reach: float, unit: str = "×", most: bool = False) -> None:
        reached = measured <= to_reach if most else measured >= to_reach
        aim = f"{'≤' if most else '≥'} {to_reach:g} {unit}"
        targets.append({"work": work, "measured": round(measured, 3), "to reach": aim, "reached": reached})

    return judge


def verdict(run: Benchmark, rivals: tuple[str, ...]) -> float:
    """Return how many times faster this project is than the fastest of the rivals that were measured."""
    return min(run.median(name) for name in rivals if name in run.seconds) / run.median(OURS)


def overheads(scale: Scale, data: Digits) -> dict[str, Any]:
    """Measure bare products, calls, rewirings, a network as it comes, and compilation; return what to record."""
    targets: list[dict[str, str | float | bool]] = []
    judge = judge_into(targets)
    products = calls.product_map(scale.products, calls.BATCHES, max(5, scale.runs))
    print(f"\nmicroseconds of a 95% sparse product\n{products.round(1).to_string(index=False)}", flush=True)
    _judge_products(products, judge)
    for batch in (64, 256):
        run = linear_layer(1000, batch, 0.95, scale.runs, backward=True)
        judge(f"fc 1000×1000, batch {batch}, both passes: faster than dense", verdict(run, ("dense",)), 7)
    costs, path = calls.call_costs(scale.calls), calls.call_path()
    print(f"\nmicroseconds of a call, and of its parts\n{pd.DataFrame(costs).T.round(1).to_string()}")
    print(pd.Series(path).round(2).to_string(), flush=True)
    for name, row in costs.items():
        aim = 40 if "gradients" in name else 15
        judge(f"a call of a small layer ({name}): above torch's", row["ours"] - row["torch"], aim, "µs", most=True)
    rewirings = calls.rewirings(data, scale.rewirings * calls.EVERY)
    print(f"\nmilliseconds of rewirings, the tutorial's CNN, ERK\n{pd.DataFrame(rewirings).T.round(2).to_string()}")
    large = calls.large_rewirings(scale.large, max(3, scale.runs // 6))
    trainings = calls.whole_trainings(data, scale.epochs, scale.repeats)
    medians = {name: float(np.median(seconds)) for name, seconds in trainings.items()}
    print(f"\nseconds of {scale.epochs} epochs, rewiring every 100 steps: {trainings}")
    _judge_rewirings(rewirings, large, scale.large, judge)
    judge(
        f"RigL every 100 steps, {scale.epochs} epochs: time of static",
        medians["RigL"] / medians["static"],
        1.1,
        most=True,
    )
    unfused = calls.as_it_comes(data.test_x[:100], data.test_y[:100], max(3, scale.runs))
    for name, run in unfused.items():
        print(f"\n{name}\n{run.table().round(3).to_string()}", flush=True)
        judge(f"{name}: faster than dense", run.median("dense channels_last") / run.median("as it comes"), 1)
    shares = calls.shares_as_it_comes(data.test_x[:100], data.test_y[:100], 10)
    print(f"\nshares of that step\n{pd.Series(shares).round(2).to_string()}")
    compiled, aims = calls.first_compile(scale.compiled), {"first result": 10, "notebooks": 25, "all": 40}
    for what, seconds in compiled.items():
        judge(f"compilation from an empty cache: {what}", seconds, aims[what], "s", most=True)
    print(f"\n{pd.DataFrame(targets).round(2).to_string(index=False)}")
    return {
        "products": products.to_dict("records"),
        "calls": costs,
        "call_path": path,
        "rewirings": rewirings,
        "large_rewirings": large,
        "trainings": trainings,
        "shares": shares,
        "unfused": {name: {row: 1e3 * run.median(row) for row in run.seconds} for name, run in unfused.items()},
        "first_compile": compiled,
        "targets": targets,
    }


def _judge_products(products: pd.DataFrame, judge: Callable[..., None]) -> None:
    large, small = products[products["size"] >= 1000], products[products["size"] < 1000]
    lost = int((large["ours"] > large["torch CSR"]).sum())
    judge("products from 1000² on: slower than torch CSR in", lost, 0, "cells", most=True)
    if len(small):
        behind = float((small["ours"] - small["torch CSR"]).max())
        judge("smaller products: behind torch CSR by at most", behind, 10, "µs", most=True)
    behind = float((products["ours"] - products["dense"]).max())
    judge("products: behind dense by at most", behind, 15, "µs", most=True)
    for size, batch, aim in ((1000, 1, 2.5), (1000, 16, 4), (1000, 64, 8), (1000, 256, 6), (4096, 1, 5)):
        for cell in products[(products["size"] == size) & (products["batch"] == batch)].to_dict("records"):
            judge(f"fc {size}×{size}, batch {batch}, forward: faster than dense", cell["dense"] / cell["ours"], aim)


def _judge_rewirings(
    rewirings: dict[str, dict[str, float]], large: dict[str, float], size: int, judge: Callable[..., None]
) -> None:
    for name, rule, aim in (("RigL", "gradient", 8), ("SET", "random", 3)):
        judge(f"a {name} rewiring of the CNN, with the steps beside it", rewirings[rule]["costs"], aim, "ms", most=True)
    for rule in ("gradient", "sampled gradient"):
        passes = large[rule] / large["forward and backward, recording"]
        judge(f"{size}² at 95%, rewiring by {rule}", passes, 10, "passes of batch 64", most=True)
