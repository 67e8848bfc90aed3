"""Shared fixtures: small real data and a small network."""

import pytest
import torch
from torch import nn

from tools.lab import chromium_browser, chromium_program
from tutorial_lib import load_data


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
