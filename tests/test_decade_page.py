"""The page of the decade and its picture say what the table of methods says, and the picture can be read."""

import dataclasses
import itertools
import re

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Annotation

import truly_sparse
from tools import decade_page, readme_tables
from truly_sparse.recipes.decade import METHODS
from tutorial_lib import load_result
from tutorial_lib.project import FIGURES

PAGE = readme_tables.DECADE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def picture():
    """The axes of the picture, laid out as they are saved."""
    figure = decade_page.plot_decade()
    FigureCanvasAgg(figure).draw()
    return figure.axes[0]


def test_the_page_is_short_and_shows_the_picture():
    written = re.sub(r"<!-- [^>]+ -->\n.*?<!-- end -->", "", PAGE, flags=re.DOTALL)  # without generated tables
    assert len(written.splitlines()) <= 85
    assert PAGE.count("](../figures/decade.png)") == 1
    assert len(re.findall(r"[.!?](?=\s|$)", PAGE.split("\n\n")[0])) == 2, "two sentences of introduction"


def test_the_stored_picture_shows_the_methods_of_the_table():
    assert load_result("decade") == decade_page.drawn(), "run: python -m tools.decade_page"
    assert (FIGURES / "decade.png").exists()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_method_has_code_where_it_says_and_builds_on_older_ones(method):
    assert method.code == "" or method.code in truly_sparse.__all__
    years = {other.name: other.year for other in METHODS}
    assert all(years[name] < method.year for name in method.builds_on)


def test_both_tables_have_a_row_for_each_method():
    for header, rows in (decade_page.methods_table(), decade_page.claims_table()):
        assert len(rows) == len(METHODS) and all(len(row) == len(header) for row in rows)
        assert not any(re.search(r"(?<!\\)\||\n", cell) for row in rows for cell in row), "this would end a cell"


@pytest.mark.parametrize(
    "authors, cited",
    [("Zhu & Gupta", "Zhu & Gupta"), ("Lee, Ajanthan & Torr", "Lee et al."), ("Yuan, Ma and others", "Yuan et al.")],
)
def test_authors_are_cited_as_usual(authors, cited):
    (row,) = [row for row in decade_page.claims_table()[1] if row[1].endswith(": MEST")]
    assert row[1] == "Yuan et al.: MEST"
    assert decade_page.cited(authors) == cited


def test_a_method_that_grows_in_a_new_way_is_noticed():
    with pytest.raises(ValueError, match="'curiosity' is in no lane"):
        decade_page.lane_of(dataclasses.replace(METHODS[0], grows_by="curiosity"))


def test_no_texts_of_the_picture_overlap(picture):
    texts = [text for text in picture.texts if isinstance(text, Annotation)]
    assert {text.get_text() for text in texts} >= {method.name for method in METHODS}
    extents = {text.get_text(): text.get_window_extent() for text in [*texts, *picture.get_xticklabels()]}
    assert [pair for pair in itertools.combinations(extents, 2) if extents[pair[0]].overlaps(extents[pair[1]])] == []


def test_each_name_fits_its_box_and_no_line_crosses_one(picture):
    boxes = [patch for patch in picture.patches if isinstance(patch, FancyBboxPatch)]
    names = [text for text in picture.texts if text.get_text() in {method.name for method in METHODS}]
    assert len(boxes) == len(names) == len(METHODS)
    for box, name in zip(boxes, names, strict=True):
        outside, inside = box.get_window_extent(), name.get_window_extent()
        assert outside.x0 < inside.x0 and inside.x1 < outside.x1, name.get_text()
        assert outside.y0 < inside.y0 and inside.y1 < outside.y1, name.get_text()
        area = outside.padded(-1)  # a line ends at the edge of a box
        for line in picture.lines:
            assert line.get_marker() == ">" or not line.get_transform().transform_path(line.get_path()).intersects_bbox(
                area, filled=False
            ), name.get_text()
