"""Data: verified or refused, never half there."""

import gzip
import hashlib

import numpy as np
import pytest
import torch
import torchvision

from truly_sparse import InvalidArgumentError
from tutorial_lib import data as data_module
from tutorial_lib import load_data
from tutorial_lib.data import DataError


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])


def test_digits_are_real_normalised_and_always_split_alike():
    first, second = load_data("digits"), load_data("digits", seed=7)
    assert first.train_x.shape == (1437, 1, 28, 28) and first.test_x.shape == (360, 1, 28, 28)
    assert first.train_x.dtype == torch.float32 and first.train_y.dtype == torch.int64
    assert abs(first.train_x.mean()) < 1e-5 and abs(first.train_x.std() - 1) < 1e-5
    assert first.train_y.bincount().min() > 130  # stratified
    assert first.sha256() == second.sha256()


def test_train_size_is_stratified_and_seeded():
    a, b, c = (load_data("digits", train_size=100, seed=seed) for seed in (0, 0, 1))
    assert len(a.train_x) == 100 and a.train_y.bincount().min() >= 9
    assert torch.equal(a.train_x, b.train_x) and not torch.equal(a.train_x, c.train_x)
    assert len(load_data("digits", train_size=10**6).train_x) == 1437
    assert len(load_data("digits", train_size=1430).train_x) == 1430  # too few left over to stratify
    assert len(load_data("digits", train_size=np.int64(100)).train_x) == 100


@pytest.mark.parametrize("name", ["MNIST", "", None, "cifar"])
def test_unknown_name(name):
    with pytest.raises(InvalidArgumentError, match=f"unknown data set {name!r}|name=None"):
        load_data(name)


@pytest.mark.parametrize("size", [0, 9, -1, 2.5])
def test_bad_train_size(size):
    with pytest.raises(InvalidArgumentError, match="train_size"):
        load_data("digits", train_size=size)


def test_mnist_from_a_folder_decompressed_or_gz(tiny_mnist):
    plain = load_data("mnist", root=tiny_mnist)
    for path in list((tiny_mnist / "MNIST" / "raw").iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    zipped = load_data("mnist", root=tiny_mnist)
    assert plain.name == "mnist" and plain.train_x.shape == (50, 1, 28, 28) and plain.test_y.shape == (20,)
    assert plain.sha256() == zipped.sha256()
    raw = zipped.train_x * data_module.MNIST_STD + data_module.MNIST_MEAN
    assert 0 <= raw.min() + 1e-5 and raw.max() <= 1 + 1e-5


def test_data_folder_from_the_environment(tiny_mnist, monkeypatch):
    monkeypatch.setenv("TUTORIAL_DATA", str(tiny_mnist))
    assert len(load_data("mnist").train_x) == 50


@pytest.mark.parametrize("damage", ["truncated", "flipped", "swapped", "html"])
def test_damaged_file_is_named_with_both_checksums(tiny_mnist, damage):
    raw = tiny_mnist / "MNIST" / "raw"
    file = raw / "train-images-idx3-ubyte"
    content = file.read_bytes()
    bad = {
        "truncated": content[:-1],
        "flipped": content[:100] + bytes([content[100] ^ 1]) + content[101:],
        "swapped": (raw / "t10k-images-idx3-ubyte").read_bytes(),
        "html": b"<html>not here</html>",
    }[damage]
    file.write_bytes(bad)
    with pytest.raises(DataError) as error:
        load_data("mnist", root=tiny_mnist)
    for part in (str(file), hashlib.sha256(bad).hexdigest(), data_module.MNIST_SHA256[file.name], "delete it"):
        assert part in str(error.value)
    assert file.read_bytes() == bad  # the user's file is left alone


def test_truncated_gz_is_named(tiny_mnist):
    file = tiny_mnist / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    zipped = file.with_name(file.name + ".gz")
    zipped.write_bytes(gzip.compress(file.read_bytes())[:-5])
    file.unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz cannot be read"):
        load_data("mnist", root=tiny_mnist)


def test_no_network_is_said_and_leaves_nothing(tmp_path, no_network):
    with pytest.raises(DataError, match=f"{tmp_path}.* no server gave it"):
        load_data("mnist", root=tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_auto_falls_back_visibly(tmp_path, no_network, capsys):
    assert load_data("auto", root=tmp_path).name == "digits"
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "digits" in printed and "could not be downloaded" in printed


def test_auto_says_when_the_files_are_damaged(tiny_mnist, capsys):
    damaged = tiny_mnist / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    damaged.write_bytes(b"\0" * 58)
    assert load_data("auto", root=tiny_mnist).name == "digits"
    assert "whose files here are damaged" in capsys.readouterr().out


def test_auto_says_when_it_is_mnist(tiny_mnist, capsys):
    assert load_data("auto", root=tiny_mnist).name == "mnist"
    assert "MNIST (50 training images" in capsys.readouterr().out
