"""Shared fixtures: small real data and a small network, and the count of what the library survives.

``survived("fuzzing")`` counts one case that ended well; the sum per class is printed after the tests, and
``--record-reliability`` writes it to ``figures/reliability.json`` if nothing failed. ``--hypothesis-profile=long``
draws many more examples and repeats long runs more often. ``--record-zoo`` writes what ``tests/zoo``
found to ``figures/zoo.json``.
"""

import hashlib
import multiprocessing
import os
import struct
from collections import Counter
from importlib.metadata import version

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import nn

from tools.lab import chromium_browser, chromium_program
from tutorial_lib import data, load_data, save_result

SURVIVED = pytest.StashKey[Counter]()
ZOO = pytest.StashKey[dict]()
settings.register_profile("default", deadline=None, derandomize=True, max_examples=40)
settings.register_profile("long", deadline=None, max_examples=1500)
settings.load_profile("default")


def pytest_addoption(parser):
    parser.addoption("--record-reliability", action="store_true", help="write figures/reliability.json")
    parser.addoption("--record-zoo", action="store_true", help="write figures/zoo.json")


def pytest_configure(config):
    config.stash[SURVIVED] = Counter()
    config.stash[ZOO] = {}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    node.config.stash[SURVIVED].update(node.workeroutput.get("survived", {}) if error is None else {})


def pytest_terminal_summary(terminalreporter, config):
    for name, cases in sorted(config.stash[SURVIVED].items()):
        terminalreporter.write_line(f"survived {cases:6,} cases: {name}")


def pytest_sessionfinish(session, exitstatus):
    if hasattr(session.config, "workeroutput"):  # one of several processes: its counts go to the one that prints
        session.config.workeroutput["survived"] = dict(session.config.stash[SURVIVED])
        return
    if session.config.getoption("--record-reliability") and exitstatus == 0:
        counts = dict(sorted(session.config.stash[SURVIVED].items()))
        save_result("reliability", {"cases": counts}, command="make reliability")
    if session.config.getoption("--record-zoo") and exitstatus == 0:
        versions = {name: version(name) for name in ("timm", "transformers", "lightning", "accelerate", "onnxruntime")}
        found = {"networks": session.config.stash[ZOO], "versions": versions}
        save_result("zoo", found, command="make test-zoo RECORD=--record-zoo")


@pytest.fixture(scope="session")
def at_length(pytestconfig):
    """Return a function that gives the number of repetitions: the first one in `make test`, the second at length."""
    return lambda few, many: many if pytestconfig.getoption("--hypothesis-profile") == "long" else few


@pytest.fixture(scope="session")
def processes():
    """Children are forked from one server that has imported everything once and has never computed anything."""
    context = multiprocessing.get_context("forkserver")
    # torch._dynamo is what an optimizer's first step imports, for more than a second.
    context.set_forkserver_preload(["numba", "sklearn.datasets", "torch._dynamo", "truly_sparse", "tutorial_lib"])
    return context


@pytest.fixture(scope="session")
def survived(pytestconfig):
    """Return a function that counts ``cases`` of a class as survived; call it after what could fail."""

    def count(name: str, cases: int = 1) -> None:
        pytestconfig.stash[SURVIVED][name] += cases

    return count


@pytest.fixture(scope="session")
def zoo(pytestconfig):
    """Return a function that notes what was found about a network; call it after what could fail."""
    return pytestconfig.stash[ZOO].__setitem__


@pytest.fixture(scope="session")
def without_root_rights():
    """What to put before a command so that its process, though it may be root's, respects the modes of files."""
    return ["setpriv", "--bounding-set=-all"] if os.geteuid() == 0 else []


@pytest.fixture(scope="session")
def digits():
    """300 of scikit-learn's real digits for training, 360 for testing."""
    return load_data("digits", train_size=300)


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    """A folder in MNIST's layout with four tiny files, whose checksums stand in for the real ones."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    sums = {}
    for file, count in zip(data.MNIST_SHA256, (50, 50, 20, 20), strict=True):
        if "images" in file:
            content = struct.pack(">4i", 2051, count, 28, 28) + generator.bytes(count * 784)
        else:
            content = struct.pack(">2i", 2049, count) + bytes(i % 10 for i in range(count))
        (raw / file).write_bytes(content)
        sums[file] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(data, "MNIST_SHA256", sums)
    return tmp_path


class SmallCNN(nn.Module):
    """A network with every kind of layer that matters, nested, small enough for a test."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.hidden = nn.Linear(4 * 14 * 14, 16)
        self.out = nn.Linear(16, 10, bias=False)

    def forward(self, x):
        return self.out(torch.relu(self.hidden(self.features(x).flatten(1))))


@pytest.fixture
def small_cnn():
    torch.manual_seed(0)
    return SmallCNN()


@pytest.fixture(scope="session")
def chromium():
    if chromium_program() is None:
        pytest.fail("no Chromium here: apt install chromium, or run make test-browser")
    with chromium_browser() as browser:
        yield browser
