"""Schematic drawings: what is drawn is what was given."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from truly_sparse import InvalidArgumentError
from tutorial_lib import schematics

MATRIX = scipy.sparse.csr_matrix(np.array([[5, 0, 0, 1], [0, 0, 0, 0], [0, 2, 3, 0]]))


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    plt.close("all")  # those of other tests
    yield
    assert plt.get_fignums() == []


def stored(places):
    values = np.arange(1.0, len(places) + 1)
    return pd.DataFrame({("layer", "value"): values, ("optimizer", "mean"): values / 4}, index=places)


def drawn():
    """Every drawing, from small data."""
    weight = torch.tensor([[3.0, 0, -1, 0], [0, 0.5, 0, 2], [0, 1, 1, 0]])
    x = torch.arange(4.0).repeat(3, 1).T
    titles = "sample after sample: a weight reads here and there", "batch innermost: a weight reads one row"
    return {
        "draw_rewiring": schematics.draw_rewiring(weight, torch.tensor([5]), torch.tensor([1])),
        "draw_gradients": schematics.draw_gradients(weight != 0, weight, weight + 0.25),
        "draw_csr": schematics.draw_csr(MATRIX),
        "draw_layouts": schematics.draw_layouts(dict(zip(titles, (x.contiguous(), x), strict=True)), feature=1),
        "draw_owners": schematics.draw_owners(stored([0, 2, 5, 7]), stored([0, 3, 5, 7])),
    }


def texts(figure):
    """Return the words of a drawing by line, from left to right."""
    lines = {}
    for text in sorted(figure.axes[0].texts, key=lambda text: text.get_position()[0]):
        if text.get_text():
            lines.setdefault(text.get_position()[1], []).append(text.get_text())
    return [lines[height] for height in sorted(lines)]


def frames(figure):
    """Return the corners of the frames of a drawing, by colour."""
    found = {}
    for patch in figure.axes[0].patches:
        if isinstance(patch, Rectangle) and not patch.get_fill():
            found.setdefault(to_hex(patch.get_edgecolor()), []).append(patch.get_xy())
    return found


def test_every_drawing_is_drawn_here():
    assert sorted(drawn()) == sorted(name for name in vars(schematics) if name.startswith("draw_"))


@pytest.mark.parametrize("name", sorted(drawn()))
def test_no_word_leaves_the_drawing_or_is_written_over_another(name):
    figure = drawn()[name]
    figure.canvas.draw()
    words = [text for text in figure.axes[0].texts if text.get_text()]
    boxes = [text.get_window_extent() for text in words]
    for word, box in zip(words, boxes, strict=True):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, word
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, word
        assert not any(box.overlaps(other) for other in boxes if other is not box), word


def test_a_rewiring_marks_what_goes_and_what_comes_and_counts():
    figure = drawn()["draw_rewiring"]
    (titles,) = texts(figure)
    assert [title.split("\n")[1] for title in titles] == ["6 connections", "5 left", "6 again"]
    # Panels are five boxes apart, rows begin two boxes below the top: places 5 and 1 of four columns.
    assert frames(figure) == {schematics.PRUNED: [(5 + 1, 2 + 1)], schematics.GROWN: [(10 + 1, 2 + 0)]}


def test_pruning_what_is_not_there_is_refused():
    with pytest.raises(InvalidArgumentError, match="pruned"):
        schematics.draw_rewiring(torch.eye(2), torch.tensor([1]), torch.tensor([2]))


def test_gradients_mark_the_largest_place_without_a_connection():
    mask = torch.tensor([[True, False, False], [False, False, True]])
    product = torch.tensor([[9.0, 1, -2], [-4, 3, 8]])
    figure = schematics.draw_gradients(mask, product * mask, product)
    assert frames(figure)[schematics.GROWN][0] == (8 + 0, 2 + 1)
    filled = [patch.get_xy()[0] // 4 for patch in figure.axes[0].patches if patch.get_facecolor()[0] < 0.9]
    assert [filled.count(panel) for panel in (0, 1, 2)] == [2, 2, 6 + 2]  # two frames


def test_csr_writes_the_three_arrays_below_the_matrix_and_arrows_to_where_rows_begin():
    figure = schematics.draw_csr(MATRIX)
    assert texts(figure) == [
        ["0", "1", "2", "3"],
        ["row 0", "5", "1"],
        ["row 1"],
        ["row 2", "2", "3"],
        ["pointers", "0", "2", "2", "4"],
        ["columns", "0", "3", "1", "2"],
        ["values", "5", "1", "2", "3"],
    ]
    arrows = [text.xy[0] for text in figure.axes[0].texts if hasattr(text, "arrow_patch")]
    assert (np.array(arrows) - arrows[0]).tolist() == MATRIX.indptr.tolist()


def test_layouts_follow_the_order_in_memory():
    figure = drawn()["draw_layouts"]
    _, by_sample, _, by_feature, _ = texts(figure)
    assert by_sample == list("000111222333") and by_feature == list("012301230123")
    (corners,) = frames(figure).values()
    places = [round(left - 0.1) for left, _ in corners]
    assert places == [1, 4, 7, 10, 4, 5, 6, 7]


def test_owners_carry_kept_connections_over_and_mark_the_others():
    figure = drawn()["draw_owners"]
    lines = texts(figure)
    assert [line[0] for line in lines[:3]] == ["index: place", "layer: value", "optimizer: mean"]
    assert lines[0][1:] == ["0", "2", "5", "7"] and lines[4][1:] == ["0", "3", "5", "7"]
    assert {colour: len(found) for colour, found in frames(figure).items()} == {
        schematics.PRUNED: 1,
        schematics.GROWN: 1,
    }
    assert sum(hasattr(text, "arrow_patch") for text in figure.axes[0].texts) == 3
