"""What the project promises around its code: set-up, README, notebooks and recorded numbers agree."""

import itertools
import json
import re
from importlib.metadata import metadata
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from tools import readme_tables
from tools.set_repository import present
from tutorial_lib import load_result
from tutorial_lib.project import FIGURES, ROOT

# What pyproject.toml says, as installed.
PROJECT = metadata("decade-of-sparse-training")
# Without the extras that no reader needs: a rival, the browser's driver, the site, guided fuzzing, others' networks.
REQUIREMENTS = [
    Requirement(line)
    for line in PROJECT.get_all("Requires-Dist")
    if not re.search('extra == "(bench|browser|fuzz|site|zoo)"', line)
]
ADDRESS = f"https://github.com/{present(ROOT)}"
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
HELP = readme_tables.HELP.read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BADGE = "https://colab.research.google.com/github/{}/blob/main/notebooks/{}"
# What Colab preinstalls.
COLAB = {"torch": "2.11", "numpy": "2.1", "scipy": "1.16", "matplotlib": "3.10", "numba": "0.61", "ipywidgets": "7.7"}


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def bounds(requirements):
    return {r.name: str(r.specifier) for r in requirements}


# ------------------------------------------------------------------------------------------ set-up


def test_environment_yml_says_the_same_as_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    conda = [line for line in environment["dependencies"] if isinstance(line, str)]
    (pip,) = (line["pip"] for line in environment["dependencies"] if isinstance(line, dict))
    assert "pip" in conda and pip[-1] == "-e ." and f"python{PROJECT['Requires-Python']}" in conda
    listed = [Requirement(line) for line in conda + pip[:-1] if line != "pip" and not line.startswith("python>")]
    assert bounds(listed) == bounds(REQUIREMENTS)
    assert [Requirement(line).name for line in pip[:-1]] == ["torch", "torchvision"]


def test_what_is_installed_is_what_pyproject_says():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for requirement in REQUIREMENTS:
        assert f'"{requirement.name}{requirement.specifier}"' in text, "run make clean, or touch pyproject.toml"
    listed = re.findall(
        r'^    "([\w-]+)>=', re.sub(r"^zoo = \[.*?^\]", "", text, flags=re.M | re.S), flags=re.MULTILINE
    )
    assert sorted(listed) == sorted(requirement.name for requirement in REQUIREMENTS)


def test_lower_bounds_only_and_none_above_colab():
    for requirement in REQUIREMENTS:
        (bound,) = requirement.specifier
        assert bound.operator == ">=", f"{requirement} is capped or pinned"
        if requirement.name in COLAB:
            assert Version(bound.version) <= Version(COLAB[requirement.name])


def test_every_make_command_in_readme_exists():
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))
    named = set(re.findall(r"make (?:PYTHON=\S+ )?([a-z-]+)(?=[`\s;])", README + HELP))
    assert {"tutorial", "test", "lab", "full", "lint", "clean", "help"} <= named & targets
    assert named <= targets


def test_readme_is_short_and_begins_with_what_to_type():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert len(re.findall(r"[.!?](?=\s|$)", README.split("\n\n")[1])) == 5, "five sentences say what it is"
    for command in ("make tutorial", "make test"):
        assert any(line.startswith(command) for line in lines[:25])
    assert len(re.findall(r"!\[", README)) == 2, "a notebook, and the decade"
    generated = "".join(re.findall(r"<!-- \w+ -->\n(.*?)<!-- end -->", README, flags=re.DOTALL))
    assert len(re.findall(r"^\| --- \|", generated, flags=re.MULTILINE)) == 3, "three tables"
    for command in ("tools/set_repository.py", "docs/instructor-guide.md", "docs/help.md", "docs/results.md"):
        assert command in README


def test_ci_runs_the_readme_test_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------ README and figures


@pytest.mark.parametrize("path", readme_tables.DOCUMENTS, ids=lambda path: path.name)
def test_tables_and_numbers_of_documents_are_those_of_the_recorded_results(path):
    text = path.read_text(encoding="utf-8")
    assert readme_tables.render(text, readme_tables.DOCUMENTS[path]) == text, "run: python -m tools.readme_tables"


def test_the_figures_beside_the_tables_can_be_drawn_again(tmp_path, monkeypatch):
    monkeypatch.setattr(readme_tables, "FIGURES", tmp_path)
    readme_tables.draw_figures()
    drawn = {path.stem for path in tmp_path.glob("*.png")}
    assert drawn >= {"results", "bench", "bench_crossover", "inference", "referee", "decade_ranks"}
    for name in ("referee_tradeoff.json", "referee_waterfall.json", "decade_ranks.json"):
        now, stored = (json.loads((folder / name).read_text(encoding="utf-8")) for folder in (tmp_path, FIGURES))
        assert now["provenance"] == stored["provenance"]
        assert [pytest.approx(row) for row in now["values"]] == stored["values"], "run: python -m tools.readme_tables"


def test_a_missing_table_place_is_noticed():
    with pytest.raises(ValueError, match="0 places for the table 'results'"):
        readme_tables.render(README.replace("<!-- results -->", ""))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_time_at_a_notebooks_top_is_measured_and_counts_its_exercises(path):
    head, text = read(path).cells[0].source, path.read_text(encoding="utf-8")
    seconds = json.loads((FIGURES / "notebook_times.json").read_text(encoding="utf-8"))["values"]["seconds"]
    assert readme_tables.with_seconds(text, seconds[path.stem]) == text, "run: python -m tools.readme_tables"
    exercises = re.findall(r"\*(?:Easy|Medium|Hard), (\d+) minutes\.\*", text)
    assert f"{sum(map(int, exercises))} for the exercises, {seconds[path.stem]:.0f} seconds to run" in head


def test_a_notebook_without_a_place_for_its_time_is_noticed():
    with pytest.raises(ValueError, match="0 places for the seconds"):
        readme_tables.with_seconds("*Time:* a while.", 3.0)


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
    ],
)
def test_every_file_that_a_document_names_exists(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / name).parent / target).exists(), target
    for target in re.findall(r"`((?:truly_sparse|tutorial_lib|tools|benchmarks|docs|tests)/[\w/.]*)`", text):
        assert (ROOT / target).exists(), target


def test_every_term_of_the_glossary_is_linked_once_where_it_is_first_seen():
    rows = re.findall(r"^\| (?!term|---)(.*) \|$", GLOSSARY, flags=re.MULTILINE)
    assert len(rows) >= 30
    for row in rows:
        anchor, place = re.fullmatch(r'<a id="([a-z-]+)"></a>\S.* \| .+ \| \[\w+\]\((.+)\)', row).groups()
        text = (ROOT / "docs" / place).read_text(encoding="utf-8")
        assert text.count(f"glossary.md#{anchor})") == 1, row


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *NOTEBOOKS], ids=lambda p: p.stem
)
def test_every_link_to_the_glossary_leads_to_a_term(path):
    anchors = re.findall(r'<a id="([a-z-]+)">', GLOSSARY)
    assert len(set(anchors)) == len(anchors)
    for folder, anchor in re.findall(r"\]\(([^()\s]*)glossary\.md#([^()\s]*)\)", path.read_text(encoding="utf-8")):
        assert anchor in anchors and (path.parent / folder / "glossary.md").samefile(ROOT / "docs" / "glossary.md")


def test_every_recorded_result_is_there():
    assert {p.stem for p in FIGURES.glob("*.json")} >= {
        "results",
        "inference",
        "crossover",
        "notebook_times",
        "bench",
        "bench_crossover",
    }


@pytest.mark.parametrize("path", sorted(FIGURES.glob("*")), ids=lambda p: p.name)
def test_every_figure_says_where_it_comes_from(path):
    """NAME.png and NAME_*.png are drawn from NAME.json."""
    sources = [p for p in FIGURES.glob("*.json") if f"{path.stem}_".startswith(f"{p.stem}_")]
    origin = json.loads(max(sources, key=lambda p: len(p.stem)).read_text(encoding="utf-8"))["provenance"]
    for key in ("command", "git_commit", "date_utc", "cpu", "torch_threads", "packages", "profile"):
        assert origin[key], key


def test_every_class_of_what_is_survived_is_counted_once_recorded():
    recorded = load_result("reliability")
    assert recorded is None or set(recorded["cases"]) == set(readme_tables.SURVIVED)
    assert all(f"| {name} |" in HELP for name in readme_tables.SURVIVED)
    counted = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py"))
    assert set(re.findall(r'survived\("([a-z ]+)"', counted)) <= set(readme_tables.SURVIVED)


def test_the_floor_is_what_pyproject_says():
    lines = (ROOT / "tests" / "floor-constraints.txt").read_text(encoding="utf-8").splitlines()[1:]
    floor = {r.name: str(r.specifier).replace("==", ">=") for r in map(Requirement, lines)}
    assert floor == bounds(REQUIREMENTS)


def test_the_results_come_from_full_mnist_and_several_seeds():
    result = json.loads((FIGURES / "results.json").read_text(encoding="utf-8"))
    assert result["provenance"]["data"]["name"] == "mnist" and result["provenance"]["data"]["train"] == 60_000
    assert result["values"]["epochs"] == 10 and len(result["values"]["seeds"]) >= 3
    for variant in result["values"]["variants"].values():
        assert len(variant["test_accuracy"]["samples"]) == len(result["values"]["seeds"])


# ------------------------------------------------------------------------------------------ notebooks


def test_all_places_name_the_repository_that_pyproject_names():
    owner_and_name = present(ROOT)
    assert set(re.findall(r"https://github\.com/[\w./-]+", README)) == {ADDRESS}
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["repository-code"] == ADDRESS
    for path in NOTEBOOKS:
        text = "\n".join(cell.source for cell in read(path).cells)
        assert BADGE.format(owner_and_name, path.name) in text
        assert set(re.findall(r"https://github\.com/[\w./-]+", text)) == {ADDRESS}
        assert set(re.findall(r"colab\.research\.google\.com/github/[\w./-]+", text)) == {
            BADGE.format(owner_and_name, path.name).removeprefix("https://")
        }


def test_the_setup_cell_is_the_same_everywhere_and_leaves_torch_alone():
    (setup,) = {code_cells(path)[0].source for path in NOTEBOOKS}
    assert '"google.colab" in sys.modules' in setup and "--no-deps" in setup and ADDRESS in setup


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_notebooks_are_one_clean_run(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert "widgets" not in read(path).metadata
    assert path.stat().st_size <= 1_000_000
    assert "profile: full" in path.read_text(encoding="utf-8")
    assert "profile: quick" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_anatomy(path):
    notebook = read(path)
    headings = re.findall(
        r"^(#+) ", "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown"), flags=re.MULTILINE
    )
    assert headings[0] == "#" and headings.count("#") == 1
    assert all(len(b) <= len(a) + 1 for a, b in itertools.pairwise(headings))
    text = "\n".join(cell.source for cell in notebook.cells)
    for part in ("You will", "You will learn", "You need", "Time:", "Predict", "What this does not show"):
        assert part in text.replace("*", ""), part
    assert sum("headline" in cell.metadata.get("tags", []) for cell in notebook.cells) == 1
    assert all(len(cell.source.splitlines()) <= 24 for cell in code_cells(path))
    assert any("NBVAL_CHECK_OUTPUT" in cell.source for cell in code_cells(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_all_that_a_stored_output_shows_is_recorded(path):
    shown = json.dumps([output for cell in code_cells(path) for output in cell.outputs])
    assert "not recorded yet" not in shown


def test_no_path_of_a_machine_in_any_notebook():
    for path in NOTEBOOKS:
        assert not re.search(r"/(home|root|Users)/\w", path.read_text(encoding="utf-8")), path.name


def test_six_notebooks():
    assert [Path(p).stem for p in NOTEBOOKS][:6] == [
        "01_paradox",
        "02_masked_layers",
        "03_dst_loop",
        "04_mask_visualization",
        "05_simulated_vs_csr",
        "06_barriers",
    ]
