"""The tables of what ``benchmarks/decade.py`` measured, and the picture of the ranks, ``figures/decade_ranks.png``.

``tools/readme_tables.py`` writes both. Where nothing is recorded, a table says so.
"""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import pandas as pd
import scikit_posthocs
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.decade_ranks import (
    OF_METHODS,
    SEPARATOR,
    critical_difference,
    equal_terms,
    friedman,
    mean_and_interval,
    mean_ranks,
    of_races,
    ranks,
)
from tools.decade_page import LANES, Table, lane_of
from truly_sparse.recipes.decade import METHODS
from tutorial_lib import load_result, viz
from tutorial_lib.compare import in_words, paired_difference

NOT_MEASURED = "not measured"
TASKS = {1000: "1,000 images", 60_000: "all of MNIST"}  # by the number of training images
STATIC, DENSE = "static", "dense"
SETTINGS = ("common", "own")
COMPARED = (0.95, 0.99)  # sparsities of the compact table: all methods were trained there
COST_SPARSITY = 0.95


def recorded() -> pd.DataFrame:
    """Return the recorded runs; an empty table without any."""
    found = load_result("decade_runs")
    columns = ("contender", "sparsity", "seed", "accuracy", "race", "images", "exploration", "rewirings", "bytes")
    return pd.DataFrame(found["runs"]) if found else pd.DataFrame(columns=columns)


def ranked(images: int) -> pd.DataFrame:
    """Return the ranks of the truly sparse methods."""
    return ranks(of_races(recorded(), images, OF_METHODS))


# ------------------------------------------------------------------------------------------ accuracy


def equal_terms_table(images: int) -> Table:
    """Return a row per method: mean rank and accuracy with common and with own settings, best rank first."""
    header = ["method", *(f"{what}, {how}" for what in ("rank", *map(_percent, COMPARED)) for how in SETTINGS)]
    runs = equal_terms(recorded(), images)
    if runs.empty:
        return _nothing(header)
    places = mean_ranks(ranked(images))
    rows, best = {}, {}
    for method in dict.fromkeys(name.partition(SEPARATOR)[0] for name in runs["contender"]):
        names = [_contender(runs, method, how) for how in SETTINGS]
        rank = [_rank(places, name) for name in names]
        accuracy = [accuracy_words(runs, name, sparsity) for sparsity in COMPARED for name in names]
        rows[method] = [method, *rank, *accuracy]
        best[method] = min((places["mean"].get(name, math.inf) for name in names if name), default=math.inf)
    return header, [rows[method] for method in sorted(rows, key=lambda method: best[method])]


def own_settings_table() -> Table:
    """Return a row per method: its own settings, and how often they rewired in each of the two tasks."""
    runs = {task: equal_terms(recorded(), images) for images, task in TASKS.items()}
    rows = []
    for method in METHODS:
        counts = []
        for of in runs.values():
            names = [f"{method.name}, {how}" for how in ("own", "common and own")]
            times = of.loc[of["contender"].isin(names) & (of["sparsity"] == COST_SPARSITY), "rewirings"]
            counts.append("–" if times.empty else f"{times.mean():.0f}")
        rows.append([method.name, method.own, *counts])
    return ["method", "own settings", *(f"rewirings, {task}" for task in runs)], rows


def accuracies_table(images: int) -> Table:
    """Return a row per contender: its mean accuracy at each sparsity."""
    runs = equal_terms(recorded(), images)
    sparsities = _sparsities(runs)
    header = ["accuracy %", "seeds", *map(_percent, sparsities)]
    if runs.empty:
        return _nothing([*header, "all sparsities"])
    return header, [
        [name, str(part["seed"].nunique()), *(accuracy_words(runs, name, sparsity) for sparsity in sparsities)]
        for name, part in runs.groupby("contender", sort=False)
    ]


def differences_table(images: int) -> Table:
    """Return a row per contender: its difference to the static topology at each sparsity, paired by seed."""
    runs = equal_terms(recorded(), images)
    sparsities = _sparsities(runs)
    header = ["accuracy − static, points", *map(_percent, sparsities)]
    if runs.empty:
        return _nothing([*header, "all sparsities"])
    sparse = runs[(runs["contender"] != STATIC) & (runs["sparsity"] > 0)]
    return header, [
        [
            name,
            *(
                _signed(paired_difference(runs, name, STATIC, s)) if s in set(part["sparsity"]) else ""
                for s in sparsities
            ),
        ]
        for name, part in sparse.groupby("contender", sort=False)
    ]


def friedman_words() -> str:
    """Return what Friedman's test says of the ranks of each task."""
    lines = []
    for images, task in TASKS.items():
        places = ranked(images)
        if len(places) < 2:
            lines.append(f"- {task}: {NOT_MEASURED}.")
            continue
        statistic, p = friedman(places)
        lines.append(
            f"- {task}: {places.shape[1]} contenders in {len(places)} pairs of a sparsity "
            f"({', '.join(map(_percent, places.index.unique('sparsity')))}) and a seed. Friedman's χ² = "
            f"{statistic:.0f}, p {f'= {p:.2g}' if p >= 0.001 else '< 0.001'}; critical difference of two mean ranks: "
            f"{critical_difference(places):.1f}."
        )
    return "\n".join(lines)


def _contender(runs: pd.DataFrame, method: str, settings: str) -> str:
    """Return the contender of a method with these settings; "" if there is none, the same for both if it has none."""
    names = set(runs["contender"])
    found = [name for name in (method, f"{method}, {settings}", f"{method}, common and own") if name in names]
    return found[0] if found else ""


def _rank(places: pd.DataFrame, name: str) -> str:
    if name not in places.index:
        return "–"
    row = places.loc[name]
    return f"{row['mean']:.1f}" + ("" if math.isnan(row["low"]) else f" ({row['low']:.1f} to {row['high']:.1f})")


def accuracy_words(runs: pd.DataFrame, name: str, sparsity: float) -> str:
    """Return a contender's mean accuracy with half of its 95% interval; "–" where it was not run."""
    mine = runs[(runs["contender"] == name) & runs["sparsity"].isin((sparsity, 0.0))]
    if mine.empty:
        return "–"
    mean, low, _ = mean_and_interval(mine["accuracy"])
    return f"{mean:.2f}" + ("" if math.isnan(low) else f" ± {mean - low:.2f}")


def _signed(numbers: tuple[float, float, float]) -> str:
    return in_words(*numbers).replace("-", "−")


def _sparsities(runs: pd.DataFrame) -> list[float]:
    return sorted(set(runs["sparsity"]) - {0.0})


def _percent(share: float) -> str:
    return f"{100 * share:g}%"


def _nothing(header: list[str]) -> Table:
    return header, [["all", NOT_MEASURED, *[""] * (len(header) - 2)]]


# ------------------------------------------------------------------------------------------ cost


def cost_table() -> Table:
    """Return a row per contender: what its training takes in time and memory at one sparsity of MNIST."""
    header = ["all of MNIST, 95%", "ms a step", "ms a rewiring", "rewirings", "s before", "s a training"]
    header += ["KB", "ever active"]
    runs, cost = equal_terms(recorded(), 60_000), load_result("decade_cost")
    runs = runs[runs["sparsity"].isin((COST_SPARSITY, 0.0))]
    if runs.empty and cost is None:
        return _nothing(header)
    timed = cost["rows"] if cost else {}
    rows = []
    for name in dict.fromkeys([*runs["contender"], *timed]):
        mine = runs[runs["contender"] == name]
        recorded_of = ["–"] * 3
        if len(mine):
            recorded_of = [f"{mine['rewirings'].mean():.0f}", f"{mine['bytes'].mean() / 1e3:,.0f}"]
            recorded_of.append(f"{mine['exploration'].mean():.0%}")
        rewirings = float(mine["rewirings"].mean()) if len(mine) else math.nan
        step, rewiring, before, training = _seconds(timed.get(name), rewirings, cost)
        rows.append([name, step, rewiring, recorded_of[0], before, training, *recorded_of[1:]])
    return header, rows


def _seconds(timed: dict[str, list[float]] | None, rewirings: float, cost: dict | None) -> list[str]:
    """Return milliseconds of a step and of a rewiring, seconds before training and of a training, as text."""
    if timed is None or cost is None:
        return [NOT_MEASURED] * 4
    step, rewiring, before = (
        float(pd.Series(timed[key], dtype=float).median()) for key in ("step ms", "rewiring ms", "seconds before")
    )
    moved = 0.0 if math.isnan(rewiring) else rewirings * rewiring
    training = before + (cost["steps of a training"] * step + moved) / 1e3
    words = [f"{step:.2f}", "–" if math.isnan(rewiring) else f"{rewiring:.2f}", f"{before:.1f}"]
    return [*words, "–" if math.isnan(training) else f"{training:.0f}"]


# ------------------------------------------------------------------------------------------ picture


def colour_of(contender: str) -> str:
    """Return the colour of a contender: how its method grows, as in ``figures/decade.png``."""
    method = contender.partition(SEPARATOR)[0].removesuffix(" without sharing")
    return next((lane_of(m).colour for m in METHODS if m.name == method), viz.BLACK)


def drawn_ranks() -> pd.DataFrame:
    """Return what the picture shows: task, contender and mean rank with its interval."""
    parts = []
    for images, task in TASKS.items():
        places = ranked(images)
        if len(places) > 1:
            parts.append(mean_ranks(places).reset_index().assign(task=task))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def picture_words() -> str:
    """Return the picture and what it shows as Markdown, once there are ranks to draw."""
    if drawn_ranks().empty:
        return f"*Ranks: {NOT_MEASURED}.*"
    return (
        "![Critical-difference diagrams of the mean ranks of the methods, one for each task]"
        "(../figures/decade_ranks.png)\n\n"
        "*Mean rank over all sparsities and seeds: the most accurate is on the left. A horizontal bar joins contenders "
        "that Nemenyi's\ntest at 5% does not tell apart. Colours: how a method grows, as above.*"
    )


def plot_ranks() -> Figure:
    """Draw the mean ranks of each task in a critical-difference diagram (Demšar, 2006); needs recorded runs."""
    tables = {task: ranked(images) for images, task in TASKS.items()}
    tables = {task: places for task, places in tables.items() if len(places) > 1}
    figure, axes = plt.subplots(len(tables), squeeze=False, figsize=(10, 4.3 * len(tables)), layout="constrained")
    for axis, (task, places) in zip(axes[:, 0], tables.items(), strict=True):
        _draw_ranks(axis, task, places)
    handles = [plt.Line2D([], [], color=lane.colour, marker="o", label=lane.title.partition(":")[0]) for lane in LANES]
    used = {colour_of(name) for places in tables.values() for name in places}
    figure.legend(handles=[h for h in handles if h.get_color() in used], loc="outside lower center", ncols=3)
    return viz.finish(figure)


def _draw_ranks(axis: Axes, task: str, places: pd.DataFrame) -> None:
    alike = scikit_posthocs.posthoc_nemenyi_friedman(places.reset_index(drop=True))
    drawn = scikit_posthocs.critical_difference_diagram(
        places.mean(),
        alike,
        ax=axis,
        color_palette={name: colour_of(name) for name in places},
        label_fmt_left="{label}  {rank:.1f}",
        label_fmt_right="{rank:.1f}  {label}",
        label_props={"fontsize": 10},
        text_h_margin=0.15,
    )
    for label in drawn["labels"]:
        label.set_color(viz.BLACK)  # the line has the colour; text in it has too little contrast
    title = f"{task}: mean rank in {len(places)} pairs of sparsity and seed (1: best)"
    axis.set_title(f"{title}; a bar joins contenders less than {critical_difference(places):.1f} apart", fontsize=11)
