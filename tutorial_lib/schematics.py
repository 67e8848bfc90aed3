"""Schematic drawings of ideas from small real data: each function returns a matplotlib ``Figure``."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy.sparse
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from truly_sparse.arguments import require

from .viz import BLUE, INDIGO, ORANGE, PALETTES, WINE, YELLOW, finish, literal

WIDTH, BOX, FONT = 6.0, 0.5, 12  # inches, inches at most, points: to be read on a telephone, too
EMPTY, ACTIVE, OTHER = "#eeeeee", "#404040", "#a8a8a8"
PRUNED, GROWN = PALETTES["colorblind"][2:]
GROUPS = BLUE, YELLOW, WINE, ORANGE, INDIGO


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure whose coordinates count boxes, from the left and from the top."""
    box = min(BOX, WIDTH / width)
    figure = finish(plt.figure(figsize=(box * width, box * height)))  # made by pyplot, so that notebooks show it
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), aspect="equal")
    axis.axis("off")
    return figure, axis


def _text(axis: Axes, x: float, y: float, text: str, align: str = "center", colour: str = "black") -> None:
    axis.text(x, y, text, ha=align, va="center", color=colour, fontsize=FONT)


def _box(axis: Axes, x: float, y: float, colour: str, text: str = "", area: float = 1.0) -> None:
    """Fill a share of the area of the box at (x, y), and write into its middle."""
    side = 0.94 * np.sqrt(area)
    axis.add_patch(Rectangle((x + 0.5 - side / 2, y + 0.5 - side / 2), side, side, facecolor=colour))
    _text(axis, x + 0.5, y + 0.5, text, colour="white" if np.dot(to_rgb(colour), (0.3, 0.6, 0.1)) < 0.55 else "black")


def _panels(panels: Mapping[str, np.ndarray], colours: np.ndarray, below: float = 0.0) -> tuple[Figure, Axes]:
    """Draw matrices side by side, each below its title of two lines; areas are values from 0 to 1."""
    rows, columns = colours.shape
    figure, axis = _canvas(len(panels) * (columns + 1) - 1, rows + 2 + below)
    for panel, (title, sizes) in enumerate(panels.items()):
        left = panel * (columns + 1)
        _text(axis, left + columns / 2, 0.9, title)
        for row, column in np.ndindex(rows, columns):
            _box(axis, left + column, 2 + row, EMPTY)
            if sizes[row, column]:
                _box(axis, left + column, 2 + row, colours[row, column], area=max(0.03, sizes[row, column]))
    return figure, axis


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "0.3", "linewidth": 1.5})


def _frame(axis: Axes, x: float, y: float, colour: str, height: int = 1, sign: str = "", at: float = 0.5) -> None:
    """Put a frame around a column of boxes, and a sign (``x`` pruned, ``+`` grown) at this distance from its top."""
    axis.add_patch(Rectangle((x, y), 1, height, fill=False, edgecolor=colour, linewidth=3, clip_on=False, zorder=2))
    if sign:
        axis.plot(x + 0.5, y + at, sign, color=colour, markersize=13, markeredgewidth=3)


def draw_rewiring(weight: torch.Tensor, pruned: torch.Tensor, grown: torch.Tensor) -> Figure:
    """Draw one rewiring in three panels: the connections before, those that are pruned, those that are grown.

    Args:
        weight: the weight before ``[out, in]``; zero where there is no connection. Areas show magnitudes.
        pruned: flat positions of connections to remove.
        grown: flat positions of connections to add.

    Raises:
        InvalidArgumentError: a pruned position has no connection, a grown one has, or one stands twice.
    """
    sizes, gone, new = weight.detach().abs().numpy(), pruned.numpy(), grown.numpy()
    exists, absent = np.flatnonzero(sizes), np.flatnonzero(sizes == 0)
    for name, chosen, among in (("pruned", gone, exists), ("grown", new, absent)):
        holds = chosen.dtype.kind == "i" and len(chosen) == len(np.intersect1d(chosen, among))
        require(holds, name, chosen, f"give some of the {len(among)} positions {among.tolist()}, each once")
    sizes, columns, left = sizes / sizes.max(initial=1e-30), sizes.shape[1], len(exists) - len(gone)
    rest = sizes.copy()
    rest.ravel()[gone] = 0
    panels = {f"before:\n{len(exists)} connections": sizes, f"prune the smallest:\n{left} left": sizes}
    panels[f"grow elsewhere:\n{left + len(new)} again"] = rest
    figure, axis = _panels(panels, np.full(sizes.shape, ACTIVE))
    for panel, places, colour, sign in ((1, gone, PRUNED, "x"), (2, new, GROWN, "+")):
        for row, column in zip(*np.divmod(places, columns), strict=True):
            _frame(axis, panel * (columns + 1) + column, 2 + row, colour, sign=sign)
    return figure


def draw_gradients(mask: torch.Tensor, stored: torch.Tensor, product: torch.Tensor) -> Figure:
    """Draw which connections exist, the gradient of a masked layer's stored weight, and that of weight × mask.

    Args:
        mask: boolean ``[out, in]``.
        stored: gradient of the stored weight ``[out, in]``. Areas show magnitudes.
        product: gradient of the product ``[out, in]``; the largest one without a connection gets a frame.

    Raises:
        InvalidArgumentError: gradients of another shape than the mask.
    """
    for name, gradient in (("stored", stored), ("product", product)):
        require(gradient.shape == mask.shape, name, gradient, f"give the mask's shape, {tuple(mask.shape)}")
    active, columns = mask.numpy(), mask.shape[1]
    largest = product.abs().max()
    panels = {"mask:\nwhat exists": active.astype(float)}
    panels["gradient of the\nstored weight"] = (stored.abs() / largest).numpy()
    panels["gradient of\nweight × mask"] = (product.abs() / largest).numpy()
    figure, axis = _panels(panels, np.where(active, ACTIVE, OTHER), below=1.2)
    row, column = divmod(int(np.where(active, -1, product.abs().numpy()).argmax()), columns)
    _frame(axis, 2 * columns + 2 + column, 2 + row, GROWN)
    _frame(axis, 2 * columns + 2, len(active) + 2.2, GROWN)
    _text(axis, 2 * columns + 3.4, len(active) + 2.7, "RigL grows", "left")
    return figure


def draw_csr(matrix: scipy.sparse.csr_matrix) -> Figure:
    """Draw a small matrix above the three arrays of its CSR form; a row has one colour in all of them."""
    rows, columns = matrix.shape
    left, top, places = 2.5, rows + 1.8, matrix.indptr.tolist()
    figure, axis = _canvas(left + max(columns, matrix.nnz, rows + 1) + 0.2, top + 4.8)
    for column in range(columns):
        _text(axis, left + column + 0.5, 0.5, str(column), colour="0.4")
    for row in range(rows):
        colour = GROUPS[row % len(GROUPS)]
        _text(axis, left - 0.3, row + 1.5, f"row {row}", "right", "0.4")
        for column in range(columns):
            _box(axis, left + column, row + 1, EMPTY)
        for place in range(places[row], places[row + 1]):
            value, column = f"{matrix.data[place]:g}", matrix.indices[place]
            _box(axis, left + column, row + 1, colour, value)
            _box(axis, left + place, top + 2.7, colour, str(column))
            _box(axis, left + place, top + 3.7, colour, value)
    for row, pointer in enumerate(places):
        _box(axis, left + row, top, GROUPS[row % len(GROUPS)] if row < rows else EMPTY, str(pointer))
        _arrow(axis, (left + row + 0.5, top + 1.05), (left + pointer, top + 2.65))
    for height, name in ((0.5, "pointers"), (3.2, "columns"), (4.2, "values")):
        _text(axis, left - 0.3, top + height, name, "right")
    return figure


def draw_layouts(layouts: Mapping[str, torch.Tensor], feature: int) -> Figure:
    """Draw the numbers of matrices ``[batch, features]`` in the order in which they lie in memory.

    Args:
        layouts: a title for each matrix. All are of one size and fill their memory. A colour is a feature.
        feature: the one that a weight reads: its numbers get a frame.

    Raises:
        InvalidArgumentError: there is no such feature, or a matrix does not fill its memory.
    """
    batch, features = next(iter(layouts.values())).shape
    require(feature in range(features), "feature", feature, f"give one from 0 to {features - 1}")
    figure, axis = _canvas(batch * features + 0.2, 2.8 * len(layouts) + 1)
    for line, (title, x) in enumerate(layouts.items()):
        full = x.shape == (batch, features) and (x.is_contiguous() or x.T.is_contiguous())
        require(full, f"layouts[{title!r}]", x, f"give a contiguous [{batch}, {features}], or one that is transposed")
        top = 2.8 * line
        _text(axis, 0.1, top + 0.6, literal(title), "left")
        for sample, column in np.ndindex(batch, features):
            place = 0.1 + sample * x.stride(0) + column * x.stride(1)
            _box(axis, place, top + 1.1, GROUPS[column % len(GROUPS)], f"{x[sample, column]:g}")
            if column == feature:
                _frame(axis, place, top + 1.1, "black")
    for column in range(features):
        _box(axis, 0.1 + batch * column, 2.8 * len(layouts), GROUPS[column % len(GROUPS)], area=0.3)
        _text(axis, 1.1 + batch * column, 2.8 * len(layouts) + 0.5, f"feature {column}", "left")
    return figure


def draw_owners(before: pd.DataFrame, after: pd.DataFrame) -> Figure:
    """Draw what is stored for each connection before and after a rewiring, and where it moves.

    Args:
        before: one row per connection, whose index is its position; one column per array, ``(owner, array)``.
        after: the same after the rewiring.
    """
    left, gap, height = 4.3, 2.6, 1 + len(before.columns)
    owners = ["index", *before.columns.get_level_values(0).unique()]
    figure, axis = _canvas(left + max(len(before), len(after)) + 0.1, 2 * height + gap + 0.1)
    for top, table in ((0, before), (height + gap, after)):
        for row, (owner, array) in enumerate([("index", "place"), *before.columns]):
            numbers = table.index if row == 0 else table[owner, array].round(2) + 0.0  # no -0
            _text(axis, left - 0.2, top + row + 0.5, f"{owner}: {array}", "right")
            for place, number in enumerate(numbers):
                _box(axis, left + place, top + row, GROUPS[owners.index(owner)], f"{number:g}")
    _text(axis, left - 0.2, height + gap / 2, "driver: prune ×, grow +", "right")
    for place, connection in enumerate(before.index):
        if connection in after.index:
            end = left + after.index.get_loc(connection) + 0.5, height + gap
            _arrow(axis, (left + place + 0.5, height), end)
        else:
            _frame(axis, left + place, 0, PRUNED, height, "x", height + 0.5)
    for place in np.flatnonzero(~after.index.isin(before.index)).tolist():
        _frame(axis, left + place, height + gap, GROWN, height, "+", -0.5)
    return figure
