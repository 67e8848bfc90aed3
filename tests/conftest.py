"""Shared fixtures: small real data and a small network, and the count of what the library survives.

``survived("fuzzing")`` counts one case that ended well; the sum per class is printed after the tests, and
``--record-reliability`` writes it to ``figures/reliability.json`` if nothing failed. ``--hypothesis-profile=long``
draws many more examples.
"""

from collections import Counter

import pytest
import torch
from hypothesis import settings
from torch import nn

from tools.lab import chromium_browser, chromium_program
from tutorial_lib import load_data, save_result

SURVIVED = pytest.StashKey[Counter]()
settings.register_profile("default", deadline=None, derandomize=True, max_examples=40)
settings.register_profile("long", deadline=None, max_examples=1500)
settings.load_profile("default")


def pytest_addoption(parser):
    parser.addoption("--record-reliability", action="store_true", help="write figures/reliability.json")


def pytest_configure(config):
    config.stash[SURVIVED] = Counter()


def pytest_terminal_summary(terminalreporter, config):
    for name, cases in sorted(config.stash[SURVIVED].items()):
        terminalreporter.write_line(f"survived {cases:6,} cases: {name}")


def pytest_sessionfinish(session, exitstatus):
    if session.config.getoption("--record-reliability") and exitstatus == 0:
        counts = dict(sorted(session.config.stash[SURVIVED].items()))
        save_result("reliability", {"cases": counts}, command="make reliability")


@pytest.fixture(scope="session")
def survived(pytestconfig):
    """Return a function that counts ``cases`` of a class as survived; call it after what could fail."""

    def count(name: str, cases: int = 1) -> None:
        pytestconfig.stash[SURVIVED][name] += cases

    return count


@pytest.fixture(scope="session")
def digits():
    """300 of scikit-learn's real digits for training, 360 for testing."""
    return load_data("digits", train_size=300)


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
