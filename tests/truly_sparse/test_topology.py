"""Topology: budgets are met to the last weight, draws are exact and uniform."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from truly_sparse import InvalidArgumentError, layer_nnz
from truly_sparse.interface import weight_layers
from truly_sparse.topology import SCHEMES, sample_distinct, to_connections, to_mask
from tutorial_lib import MaskedLinear, TutorialCNN, count_parameters

WEIGHTS = 1_343_456


def test_the_network_has_the_stated_size():
    model = TutorialCNN()
    assert count_parameters(model) == 1_345_642
    assert sum(layer.weight.numel() for layer in weight_layers(model).values()) == WEIGHTS
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_budget_at_95_percent(scheme):
    assert sum(layer_nnz(TutorialCNN(), 0.95, scheme).values()) == 67_173


def test_known_densities():
    assert layer_nnz(TutorialCNN(), 0.95, "uniform") == {
        "conv1": 7, "conv2": 231, "fc1": 10035, "fc2": 6400, "fc3": 50000, "fc4": 500
    }  # fmt: skip
    erk = layer_nnz(TutorialCNN(), 0.95, "erk")
    assert erk["conv1"] == 144 and erk["fc4"] == 10_000  # full layers stay dense
    # The others are in proportion to out + in + kernel height + kernel width.
    assert erk["fc1"] / erk["fc3"] == pytest.approx((128 + 1568) / 2000, rel=1e-3)
    assert erk["conv2"] / erk["fc3"] == pytest.approx((32 + 16 + 3 + 3) / 2000, rel=1e-2)
    er = layer_nnz(nn.Sequential(nn.Conv2d(8, 8, 3), nn.Linear(100, 100)), 0.9, "er")
    assert er["0"] / er["1"] == pytest.approx(9 * 16 / 200, rel=1e-2)


@settings(max_examples=100, deadline=None)
@given(
    widths=st.lists(st.integers(1, 40), min_size=2, max_size=6),
    sparsity=st.floats(0, 0.999),
    scheme=st.sampled_from(SCHEMES),
)
def test_counts_add_up_exactly(widths, sparsity, scheme):
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))
    sizes = [layer.weight.numel() for layer in model]
    budget = round((1 - sparsity) * sum(sizes))
    if budget < len(sizes):
        with pytest.raises(InvalidArgumentError, match="each layer has one"):
            layer_nnz(model, sparsity, scheme)
        return
    counts = list(layer_nnz(model, sparsity, scheme).values())
    assert sum(counts) == budget
    assert all(1 <= count <= size for count, size in zip(counts, sizes, strict=True))


@pytest.mark.parametrize("sparsity", [-0.1, 1, 1.5, math.nan, math.inf, "0.9", None])
def test_bad_sparsity(sparsity):
    with pytest.raises((InvalidArgumentError, TypeError), match=r"sparsity=|not supported"):
        layer_nnz(TutorialCNN(), sparsity)


def test_unknown_scheme():
    with pytest.raises(InvalidArgumentError, match="scheme='ERK'; use one of uniform, er, erk"):
        layer_nnz(TutorialCNN(), 0.9, "ERK")


def test_model_without_weights():
    with pytest.raises(InvalidArgumentError, match=r"no nn\.Linear, nn\.Conv1d or nn\.Conv2d"):
        layer_nnz(nn.Sequential(nn.ReLU()), 0.9)


def test_layers_that_use_their_weight_themselves_are_left_alone():
    attention = nn.MultiheadAttention(8, 2)  # its out_proj is a Linear whose forward is never called
    assert list(weight_layers(nn.ModuleList([attention, nn.Linear(2, 2), MaskedLinear(2, 2)]))) == ["1", "2"]


def test_a_layer_in_two_places_is_refused():
    shared = nn.Linear(3, 3)
    with pytest.raises(InvalidArgumentError, match="'0' and '2' are the same layer"):
        layer_nnz(nn.Sequential(shared, nn.ReLU(), shared), 0.5)


def test_include_and_exclude():
    names = list(layer_nnz(TutorialCNN(), 0.9, include=["fc*"], exclude=["fc4"]))
    assert names == ["fc1", "fc2", "fc3"]


@settings(max_examples=100, deadline=None)
@given(population=st.integers(0, 300), share=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_samples_are_distinct_sorted_and_in_range(population, share, seed):
    count = int(share * population)
    drawn = sample_distinct(population, count, torch.Generator().manual_seed(seed))
    assert drawn.dtype == torch.int64 and len(drawn) == count == len(drawn.unique())
    assert torch.equal(drawn, drawn.sort().values)
    assert count == 0 or (0 <= drawn.min() and drawn.max() < population)


def test_samples_are_uniform():
    generator = torch.Generator().manual_seed(0)
    hits = torch.zeros(20)
    for _ in range(2000):
        hits[sample_distinct(20, 5, generator)] += 1
    # Each place is expected 500 times with a deviation of about 19.
    assert (hits - 500).abs().max() < 5 * 19.4


def test_samples_out_of_a_population_too_large_to_hold():
    drawn = sample_distinct(200_000**2, 10, torch.Generator().manual_seed(0))
    assert len(drawn) == 10 and drawn.max() > 2**32


def test_more_samples_than_places():
    with pytest.raises(InvalidArgumentError, match="count=4"):
        sample_distinct(3, 4, torch.Generator())


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000))
def test_mask_and_connections_are_inverse(seed):
    mask = torch.rand(3, 4, 2, 2, generator=torch.Generator().manual_seed(seed)) < 0.3
    assert torch.equal(to_mask(to_connections(mask), mask.shape), mask)
