"""The instructor's guide agrees with what was measured; and whoever comes late finds every notebook open."""

import re

import nbformat
import pytest

from tools import readme_tables
from tutorial_lib import load_result
from tutorial_lib.project import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
GUIDE = readme_tables.GUIDE.read_text(encoding="utf-8")


def source(path):
    return "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code")


@pytest.mark.parametrize("minutes", readme_tables.ROUTES)
def test_a_route_fits_its_time(minutes):
    seconds = load_result("notebook_times")["seconds"]
    route = readme_tables.ROUTES[minutes]
    assert set(route) <= {path.stem for path in NOTEBOOKS} and list(route) == sorted(route)
    # 90 seconds, the budget, for a notebook that nobody has measured yet.
    assert sum(route.values()) + sum(seconds.get(name, 90) for name in route) / 60 <= minutes


def test_every_notebook_is_on_the_longest_route():
    assert list(readme_tables.ROUTES[210]) == [path.stem for path in NOTEBOOKS]


def test_every_exercise_has_its_sticking_point():
    rows = re.findall(r"^\| (\d\d), ", GUIDE, flags=re.MULTILINE)
    for path in NOTEBOOKS:
        exercises = len(re.findall(r"^exercises\.check_\w+\(", source(path), flags=re.MULTILINE))
        assert rows.count(path.stem[:2]) >= exercises > 0, path.stem


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_notebook_reads_what_another_writes(path):
    """What is read are recorded results that come with the project; only full runs write anything."""
    text = source(path)
    for name in re.findall(r"load_result\(\"(\w+)\"", text):
        assert (ROOT / "figures" / f"{name}.json").is_file(), name
    other = r"\bopen\(|read_csv|read_json|torch\.(load|save)\(|np\.(load|save)|\.savefig\(|\.write_(text|bytes)\("
    assert not re.search(other, text)
    for block in re.findall(r"^( *)save_result\(", text, flags=re.MULTILINE):
        assert block, 'save_result outside `if profile().name == "full"`'
