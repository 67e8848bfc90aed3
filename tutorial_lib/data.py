"""Digits in, tensors out: MNIST where it can be had, scikit-learn's embedded 8×8 digits otherwise."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import os
import queue
import socket
import tempfile
import threading
import time
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .errors import DataError, InvalidArgumentError
from .project import ROOT
from .validate import check_device, check_seed, checked, require, shown

# SHA-256 of the four decompressed files.
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MNIST_MEAN, MNIST_STD = 0.1307, 0.3081
NETWORK_PATIENCE_SECONDS = 5.0
CLASSES = 10


@checked
@dataclass(frozen=True)
class Digits:
    """A data set of 28×28 grey digits, normalised to about zero mean and unit deviation, in memory.

    Attributes:
        train_x: float32 ``[N, 1, 28, 28]``.
        train_y: int64 ``[N]``, labels 0 to 9.
        test_x: float32 ``[M, 1, 28, 28]``.
        test_y: int64 ``[M]``.
        name: ``"mnist"`` or ``"digits"``.
        source: where it came from, in words.
    """

    train_x: torch.Tensor
    train_y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor
    name: str
    source: str

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            x, y = getattr(self, f"{part}_x"), getattr(self, f"{part}_y")
            if x.dim() != 4 or not x.is_floating_point() or not len(x):
                raise InvalidArgumentError(f"{part}_x={shown(x)}; give floating images [N, C, H, W], at least one")
            if y.dtype != torch.int64 or y.shape != (len(x),):
                raise InvalidArgumentError(f"{part}_y={shown(y)}; give int64 labels, one for each of {len(x)} images")

    @checked
    def to(self, device: str | torch.device) -> Digits:
        """Return the same data with its tensors on ``device``.

        Raises:
            InvalidArgumentError: there is no such device.
        """
        check_device(device)
        tensors = {
            f.name: getattr(self, f.name).to(device) for f in dataclasses.fields(self) if f.name[-2:] in ("_x", "_y")
        }
        return dataclasses.replace(self, **tensors)

    def sha256(self) -> str:
        """Return the SHA-256 of all four tensors' bytes, as recorded beside measured numbers."""
        digest = hashlib.sha256()
        for tensor in (self.train_x, self.train_y, self.test_x, self.test_y):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"Digits(name={self.name!r}, train={len(self.train_x)}, test={len(self.test_x)}, source={self.source!r})"


@checked
def load_data(
    name: str = "auto", train_size: int | None = None, root: str | Path | None = None, seed: int = 0
) -> Digits:
    """Load digits as in-memory tensors.

    Args:
        name: ``"mnist"``; ``"digits"`` (scikit-learn's 1,797 real digits, resized to 28×28; needs no network);
            or ``"auto"``: MNIST if it can be had within a few seconds of trying, else digits, and a printed
            line says which and why.
        train_size: keep at most this many training images (a stratified subset drawn with ``seed``); None: all.
        root: MNIST's folder in torchvision's layout (``root/MNIST/raw/``, ``.gz`` or decompressed). Without it,
            the environment variable ``TUTORIAL_DATA``, else ``data/`` in the project. Files that are not there
            are downloaded into it. Every file's decompressed SHA-256 is checked on every load.
        seed: seed of the training subset.

    Raises:
        InvalidArgumentError: unknown name, or a ``train_size`` below 10 (one image per class).
        DataError: MNIST is damaged (the file and both checksums are named) or cannot be downloaded.
    """
    if name not in ("auto", "mnist", "digits"):
        raise InvalidArgumentError(f"unknown data set {name!r}; use 'auto', 'mnist' or 'digits'")
    use = f"use a whole number of at least {CLASSES}, or None"
    require(train_size is None or train_size >= CLASSES, "train_size", train_size, use)
    check_seed(seed, most=2**32 - 1)
    folder = Path(root or os.environ.get("TUTORIAL_DATA") or ROOT / "data").expanduser()
    if name == "digits":
        data = _embedded_digits()
    elif name == "mnist":
        data = _mnist(folder)
    else:
        data = _mnist_or_digits(folder)
    return _subset(data, train_size, seed)


def _mnist_or_digits(folder: Path) -> Digits:
    try:
        data = _mnist(folder)
    except DataError as why:
        data = _embedded_digits()
        print(
            f"data: scikit-learn's digits ({len(data.train_x)} training images), because MNIST is out of reach: {why}"
        )
    else:
        print(f"data: MNIST ({len(data.train_x)} training images, checksums verified)")
    return data


def _subset(data: Digits, train_size: int | None, seed: int) -> Digits:
    if train_size is None or train_size >= len(data.train_x):
        return data
    # Stratifying needs one image per class on either side of the cut.
    stratify = data.train_y.numpy() if len(data.train_x) - train_size >= CLASSES else None
    from sklearn.model_selection import train_test_split

    chosen, _ = train_test_split(
        np.arange(len(data.train_x)), train_size=int(train_size), stratify=stratify, random_state=seed
    )
    return dataclasses.replace(data, train_x=data.train_x[chosen], train_y=data.train_y[chosen])


def _embedded_digits() -> Digits:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    small = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    x = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    y = torch.from_numpy(bunch.target).long()
    train, test = train_test_split(np.arange(len(y)), test_size=360, stratify=bunch.target, random_state=0)
    x = (x - x[train].mean()) / x[train].std()
    return Digits(x[train], y[train], x[test], y[test], "digits", "scikit-learn, embedded")


def _mnist(folder: Path) -> Digits:
    raw = folder / "MNIST" / "raw"
    if any(_stored(raw, file) is None for file in MNIST_SHA256):
        _download_mnist(folder)
    train_x, train_y, test_x, test_y = (_read_verified(raw, file) for file in MNIST_SHA256)
    return Digits(
        _images(train_x), _labels(train_y), _images(test_x), _labels(test_y), "mnist", "MNIST files, checksums verified"
    )


def _stored(raw: Path, file: str) -> Path | None:
    """Return the path of ``file``, decompressed or ``.gz``, or None."""
    return next((p for p in (raw / file, raw / f"{file}.gz") if p.is_file()), None)


def _read_verified(raw: Path, file: str) -> bytes:
    path = _stored(raw, file)
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); delete it and load again to download it") from error
    found = hashlib.sha256(content).hexdigest()
    if found != MNIST_SHA256[file]:
        raise DataError(
            f"{path} is damaged or not MNIST's {file}: its decompressed SHA-256 is {found}, "
            f"expected {MNIST_SHA256[file]}; delete it and load again to download it"
        )
    return content


def _images(content: bytes) -> torch.Tensor:
    # The checksum fixes the layout: a 16-byte header, then 28×28 bytes an image.
    pixels = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    return (torch.from_numpy(pixels.astype(np.float32)) / 255 - MNIST_MEAN) / MNIST_STD


def _labels(content: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=8).astype(np.int64))


def _download_mnist(folder: Path) -> None:
    """Download into a temporary folder, verify, and only then move the files into place."""
    raw = folder / "MNIST" / "raw"
    from torchvision import datasets

    if not _reachable(datasets.MNIST.mirrors):
        raise DataError(f"{raw} does not hold MNIST and no download server answered; {_remedy(raw)}")
    try:
        raw.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary, _socket_patience():
            datasets.MNIST(temporary, download=True)
            arrived = Path(temporary) / "MNIST" / "raw"
            for file in MNIST_SHA256:
                _read_verified(arrived, file)
            for file in MNIST_SHA256:
                os.replace(arrived / file, raw / file)
    except (OSError, RuntimeError) as error:
        raise DataError(f"MNIST could not be downloaded into {folder} ({error}); {_remedy(raw)}") from error


def _remedy(raw: Path) -> str:
    return (
        f"put its four files into {raw}, or set TUTORIAL_DATA to a folder that holds MNIST/raw, "
        "or use load_data('digits')"
    )


def _reachable(mirrors: list[str]) -> bool:
    """Tell whether a mirror answers within a few seconds; name resolution, which has no time-out, included."""
    answers: queue.Queue[bool] = queue.Queue()

    def ask(mirror: str) -> None:
        request = urllib.request.Request(f"{mirror}train-labels-idx1-ubyte.gz", method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=NETWORK_PATIENCE_SECONDS):
                answers.put(True)
        except OSError:
            answers.put(False)

    for mirror in mirrors:
        threading.Thread(target=ask, args=(mirror,), daemon=True).start()
    deadline = time.monotonic() + NETWORK_PATIENCE_SECONDS
    for _ in mirrors:
        try:
            if answers.get(timeout=max(0.0, deadline - time.monotonic())):
                return True
        except queue.Empty:
            return False
    return False


@contextlib.contextmanager
def _socket_patience() -> Iterator[None]:
    # torchvision's download sets no time-out of its own: without one a stalled server would hang it.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_PATIENCE_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
