"""Colab, as far as it can be proven without it: its set-up cell, its folders, its versions, and nothing reinstalled.

`make test` runs one notebook so, in the versions that are installed; `make test-colab` runs all of them in Colab's.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import metadata

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tools.set_repository import present
from tutorial_lib.project import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CONSTRAINTS = ROOT / "tests" / "colab-constraints.txt"
PINNED = {r.name: r.specifier for r in map(Requirement, CONSTRAINTS.read_text(encoding="utf-8").splitlines()[2:])}
ADDRESS = f"https://github.com/{present(ROOT)}"
COLAB_PYTHON = ROOT / ".venv-colab" / "bin" / "python"
KEPT = ("torch", "torchvision", "numpy")

WHERE = """
import importlib.metadata as m, json
print(json.dumps({name: [m.version(name), str(m.distribution(name).locate_file(name)),
    (m.distribution(name)._path / "RECORD").stat().st_mtime_ns] for name in NAMES}))
"""
RUN = """
import json, sys, time, nbformat
from nbclient import NotebookClient
source, target = sys.argv[1:]
notebook = nbformat.read(source, as_version=4)
NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
nbformat.write(notebook, target)
"""


def installed(python):
    """Return version, place and time of installation of the packages that must stay as they are."""
    done = subprocess.run([python, "-c", f"NAMES = {KEPT}\n{WHERE}"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A git repository with the files of the working tree: what Colab would fetch."""
    folder = tmp_path_factory.mktemp("origin") / "tutorial"
    git = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(git, capture_output=True, text=True, check=True).stdout.rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    author = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*author, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    return folder


def like_colab(base, origin, home):
    """Lay an environment over that of ``base``: what pip installs goes on top, what lies below cannot change.

    As in Colab, ``google.colab`` is imported when Python starts, and the notebook's folder is not the project's. Git
    takes the local repository for the public address, and pip may ask nobody.

    Returns:
        The environment's Python, the environment variables, and the working directory.
    """
    subprocess.run([base, "-m", "venv", "--without-pip", home / "env"], check=True)
    ask = [base, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    below = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    (packages,) = (home / "env").glob("lib/python*/site-packages")
    (packages / "google" / "colab").mkdir(parents=True)
    (packages / "google" / "colab" / "__init__.py").touch()
    (packages / "below.pth").write_text(f"{below}\nimport google.colab\n")
    (home / "content").mkdir()
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "PATH": f"{home / 'env' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTER_PLATFORM_DIRS": "0",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{origin.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": ADDRESS,
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say that isolation, which would ask for setuptools, is off
        "TUTORIAL_PROFILE": "quick",
    }
    return home / "env" / "bin" / "python", variables, home / "content"


def run(notebook, python, variables, content):
    """Run a notebook in a kernel of that Python; Colab's folder ``/content`` is a temporary one here."""
    copy = nbformat.read(notebook, as_version=4)
    for cell in copy.cells:
        cell.source = cell.source.replace("/content/", f"{content}/")
    nbformat.write(copy, content / notebook.name)
    command = [python, "-c", RUN, content / notebook.name, content / "done.ipynb"]
    done = subprocess.run(command, env=variables, cwd=content, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return [cell for cell in nbformat.read(content / "done.ipynb", as_version=4).cells if cell.cell_type == "code"]


def check_one(base, origin, home, notebook):
    """Run a notebook as on Colab; torch and numpy are then where and what they were, and nothing lies over them."""
    before = installed(base)
    python, variables, content = like_colab(base, origin, home)
    cells = run(notebook, python, variables, content)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert (content / "tutorial" / "tutorial_lib" / "__init__.py").is_file(), "the set-up cell fetched nothing"
    assert installed(base) == before
    assert installed(python) == before, "the set-up cell laid another version over the installed one"
    (packages,) = (home / "env").glob("lib/python*/site-packages")
    new = {path.name.split("-")[0] for path in packages.glob("*.dist-info")}
    assert new == {"decade_of_sparse_training"}, "the set-up cell installed more than the project"
    return before


def test_a_notebook_runs_as_on_colab(origin, tmp_path):
    check_one(sys.executable, origin, tmp_path, ROOT / "notebooks" / "02_masked_layers.ipynb")


@pytest.mark.colab
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_in_the_versions_of_colab(origin, tmp_path, path):
    assert COLAB_PYTHON.exists(), "no environment with Colab's versions: run make test-colab"
    before = check_one(COLAB_PYTHON, origin, tmp_path, path)
    for name, (version, *_) in before.items():
        assert Version(Version(version).public) in PINNED[name], f"{name} {version}"


def test_notebooks_import_nothing_that_colab_lacks():
    """So neither another install nor a widget that needs its own manager."""
    there = {"torch", "numpy", "scipy", "numba", "pandas", "matplotlib", "seaborn", "tqdm", "sklearn", "ipywidgets"}
    there |= {"IPython", "truly_sparse", "tutorial_lib", *sys.stdlib_module_names}
    for path in NOTEBOOKS:
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        for cell in cells[1:]:  # the first is the set-up cell, partly shell
            for node in ast.walk(ast.parse(cell.source)):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) else []
                assert {name.split(".")[0] for name in names} <= there, path.name


def test_the_project_accepts_the_versions_of_colab():
    requirements = [Requirement(r) for r in metadata("decade-of-sparse-training").get_all("Requires-Dist")]
    for requirement in requirements:
        if requirement.name in PINNED and requirement.marker is None:
            (pin,) = PINNED[requirement.name]
            assert pin.version in requirement.specifier, requirement
