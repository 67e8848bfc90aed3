"""Plots of a comparison of algorithms: accuracy against sparsity, effect of recipe changes, and cost."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FormatStrFormatter

from truly_sparse.arguments import require

from .compare import check_columns
from .viz import BLACK, BLUE, INDIGO, ORANGE, WINE, YELLOW, finish, literal, plain_ticks

# Colour, marker and line style of each contender.
REFEREE_STYLES = {
    "static": (ORANGE, "s", ":"),
    "SET": (YELLOW, "^", "-."),
    "RigL": (BLUE, "o", "-"),
    "SNFS": (INDIGO, "D", "--"),
    "gradual pruning": (WINE, "v", "--"),
}

# Grey level and hatch of the bands that show small dense networks.
BANDS = {
    "small-dense, same weights": ("0.45", "///"),
    "small-dense, same multiply-adds": ("0.75", "..."),
}


def _stretch_towards_100(axis: Axes, accuracy: pd.Series) -> None:
    """Scale the accuracy axis by the logarithm of the error (100% minus accuracy), so that small errors stay distinct.

    The limits follow the accuracies; an interval may extend beyond them.
    """
    axis.set_yscale("function", functions=(lambda y: -np.log(np.maximum(100 - y, 1e-9)), lambda z: 100 - np.exp(-z)))
    axis.set_ylim(100 - 1.4 * (100 - accuracy.min()), 100 - 0.7 * (100 - accuracy.max()))
    axis.yaxis.set_major_locator(FixedLocator([80, 90, 94, 96, 97, 98, 98.5, 98.8, 99, 99.1, 99.2, 99.3, 99.4, 99.5]))
    axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.grid(axis="y", alpha=0.3)


def plot_referee(table: pd.DataFrame) -> Figure:
    """Draw accuracy against sparsity with 95% intervals; dense and small dense networks as bands.

    Args:
        table: rows of ``Comparison.table()`` with the columns ``contender``, ``sparsity`` (0 to 1), and ``accuracy``,
            ``low``, ``high`` (percent).

    Raises:
        InvalidArgumentError: no rows, a missing column, or values that are not numbers.
    """
    check_columns("table", table, ("contender", "sparsity", "accuracy", "low", "high"))
    figure, axis = plt.subplots(figsize=(9, 5), layout="constrained")
    sparsities = sorted(set(table["sparsity"]) - {0.0})
    places = {sparsity: place for place, sparsity in enumerate(sparsities)}
    dense = table[table["contender"] == "dense"]
    for row in dense.itertuples():
        axis.axhspan(row.low, row.high, color=BLACK, alpha=0.2, linewidth=0)
        axis.axhline(row.accuracy, color=BLACK, linewidth=1, label="dense")
    for name, (colour, hatch) in BANDS.items():
        part = table[table["contender"] == name].sort_values("sparsity")
        x = part["sparsity"].map(places)
        axis.fill_between(x, part["low"], part["high"], facecolor="none", edgecolor=colour, hatch=hatch, label=name)
    shown = [name for name in REFEREE_STYLES if name in set(table["contender"])]
    for i, name in enumerate(shown):
        colour, marker, line = REFEREE_STYLES[name]
        part = table[table["contender"] == name].sort_values("sparsity")
        x = part["sparsity"].map(places) + 0.08 * (i - (len(shown) - 1) / 2)  # side by side, without overlap
        error = [part["accuracy"] - part["low"], part["high"] - part["accuracy"]]
        axis.errorbar(
            x, part["accuracy"], error, color=colour, marker=marker, linestyle=line, markersize=5, capsize=3, label=name
        )
    axis.set(
        xticks=range(len(sparsities)),
        xticklabels=[f"{100 * sparsity:g}" for sparsity in sparsities],
        xlabel="sparsity (%)",
        ylabel="test accuracy (%), mean and 95% interval",
    )
    _stretch_towards_100(axis, table["accuracy"])
    axis.legend(loc="lower left")
    sns.despine(figure)
    return finish(figure)


def plot_waterfall(table: pd.DataFrame, published: float) -> Figure:
    """Draw how much each change to a recipe adds to the accuracy. Changes accumulate from top to bottom.

    Args:
        table: rows of ``Comparison.table()`` in the order of the changes; the first row is the original recipe.
        published: the published accuracy of the original recipe, in percent.

    Raises:
        InvalidArgumentError: no rows, a missing column, or an accuracy that is not a finite number.
    """
    check_columns("table", table, ("contender", "accuracy", "low", "high"))
    require(math.isfinite(published), "published", published, "use a finite number")
    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.5 * len(table)), layout="constrained")
    accuracy = table["accuracy"].to_numpy()
    before = np.concatenate([[published], accuracy[:-1]])
    low, high = (np.abs(table[bound] - accuracy) for bound in ("low", "high"))
    places = range(len(table))
    colours = np.where(accuracy >= before, BLUE, YELLOW)
    axis.barh(
        places, accuracy - before, left=before, color=colours, height=0.55, xerr=[low, high], error_kw={"capsize": 3}
    )
    for place, value, start, end in zip(places, accuracy, before, table["high"], strict=True):
        axis.text(max(value, start, end) + 0.03, place, f"{value:.2f} ({value - start:+.2f})", va="center")
    axis.axvline(published, color="0.5", linewidth=1, linestyle=":")
    axis.set(yticks=places, yticklabels=[*map(literal, table["contender"])])
    axis.set_xlabel("test accuracy (%); line: published; 95% intervals")
    axis.margins(x=0.12)
    axis.invert_yaxis()
    sns.despine(figure)
    return finish(figure)


def plot_tradeoff(table: pd.DataFrame) -> Figure:
    """Draw accuracy against training time and against memory during training, one line per contender.

    Args:
        table: rows of ``Comparison.table()`` with the columns ``contender``, ``sparsity``, ``accuracy``, ``seconds``
            and ``bytes``.

    Raises:
        InvalidArgumentError: no rows, a missing column, or values that are not numbers.
    """
    check_columns("table", table, ("contender", "sparsity", "accuracy", "seconds", "bytes"))
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    styles = {"dense": (BLACK, "*", "")} | REFEREE_STYLES
    styles |= {name: (colour, "xP"[i], "") for i, (name, (colour, _)) in enumerate(BANDS.items())}
    for name, (colour, marker, line) in styles.items():
        part = table[table["contender"] == name].sort_values("sparsity")
        style = {"color": colour, "marker": marker, "linestyle": line or "none", "label": name}
        for axis, column, unit in zip(axes, ("seconds", "bytes"), (1, 1e6), strict=True):
            axis.plot(part[column] / unit, part["accuracy"], **style)
            points = zip(part["sparsity"], part[column] / unit, part["accuracy"], strict=True)
            for sparsity, *point in points if name == "RigL" else ():
                axis.annotate(f"{100 * sparsity:g}%", point, (3, -10), textcoords="offset points", fontsize=7)
    axes[0].set(xscale="log", xlabel="training time (s, one thread, log)", ylabel="test accuracy (%)")
    axes[1].set(xscale="log", xlabel="weights, gradients, Adam's moments, indices and masks (MB, log)")
    for axis in axes:
        _stretch_towards_100(axis, table["accuracy"])
        plain_ticks(axis.xaxis)
        axis.grid(axis="x", alpha=0.3)
    axes[1].legend(fontsize=8, loc="lower right")
    sns.despine(figure)
    return finish(figure)
