"""Checkpoints: whole or not there, refused when they do not fit, and a killed run that ends with the same bits."""

import copy
import io
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import SmallCNN
from truly_sparse import SNFS, DynamicSparsity, RigL, fuse, sparsify
from tutorial_lib import callbacks, evaluate, fit, load_checkpoint, load_data, mask_model, save_checkpoint
from tutorial_lib.checkpoint import DIGEST, NAME, VERSION, CheckpointError


class DropoutCNN(SmallCNN):
    """Draws from torch's global generator in every step: a resumed run has to go on drawing where it stopped."""

    def __init__(self):
        super().__init__()
        self.features.append(nn.Dropout(0.2))


def make(kind):
    torch.manual_seed(0)
    masked = mask_model(DropoutCNN(), 0.8, "erk")
    return masked if kind == "masked" else fuse(sparsify(masked))


def run(kind, path, epochs=2):
    """Train with a rewiring every few steps, through everything that has a state."""
    torch.set_num_threads(1)
    model = make(kind)
    data = load_data("digits", train_size=300)
    history = fit(
        model,
        data,
        epochs=epochs,
        lr=3e-3,
        batch_size=8,
        schedule="onecycle",
        sparsity=SNFS(every=25, until=0.9),
        progress=False,
        checkpoint=path,
    )
    return model, history


def train_and_save(kind, path, result, steps_between):
    """What a child process does until it is killed."""
    callbacks.CHECKPOINT_STEPS = steps_between
    model, history = run(kind, path)
    history.seconds = []
    save_checkpoint(result, model=model, history=history)


def same(a, b):
    if torch.is_tensor(a):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("kind", ["masked", "sparse"])
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(kind, at_length, tmp_path, processes):
    def child(path, result):
        process = processes.Process(target=train_and_save, args=(kind, path, result, 3))
        process.start()
        return process

    def wait_for_a_save(process, path):
        before = path.stat().st_mtime_ns if path.exists() else 0
        while process.is_alive() and (path.stat().st_mtime_ns if path.exists() else 0) == before:
            time.sleep(0.001)

    for name in ("first", "whole"):  # the first one waits for the server as well
        start = time.perf_counter()
        child(tmp_path / f"{name}.ckpt", tmp_path / name).join()
        seconds = time.perf_counter() - start
    expected, moments, kills, resumed = load_checkpoint(tmp_path / "whole"), random.Random(0), 0, 0
    many = at_length(6, 20)
    for attempt in range(1, 100):  # a run is resumed until it is done; then the next one, until enough kills have hit
        path, result = tmp_path / f"{attempt}.ckpt", tmp_path / f"{attempt}"
        while not result.exists():
            process = child(path, result)
            if kills >= many:
                process.join()
            elif kills % 2:  # somewhere in a life, which is mostly its start
                process.join(moments.uniform(0, seconds))
            else:  # soon after, or during, one of its saves
                wait_for_a_save(process, path)
                process.join(moments.uniform(0, 0.1))
            process.kill()  # which does nothing where it has just ended by itself
            process.join()
            if process.exitcode == -signal.SIGKILL:
                kills, resumed = kills + 1, resumed + path.exists()
            else:
                assert process.exitcode == 0
        assert same(load_checkpoint(result), expected), f"run {attempt} ended differently"
        if kills >= many:
            break
    assert kills >= many and resumed > 0


def test_a_finished_run_returns_at_once(tmp_path):
    model, history = run("masked", tmp_path / "run", epochs=1)
    before = (tmp_path / "run").read_bytes()
    again, recalled = run("masked", tmp_path / "run", epochs=1)
    assert same(dict(again.state_dict()), dict(model.state_dict())) and recalled.test_loss == history.test_loss
    assert len(recalled.topology) == len(history.topology) and (tmp_path / "run").read_bytes() == before


def test_other_settings_are_refused(small_cnn, digits, tmp_path):
    fit(small_cnn, digits, epochs=1, progress=False, checkpoint=tmp_path / "run")
    before = {key: value.clone() for key, value in small_cnn.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"lr=0\.001, now 0\.01"):
        fit(small_cnn, digits, epochs=1, lr=0.01, progress=False, checkpoint=tmp_path / "run")
    with pytest.raises(CheckpointError, match="epochs=1, now 2"):
        fit(small_cnn, digits, epochs=2, progress=False, checkpoint=tmp_path / "run")
    assert same(before, dict(small_cnn.state_dict()))


def saved(tmp_path, kind="sparse"):
    model = make(kind)
    optimizer = torch.optim.Adam(model.parameters())
    driver = DynamicSparsity(model, optimizer, every=1, prune_fraction=0.3, grow="gradient")
    model(torch.randn(4, 1, 28, 28)).sum().backward()
    optimizer.step()
    driver.step()
    path = tmp_path / "checkpoint"
    save_checkpoint(path, model=model, optimizer=optimizer, driver=driver, epoch=3)
    return path, model, optimizer, driver


@pytest.mark.parametrize("kind", ["masked", "sparse"])
def test_save_and_load_by_hand(kind, tmp_path):
    path, model, optimizer, driver = saved(tmp_path, kind)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    x = torch.randn(3, 1, 28, 28)
    other = make(kind)
    other_optimizer = torch.optim.Adam(other.parameters())
    other_driver = DynamicSparsity(other, other_optimizer, every=1, prune_fraction=0.3, grow="gradient")
    rest = load_checkpoint(path, model=other, optimizer=other_optimizer, driver=other_driver)
    assert rest == {"epoch": 3} and other_driver.steps == driver.steps == 1
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    assert torch.equal(model.eval()(x), other.eval()(x))
    assert same(other_optimizer.state_dict(), optimizer.state_dict())
    assert all(torch.equal(layer.active(), other_driver.layers[name].active()) for name, layer in driver.layers.items())


def test_only_the_model_can_be_taken_out(tmp_path, digits):
    path, model, _, _ = saved(tmp_path)
    other = make("sparse")
    assert set(load_checkpoint(path, model=other)) == {"optimizer", "driver", "epoch"}
    assert evaluate(other, digits) == evaluate(model, digits)


def test_a_damaged_file_is_refused_wherever_it_is_damaged(tmp_path):
    path, model, _, _ = saved(tmp_path)
    content = path.read_bytes()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    places = [0, 5, len(b"dst-checkpoint "), 17, 40, 60, len(content) // 2, len(content) - 1]
    damaged = [content[:place] for place in places]
    damaged += [content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :] for place in places]
    for version in damaged:
        path.write_bytes(version)
        with pytest.raises(CheckpointError, match=r"damaged|not a checkpoint|version"):
            load_checkpoint(path, model=model)
    assert same(before, dict(model.state_dict()))


def generators():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def sign(path, content):
    """Write any content with a digest that is right, as nothing in the project does."""
    payload = io.BytesIO()
    torch.save(content, payload)
    path.write_bytes(NAME + VERSION + DIGEST(payload.getvalue()).digest() + payload.getvalue())


@pytest.mark.parametrize("content", [[1, 2], {"parts": {}}, {"parts": [], "random": {}}, {"a": 1}], ids=str)
def test_a_whole_file_of_other_content(content, tmp_path):
    sign(tmp_path / "other", content)
    with pytest.raises(CheckpointError, match="not written by save_checkpoint"):
        load_checkpoint(tmp_path / "other")


def test_a_refused_checkpoint_leaves_the_random_generators_alone(tmp_path):
    path, model, _, _ = saved(tmp_path)
    other = nn.Linear(2, 2)
    payload = path.read_bytes()[len(NAME + VERSION) + DIGEST().digest_size :]
    content = torch.load(io.BytesIO(payload), weights_only=True)
    sign(tmp_path / "other", content | {"random": {"torch": "not a state"}})
    torch.manual_seed(7)
    before = generators()
    with pytest.raises(CheckpointError, match="state of the random generators"):
        load_checkpoint(tmp_path / "other", model=model)
    with pytest.raises(CheckpointError, match="'model'"):
        load_checkpoint(path, model=other)
    assert generators() == before


def test_the_optimizer_state_keeps_its_memory_format(tmp_path):
    """fused Adam takes moments in their weight's layout; a loaded state must not fall back to another."""

    def step(network, optimizer):
        optimizer.zero_grad()
        network(torch.ones(2, 3, 8, 8)).sum().backward()
        optimizer.step()

    def adam(network):
        return torch.optim.Adam(network.parameters(), fused=True)

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))
    model = model.to(memory_format=torch.channels_last)
    optimizer = adam(model)
    step(model, optimizer)
    again = copy.deepcopy(model)
    other = adam(again)
    save_checkpoint(tmp_path / "run", model=model, optimizer=optimizer)
    load_checkpoint(tmp_path / "run", model=again, optimizer=other)
    assert other.state[again[0].weight]["exp_avg"].stride() == model[0].weight.stride() == again[0].weight.stride()
    step(model, optimizer)
    step(again, other)
    assert same(dict(again.state_dict()), dict(model.state_dict()))


def test_a_run_is_not_resumed_with_another_rewirer(tmp_path):
    data = load_data("digits", train_size=300)

    def train_with(every):
        fit(make("masked"), data, epochs=1, sparsity=SNFS(every=every), progress=False, checkpoint=tmp_path / "run")

    train_with(5)
    with pytest.raises(CheckpointError, match="every: 5"):
        train_with(6)


def test_a_version_of_tomorrow(tmp_path):
    path, *_ = saved(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"dst-checkpoint 1", b"dst-checkpoint 2", 1))
    with pytest.raises(CheckpointError, match="version"):
        load_checkpoint(path)


def test_another_model_leaves_everything_as_it_was(tmp_path):
    path, *_ = saved(tmp_path)
    other = mask_model(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), 0.5)
    optimizer = torch.optim.Adam(other.parameters())
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"'model'.*saved from another"):
        load_checkpoint(path, model=other, optimizer=optimizer)
    assert same(before, dict(other.state_dict())) and not optimizer.state


def test_half_a_fit_is_taken_back(tmp_path):
    """The model fits, the optimizer does not: the model must not keep the saved weights."""
    path, *_ = saved(tmp_path)
    model = make("sparse")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="'optimizer'"):
        load_checkpoint(path, model=model, optimizer=torch.optim.Adam(list(model.parameters())[:-1]))
    shapes = [nn.Parameter(torch.zeros(p.numel() + 1)) for p in model.parameters()]
    with pytest.raises(CheckpointError, match="of shape"):
        load_checkpoint(path, model=model, optimizer=torch.optim.Adam(shapes))
    assert same(before, dict(model.state_dict()))


def test_a_crash_while_saving_leaves_the_old_file(tmp_path, monkeypatch):
    path, model, _, _ = saved(tmp_path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_checkpoint(path, model=model)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("thing", [object(), lambda: 0, Path("x")])
def test_what_cannot_be_loaded_safely_is_not_saved(thing, tmp_path):
    with pytest.raises(CheckpointError, match="loaded safely"):
        save_checkpoint(tmp_path / "x", thing=thing)
    assert not list(tmp_path.iterdir())


def test_no_such_file_and_no_such_part(tmp_path):
    with pytest.raises(CheckpointError, match="cannot read"):
        load_checkpoint(tmp_path / "nothing")
    path, model, _, _ = saved(tmp_path)
    with pytest.raises(CheckpointError, match="but not network"):
        load_checkpoint(path, network=model)


def test_a_checkpoint_is_never_made_while_a_gradient_waits(small_cnn):
    """SNFS reads the gradients of 20 steps: only right after a rewiring is nothing of it outside the state."""
    model = mask_model(small_cnn, 0.8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    driver = DynamicSparsity(model, optimizer, every=25, grow="momentum")
    rest = []
    for _ in range(50):
        model(torch.randn(2, 1, 28, 28)).sum().backward()
        driver.step()
        rest.append(driver.at_rest)
    assert rest == ([True] * 5 + [False] * 19 + [True]) * 2


def test_rigl_rests_after_every_step(small_cnn):
    model = mask_model(small_cnn, 0.8)
    driver = RigL(every=1).attach(
        model, torch.optim.SGD(model.parameters(), lr=0.1), steps_per_epoch=5, total_steps=10, seed=0
    )
    for _ in range(10):
        model(torch.randn(2, 1, 28, 28)).sum().backward()
        driver.step()
        assert driver.at_rest
