"""Lists of positions: the compiled loops and numpy give what plain Python sets give."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from truly_sparse import InvalidArgumentError, positions
from truly_sparse.cpu.index import LinearIndex

SIZE = 40
lists = st.sets(st.integers(0, SIZE - 1)).map(sorted)
numbers = st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, -3.0, 1e-42]), max_size=60)


@pytest.fixture(params=["compiled", "numpy"], autouse=True)
def loops(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(positions, "loops_or_none", lambda: None)
        monkeypatch.setattr("truly_sparse.cpu.blocks.loops_or_none", lambda: None)
    else:
        assert positions.loops_or_none() is not None


def tensor(numbers):
    return torch.tensor(numbers, dtype=torch.int64)


@given(lists, lists)
def test_contained(some, others):
    assert positions.contained(tensor(some), tensor(others)).tolist() == [number in others for number in some]


@given(st.lists(st.integers(-1, SIZE)), lists)
def test_are_outside(some, others):
    is_list = some == sorted(set(some)) and all(0 <= number < SIZE for number in some)
    assert positions.are_outside(tensor(some), tensor(others), SIZE) == (is_list and not set(some) & set(others))


@pytest.mark.parametrize("wrong", [torch.tensor([1.0]), torch.tensor([[1]]), torch.tensor([1], dtype=torch.int32), [1]])
def test_what_is_no_list_of_positions_is_not_outside(wrong):
    assert not positions.are_outside(wrong, tensor([]), SIZE)


@given(st.data(), st.sampled_from([1, 2, 40, 2**11, 2**11 + 1, 2**22 + 1, 2**40, 2**62]))
def test_sorted_distinct(data, population):
    some = data.draw(st.lists(st.integers(0, population - 1), max_size=30))
    assert positions.sorted_distinct(tensor(some), population).tolist() == sorted(set(some))


@given(lists, st.data())
def test_rewired(active, data):
    kept = sorted(data.draw(st.sets(st.sampled_from(active)))) if active else []
    grown = sorted(data.draw(st.sets(st.integers(0, SIZE - 1))) - set(active))
    after, was = positions.rewired(tensor(active), tensor(kept), tensor(grown))
    assert after.tolist() == sorted(kept + grown)
    assert [(active + grown)[place] for place in was.tolist()] == after.tolist()


@pytest.mark.parametrize(
    ("kept", "grown", "message"),
    [([1, 5], [], "kept: 5 is not active"), ([1], [2, 4], "grown: 4 is already active"), ([9], [], "kept: 9")],
)
def test_rewired_refuses_what_is_no_part_or_no_news(kept, grown, message):
    with pytest.raises(InvalidArgumentError, match=message):
        positions.rewired(tensor([1, 4, 7]), tensor(kept), tensor(grown))


@given(lists, st.data())
def test_unranked(active, data):
    free = [number for number in range(SIZE) if number not in active]
    ranks = sorted(data.draw(st.sets(st.integers(0, len(free) - 1)))) if free else []
    assert positions.unranked(tensor(active), tensor(ranks)).tolist() == [free[rank] for rank in ranks]


@given(st.lists(st.integers(-2, SIZE + 1), max_size=12))
def test_only_sorted_distinct_positions_in_range_are_connections(flat):
    if flat == sorted(set(flat)) and all(0 <= place < SIZE for place in flat):
        assert positions.check_connections("flat", tensor(flat), (4, 10)).tolist() == flat
    else:
        with pytest.raises(InvalidArgumentError):
            positions.check_connections("flat", tensor(flat), (4, 10))


def best(values, count, outside=()):
    """Return the places of the largest, of equal ones the first."""
    places = sorted((place for place in range(len(values)) if place not in outside), key=lambda at: (-values[at], at))
    return sorted(places[:count])


@given(numbers, st.data())
def test_largest(values, data):
    count = data.draw(st.integers(0, len(values)))
    assert positions.largest(torch.tensor(values), count).tolist() == best(values, count)


@given(st.lists(numbers, max_size=4), st.data())
def test_largest_in_blocks_outside_of_a_list(blocks, data):
    values = [abs(value) for block in blocks for value in block]
    outside = sorted(data.draw(st.sets(st.integers(0, len(values) - 1)))) if values else []
    count = data.draw(st.integers(0, len(values) - len(outside)))
    found = positions.Largest(count, tensor(outside))
    for block in blocks:
        assert found.add(torch.tensor(block, dtype=torch.float32)) is None
    assert found.places.tolist() == best(values, count, set(outside))


@pytest.mark.parametrize("kind", ["normal", "mostly zero", "all equal", "rising", "few large in the sample"])
@pytest.mark.parametrize("count", [1, 500, 20_000])
def test_a_bound_that_was_estimated_changes_nothing(kind, count):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 100_000, generator=generator)
    if kind == "mostly zero":
        values[values.abs() < 2] = 0
    elif kind == "all equal":
        values = torch.ones_like(values)
    elif kind == "rising":
        values = values.abs().reshape(-1).sort().values.view(3, -1)
    elif kind == "few large in the sample":
        values[:, :: 100_000 // positions.SAMPLE] *= 1000
    outside = torch.arange(0, 300_000, 7)
    found = positions.Largest(count, outside)
    for block in values:
        found.add(block)
    score = values.reshape(-1).abs()
    score[outside] = -1
    expected = torch.from_numpy(np.sort(np.lexsort((np.arange(len(score)), -score.numpy()))[:count]))
    assert torch.equal(torch.from_numpy(found.places), expected)


@pytest.mark.parametrize("wrong", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("place", [0, 5, 4096, 69_999])
def test_a_number_that_is_not_finite_is_returned_wherever_it_stands(wrong, place):
    values = torch.ones(70_000)
    values[place] = wrong
    found = positions.Largest(3, torch.tensor([5]))
    assert found.add(values) == pytest.approx(wrong, nan_ok=True) and found.start == 0


@given(st.sets(st.integers(0, 7 * 9 - 1)).map(sorted))
def test_an_index_is_the_same_with_and_without_compiled_loops(flat):
    index = LinearIndex.build(tensor(flat), (7, 9))
    assert index.flat().tolist() == flat
    entries = sorted((place % 9, place // 9, at) for at, place in enumerate(flat))
    found = zip(index.t_rows.tolist(), index.t_perm.tolist(), strict=True)
    assert list(found) == [(row, at) for _, row, at in entries]
    assert np.diff(index.t_indptr).tolist() == [sum(place % 9 == column for place in flat) for column in range(9)]
    by_output = LinearIndex.build(tensor(flat), (7, 9), by_input=False)
    assert by_output.flat().tolist() == flat and by_output.blocks == by_output.t_rows.size == by_output.t_perm.size == 0


@given(lists, st.data())
def test_without(active, data):
    places = sorted(data.draw(st.sets(st.integers(0, len(active) - 1)))) if active else []
    left = [number for place, number in enumerate(active) if place not in places]
    assert positions.without(tensor(active), tensor(places)).tolist() == left


@given(st.lists(st.floats(0, 1, exclude_max=True), max_size=9), st.data())
def test_one_in_each_part(drawn, data):
    size = data.draw(st.integers(len(drawn), 50))
    shift = data.draw(st.integers(0, max(0, size - 1)))
    found = positions.one_in_each_part(torch.tensor(drawn, dtype=torch.float64), size, shift).tolist()
    borders = [*(i * (size / len(drawn)) // 1 for i in range(len(drawn))), size]
    numbers = [low + part * (high - low) // 1 for part, low, high in zip(drawn, borders, borders[1:], strict=False)]
    assert found == sorted((number + shift) % size for number in numbers)
    assert len(set(found)) == len(drawn)
