"""``docs/your-own-network.md`` says what holds: its code runs, as it stands there. See also ``tests/zoo``."""

import re

import pytest
import torch

from tests.own_network import BLOCKS, PAGE, run_blocks
from truly_sparse import sparse_layers


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def topologies(model):
    return [layer.active() for layer in sparse_layers(model).values()]


def test_the_page_is_short_and_every_block_has_a_name():
    text = PAGE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 240 and len(BLOCKS) == text.count("```python")
    lines = {name: len(code.strip().splitlines()) for name, code in BLOCKS.items()}
    assert max(lines[name] for name in ("lightning", "trainer", "accelerate")) <= 25 and lines["train"] <= 15
    assert "tutorial_lib" not in "".join(BLOCKS.values())


def test_every_block_is_run_by_a_test():
    here = PAGE.parents[1] / "tests"
    tests = "".join(path.read_text(encoding="utf-8") for path in (here / "test_own_network.py", *here.glob("zoo/*.py")))
    ran = set(re.findall(r'"(\w+)"', "".join(re.findall(r"run_blocks\((.+?)\)", tests))))
    assert ran == set(BLOCKS)


def test_the_loop_trains_and_rewires():
    page = run_blocks("convert", "train")
    first = topologies(run_blocks("convert")["model"])
    assert page["driver"].rewirings == 6 and page["driver"].steps == 80
    assert page["loss"] < 0.5
    assert not any(map(torch.equal, first, topologies(page["model"])))


def test_a_checkpoint_restores_model_optimizer_and_driver():
    before = run_blocks("convert", "train")
    after = run_blocks("convert", "train", "checkpoint")
    assert after["model"] is not before["model"]
    for name in ("model", "optimizer", "driver"):
        states = [page[name].state_dict() for page in (before, after)]
        if name == "optimizer":
            states = [state["state"] for state in states]
        if name == "driver":
            assert states[1].pop("driver") == states[0].pop("driver") == "DynamicSparsity"
        torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)


def test_an_average_follows_the_topology():
    page = run_blocks("convert", "train", "average")
    assert all(map(torch.equal, topologies(page["average"]), topologies(page["model"])))


def test_weights_decay_and_biases_do_not():
    page = run_blocks("convert", "groups")
    decay, others = page["optimizer"].param_groups
    held = {id(layer.weight_parameter) for layer in sparse_layers(page["model"]).values()}
    assert {id(parameter) for parameter in decay["params"]} == held
    assert decay["weight_decay"] == 0.05 and others["weight_decay"] == 0


def test_a_compiled_and_an_exported_model_compute_the_same():
    page = run_blocks("convert", "compile")
    model, inputs = page["model"], page["inputs"]
    torch.testing.assert_close(page["compiled"](inputs), model(inputs))
    torch.testing.assert_close(page["exported"].module()(inputs), model(inputs))
