"""What a reader can rely on in every notebook: headings, described figures, labelled axes, exercises, safe colours."""

import ast
import itertools
import re

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from tutorial_lib import Benchmark, History, referee_plots, viz
from tutorial_lib.project import ROOT

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
per_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
FIGURE = re.compile(r"plt\.subplots\(|(viz|referee_plots)\.plot_|schematics\.draw_|topology_player\(|^Image\(", re.M)
# A label names a unit, or counts something that has none.
UNIT = re.compile(
    r"%|\(s\b|\bms\b|milliseconds|seconds|megabytes|\bMB\b|GFLOP/s|per byte|\(share of|\(log\)|cross-entropy|"
    r"^(at |and at |active at )?(training )?step$|^(and|active) at step$|"
    r"^(epoch|input|output|row|column|neurons|layer|method|connections per place)$"
)


def cells_of(path):
    return nbformat.read(path, as_version=4).cells


def draws(cell):
    return cell.cell_type == "code" and FIGURE.search(cell.source) is not None


def is_description(cell):
    """One or more sentences in italics at the start of the cell, or at its end."""
    italic = r"\*(?!\*)[^*\n]{15,}[.:!?]\*"
    return cell.cell_type == "markdown" and re.search(rf"\A{italic}|{italic}\Z", cell.source) is not None


def undescribed(cells):
    """Figures whose nearest text, before or after, other figures aside, does not describe them."""
    missing = []
    for place, cell in enumerate(cells):
        if draws(cell):
            after = next((c for c in cells[place + 1 :] if c.cell_type == "markdown" or draws(c)), None)
            before = next((c for c in reversed(cells[:place]) if c.cell_type == "markdown" or draws(c)), None)
            if not any(near is not None and is_description(near) for near in (after, before)):
                missing.append(cell.source)
    return missing


def unlabelled(source):
    """What is wrong with the labels of a cell that makes its axes itself: a list, empty if nothing is."""
    if "plt.subplots(" not in source or '.axis("off")' in source:
        return []
    labels = {"xlabel": [], "ylabel": []}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg in labels:
            labels[node.arg].append(ast.literal_eval(node.value))
    wrong = [f"no {side}" for side, texts in labels.items() if not texts]
    return wrong + [text for texts in labels.values() for text in texts if not UNIT.search(text)]


# ------------------------------------------------------------------------------------------ headings


@per_notebook
def test_one_title_and_headings_in_order(path):
    text = "\n".join(cell.source for cell in cells_of(path) if cell.cell_type == "markdown")
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)  # a comment in code is no heading
    levels = [len(marks) for marks in re.findall(r"^(#+) ", text, flags=re.MULTILINE)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    numbers = [int(number) for number in re.findall(r"^## (\d+)\.", text, flags=re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))


# ------------------------------------------------------------------------------------------ figures


@per_notebook
def test_every_figure_is_described_in_a_sentence(path):
    cells = cells_of(path)
    assert any(draws(cell) for cell in cells)
    assert undescribed(cells) == []


@per_notebook
def test_every_stored_picture_comes_from_a_cell_that_counts_as_a_figure(path):
    for cell in cells_of(path):
        if cell.cell_type == "code" and any("image/png" in output.get("data", {}) for output in cell.outputs):
            assert draws(cell), cell.source


def test_a_figure_without_a_description_is_noticed():
    figure = nbformat.v4.new_code_cell("viz.plot_mask(mask)")
    heading = nbformat.v4.new_markdown_cell("## 2. Next")
    described = nbformat.v4.new_markdown_cell("*White where a connection is.* So much for that.")
    assert undescribed([heading, figure, heading]) == [figure.source]
    assert undescribed([heading, figure, described]) == undescribed([described, figure, heading]) == []
    assert undescribed([figure, figure, described]) == [figure.source]


@per_notebook
def test_axes_made_in_the_notebook_have_labels_with_units(path):
    for cell in cells_of(path):
        if draws(cell):
            assert unlabelled(cell.source) == [], cell.source


def test_missing_labels_and_units_are_noticed():
    cell = 'figure, axis = plt.subplots()\naxis.set(xlabel="{}"{})'
    assert unlabelled(cell.format("epoch", "")) == ["no ylabel"]
    assert unlabelled(cell.format("epoch", ', ylabel="accuracy"')) == ["accuracy"]
    assert unlabelled(cell.format("epoch", ', ylabel="accuracy (%)"')) == []


def drawn():
    """Every figure of viz.py, from small data."""
    masks = [np.random.default_rng(seed).random((4, 30)) < 0.3 for seed in range(3)]
    history = History(seconds=[1.0, 1.0], test_accuracy=[50.0, 60.0], test_loss=[1.0, 0.5])
    times = {"width": 10, "batch": 16, "dense": 1.0, "Dense+Mask": 1.0, "torch CSR": 1.0, "ours": 1.0}
    names = [*referee_plots.REFEREE_STYLES, *referee_plots.BANDS]
    rows = [("dense", 0.0, 99.2), *((name, s, 99 - s) for name in names for s in (0.9, 0.99))]
    table = pd.DataFrame(rows, columns=["contender", "sparsity", "accuracy"])
    table = table.assign(low=table["accuracy"] - 0.1, high=table["accuracy"] + 0.1, seconds=10.0, bytes=1e6)
    return {
        "plot_mask": viz.plot_mask(masks[0]),
        "plot_mask_evolution": viz.plot_mask_evolution(masks),
        "plot_training": viz.plot_training({"a": history, "b": history}),
        "plot_benchmark": viz.plot_benchmark(Benchmark({"a": [7e-4], "b": [0.019]}, threads=1, device="cpu")),
        "plot_densities": viz.plot_densities({"uniform": {"fc": 5}, "erk": {"fc": 7}}, {"fc": 100}),
        "plot_crossover": viz.plot_crossover([times | {"sparsity": s} for s in (0.0, 0.5)], ours="ours"),
        "plot_referee": referee_plots.plot_referee(table),
        "plot_waterfall": referee_plots.plot_waterfall(table.iloc[:3], 96.0),
        "plot_tradeoff": referee_plots.plot_tradeoff(table),
    }


def test_axes_made_by_the_library_have_labels_with_units():
    figures = drawn()
    assert sorted(figures) == sorted(name for name in {**vars(viz), **vars(referee_plots)} if name.startswith("plot_"))
    for name, figure in figures.items():
        for which, common in (("x", figure.get_supxlabel()), ("y", figure.get_supylabel())):
            labels = {getattr(axis, f"get_{which}label")() for axis in figure.axes} | {common}
            ticks = [tick.get_text() for axis in figure.axes for tick in getattr(axis, f"get_{which}ticklabels")()]
            assert labels - {""} or any(re.match("[a-z]", tick) for tick in ticks), f"{name}: no {which} label"
            assert all(UNIT.search(label) for label in labels - {""}), f"{name}: {labels}"


def overlaps(figure):
    """Labels of ticks that are drawn over the next label of their axis."""
    figure.canvas.draw()
    found = []
    for axis in (side for axes in figure.axes for side in (axes.xaxis, axes.yaxis)):
        shown = [label for label in axis.get_ticklabels(which="both") if label.get_visible() and label.get_text()]
        boxes = [(label.get_window_extent(), label.get_text()) for label in shown]
        found += [(a, b) for (one, a), (other, b) in itertools.combinations(boxes, 2) if one.overlaps(other)]
    return found


def test_no_tick_label_is_drawn_over_another():
    for name, figure in drawn().items():
        assert overlaps(figure) == [], name


def test_tick_labels_over_each_other_are_noticed():
    figure, axis = plt.subplots(figsize=(2, 2))
    axis.set_xticks([0.5, 0.51], ["first", "second"])
    assert overlaps(figure) == [("first", "second")]
    plt.close(figure)


# ------------------------------------------------------------------------------------------ colours


def linear(colour):
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIE L*a*b* (D65) of a linear sRGB colour."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    f = np.array([np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in xyz / [0.9505, 1.0, 1.089]])
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Machado, Oliveira & Fernandes (2009), severity 1: what a reader without one kind of cones sees.
SEEN_BY = {
    "all cones": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
SAFE = {"COLOURS": viz.COLOURS, "states of a connection": viz.PALETTES["colorblind"]}


def distance(a, b, eyes):
    return np.linalg.norm(np.subtract(*(lab(np.clip(eyes @ linear(colour), 0, 1)) for colour in (a, b))))


@pytest.mark.parametrize("palette", SAFE.values(), ids=SAFE)
def test_colours_differ_in_greyscale(palette):
    lightness = [lab(linear(colour))[0] for colour in palette]
    assert min(abs(a - b) for a, b in itertools.combinations(lightness, 2)) >= 10


@pytest.mark.parametrize("eyes", SEEN_BY.values(), ids=SEEN_BY)
@pytest.mark.parametrize("palette", SAFE.values(), ids=SAFE)
def test_colours_differ_for_every_kind_of_eyes(palette, eyes):
    assert min(distance(a, b, np.array(eyes)) for a, b in itertools.combinations(palette, 2)) >= 20


def test_red_and_green_of_equal_lightness_would_be_noticed():
    assert distance("#e41a1c", "#2ca02c", np.array(SEEN_BY["deuteranopia"])) < 30
    assert abs(lab(linear("C0"))[0] - lab(linear("C3"))[0]) < 10  # matplotlib's own cycle


def test_lines_differ_in_more_than_their_colour():
    styles = list(referee_plots.REFEREE_STYLES.values())
    assert len({marker for _, marker, _ in styles}) == len({colour for colour, _, _ in styles}) == len(styles)
    assert {colour for colour, _, _ in styles} <= set(viz.COLOURS)
    assert len({hatch for _, hatch in referee_plots.BANDS.values()}) == len(referee_plots.BANDS)
    history = History(seconds=[1.0], test_accuracy=[50.0], test_loss=[1.0])
    lines = viz.plot_training(dict.fromkeys("abcd", history)).axes[0].lines
    assert len({(line.get_marker(), line.get_linestyle()) for line in lines}) == len(lines) == 4
    assert len({line.get_color() for line in lines}) == 4


def formats(source):
    """The line and marker formats that a cell names, such as "o-" or ":"."""
    texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    line = r"[a-z]?[os^Dv*]?(--|-\.|-|:)|[s^Dv*]"
    return [text for text in texts if isinstance(text, str) and re.fullmatch(line, text)]


@per_notebook
def test_lines_drawn_in_a_notebook_differ_in_marker_or_dash(path):
    for cell in cells_of(path):
        if draws(cell) and ".plot(" in cell.source:
            found = formats(cell.source)
            assert found and len(set(found)) == len(found), cell.source


def test_two_lines_of_one_format_are_noticed():
    assert formats('axis.plot(x, y, "o-", label="a")\naxis.plot(x, z, "o-", label="b")') == ["o-", "o-"]


# ------------------------------------------------------------------------------------------ exercises, predictions


@per_notebook
def test_every_exercise_has_level_minutes_stub_hint_and_solution(path):
    cells = cells_of(path)
    numbers = []
    for place, cell in enumerate(cells):
        if "exercise" not in cell.metadata.get("tags", []):
            continue
        task, help_text = cells[place - 1].source, cells[place + 1].source
        head = re.match(r"### Exercise (\d+): .+\n\n\*(Easy|Medium|Hard), (\d+) minutes\.\* \S", task)
        assert head, task
        numbers.append(int(head.group(1)))
        assert re.search(r"^def .*:\n    raise NotImplementedError  # your turn$", cell.source, flags=re.MULTILINE)
        assert re.fullmatch(
            r"<details><summary>Hint</summary>\n\n.+?\n\n</details>\n\n"
            r"<details><summary>Solution</summary>\n\n```python\n.+?\n```\n\n</details>",
            help_text,
            flags=re.DOTALL,
        ), help_text
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 2


@per_notebook
def test_every_prediction_is_set_beside_a_result_later(path):
    """And between the two there is something to run."""
    code = [cell.source for cell in cells_of(path) if cell.cell_type == "code"]
    asked = {name: i for i, source in enumerate(code) for name in re.findall(r"^(\w+) = ask\(", source, flags=re.M)}
    told = {name: i for i, source in enumerate(code) for name in re.findall(r"^reconcile\((\w+),", source, flags=re.M)}
    assert asked and asked.keys() == told.keys()
    assert all(told[name] > asked[name] for name in asked)
    assert not any("my_guess" in source or "my_order" in source for source in code)
