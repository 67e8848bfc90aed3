"""Drawn networks against their dense twins, and damaged files: a clear error or the right answer, never a wrong one.

Weights and inputs are small whole numbers: float32 then adds up exactly in any order, and sparse and dense results have
to be equal, not close.
"""

from __future__ import annotations

import copy
import gzip
import hashlib
import importlib.util
import math
import os
import random
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from truly_sparse import (
    DynamicSparsity,
    SparseConv2d,
    SparseLinear,
    TrainingStep,
    densify,
    fuse,
    sparse_layers,
    sparsify,
)
from truly_sparse.cpu import index as index_module
from truly_sparse.cpu.index import LinearIndex
from truly_sparse.structure import Structure, fitting, grid, whole_blocks
from truly_sparse.topology import sample_distinct, to_connections, to_mask
from tutorial_lib import data as data_module
from tutorial_lib import load_checkpoint, load_data, mask_model, save_checkpoint
from tutorial_lib.checkpoint import DIGEST, NAME, VERSION, CheckpointError
from tutorial_lib.data import DataError
from tutorial_lib.project import ROOT

seeds = st.integers(0, 2**32)
densities = st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0])
structures = st.sampled_from([(1, 1), (1, 1), (4, 1), (1, 4), (4, 4), (8, 8), (16, 1), (2, 3), (3, 1)])
batches = st.one_of(st.integers(0, 40), st.sampled_from([63, 64, 65, 100]))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------ networks


def whole_numbers(seed, *shape, limit=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-limit, limit + 1, shape, generator=generator).float()


def drawn(size, density, seed):
    return sample_distinct(size, round(density * size), torch.Generator().manual_seed(seed))


def drawn_blocks(shape, structure, density, seed):
    """Connections of a weight of this shape, in whole blocks."""
    return whole_blocks(drawn(math.prod(grid(shape, structure)), density, seed), shape, structure)


def usable(structure, model):
    """The structure, or single weights where no part of its blocks divides any layer."""
    weights = [parameter.shape for parameter in model.parameters() if parameter.dim() > 1]
    return structure if any(fitting(Structure(*structure), shape).area > 1 for shape in weights) else (1, 1)


def fill(model, seed):
    for i, parameter in enumerate(model.parameters()):
        parameter.data = whole_numbers(seed + i, *parameter.shape, limit=1)


def laid_out(x, layout):
    """The same numbers, stored in another way."""
    if layout == "batch last":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    if layout == "every other":
        return torch.stack([x, x], dim=-1).flatten(-2)[..., ::2]
    if layout == "channels last" and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x


layouts = st.sampled_from(["usual", "batch last", "every other", "channels last"])


def agree(model, dense, x, seed):
    """Compare result and all gradients of a sparse model with those of its dense twin in float64, bit by bit."""
    dense, there = dense.double(), x.double().requires_grad_()
    here = x.detach().requires_grad_()
    y, expected = model(here), dense(there)
    assert torch.equal(y.double(), expected)
    with torch.no_grad():
        assert torch.equal(model(x), y)
    gradient = whole_numbers(seed, *y.shape, limit=1)
    y.backward(gradient)
    expected.backward(gradient.double())
    assert torch.equal(here.grad.double(), there.grad)
    layers = [layer for layer in dense.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    for layer, twin in zip(sparse_layers(model).values(), layers, strict=True):
        assert torch.equal(layer.values.grad.double(), twin.weight.grad.reshape(-1)[layer.active()])
        if layer.bias is not None:
            assert torch.equal(layer.bias.grad.double(), twin.bias.grad)


@given(st.integers(1, 60), st.integers(1, 90), densities, st.floats(0, 1), st.sampled_from([1, 20, 2**20]), seeds)
def test_topologies_come_back_from_every_form(survived, n_out, n_in, density, share, block, seed):
    shape, size = (n_out, n_in), n_out * n_in
    active = drawn(size, density, seed)
    assert torch.equal(to_connections(to_mask(active, shape)), active)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "BLOCK", block)
        patch.setattr(index_module, "RUN", 1)
        index = LinearIndex.build(active, shape)
    by_input = np.repeat(np.tile(np.arange(n_in), index.blocks), np.diff(index.t_indptr))
    places = index.t_rows.astype(np.int64) * n_in + by_input
    assert np.array_equal(places, active.numpy()[index.t_perm]) and torch.equal(index.flat(), active)
    layer = SparseLinear(n_in, n_out, connections=active)
    free = to_connections(~to_mask(active, (size,)))
    count = int(share * min(len(active), len(free)))
    kept, grown = active[count:], free[drawn(len(free), count / max(1, len(free)), seed)]
    values = torch.arange(1.0, len(grown) + 1)
    expected = layer.to_dense().reshape(-1).index_fill(0, active[:count], 0).index_put((grown,), values)
    layer.rewire(kept if len(grown) == count else active, grown if len(grown) == count else active[:0], values)
    assert torch.equal(layer.to_dense().reshape(-1), expected)
    survived("fuzzing")


@given(
    batches, st.integers(1, 70), st.integers(1, 90), structures, densities, st.booleans(), st.booleans(), layouts, seeds
)
def test_linear_layers_are_their_dense_twins(
    survived, batch, n_in, n_out, structure, density, relu, bias, layout, seed
):
    n_out, n_in = (max(1, n // block) * block for n, block in zip((n_out, n_in), structure, strict=True))
    connections = drawn_blocks((n_out, n_in), structure, density, seed)
    layer = SparseLinear(n_in, n_out, bias, connections=connections, relu=relu, structure=structure)
    fill(layer, seed)
    x = laid_out(whole_numbers(seed + 9, batch, n_in), layout)
    agree(nn.Sequential(layer), nn.Sequential(layer.to_dense_layer()), x, seed)
    survived("fuzzing")


@st.composite
def convolutions(draw):
    """A sparse convolution of any geometry, and an input that it takes."""
    groups, structure = draw(st.integers(1, 3)), draw(structures)
    outputs, channels = (groups * block * draw(st.integers(1, 3 if block < 4 else 1)) for block in structure)
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, stride, dilation = draw(st.tuples(st.integers(1, 5), st.integers(1, 5))), draw(pairs), draw(pairs)
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = [n + draw(st.integers(0, 8)) for n in least]
    density, seed = draw(densities), draw(seeds)
    layer = SparseConv2d(
        channels,
        outputs,
        kernel,
        stride,
        padding,
        dilation,
        groups,
        draw(st.booleans()),
        connections=drawn_blocks((outputs, channels // groups, *kernel), structure, density, seed),
        relu=draw(st.booleans()),
        structure=structure,
    )
    # torch refuses to pool what is smaller than a window
    layer.pool = min(layer.index.output_size(*size)) > 1 and draw(st.booleans())
    fill(layer, seed)
    batch = draw(st.one_of(st.integers(0, 20), st.sampled_from([33, 64, 65])))
    return layer, laid_out(whole_numbers(seed + 9, batch, channels, *size), draw(layouts)), seed


@given(convolutions())
def test_convolutions_are_their_dense_twins(survived, case):
    layer, x, seed = case
    agree(nn.Sequential(layer), nn.Sequential(layer.to_dense_layer()), x, seed)
    survived("fuzzing")


@st.composite
def networks(draw):
    """Convolutions, then linear layers, with ReLU and pooling between them or not; and the input's size."""
    parts, channels, size = [], draw(st.integers(1, 3)), draw(st.integers(6, 11))
    first = channels, size
    for _ in range(draw(st.integers(0, 2))):
        outputs, padding = draw(st.integers(1, 5)), draw(st.integers(0, 1))
        kernel = draw(st.integers(1, min(3, size + 2 * padding)))
        parts.append(nn.Conv2d(channels, outputs, kernel, padding=padding, bias=draw(st.booleans())))
        channels, size = outputs, size + 2 * padding - kernel + 1
        if draw(st.booleans()):
            parts.append(nn.ReLU())
        if size > 3 and draw(st.booleans()):
            parts.append(nn.MaxPool2d(2))
            size //= 2
    parts.append(nn.Flatten())
    width = channels * size * size
    for _ in range(draw(st.integers(1, 3))):
        outputs = draw(st.integers(1, 40))
        parts.append(nn.Linear(width, outputs, bias=draw(st.booleans())))
        width = outputs
        if draw(st.booleans()):
            parts.append(nn.ReLU())
    return nn.Sequential(*parts), first


@given(networks(), batches, st.sampled_from([0.0, 0.3, 0.8]), structures, st.booleans(), seeds)
def test_chains_of_layers_are_their_dense_twins(survived, network, batch, sparsity, structure, fused, seed):
    model, (channels, size) = network
    fill(model, seed)
    masked = mask_model(model, sparsity, seed=seed % 1000, structure=usable(structure, model))
    sparse = sparsify(masked)
    x = whole_numbers(seed + 9, batch, channels, size, size)
    agree(fuse(sparse) if fused else sparse, densify(masked), x, seed)
    survived("fuzzing")


@given(networks(), batches.filter(bool), st.sampled_from([0.0, 0.3, 0.8]), structures, st.booleans(), layouts, seeds)
def test_compiled_steps_are_torchs(survived, network, batch, sparsity, structure, decoupled, layout, seed):
    """Two models from one start; ε is large, so that Adam makes no step of what is only rounding."""
    model, (channels, size) = network
    model = fuse(sparsify(mask_model(model, sparsity, seed=seed % 1000, structure=usable(structure, model))))
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    twins = model, copy.deepcopy(model)
    step, other = (TrainingStep(twin, kind(twin.parameters(), lr=0.01, eps=0.1)) for twin in twins)
    generator = torch.Generator().manual_seed(seed)
    classes = model(torch.zeros(1, channels, size, size)).shape[1]
    for _ in range(3):
        x = laid_out(torch.randn(batch, channels, size, size, generator=generator), layout)
        y = torch.randint(classes, (batch,), generator=generator)
        (loss, _), (expected, _) = step(x, y), other._by_torch(x, y)
        assert loss == pytest.approx(expected, rel=1e-4, abs=1e-5)
        for a, b in zip(*(twin.parameters() for twin in twins), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)
    survived("fuzzing")


# ------------------------------------------------------------------------------------------ damage


@st.composite
def damages(draw):
    """A function that damages ``content`` in one of its regions, given as borders, in one of many ways."""
    kind = draw(st.sampled_from(["flip a bit", "cut", "overwrite", "drop", "insert", "zeros"]))
    region, share, bit = draw(st.integers(0, 4)), draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(0, 7))
    extra = draw(st.binary(min_size=1, max_size=8))

    def damage(content, borders):
        first, last = borders[region % (len(borders) - 1)], borders[region % (len(borders) - 1) + 1]
        at = first + int(share * (last - first))
        before, behind = content[:at], content[at:]
        return {
            "flip a bit": before + bytes([behind[0] ^ 1 << bit]) + behind[1:],
            "cut": before,
            "overwrite": before + extra + behind[len(extra) :],
            "drop": before + behind[len(extra) :],
            "insert": before + extra + behind,
            "zeros": before + bytes(min(64, len(behind))) + behind[64:],
        }[kind]

    return damage


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of a small run: its path, its bytes, where its regions begin, and the model."""
    torch.manual_seed(0)
    model = sparsify(mask_model(nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4)), 0.5))
    optimizer = torch.optim.Adam(model.parameters())
    driver = DynamicSparsity(model, optimizer, every=1)
    model(torch.randn(5, 12)).sum().backward()
    optimizer.step()
    driver.step()
    path = tmp_path_factory.mktemp("checkpoint") / "run"
    save_checkpoint(path, model=model, optimizer=optimizer, driver=driver, epoch=3)
    content = path.read_bytes()
    digest = len(NAME + VERSION)
    payload = digest + DIGEST().digest_size
    directory, end = content.index(b"PK\1\2"), content.index(b"PK\5\6")
    return path, content, [0, digest, payload, directory, end, len(content)], model


def state_of(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


@given(damages())
def test_a_damaged_checkpoint_is_refused(saved, survived, damage):
    path, content, borders, model = saved
    damaged, before = damage(content, borders), state_of(model)
    path.write_bytes(damaged)
    if damaged == content:
        assert load_checkpoint(path, model=model).keys() == {"optimizer", "driver", "epoch"}
    else:
        with pytest.raises(CheckpointError, match=r"damaged|not a checkpoint|version"):
            load_checkpoint(path, model=model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    survived("fuzzing")


@given(damages())
def test_what_stands_behind_the_checksum_is_not_trusted_either(saved, survived, damage):
    """A checksum that was made for the damage: whatever was altered, it is refused or fits."""
    path, content, borders, model = saved
    start, model, generators = borders[2], copy.deepcopy(model), (random.getstate(), np.random.get_state())
    payload = damage(content, borders)[start:]
    path.write_bytes(NAME + VERSION + DIGEST(payload).digest() + payload)
    try:
        load_checkpoint(path, model=model)
    except CheckpointError as error:
        assert str(path) in str(error)
    random.setstate(generators[0])
    np.random.set_state(generators[1])
    for layer in sparse_layers(model).values():
        assert (layer.active().diff() > 0).all() and len(layer.active()) == len(layer.values)
    assert model(torch.ones(2, 12)).shape == (2, 4)
    survived("fuzzing")


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(plain_values, st.lists(st.integers(0, 4), max_size=3), seeds)
def test_what_a_checkpoint_holds_comes_back(saved, survived, value, shape, seed):
    tensor = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    path = saved[0].with_name("values")
    save_checkpoint(path, value=value, tensor=tensor)
    content = load_checkpoint(path)
    assert content["value"] == value and torch.equal(content["tensor"], tensor)
    survived("fuzzing")


@pytest.fixture(scope="module")
def digit_files(tmp_path_factory):
    """Four tiny files in MNIST's layout with their checksums, and what they hold."""
    root, generator, files, sums = tmp_path_factory.mktemp("digits"), np.random.default_rng(0), {}, {}
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file, count in zip(data_module.MNIST_SHA256, (12, 12, 11, 11), strict=True):
        if "images" in file:
            files[file] = struct.pack(">4i", 2051, count, 28, 28) + generator.bytes(count * 784)
        else:
            files[file] = struct.pack(">2i", 2049, count) + bytes(i % 10 for i in range(count))
        sums[file] = hashlib.sha256(files[file]).hexdigest()
    for file, content in files.items():
        (raw / file).write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_module, "MNIST_SHA256", sums)
        yield root, raw, files, load_data("mnist", root=root).sha256()


@given(st.integers(0, 3), st.booleans(), damages())
def test_a_damaged_data_file_is_refused_or_read_right(digit_files, survived, number, zipped, damage):
    root, raw, files, whole = digit_files
    name = list(files)[number]
    content, path = files[name], raw / name
    borders = [0, 4, 16 if "images" in name else 8, len(content) - 4, len(content)]  # magic, sizes, payload, end
    if zipped:
        content = gzip.compress(content, mtime=0)
        borders, path = [0, 10, len(content) - 8, len(content) - 4, len(content)], raw / f"{name}.gz"
        (raw / name).unlink()
    try:
        path.write_bytes(damage(content, borders))
        try:
            assert load_data("mnist", root=root).sha256() == whole
        except DataError as error:
            assert str(path) in str(error) and "delete it" in str(error)
    finally:
        path.unlink()
        (raw / name).write_bytes(files[name])
    survived("fuzzing")


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not here: make fuzz installs it")
def test_guided_by_coverage(tmp_path, survived):
    """In a process of its own, as libFuzzer ends it; an input that breaks a reader is left in ``tmp_path``."""
    runs = 10 * settings.default.max_examples
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "atheris_fuzz.py", str(runs)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{runs} executions" in done.stdout
    survived("fuzzing", runs)
