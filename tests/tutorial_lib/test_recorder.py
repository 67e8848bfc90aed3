"""The recorder: exact topologies in few bytes; its analyses agree with plain Python sets."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truly_sparse import InvalidArgumentError, layer_nnz, sparse_layers
from truly_sparse.interface import weight_layers, weight_shape
from tutorial_lib import TopologyRecorder, TutorialCNN, mask_model

SHAPES = {"conv": (4, 3, 2, 2), "fc": (5, 12)}
MOMENTS = 7


def layer_with(shape, connections):
    """Return a stand-in for a layer with the two attributes that the recorder reads."""
    active = torch.tensor(sorted(connections), dtype=torch.int64)
    return SimpleNamespace(dense_shape=shape, active=lambda: active)


def recorded(run, shapes):
    """Return a recorder of ``run``: per moment, each layer's set of connections; its steps are 0, 10, 20, …"""
    recorder = TopologyRecorder()
    for moment, topology in enumerate(run):
        recorder.record({name: layer_with(shapes[name], topology[name]) for name in shapes}, 10 * moment)
    return recorder


def _drawn(rng, shape, count):
    return set(rng.permutation(math.prod(shape))[:count].tolist())


@pytest.fixture(params=range(3))
def run(request):
    """A random run in which connections are pruned and grow back; one layer is empty at one moment."""
    rng = np.random.default_rng(request.param)
    moments = [{name: _drawn(rng, shape, 9) for name, shape in SHAPES.items()}]
    for _ in range(MOMENTS - 1):
        kept = {name: {c for c in sorted(moments[-1][name]) if rng.random() < 0.7} for name in SHAPES}
        moments.append({name: kept[name] | _drawn(rng, shape, 3) for name, shape in SHAPES.items()})
    moments[3]["fc"] = set()
    return moments


def of(run, layer):
    """Return a set per moment: the connections of one layer, or of all as (name, connection)."""
    return [{(name, c) for name in SHAPES for c in topology[name] if layer in (None, name)} for topology in run]


def test_gives_back_every_topology(run):
    recorder = recorded(run, SHAPES)
    assert len(recorder) == MOMENTS and recorder.steps == [0, 10, 20, 30, 40, 50, 60] and recorder.shapes == SHAPES
    for name, shape in SHAPES.items():
        for moment, (topology, found) in enumerate(zip(run, recorder.topologies(name), strict=True)):
            assert found.dtype == np.int64 and found.tolist() == sorted(topology[name])
            assert recorder.connections(name, moment).tolist() == recorder.connections(name, moment - MOMENTS).tolist()
            mask = recorder.mask(name, moment)
            assert mask.dtype == bool and mask.shape == shape
            assert np.array_equal(mask.ravel().nonzero()[0], found)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.integers(0, 2**40 - 1) | st.integers(0, 300), max_size=30), min_size=1, max_size=6))
def test_packing_is_exact_in_layers_of_any_size(topologies):
    recorder = recorded([{"a": topology} for topology in topologies], {"a": (2**20, 2**20)})
    again = TopologyRecorder()
    again.load_state_dict(recorder.state_dict())
    for one in (recorder, again):
        assert [found.tolist() for found in one.topologies("a")] == [sorted(topology) for topology in topologies]
        assert one.connections("a", -1).tolist() == sorted(topologies[-1])


def test_records_a_model_as_it_changes(small_cnn):
    model = mask_model(small_cnn, 0.8)
    recorder, masks = TopologyRecorder(), []
    for step in range(3):
        recorder.record(sparse_layers(model), step)
        masks.append({name: layer.mask.clone() for name, layer in sparse_layers(model).items()})
        active = model.hidden.active()
        free = (~model.hidden.mask.flatten()).nonzero().squeeze(1)[:5]
        model.hidden.rewire(active[5:], free, torch.zeros(5))
    for moment, at in enumerate(masks):
        for name, mask in at.items():
            assert torch.equal(torch.from_numpy(recorder.mask(name, moment)), mask)


def test_a_moment_without_change_takes_a_few_bytes():
    rng = np.random.default_rng(0)
    topology = {"a": set(rng.permutation(10_000)[:2000].tolist())}
    one, many = recorded([topology], {"a": (100, 100)}), recorded([topology] * 11, {"a": (100, 100)})
    assert one.nbytes < 2000 and many.nbytes - one.nbytes < 10 * 12


def test_ten_epochs_of_rewiring_the_tutorial_network_fit_in_5_megabytes():
    """Random growth is the worst case: connections grown by gradient lie closer together."""
    rng, model, recorder = np.random.default_rng(0), TutorialCNN(), TopologyRecorder()
    shapes = {name: weight_shape(layer) for name, layer in weight_layers(model).items()}
    active = {
        name: np.sort(rng.choice(math.prod(shapes[name]), nnz, replace=False))
        for name, nnz in layer_nnz(model, 0.95, "erk").items()
    }
    assert sum(map(len, active.values())) == 67_173
    for rewiring in range(71):
        recorder.record({name: layer_with(shapes[name], active[name]) for name in shapes}, 134 * rewiring)
        fraction = 0.15 * (1 + math.cos(math.pi * rewiring / 71))
        for name, before in active.items():
            drawn = rng.integers(math.prod(shapes[name]), size=round(fraction * len(before)))
            grown = np.setdiff1d(drawn, before)
            kept = rng.permutation(before)[len(grown) :]
            active[name] = np.sort(np.concatenate([kept, grown]))
    assert recorder.nbytes < 5_000_000
    assert recorder.nbytes == sum(packed.numel() for packed in recorder.state_dict()["packed"].values())


@pytest.mark.parametrize("layer", [None, *SHAPES])
def test_exploration_overlap_and_survival_agree_with_plain_sets(run, layer):
    recorder, sets = recorded(run, SHAPES), of(run, layer)
    size = sum(math.prod(shape) for name, shape in SHAPES.items() if layer in (None, name))
    exploration = recorder.exploration(layer)
    assert exploration.tolist() == [len(set().union(*sets[: t + 1])) / size for t in range(MOMENTS)]

    overlaps = [[len(a & b) / len(a) if a else math.nan for b in sets] for a in sets]
    assert recorder.overlaps(range(MOMENTS), layer) == pytest.approx(np.array(overlaps), nan_ok=True)
    first_and_last = np.array(overlaps)[[0, -1]][:, [0, -1]]
    assert recorder.overlaps([0, -1], layer) == pytest.approx(first_and_last, nan_ok=True)
    assert recorder.overlaps([], layer).shape == (0, 0)

    survival = recorder.survival(layer)
    assert (survival.index.name, survival.columns.name) == ("birth", "moment")
    for birth in range(MOMENTS):
        alive = born = sets[birth] - (sets[birth - 1] if birth else set())
        for moment in range(MOMENTS):
            if moment < birth or not born:
                assert math.isnan(survival.loc[birth, moment])
            else:
                alive = alive & sets[moment]
                assert survival.loc[birth, moment] == len(alive) / len(born)


@pytest.mark.parametrize("layer", SHAPES)
def test_degrees_and_dead_neurons_agree_with_masks(run, layer):
    recorder = recorded(run, SHAPES)
    dead = recorder.dead_neurons(layer)
    assert dead.index.name == "step" and list(dead.index) == recorder.steps
    for moment, step in enumerate(recorder.steps):
        mask = recorder.mask(layer, moment)
        fan_in, fan_out = recorder.degrees(layer, moment)
        by_input = mask.swapaxes(0, 1).reshape(mask.shape[1], -1).sum(1)
        assert fan_in.tolist() == mask.reshape(len(mask), -1).sum(1).tolist() and fan_out.tolist() == by_input.tolist()
        assert dead.loc[step, "without_input"] == sum(not row.any() for row in mask)
        assert dead.loc[step, "without_output"] == sum(not mask[:, i].any() for i in range(mask.shape[1]))


def test_input_map_has_the_shape_of_the_input(run):
    recorder = recorded(run, SHAPES)
    mask = recorder.mask("fc", 2).reshape(5, 3, 2, 2)
    assert np.array_equal(recorder.input_map("fc", 2, (3, 2, 2)), mask.sum(0))
    for wrong in ((3, 4, 2), (-3, -4), ()):
        with pytest.raises(ValueError):
            recorder.input_map("fc", 2, wrong)


def test_a_loaded_recording_can_be_continued(run, tmp_path):
    whole, begun, resumed = recorded(run, SHAPES), recorded(run[:4], SHAPES), TopologyRecorder()
    torch.save(begun.state_dict(), tmp_path / "recorder.pt")
    resumed.load_state_dict(torch.load(tmp_path / "recorder.pt", weights_only=True))
    for moment in range(4, MOMENTS):
        resumed.record({name: layer_with(SHAPES[name], run[moment][name]) for name in SHAPES}, 10 * moment)
    assert resumed.steps == whole.steps and resumed.shapes == whole.shapes and resumed.nbytes == whole.nbytes
    for name in SHAPES:
        for ours, theirs in zip(resumed.topologies(name), whole.topologies(name), strict=True):
            assert np.array_equal(ours, theirs)


def test_an_empty_recording_can_be_saved_and_loaded():
    empty, recorder = TopologyRecorder(), recorded([{"a": {1}}], {"a": (2, 2)})
    recorder.load_state_dict(empty.state_dict())
    assert len(recorder) == recorder.nbytes == len(recorder.exploration()) == 0 and recorder.survival().empty
    with pytest.raises(InvalidArgumentError, match="nothing has been recorded yet"):
        recorder.connections("a", 0)
    with pytest.raises(InvalidArgumentError, match="moment=0; nothing has been recorded yet"):
        recorder.overlaps([0])


def damaged(**changes):
    def damage(state):
        for name, value in changes.items():
            state[name] = value

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.pop("packed"),
        lambda state: state["packed"].pop("fc"),
        lambda state: state["packed"]["fc"].fill_(7),
        lambda state: state["packed"].update(fc=state["packed"]["fc"][:-1]),
        lambda state: state["lengths"]["fc"].pop(),
        lambda state: state["shapes"].update(fc=[5, 1]),  # connections lie outside
        lambda state: state["shapes"].update(fc=[60]),
        lambda state: state["shapes"].update(fc=[-5, -12]),
        damaged(steps=[0, 10, 20, 30, 50, 40, 60]),
        damaged(steps=[0, 10]),
        damaged(steps=[]),
        damaged(steps="0123456"),
        damaged(packed=None),
    ],
)
def test_a_damaged_state_changes_nothing(run, damage):
    recorder = recorded(run[:2], SHAPES)
    state = copy.deepcopy(recorded(run, SHAPES).state_dict())
    damage(state)
    before = copy.deepcopy(vars(recorder))
    with pytest.raises(InvalidArgumentError, match=r"not what TopologyRecorder.state_dict\(\) returned, or is damaged"):
        recorder.load_state_dict(state)
    with pytest.raises(InvalidArgumentError, match="is damaged"):
        recorder.load_state_dict(None)
    after = vars(recorder)
    assert all(after[name] == before[name] for name in ("steps", "shapes", "_packed"))
    assert all(np.array_equal(after["_last"][name], before["_last"][name]) for name in SHAPES)


def test_a_refused_record_changes_nothing():
    recorder = recorded([{"a": {1}}, {"a": {2}}], {"a": (2, 2)})
    for layers, step, message in [
        ({}, 20, "layers is empty"),
        ({"b": layer_with((2, 2), {1})}, 20, "use one recorder per model"),
        ({"a": layer_with((2, 3), {1})}, 20, "use one recorder per model"),
        ({"a": layer_with((2, 2), {1})}, 10, "step=10 after step 10; record each step once"),
        ({"a": layer_with((2, 2), {1})}, 9, "step=9 after step 10"),
        ({"a": layer_with((2, 2), {1})}, 10.5, "step=10.5; use a whole number"),
        ({"a": layer_with((2, 2), {1})}, -1, "step=-1; use a whole number"),
    ]:
        with pytest.raises(InvalidArgumentError, match=message):
            recorder.record(layers, step)
    assert recorder.steps == [0, 10] and recorder.connections("a", -1).tolist() == [2]


@pytest.mark.parametrize(
    "ask",
    [
        lambda recorder, layer: recorder.topologies(layer),
        lambda recorder, layer: recorder.connections(layer, 0),
        lambda recorder, layer: recorder.mask(layer, 0),
        lambda recorder, layer: recorder.exploration(layer),
        lambda recorder, layer: recorder.overlaps([0], layer),
        lambda recorder, layer: recorder.survival(layer),
        lambda recorder, layer: recorder.degrees(layer, 0),
        lambda recorder, layer: recorder.dead_neurons(layer),
        lambda recorder, layer: recorder.input_map(layer, 0, (2,)),
    ],
)
def test_an_unknown_layer_is_named_with_the_choices(ask):
    with pytest.raises(InvalidArgumentError, match="no recorded layer 'fc9'; choose among 'a', 'b'"):
        ask(recorded([{"a": {1}, "b": {0}}], {"a": (2, 2), "b": (1, 1)}), "fc9")


@pytest.mark.parametrize("moment", [2, -3, 0.5, None])
def test_an_unknown_moment_is_named_with_the_choices(moment):
    recorder = recorded([{"a": {1}}, {"a": {2}}], {"a": (2, 2)})
    for ask in (recorder.connections, recorder.mask, recorder.degrees):
        with pytest.raises(InvalidArgumentError, match=f"moment={moment}; use -2 to 1"):
            ask("a", moment)
    with pytest.raises(InvalidArgumentError, match="use -2 to 1"):
        recorder.overlaps([0, moment])


def test_a_layer_that_fails_changes_nothing():
    def fails():
        raise RuntimeError("no topology")

    recorder = recorded([{"a": {1}, "b": {0}}], {"a": (2, 2), "b": (1, 1)})
    state = copy.deepcopy(recorder.state_dict())
    broken = SimpleNamespace(dense_shape=(1, 1), active=fails)
    with pytest.raises(RuntimeError, match="no topology"):
        recorder.record({"a": layer_with((2, 2), {2}), "b": broken}, 10)
    assert str(recorder.state_dict()) == str(state)


def test_survival_by_hand():
    """Connection 0 lives on, 1 is pruned and grows back, 2 is born at moment 1."""
    survival = recorded([{"a": {0, 1}}, {"a": {0, 2}}, {"a": {0, 1, 2}}], {"a": (2, 2)}).survival("a")
    nan = math.nan
    expected = pd.DataFrame([[1.0, 0.5, 0.5], [nan, 1.0, 1.0], [nan, nan, 1.0]])
    assert np.array_equal(survival.to_numpy(), expected.to_numpy(), equal_nan=True)
