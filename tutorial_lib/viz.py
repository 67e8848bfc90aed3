"""Figures: functions that take data and return a matplotlib ``Figure``; none of them shows it."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axis import Axis
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from truly_sparse.arguments import require, shown
from truly_sparse.errors import InvalidArgumentError

from .bench import Benchmark
from .compare import check_columns
from .train import History

# Order of the four states of a connection: unchanged active, unchanged pruned, newly pruned, newly regrown.
STATES = ("active", "pruned", "newly pruned", "newly regrown")


PALETTES = {
    "published": ("#ffffff", "#000000", "#e41a1c", "#2ca02c"),
    "colorblind": ("#ffffff", "#000000", "#d55e00", "#56b4e9"),  # Okabe and Ito (2008)
}


# Apart in greyscale (lightness 46, 76, 22, 60, 35, 0) and for colour-blind readers; where lines are told apart by
# colour, marker and line style differ too.
COLOURS = BLUE, YELLOW, INDIGO, ORANGE, WINE, BLACK = "#0072b2", "#e9b52a", "#332288", "#e07040", "#96205c", "#000000"


def _finish(figure: Figure) -> Figure:
    # Closed figures are not drawn a second time by the notebook when the cell ends.
    plt.close(figure)
    return figure


def _literal(text: str) -> str:
    """Return a text so that matplotlib shows it as it is: no formula between two dollars, no hidden legend entry."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def _as_image(mask: np.ndarray) -> np.ndarray:
    """Return a mask as a 2-D picture: one row per output channel or feature, wide rather than tall."""
    image = np.asarray(mask).reshape(len(mask), -1)
    return image if image.shape[0] <= image.shape[1] else image.T


def _axis_labels(mask: np.ndarray) -> dict[str, str]:
    """Return what the axes of :func:`_as_image` stand for."""
    wide = len(mask) <= mask[0].size
    return {"xlabel": "input", "ylabel": "output"} if wide else {"xlabel": "output", "ylabel": "input"}


def plot_mask(mask: np.ndarray, title: str = "") -> Figure:
    """Draw a layer's mask: white where a connection is active, black where it is pruned.

    Args:
        mask: boolean, the dense weight's shape; a convolution's kernels are laid out one row per output channel.
        title: heading; the sparsity is added to it.

    Raises:
        InvalidArgumentError: not a mask, see :func:`mask_states`.
    """
    _check_mask("mask", mask)
    image = _as_image(mask)
    figure, axes = plt.subplots(
        figsize=(8, 1.2 + 6.5 * min(1.0, image.shape[0] / image.shape[1])), layout="constrained"
    )
    axes.imshow(image, cmap="gray", aspect="auto", interpolation="nearest", vmin=0, vmax=1)
    axes.set(
        title=f"{_literal(title)}  ({100 * (1 - np.mean(mask)):.1f}% sparse)",
        **_axis_labels(mask),
    )
    return _finish(figure)


def _check_mask(name: str, mask: np.ndarray) -> None:
    if mask.ndim < 2 or not mask.size or not _is_true_or_false(mask):
        raise InvalidArgumentError(f"{name}={shown(mask)}; give true and false in the shape of a layer's weight")


def _is_true_or_false(mask: np.ndarray) -> bool:
    return mask.dtype.kind in "biuf" and bool(np.isin(mask, (0, 1)).all())


def mask_states(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return each connection's state as an index into ``STATES``: uint8, the masks' shape.

    Raises:
        InvalidArgumentError: the masks differ in shape, or hold other than true and false.
    """
    for name, mask in (("before", before), ("after", after)):
        require(_is_true_or_false(mask), name, mask, "give true and false")
    before, after = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    if before.shape != after.shape:
        raise InvalidArgumentError(f"masks have shapes {before.shape} and {after.shape}; compare one layer with itself")
    return np.select([before & after, ~before & ~after, before & ~after], [0, 1, 2], default=3).astype(np.uint8)


def plot_mask_evolution(
    masks: Sequence[np.ndarray],
    labels: Sequence[str] | None = None,
    title: str = "",
    palette: str = "published",
    columns: slice | None = None,
) -> Figure:
    """Draw what each rewiring changed: one panel per step from ``masks[i]`` to ``masks[i + 1]``.

    Args:
        masks: two or more boolean masks of one layer, in time.
        labels: a name per mask, such as ``"epoch 2"``.
        title: heading.
        palette: ``"published"`` (white active, black pruned, red newly pruned, green newly regrown) or
            ``"colorblind"`` (orange and sky blue in place of red and green).
        columns: which columns of the picture to draw, to look closer at a wide layer; titles count all of it.

    Raises:
        InvalidArgumentError: fewer than two masks, another number of labels, or an unknown palette.
    """
    for i, mask in enumerate(masks):
        _check_mask(f"masks[{i}]", mask)
    if len(masks) < 2:
        raise InvalidArgumentError(f"{len(masks)} masks; give at least two, to see what changed between them")
    if palette not in PALETTES:
        raise InvalidArgumentError(f"unknown palette {palette!r}; use one of {', '.join(PALETTES)}")
    labels = [str(i) for i in range(len(masks))] if labels is None else labels
    if len(labels) != len(masks):
        raise InvalidArgumentError(f"{len(labels)} labels for {len(masks)} masks; give one each")
    if columns is not None and not range(_as_image(masks[0]).shape[1])[columns]:
        raise InvalidArgumentError(f"{columns=} leaves none of {_as_image(masks[0]).shape[1]} columns; use a wider one")
    panels = len(masks) - 1
    changes = [mask_states(before, after) for before, after in itertools.pairwise(masks)]
    figure, axes = plt.subplots(panels, 1, figsize=(9, 0.9 + 1.5 * panels), squeeze=False, layout="constrained")
    for axis, states, start, end in zip(axes[:, 0], changes, labels[:-1], labels[1:], strict=True):
        colours = ListedColormap(PALETTES[palette])
        shown = _as_image(states)[:, columns or slice(None)]
        axis.imshow(shown, cmap=colours, vmin=0, vmax=3, aspect="auto", interpolation="nearest")
        pruned, grown = (states == 2).sum(), (states == 3).sum()
        axis.set_title(
            f"{_literal(start)} → {_literal(end)}:  {pruned} pruned, {grown} regrown in the whole layer", fontsize=10
        )
        axis.set(**_axis_labels(states))
        axis.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axis.label_outer()
    handles = [
        Patch(facecolor=colour, edgecolor="gray", label=state)
        for colour, state in zip(PALETTES[palette], STATES, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(_literal(title))
    return _finish(figure)


def plot_training(histories: Mapping[str, History]) -> Figure:
    """Draw test accuracy and loss against epochs, one line per named history.

    Raises:
        InvalidArgumentError: no histories, or one without an epoch.
    """
    require(len(histories) > 0, "histories", histories, "give at least one")
    for name, history in histories.items():
        if not len(history.test_accuracy) == len(history.test_loss) > 0:
            raise InvalidArgumentError(f"histories[{name!r}] has {len(history.test_loss)} epochs; give at least one")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    styles = ("-", "--", "-.", ":")
    for i, (name, history) in enumerate(histories.items()):
        epochs = range(1, len(history.test_accuracy) + 1)
        style = {"label": _literal(name), "linestyle": styles[i % 4], "marker": "os^Dv"[i % 5], "color": COLOURS[i % 6]}
        left.plot(epochs, history.test_accuracy, **style)
        right.plot(epochs, history.test_loss, **style)
    left.set(xlabel="epoch", ylabel="test accuracy (%)")
    right.set(xlabel="epoch", ylabel="test loss (cross-entropy)", yscale="log")
    left.legend()
    sns.despine(figure)
    return _finish(figure)


def _plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis 1, 2, 5, 10 …, without powers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


def plot_benchmark(result: Benchmark, title: str = "") -> Figure:
    """Draw medians as bars on a logarithmic axis, with a line from the lower to the upper quartile.

    Raises:
        InvalidArgumentError: there are no candidates.
    """
    require(len(result.seconds) > 0, "result.seconds", result.seconds, "give at least one candidate")
    table = result.table()
    figure, axis = plt.subplots(figsize=(8, 0.9 + 0.45 * len(table)), layout="constrained")
    places = np.arange(len(table))
    median = table["median ms"].to_numpy()
    spread = np.abs(table[["25% ms", "75% ms"]].to_numpy().T - median)
    axis.barh(places, median, xerr=spread, color=BLUE, height=0.6)
    for place, value, high in zip(places.tolist(), median, table["75% ms"], strict=True):
        axis.text(high * 1.05, place, f"{value:.3g} ms", va="center")
    axis.set(
        yticks=places,
        yticklabels=[*map(_literal, table.index)],
        xscale="log",
        xlabel=f"milliseconds (log), {_literal(result.device)}",
        title=_literal(title),
    )
    _plain_ticks(axis.xaxis)
    axis.margins(x=0.15)
    axis.invert_yaxis()
    sns.despine(figure)
    return _finish(figure)


def plot_densities(nnz: Mapping[str, Mapping[str, int]], sizes: Mapping[str, int]) -> Figure:
    """Draw each layer's density under several schemes.

    Args:
        nnz: scheme → layer → active weights, as :func:`layer_nnz` returns them.
        sizes: layer → number of weights.

    Raises:
        InvalidArgumentError: no schemes or layers, a scheme without one of the layers, or a number outside its range.
    """
    require(0 < len(nnz) <= len(COLOURS), "nnz", nnz, f"give 1 to {len(COLOURS)} schemes")
    require(len(sizes) > 0, "sizes", sizes, "give at least one layer")
    for scheme, counts in nnz.items():
        for layer, size in sizes.items():
            if not 0 < counts.get(layer, 0) <= size:
                found = f"nnz[{scheme!r}][{layer!r}]={counts.get(layer)}"
                raise InvalidArgumentError(f"{found} of {size} weights; give 1 to that number for each layer")
    figure, axis = plt.subplots(figsize=(9, 3.4), layout="constrained")
    width = 0.8 / len(nnz)
    places = np.arange(len(sizes))
    hatches = ("", "//", "..", "xx")
    for i, (scheme, counts) in enumerate(nnz.items()):
        density = [100 * counts[layer] / size for layer, size in sizes.items()]
        bars = axis.bar(
            places + (i - (len(nnz) - 1) / 2) * width,
            density,
            width,
            label=_literal(scheme),
            hatch=hatches[i % 4],
            color=COLOURS[i],
        )
        axis.bar_label(bars, fmt="%.1f", fontsize=8)
    lowest = min(100 * counts[layer] / size for counts in nnz.values() for layer, size in sizes.items())
    axis.set(xticks=places, xticklabels=[*map(_literal, sizes)])
    axis.set(ylabel="active weights (%)", yscale="log", ylim=(lowest / 3, 300))
    axis.legend(title="densities", ncols=len(nnz))
    sns.despine(figure)
    return _finish(figure)


def plot_accuracies(measured: Mapping[str, Mapping[str, Any]], published: Mapping[str, float]) -> Figure:
    """Draw mean test accuracies with their range, and the published ones beside them.

    Args:
        measured: name → ``{"mean", "low", "high"}`` in percent.
        published: name → percent, for the names that were published.

    Raises:
        InvalidArgumentError: nothing measured, or one of the three numbers is missing or not finite.
    """
    require(len(measured) > 0, "measured", measured, "give at least one name")
    for name, accuracy in measured.items():
        values = [accuracy.get(key) for key in ("mean", "low", "high")]
        if not all(isinstance(value, numbers.Real) and math.isfinite(value) for value in values):
            raise InvalidArgumentError(f"measured[{name!r}]={shown(accuracy)}; give finite mean, low and high")
    figure, axis = plt.subplots(figsize=(8, 0.9 + 0.45 * len(measured)), layout="constrained")
    for place, (name, accuracy) in enumerate(measured.items()):
        label = "measured here: mean and range" if place == 0 else None
        axis.plot([accuracy["low"], accuracy["high"]], [place, place], color=BLUE, linewidth=3)
        axis.plot(accuracy["mean"], place, "o", color=BLUE, markersize=8, label=label)
        if name in published:
            axis.plot(
                published[name], place, "x", color=ORANGE, markersize=10, label="published" if place == 0 else None
            )
    axis.set(yticks=range(len(measured)), yticklabels=[*map(_literal, measured)], xlabel="test accuracy (%)")
    axis.grid(axis="x", alpha=0.4)
    axis.margins(y=0.15)
    axis.invert_yaxis()
    axis.legend(loc="lower left")
    sns.despine(figure)
    return _finish(figure)


def plot_crossover(rows: Sequence[Mapping[str, float]], ours: str) -> Figure:
    """Draw time against sparsity, one panel per layer width and batch size, and mark where ``ours`` overtakes dense.

    Args:
        rows: ``{"width", "batch", "sparsity"}`` and milliseconds by name, as ``figures/bench.json`` has them.
        ours: which name is this project's.

    Raises:
        InvalidArgumentError: no rows, or a name that they lack.
    """
    require(len(rows) > 0, "rows", rows, "give at least one row")
    table = pd.DataFrame(rows)
    check_columns("rows", table, ("width", "batch", "sparsity", "dense", "Dense+Mask", "torch CSR", ours))
    widths, batches = sorted(table["width"].unique()), sorted(table["batch"].unique())
    size = 3.2 * len(widths), 2.5 * len(batches) + 0.5
    figure, axes = plt.subplots(len(batches), len(widths), figsize=size, squeeze=False, layout="constrained")
    styles = {
        "dense": (BLACK, "", "-"),
        "Dense+Mask": (BLACK, "", ":"),
        "torch CSR": (ORANGE, "s", "--"),
        ours: (BLUE, "o", "-"),
    }
    for (i, batch), (j, width) in itertools.product(enumerate(batches), enumerate(widths)):
        axis = axes[i, j]
        part = table[(table["width"] == width) & (table["batch"] == batch)].sort_values("sparsity")
        for name, (colour, marker, line) in styles.items():
            style = {"color": colour, "marker": marker, "linestyle": line, "markersize": 4, "label": _literal(name)}
            axis.plot(100 * part["sparsity"], part[name], **style)
        at = break_even(part["sparsity"].to_numpy(), (part[ours] / part["dense"]).to_numpy())
        if at is not None:
            axis.axvline(100 * at, color="0.6", linewidth=1)
            in_panel = axis.get_xaxis_transform()  # x in percent, y in heights of the panel
            axis.text(100 * at - 2, 0.02, f"{100 * at:.0f}%", color="0.3", ha="right", va="bottom", transform=in_panel)
        axis.set(yscale="log", title=f"{width:.0f}×{width:.0f}, batch {batch:.0f}")
        _plain_ticks(axis.yaxis)
    figure.supxlabel("sparsity (%)")
    figure.supylabel("forward and backward (ms, log)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(styles))
    sns.despine(figure)
    return _finish(figure)


def break_even(sparsity: np.ndarray, ratio: np.ndarray) -> float | None:
    """Return the sparsity at which a ratio of times falls to 1 for good, between two measured ones.

    Args:
        sparsity: rising, ``[n]``.
        ratio: time over the rival's time at each, ``[n]``.

    Returns:
        Interpolated on the logarithm of the ratio; the first sparsity if it is never above 1; None if it still is at
        the last.

    Raises:
        InvalidArgumentError: lists of other lengths, empty, not rising, or with ratios that are not above 0.
    """
    if sparsity.dtype.kind not in "iuf" or sparsity.ndim != 1 or not len(sparsity) or not (np.diff(sparsity) > 0).all():
        raise InvalidArgumentError(f"sparsity={shown(sparsity)}; give at least one number, each above the one before")
    if ratio.dtype.kind not in "iuf" or ratio.shape != sparsity.shape or not (np.isfinite(ratio) & (ratio > 0)).all():
        raise InvalidArgumentError(f"ratio={shown(ratio)}; give {len(sparsity)} finite numbers above 0")
    slower = np.flatnonzero(ratio > 1)
    if not len(slower):
        return float(sparsity[0])
    last = slower[-1]
    if last + 1 == len(ratio):
        return None
    share = np.log(ratio[last]) / (np.log(ratio[last]) - np.log(ratio[last + 1]))
    return float(sparsity[last] + share * (sparsity[last + 1] - sparsity[last]))
