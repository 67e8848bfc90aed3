"""Data: verified or refused, never half there."""

import gzip
import hashlib
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from tutorial_lib import data as data_module
from tutorial_lib import load_data
from tutorial_lib.errors import DataError, InvalidArgumentError


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    """A folder in MNIST's layout with four tiny files, whose checksums stand in for the real ones."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    sums = {}
    for file, count in zip(data_module.MNIST_SHA256, (50, 50, 20, 20), strict=True):
        if "images" in file:
            content = struct.pack(">4i", 2051, count, 28, 28) + generator.bytes(count * 784)
        else:
            content = struct.pack(">2i", 2049, count) + bytes(i % 10 for i in range(count))
        (raw / file).write_bytes(content)
        sums[file] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(data_module, "MNIST_SHA256", sums)
    return tmp_path


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


@pytest.mark.parametrize("size", [0, 9, -1, 2.5, "all"])
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
    with pytest.raises(DataError, match=f"{tmp_path}.* no download server answered"):
        load_data("mnist", root=tmp_path)
    assert list(tmp_path.rglob("*")) == []


def test_auto_falls_back_visibly(tmp_path, no_network, capsys):
    assert load_data("auto", root=tmp_path).name == "digits"
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "digits" in printed and "no download server answered" in printed


def test_auto_says_when_it_is_mnist(tiny_mnist, capsys):
    assert load_data("auto", root=tiny_mnist).name == "mnist"
    assert "MNIST (50 training images" in capsys.readouterr().out


@pytest.fixture
def stub_download(monkeypatch):
    """Let a function stand in for torchvision's download; it gets the folder that the files go into."""

    def install(write_files):
        class MNIST:
            mirrors = ()

            def __init__(self, root, download):
                raw = Path(root) / "MNIST" / "raw"
                raw.mkdir(parents=True)
                write_files(raw)

        monkeypatch.setattr(data_module, "_reachable", lambda mirrors: True)
        monkeypatch.setattr(torchvision.datasets, "MNIST", MNIST)

    return install


def test_download_of_wrong_bytes_is_never_kept(tmp_path, stub_download):
    stub_download(lambda raw: [(raw / file).write_bytes(b"wrong") for file in data_module.MNIST_SHA256])
    with pytest.raises(DataError, match="damaged"):
        load_data("mnist", root=tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_download_moves_verified_files_into_place(tiny_mnist, tmp_path_factory, stub_download):
    target = tmp_path_factory.mktemp("target")
    stub_download(lambda raw: shutil.copytree(tiny_mnist / "MNIST" / "raw", raw, dirs_exist_ok=True))
    assert len(load_data("mnist", root=target).train_x) == 50
    assert sorted(p.name for p in target.rglob("*") if p.is_file()) == sorted(data_module.MNIST_SHA256)


def test_folder_that_cannot_be_written(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setattr(data_module, "_reachable", lambda mirrors: True)
    with pytest.raises(DataError, match="TUTORIAL_DATA"):
        load_data("mnist", root=blocked)
