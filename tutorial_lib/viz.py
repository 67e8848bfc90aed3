"""Plots of masks, training, times and accuracies: each function returns a closed matplotlib ``Figure``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axis import Axis
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from truly_sparse.arguments import check_choice, require
from truly_sparse.errors import InvalidArgumentError

from .bench import Benchmark
from .compare import check_columns
from .train import History

# The four states of a connection from one mask to the next; mask_states() returns indices into this tuple.
STATES = ("active", "pruned", "newly pruned", "newly regrown")

# A colour for each of the STATES.
PALETTES = {
    "published": ("#ffffff", "#000000", "#e41a1c", "#2ca02c"),
    "colorblind": ("#ffffff", "#000000", "#d55e00", "#56b4e9"),  # Okabe and Ito (2008)
}

# Distinct in greyscale (lightness 46, 76, 22, 60, 35, 0) and for colour-blind readers. Lines of different colours also
# have different markers and line styles.
COLOURS = BLUE, YELLOW, INDIGO, ORANGE, WINE, BLACK = "#0072b2", "#e9b52a", "#332288", "#e07040", "#96205c", "#000000"


def finish(figure: Figure) -> Figure:
    """Close a figure in pyplot and return it. A notebook would draw an open figure a second time."""
    plt.close(figure)
    return figure


def literal(text: str) -> str:
    """Escape a text for matplotlib, which reads ``$…$`` as a formula and hides legend entries that start with ``_``."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def _as_image(mask: np.ndarray) -> np.ndarray:
    """Return a mask as a 2-D image with one row per output unit, transposed if that is taller than wide."""
    image = np.asarray(mask).reshape(len(mask), -1)
    return image if image.shape[0] <= image.shape[1] else image.T


def _axis_labels(mask: np.ndarray) -> dict[str, str]:
    """Return the axis labels for the image of :func:`_as_image`."""
    wide = len(mask) <= mask[0].size
    return {"xlabel": "input", "ylabel": "output"} if wide else {"xlabel": "output", "ylabel": "input"}


def plot_mask(mask: np.ndarray, title: str = "") -> Figure:
    """Draw a layer's mask: active connections white, pruned ones black.

    Args:
        mask: boolean, in the shape of the dense weight. A convolution has one row per output channel.
        title: figure title; the sparsity is appended.

    Raises:
        InvalidArgumentError: the mask has fewer than two dimensions, or values other than 0 and 1.
    """
    _check_mask("mask", mask)
    image = _as_image(mask)
    figure, axes = plt.subplots(
        figsize=(8, 1.2 + 6.5 * min(1.0, image.shape[0] / image.shape[1])), layout="constrained"
    )
    axes.imshow(image, cmap="gray", aspect="auto", interpolation="nearest", vmin=0, vmax=1)
    axes.set(title=f"{literal(title)}  ({100 * (1 - np.mean(mask)):.1f}% sparse)", **_axis_labels(mask))
    return finish(figure)


def _check_mask(name: str, mask: np.ndarray) -> None:
    holds = mask.ndim >= 2 and mask.size > 0 and _is_boolean(mask)
    require(holds, name, mask, "give an array of 0 and 1 in the shape of the layer's weight")


def _is_boolean(mask: np.ndarray) -> bool:
    return mask.dtype.kind in "biuf" and bool(np.isin(mask, (0, 1)).all())


def mask_states(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the state of each connection as an index into ``STATES``: uint8, in the shape of the masks.

    Raises:
        InvalidArgumentError: the masks have different shapes, or values other than 0 and 1.
    """
    for name, mask in (("before", before), ("after", after)):
        require(_is_boolean(mask), name, mask, "give an array of 0 and 1")
    before, after = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    if before.shape != after.shape:
        raise InvalidArgumentError(f"masks have shapes {before.shape} and {after.shape}; give two masks of one layer")
    return np.select([before & after, ~before & ~after, before & ~after], [0, 1, 2], default=3).astype(np.uint8)


def plot_mask_evolution(
    masks: Sequence[np.ndarray],
    labels: Sequence[str] | None = None,
    title: str = "",
    palette: str = "published",
    columns: slice | None = None,
) -> Figure:
    """Draw what each topology update changed: one panel per step from ``masks[i]`` to ``masks[i + 1]``.

    Args:
        masks: two or more boolean masks of one layer, in order of time.
        labels: a name per mask, such as ``"epoch 2"``; by default the position in ``masks``.
        title: figure title.
        palette: ``"published"`` (white active, black pruned, red newly pruned, green newly regrown) or
            ``"colorblind"`` (orange and sky blue in place of red and green).
        columns: the image columns to draw, to enlarge a part of a wide layer. The counts in the panel titles are
            always those of the whole layer.

    Raises:
        InvalidArgumentError: fewer than two masks, a different number of labels, an unknown palette, or no columns.
    """
    for i, mask in enumerate(masks):
        _check_mask(f"masks[{i}]", mask)
    require(len(masks) > 1, "masks", masks, "give at least two")
    check_choice("palette", palette, PALETTES)
    labels = [str(i) for i in range(len(masks))] if labels is None else labels
    one_each = not isinstance(labels, str) and len(labels) == len(masks)
    require(one_each, "labels", labels, f"give a list with one label for each of the {len(masks)} masks")
    columns = slice(None) if columns is None else columns
    width = _as_image(masks[0]).shape[1]
    require(range(width)[columns], "columns", columns, f"give a slice that selects some of the {width} columns")
    panels = len(masks) - 1
    changes = [mask_states(before, after) for before, after in itertools.pairwise(masks)]
    figure, axes = plt.subplots(panels, 1, figsize=(9, 0.9 + 1.5 * panels), squeeze=False, layout="constrained")
    for axis, states, start, end in zip(axes[:, 0], changes, labels[:-1], labels[1:], strict=True):
        image = _as_image(states)[:, columns]
        colours = ListedColormap(PALETTES[palette])
        axis.imshow(image, cmap=colours, vmin=0, vmax=3, aspect="auto", interpolation="nearest")
        counts = f"{(states == 2).sum()} pruned, {(states == 3).sum()} regrown in the whole layer"
        axis.set_title(f"{literal(start)} → {literal(end)}:  {counts}", fontsize=10)
        axis.set(**_axis_labels(states))
        axis.yaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))  # the rows of fc4 are digits
        axis.tick_params(axis="y", labelsize=8)
        axis.label_outer()
    handles = [
        Patch(facecolor=colour, edgecolor="gray", label=state)
        for colour, state in zip(PALETTES[palette], STATES, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(literal(title))
    return finish(figure)


def plot_training(histories: Mapping[str, History]) -> Figure:
    """Draw test accuracy (in percent) and test loss against the epoch, one line per history.

    Args:
        histories: label → what :func:`fit` returned.

    Raises:
        InvalidArgumentError: no histories, or one of them has no epochs.
    """
    some = histories and all(history.test_loss for history in histories.values())
    require(some, "histories", histories, "give at least one history; each needs at least one epoch")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    styles = ("-", "--", "-.", ":")
    for i, (name, history) in enumerate(histories.items()):
        epochs = range(1, len(history.test_accuracy) + 1)
        style = {"label": literal(name), "linestyle": styles[i % 4], "marker": "os^Dv"[i % 5], "color": COLOURS[i % 6]}
        left.plot(epochs, history.test_accuracy, markevery=math.ceil(len(epochs) / 20), **style)
        right.plot(epochs, history.test_loss, markevery=math.ceil(len(epochs) / 20), **style)
    left.set(xlabel="epoch", ylabel="test accuracy (%)")
    right.set(xlabel="epoch", ylabel="test loss (cross-entropy)", yscale="log")
    plain_ticks(right.yaxis)
    left.legend()
    sns.despine(figure)
    return finish(figure)


def plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers (1, 2, 5, 10 …) in place of powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


def plot_benchmark(result: Benchmark, title: str = "") -> Figure:
    """Draw the median time of each candidate as a bar on a logarithmic axis, with a line between the quartiles."""
    table = result.table()
    median, high = table["median ms"].to_numpy(), table["75% ms"].to_numpy()
    spread = np.abs(table[["25% ms", "75% ms"]].to_numpy().T - median)
    places = range(len(table))
    figure, axis = plt.subplots(figsize=(8, 0.9 + 0.45 * len(table)), layout="constrained")
    axis.barh(places, median, xerr=spread, color=BLUE, height=0.6)
    for place in places:
        axis.text(high[place] * 1.05, place, f"{median[place]:.3g} ms", va="center")
    axis.set(yticks=places, yticklabels=[*map(literal, table.index)], title=literal(title))
    axis.set(xscale="log", xlabel=f"milliseconds (log), {literal(result.device)}")
    plain_ticks(axis.xaxis)
    axis.margins(x=0.15)
    axis.invert_yaxis()
    sns.despine(figure)
    return finish(figure)


def plot_densities(nnz: Mapping[str, Mapping[str, int]], sizes: Mapping[str, int]) -> Figure:
    """Draw the density of each layer under several schemes.

    Args:
        nnz: scheme → layer → number of active weights, as :func:`layer_nnz` returns them.
        sizes: layer → number of weights.

    Raises:
        InvalidArgumentError: a number of active weights is 0 or less, or above the number of weights.
    """
    percent = {scheme: [100 * counts[layer] / size for layer, size in sizes.items()] for scheme, counts in nnz.items()}
    for scheme, densities in percent.items():
        in_range = all(0 < density <= 100 for density in densities)
        require(in_range, f"nnz[{scheme!r}]", nnz[scheme], f"give 1 to as many active weights as a layer has: {sizes}")
    lowest = min(map(min, percent.values()))
    figure, axis = plt.subplots(figsize=(9, 3.4), layout="constrained")
    width = 0.8 / len(nnz)
    places = np.arange(len(sizes))
    for i, (scheme, densities) in enumerate(percent.items()):
        bars = axis.bar(
            places + (i - (len(nnz) - 1) / 2) * width,
            densities,
            width,
            label=literal(scheme),
            hatch=("", "//", "..", "xx")[i % 4],
            color=COLOURS[i % 6],
        )
        axis.bar_label(bars, fmt="%.1f", fontsize=8)
    axis.set(xticks=places, xticklabels=[*map(literal, sizes)])
    axis.set(ylabel="active weights (%)", yscale="log", ylim=(lowest / 3, 300))
    axis.legend(title="densities", ncols=len(nnz))
    sns.despine(figure)
    return finish(figure)


def plot_crossover(rows: Sequence[Mapping[str, float]], ours: str) -> Figure:
    """Draw time against sparsity, one panel per layer width and batch size.

    A vertical line marks the sparsity from which ``ours`` is faster than dense (see :func:`break_even`).

    Args:
        rows: ``{"width", "batch", "sparsity"}`` and a time in milliseconds for each of "dense", "Dense+Mask",
            "torch CSR" and ``ours``, as in ``figures/bench.json``.
        ours: the name of this project's kernels in ``rows``.

    Raises:
        InvalidArgumentError: no rows, a missing name, or values that are not numbers.
    """
    table = pd.DataFrame(list(rows))
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
            style = {"color": colour, "marker": marker, "linestyle": line, "markersize": 4, "label": literal(name)}
            axis.plot(100 * part["sparsity"], part[name], **style)
        at = break_even(part["sparsity"].to_numpy(), (part[ours] / part["dense"]).to_numpy())
        if at is not None:
            axis.axvline(100 * at, color="0.6", linewidth=1)
            in_panel = axis.get_xaxis_transform()  # x in percent, y as a fraction of the panel's height
            axis.text(100 * at - 2, 0.02, f"{100 * at:.0f}%", color="0.3", ha="right", va="bottom", transform=in_panel)
        axis.set(yscale="log", title=f"{width:.0f}×{width:.0f}, batch {batch:.0f}")
        plain_ticks(axis.yaxis)
    figure.supxlabel("sparsity (%)")
    figure.supylabel("forward and backward (ms, log)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(styles))
    sns.despine(figure)
    return finish(figure)


def break_evens(milliseconds: list[dict[str, float]], ours: str) -> pd.DataFrame:
    """Return the sparsity from which on torch's CSR and this project are faster than dense, per width and batch.

    Args:
        milliseconds: one row per width, batch and sparsity, with a time per format, as ``make bench`` records them.
        ours: this project's name in these rows.
    """
    found = {}
    for place, part in pd.DataFrame(milliseconds).sort_values("sparsity").groupby(["width", "batch"]):
        ratios = {name: (part[name] / part["dense"]).to_numpy() for name in ("torch CSR", ours)}
        found[place] = {name: break_even(part["sparsity"].to_numpy(), ratio) for name, ratio in ratios.items()}
    return pd.DataFrame(found).T.astype(float).rename_axis(["width", "batch"])


def break_even(sparsity: np.ndarray, ratio: np.ndarray) -> float | None:
    """Return the sparsity from which a ratio of times stays at or below 1.

    Args:
        sparsity: increasing, ``[n]``.
        ratio: this implementation's time divided by the other's at each sparsity, ``[n]``.

    Returns:
        The sparsity where the ratio last falls to 1, interpolated on the logarithm of the ratio; the first sparsity
        if the ratio is never above 1; None if it is above 1 at the last sparsity.

    Raises:
        InvalidArgumentError: arrays of different lengths, empty, not increasing, or with ratios not above 0.
    """
    rising = sparsity.dtype.kind in "iuf" and sparsity.ndim == 1 and len(sparsity) > 0 and np.all(np.diff(sparsity) > 0)
    require(rising, "sparsity", sparsity, "give one or more increasing numbers")
    positive = ratio.dtype.kind in "iuf" and ratio.shape == sparsity.shape and np.all(np.isfinite(ratio) & (ratio > 0))
    require(positive, "ratio", ratio, f"give {len(sparsity)} finite numbers above 0")
    slower = np.flatnonzero(ratio > 1)
    if not len(slower):
        return float(sparsity[0])
    last = slower[-1]
    if last + 1 == len(ratio):
        return None
    share = np.log(ratio[last]) / (np.log(ratio[last]) - np.log(ratio[last + 1]))
    return float(sparsity[last] + share * (sparsity[last + 1] - sparsity[last]))
