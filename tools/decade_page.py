"""The tables and the picture of ``docs/decade.md``, from the table of methods in ``truly_sparse/recipes/decade.py``.

    python -m tools.decade_page

writes ``figures/decade.png`` and what it shows, ``figures/decade.json``; ``tools/readme_tables.py`` writes the tables.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

import truly_sparse
from truly_sparse.recipes.decade import BOTH, METHODS, Method
from tutorial_lib import save_result, viz
from tutorial_lib.project import FIGURES, ROOT

Table = tuple[list[str], list[list[str]]]

# ------------------------------------------------------------------------------------------ tables


def methods_table() -> Table:
    """Return header and rows: how each method works, what it needs, and where its code is."""
    header = ["year", "method", "prunes by", "grows by", "number of weights", "dense, and when", "in `truly_sparse`"]
    return header, [
        [str(m.year), _link(m), *map(_cell, (m.prunes_by, m.grows_by or "–", m.budget, m.dense)), _code(m)]
        for m in METHODS
    ]


def claims_table() -> Table:
    """Return header and rows: what each paper claims, and the public code with which the rule was compared."""
    header = ["year", "paper", "claims, and on which task", "rule compared with"]
    return header, [
        [str(m.year), f"{cited(m.authors)}: {m.name}", _cell(m.claim), _repository(m.compared_with)] for m in METHODS
    ]


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _link(method: Method) -> str:
    return f"[{method.name}]({method.link})"


def cited(authors: str) -> str:
    """Return authors as a text cites them: ``A & B``, or ``A et al.``"""
    first, *others = re.split(r", | & | and ", authors)
    return authors if len(others) < 2 else f"{first} et al."


def _repository(address: str) -> str:
    return f"[{address.removeprefix('https://github.com/')}]({address})" if address else ""


def _code(method: Method) -> str:
    """Return a link to the file of a method's code, and on which layers it runs unless on all."""
    if not method.code:
        return method.layers
    path = Path(inspect.getfile(getattr(truly_sparse, method.code))).relative_to(ROOT).as_posix()
    link = f"[`{method.code}`](../{path})"
    return link if method.layers == BOTH else f"{link}; {method.layers}"


# ------------------------------------------------------------------------------------------ picture


@dataclass(frozen=True)
class Lane:
    """A group of methods that grow in the same way.

    Attributes:
        title: how they grow.
        colour: of their boxes, and of the lines from them.
        first_words: with which ``grows_by`` begins; "" if nothing grows.
    """

    title: str
    colour: str
    first_words: tuple[str, ...]


# From top to bottom: lanes that many lines join stand next to each other.
LANES = (
    Lane("nothing grows: pruned before, during or after training", viz.BLACK, ("",)),
    Lane("grow by gradient or momentum", viz.BLUE, ("gradient", "momentum")),
    Lane("grow by chance", viz.ORANGE, ("chance",)),
    Lane("grow by topology alone", viz.INDIGO, ("link",)),
    Lane("grow by magnitude, in a larger set of weights", viz.WINE, ("magnitude",)),
)
HALF_WIDTH, HALF_HEIGHT = 0.44, 0.37  # of a method's box, in years and rows
TITLE_ROWS = 0.8
INCHES_PER_YEAR, INCHES_PER_ROW = 1.22, 0.31


def lane_of(method: Method) -> Lane:
    """Return the lane of a method.

    Raises:
        ValueError: its ``grows_by`` begins with a word that no lane has.
    """
    word = method.grows_by.partition(" ")[0].strip(",")
    for lane in LANES:
        if word in lane.first_words:
            return lane
    raise ValueError(f"{method.name}: grows_by={method.grows_by!r} is in no lane; add its first word to LANES")


def rows_of(methods: Sequence[Method]) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Return each method's row by its name, and each lane's first and last edge by its title.

    Every method has a row of its own, so that no line crosses a box.
    """
    rows, edges, edge = {}, {}, 0.0
    for lane in LANES:
        names = [m.name for m in sorted(methods, key=lambda m: m.year) if lane_of(m) == lane]
        if names:
            rows |= {name: edge + TITLE_ROWS + 0.5 + place for place, name in enumerate(names)}
            edges[lane.title] = (edge, edge + TITLE_ROWS + len(names) + 0.1)
            edge = edges[lane.title][1] + 0.15
    return rows, edges


def drawn(methods: Sequence[Method] = METHODS) -> dict[str, Any]:
    """Return what the picture shows, as it is stored beside it."""
    return {
        m.name: {"year": m.year, "grows": lane_of(m).title, "builds on": list(m.builds_on), "here": bool(m.code)}
        for m in methods
    }


def plot_decade(methods: Sequence[Method] = METHODS) -> Figure:
    """Draw the methods by year, in lanes by how they grow, with lines from those that they build on."""
    rows, edges = rows_of(methods)
    years = range(min(m.year for m in methods), max(m.year for m in methods) + 1)
    bottom = max(last for _, last in edges.values())
    size = (INCHES_PER_YEAR * len(years), INCHES_PER_ROW * (bottom + 1.2))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    axes.set(xlim=(years[0] - 0.5, years[-1] + 0.5), ylim=(bottom, 0))
    for lane in LANES:
        if lane.title in edges:
            first, last = edges[lane.title]
            axes.axhspan(first, last, color=lane.colour, alpha=0.07, linewidth=0)
            place = (years[-1] + 0.45, first + 0.1)
            axes.annotate(lane.title, place, ha="right", va="top", fontsize=10.5, weight="bold")
    _draw_lines(axes, methods, rows)
    for method in methods:
        _draw_box(axes, method, rows[method.name])
    axes.xaxis.tick_top()
    axes.set_xticks(years, [str(year) for year in years], fontsize=11)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return viz.finish(figure)


def _draw_box(axes: Axes, method: Method, row: float) -> None:
    corner = (method.year - HALF_WIDTH, row - HALF_HEIGHT)
    box = FancyBboxPatch(
        corner,
        2 * HALF_WIDTH,
        2 * HALF_HEIGHT,
        boxstyle="round,pad=0,rounding_size=0.08",
        mutation_aspect=INCHES_PER_YEAR / INCHES_PER_ROW,
        facecolor="white",
        edgecolor=lane_of(method).colour,
        linewidth=1.6,
        linestyle="-" if method.code else (0, (3, 2)),
        zorder=4,
    )
    axes.add_patch(box)
    axes.annotate(method.name, (method.year, row), ha="center", va="center", fontsize=10, zorder=5)


def _draw_lines(axes: Axes, methods: Sequence[Method], rows: Mapping[str, float]) -> None:
    """Draw a line from each method to those that build on it, down or up in the gap after its year.

    Lines of different methods that cross are told apart by a white edge.
    """
    parents = [m for m in methods if any(m.name in other.builds_on for other in methods)]
    for level, parent in enumerate(parents):
        of_year = [p for p in parents if p.year == parent.year]
        gap = parent.year + 0.5 + 0.045 * (of_year.index(parent) - (len(of_year) - 1) / 2)
        colour, start = lane_of(parent).colour, rows[parent.name]
        for child in (m for m in methods if parent.name in m.builds_on):
            others = len(child.builds_on) - 1
            end = rows[child.name] + 0.32 * (child.builds_on.index(parent.name) - others / 2)
            x, y = [parent.year + HALF_WIDTH, gap, gap, child.year - HALF_WIDTH], [start, start, end, end]
            axes.plot(x, y, color="white", linewidth=4.0, zorder=2 + 0.02 * level)
            axes.plot(x, y, color=colour, linewidth=1.6, solid_joinstyle="round", zorder=2.01 + 0.02 * level)
            axes.plot(x[-1] - 0.02, end, ">", color=colour, markersize=5, markeredgewidth=0, zorder=3)


def main() -> None:
    """Draw the picture, and write what it shows beside it."""
    plot_decade().savefig(FIGURES / "decade.png", dpi=120)
    save_result("decade", drawn(), command="python -m tools.decade_page")


if __name__ == "__main__":
    main()
