"""``tools/set_repository.py`` changes every place that names the repository, and nothing else."""

import shutil
import subprocess
import sys

import nbformat
import pytest

from tools.set_repository import present, set_repository
from tutorial_lib.project import ROOT

NEW = "/".join(("octocat", "hello.world_2"))  # so that this file, which is copied too, does not name it
# What is built or fetched; no part of the project's own text.
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv*", ".*cache", ".hypothesis", ".ipynb_checkpoints", "build", "data", "__pycache__", "*.egg-info"
)


@pytest.fixture
def copy(tmp_path):
    """A copy of the whole working tree."""
    return shutil.copytree(ROOT, tmp_path / "tutorial", ignore=NOT_COPIED)


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def command(root, *arguments):
    """Run the copy's own command, which changes the tree that it stands in."""
    program = [sys.executable, root / "tools" / "set_repository.py", *arguments]
    return subprocess.run(program, capture_output=True, text=True, env={})


def test_every_place_of_the_tree_changes_and_the_way_back_gives_the_same_bytes(copy):
    before, old = contents(copy), present(copy).encode()
    done = command(copy, NEW)
    assert done.returncode == 0, done.stderr
    after = contents(copy)
    assert present(copy) == NEW and after.keys() == before.keys()
    assert {name for name in before if after[name] != before[name]} == {name for name in before if old in before[name]}
    for name, content in after.items():
        assert old not in content, f"add {name} to PLACES in tools/set_repository.py"
        assert content.replace(NEW.encode(), old) == before[name], f"something else has changed in {name}"
    assert command(copy, old.decode()).stdout == done.stdout
    assert contents(copy) == before


def test_a_notebook_changes_in_the_text_of_its_cells_only(copy):
    path, old = copy / "notebooks" / "01_paradox.ipynb", present(copy)
    said = f"Cloning https://github.com/{old}\n"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text=said)]
    notebook.metadata["source"] = [said]
    nbformat.write(notebook, path)
    set_repository(copy, NEW)
    changed = nbformat.read(path, as_version=4)
    assert changed.cells[1].outputs[0].text == said and changed.metadata["source"] == [said]
    for cell, now in zip(notebook.cells, changed.cells, strict=True):
        assert now.source == cell.source.replace(f"/{old}", f"/{NEW}")


def test_an_address_that_only_begins_alike_stays(copy):
    old = present(copy)
    with (copy / "README.md").open("a", encoding="utf-8") as readme:
        readme.write(f"https://github.com/{old}-2 https://github.com/{old}.js https://github.com/{old}.\n")
    set_repository(copy, NEW)
    end = (copy / "README.md").read_text(encoding="utf-8").splitlines()[-1]
    assert end == f"https://github.com/{old}-2 https://github.com/{old}.js https://github.com/{NEW}."


@pytest.mark.parametrize(
    "address",
    [
        *(
            "",
            "octocat",
            "octocat/",
            "/name",
            "a/b/c",
            "https://github.com/a/b",
            "o c/name",
            "a/b c",
            "a/b\n",
            "ä/name",
        ),
        *("-a/name", "a-/name", "a--b/name", f"{'a' * 40}/name", "a/..", "a/.", "a/name.git", f"a/{'b' * 101}"),
    ],
)
def test_what_is_no_address_changes_nothing(copy, address):
    before = contents(copy)
    with pytest.raises(ValueError, match="is not OWNER/NAME"):
        set_repository(copy, address)
    assert contents(copy) == before


@pytest.mark.parametrize("arguments", [[], ["a/b", "c/d"], ["https://github.com/a/b"]])
def test_wrong_arguments_of_the_command_are_said_in_one_line_and_change_nothing(copy, arguments):
    before = contents(copy)
    done = command(copy, *arguments)
    assert done.returncode == 2 and "OWNER/NAME" in done.stderr and "Traceback" not in done.stderr
    assert contents(copy) == before


@pytest.mark.parametrize("place", ["CITATION.cff", "notebooks/05_simulated_vs_csr.ipynb"])
def test_a_file_without_the_address_is_named_and_nothing_changes(copy, place):
    text = (copy / place).read_text(encoding="utf-8")
    (copy / place).write_text(text.replace(present(copy), "else/where"), encoding="utf-8")
    before = contents(copy)
    with pytest.raises(ValueError, match=rf"{place} does not name https://github\.com/"):
        set_repository(copy, NEW)
    assert contents(copy) == before


def test_a_project_without_the_setting_is_refused(copy):
    text = (copy / "pyproject.toml").read_text(encoding="utf-8")
    (copy / "pyproject.toml").write_text(text.replace("Repository =", "Homepage ="), encoding="utf-8")
    with pytest.raises(ValueError, match=r"pyproject\.toml has 0 lines like Repository"):
        set_repository(copy, NEW)
