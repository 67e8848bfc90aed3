"""The engine by itself: without the helper library and its packages, quick to import, and from a wheel elsewhere."""

import os
import statistics
import subprocess
import sys
import zipfile

import pytest

from tutorial_lib.project import ROOT

OTHERS = (
    "tutorial_lib matplotlib pandas seaborn sklearn scipy torchvision IPython tqdm pooch ipywidgets jupyterlab"
).split()
# A forward and a backward pass, a rewiring, a round trip of the state, a fused training step.
WORK = """
import copy, torch
from torch import nn
from truly_sparse import RigL, TrainingStep, fuse, sparsify

torch.manual_seed(0)
dense = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10))
x, y = torch.randn(12, 1, 8, 8), torch.arange(12) % 10
model = sparsify(dense, sparsity=0.5)
optimizer = torch.optim.Adam(model.parameters())
driver = RigL(every=1).attach(model, optimizer, steps_per_epoch=1, total_steps=4, seed=0)
before = model[4].active()
nn.functional.cross_entropy(model(x), y).backward()
optimizer.step()
assert driver.step() and not torch.equal(before, model[4].active())
other = sparsify(dense, sparsity=0.5)
other.load_state_dict(copy.deepcopy(model.state_dict()))
assert torch.equal(other(x), model(x))
fused = fuse(model)
step = TrainingStep(fused, torch.optim.Adam(fused.parameters(), lr=0.01))
losses = [step(x, y)[0] for _ in range(20)]
assert losses[-1] < losses[0]
print("done")
"""
HIDE = """
import importlib.machinery
find = importlib.machinery.PathFinder.find_spec

def hiding(name, path=None, target=None):
    return None if name.partition(".")[0] in {others} else find(name, path, target)

importlib.machinery.PathFinder.find_spec = hiding
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__name__", "").lower()]
for name in {others}:
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(name + " can still be imported")
"""
TIME = """
import sys, time
import numpy, torch
start = time.perf_counter()
import truly_sparse
print(time.perf_counter() - start, "numba" in sys.modules)
"""


def child(code, *, cwd=ROOT, path=None, **environment):
    """Run code in a process of its own, which imports the packages from ``path`` first."""
    begin = f"import sys\nsys.path.insert(0, {str(path or ROOT)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", begin + code], capture_output=True, text=True, cwd=cwd, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_works_without_the_helper_library_and_its_packages():
    assert child(HIDE.format(others=OTHERS) + WORK) == "done\n"


def test_importing_it_compiles_nothing_and_takes_little_time():
    runs = [child(TIME).split() for _ in range(3)]
    assert all(numba == "False" for _, numba in runs)
    assert statistics.median(float(seconds) for seconds, _ in runs) <= 0.3


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, unpacked; built without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*build, "--wheel-dir", str(folder), str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as content:
        content.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_a_wheel_trains_and_rewires_elsewhere(wheel, tmp_path):
    assert (wheel / "truly_sparse" / "py.typed").is_file() and (wheel / "tutorial_lib" / "player.html").is_file()
    where = "import truly_sparse\nprint(truly_sparse.__file__)\n"
    # Compiling anew would take a minute; what is compiled is tested elsewhere.
    first, last = child(where + WORK, cwd=tmp_path, path=wheel, NUMBA_DISABLE_JIT="1").splitlines()
    assert first.startswith(str(wheel)) and last == "done"


def test_a_wheel_holds_no_compiled_code_and_no_tests(wheel):
    names = {path.name for path in wheel.rglob("*") if path.is_file()}
    assert not [name for name in names if name.endswith((".nbi", ".nbc", ".pyc"))]
    assert {path.name for path in wheel.iterdir() if path.suffix != ".dist-info"} == {"truly_sparse", "tutorial_lib"}
