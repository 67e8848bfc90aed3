"""The course on machines that lack something: each does the work rightly, or says in one line what it lacks.

Every case is a process of its own, with its own environment.
"""

import contextlib
import os
import shutil
import subprocess
import sys

import nbformat
import pytest
from hypothesis import settings

from tutorial_lib.project import ROOT

# A small training: masked, then truly sparse from the same start; both losses must fall, and be the same.
WORK = """
import torch
from torch import nn
from tutorial_lib import fit, load_data, mask_model
from truly_sparse import fuse, sparsify

data = load_data("digits", train_size=100)
losses = []
for form in (lambda model: model, lambda model: fuse(sparsify(model))):
    torch.manual_seed(0)
    model = mask_model(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2704, 10)), 0.8, seed=0)
    history = fit(form(model), data, epochs=6, lr=1e-2, device="cpu", progress=False)
    losses.append(history.train_loss)
masked, sparse = torch.tensor(losses)
assert masked[-1] < 0.7 * masked[0], losses
assert torch.allclose(masked, sparse, rtol=1e-3), losses
print("trained")
"""
NO_NUMBA = "import sys; sys.modules['numba'] = None\n"
# What numba raises where it cannot find a compiler's parts, or does not know the processor.
NO_COMPILER = """
import numba.core.dispatcher
def broken(*arguments): raise RuntimeError("no compiler for this processor")
numba.core.dispatcher.Dispatcher.compile = broken
"""
SLOWER = "the fast sparse kernels cannot be used"


def python(*arguments, prefix=(), cwd=ROOT, drop=(), timeout=300, **variables):
    """Run Python with changed environment variables; return what it printed, to both streams."""
    environment = {name: value for name, value in os.environ.items() if name not in drop}
    environment |= {"PYTHONPATH": str(ROOT)} | variables
    done = subprocess.run(
        [*prefix, sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.mark.parametrize("lacking", ["numba", "a compiler"])
def test_without_compiled_kernels_one_warning_and_the_same_work(lacking, survived):
    out = python("-c", {"numba": NO_NUMBA, "a compiler": NO_COMPILER}[lacking] + WORK)
    assert out.endswith("trained\n") and out.count(SLOWER) == 1, out
    survived("odd machines")


def test_no_gpu_one_core_no_display_a_plain_locale_and_no_home(tmp_path, survived):
    """All at once: none changes what another does."""
    prefix = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
    variables = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "LC_ALL": "C", "PYTHONUTF8": "0"}
    variables |= {"PYTHONCOERCECLOCALE": "0", "HOME": str(tmp_path / "missing")}
    drawing = "from tutorial_lib import viz\nviz.plot_densities({'erk': {'fc': 3}}, {'fc': 9})\n"
    report = "from tools import check_setup as c\nc.findings = lambda: [c.Finding('data', 'note', 'found', 'mend')]\n"
    code = WORK + drawing + report + "c.main()\n"
    out = python("-c", code, prefix=prefix, drop=("MPLBACKEND", "DISPLAY"), **variables)
    assert "trained\n" in out and out.endswith("? mend\nready\n") and SLOWER not in out, out
    survived("odd machines", 6)


@pytest.fixture
def elsewhere(tmp_path):
    """A copy of the library and a notebook under a path with spaces and letters beyond ASCII."""
    project = tmp_path / "Tîsch 机器 räume & co" / "the tutorial"
    for package in ("truly_sparse", "tutorial_lib"):
        shutil.copytree(ROOT / package, project / package, ignore=shutil.ignore_patterns("__pycache__"))
    (project / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "02_masked_layers.ipynb", project / "notebooks")
    return project


RUN_NOTEBOOK = """
import sys, nbformat, tutorial_lib
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=200, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
print(tutorial_lib.__file__)
"""


def test_a_path_with_spaces_and_letters_and_another_folder_to_start_in(elsewhere, tmp_path, survived):
    source, target = elsewhere / "notebooks" / "02_masked_layers.ipynb", tmp_path / "done.ipynb"
    out = python("-c", RUN_NOTEBOOK, source, target, cwd=tmp_path, PYTHONPATH=str(elsewhere))
    assert str(elsewhere) in out
    cells = [cell for cell in nbformat.read(target, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    survived("odd machines", 2)


@contextlib.contextmanager
def read_only(home, project):
    """Let nobody write to a home and a project; yield the variables that lead there."""
    paths = [home, project, *project.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        yield {"PYTHONPATH": str(project), "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    finally:
        for path in paths:
            path.chmod(0o755)


def test_a_project_and_a_home_that_cannot_be_written(elsewhere, tmp_path, without_root_rights, survived):
    """Where numba finds no place for what it compiles, the work is done all the same, and said why it is slow."""
    home = tmp_path / "home"
    home.mkdir()
    with read_only(home, elsewhere) as variables:
        out = python("-c", WORK, prefix=without_root_rights, cwd=elsewhere, **variables)
    assert "trained\n" in out and out.count(SLOWER) == 1 and "no locator available" in out, out
    survived("odd machines", 2)


def test_a_place_for_compiled_code_where_nothing_else_can_be_written(
    elsewhere, tmp_path, without_root_rights, survived
):
    """What README advises: ``NUMBA_CACHE_DIR``. The long version compiles everything into it, which takes minutes."""
    home, cache, long = tmp_path / "home", tmp_path / "compiled", settings.default.max_examples > 1000
    home.mkdir()
    code = (WORK if long else "") + "from truly_sparse.cpu import passes\nprint(passes.run_pass.stats.cache_path)"
    with read_only(home, elsewhere) as variables:
        variables |= {"NUMBA_CACHE_DIR": str(cache)}
        out = python("-c", code, prefix=without_root_rights, cwd=elsewhere, timeout=900, **variables)
    assert out.splitlines()[-1].startswith(str(cache)) and SLOWER not in out, out
    if long:
        assert "trained\n" in out and list(cache.rglob("*.nbi")), out
    survived("odd machines", 2)


def test_closed_standard_input(survived):
    out = python("-c", "import os; os.close(0)\n" + WORK)
    assert "trained\n" in out, out
    survived("odd machines")
