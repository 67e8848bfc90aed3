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


def section(title):
    return re.search(rf"^## {title}$(.*?)(?=^## |\Z)", GUIDE, flags=re.MULTILINE | re.DOTALL)[1]


@pytest.mark.parametrize("minutes", readme_tables.ROUTES)
def test_a_timetable_adds_up(minutes):
    table = re.search(rf"<!-- route {minutes} -->\n(.*?)<!-- end -->", GUIDE, flags=re.DOTALL)[1]
    mark = 0
    for row in table.splitlines()[2:]:
        when, _, talk, exercises, running = (cell.strip() for cell in row.strip("|").split("|"))
        start, end = map(int, when.split(" to "))
        spent = [int(talk), int(running or 0), *map(int, re.findall(r"exercise \d+: (\d+)", exercises))]
        assert start == mark and end - start == sum(spent), row
        mark = end
    assert mark == minutes


@pytest.mark.parametrize("minutes", readme_tables.ROUTES)
def test_a_timetable_leaves_time_for_questions_and_for_what_it_runs(minutes):
    seconds = load_result("notebook_times")["seconds"]
    *parts, (last, questions, _, _) = readme_tables.timetable(minutes)
    assert last == "questions" and questions >= 2
    names = [name for name, *_ in parts if name not in readme_tables.NO_NOTEBOOK]
    assert set(names) <= {path.stem for path in NOTEBOOKS} and names == sorted(names)
    assert all(60 * running >= seconds[name] for name, _, _, running in parts if name in names)


def test_every_notebook_and_a_break_is_in_the_longest_timetable():
    assert [name for name in readme_tables.ROUTES[210] if name != readme_tables.BREAK] == [p.stem for p in NOTEBOOKS]
    assert readme_tables.BREAK in readme_tables.ROUTES[210]


def test_every_exercise_has_its_wrong_turns():
    rows = re.findall(
        r"^\| (\d\d), (\d): (.+?) \| .+ \| .+\? \|$", section("Wrong turns, exercise by exercise"), re.MULTILINE
    )
    exercises = [
        (path.stem[:2], str(number), title)
        for path in NOTEBOOKS
        for number, (title, _) in readme_tables.exercises_of(path.stem).items()
    ]
    assert rows == exercises
    for path in NOTEBOOKS:
        checks = re.findall(r"^exercises\.check_\w+\(", source(path), flags=re.MULTILINE)
        assert len(checks) == len(readme_tables.exercises_of(path.stem)) > 0


def test_eleven_questions_whose_numbers_stand_in_the_file_that_they_name():
    questions = re.split(r"^\*\*\d+\. ", section("The eleven questions asked most"), flags=re.MULTILINE)[1:]
    assert len(questions) == 11
    for text in questions:
        named = [readme_tables.GUIDE.parent / name for name in re.findall(r"\]\(([^)#]+)#", text)]
        there = "".join(path.read_text(encoding="utf-8") for path in named)
        for number in re.findall(r"\d[\d,]*\.\d+|\d+,\d{3}|\d+(?= MiB)", text):
            assert re.search(rf"(?<![\d.,]){re.escape(number)}(?![\d,]|\.\d)", there), f"{number} in: {text[:60]}"


def test_every_section_that_a_document_points_to_exists():
    for name, anchor in re.findall(r"\]\(([\w./-]+\.md)#([\w-]+)\)", GUIDE):
        text = (readme_tables.GUIDE.parent / name).read_text(encoding="utf-8")
        titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
        assert anchor in {re.sub(r"[^\w\s-]", "", title).lower().replace(" ", "-") for title in titles}, anchor


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
