"""Digits in, tensors out: MNIST where it can be had, scikit-learn's embedded 8×8 digits otherwise."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import os
import queue
import tempfile
import threading
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from truly_sparse.arguments import require, shown
from truly_sparse.errors import InvalidArgumentError, SparseTrainingError

from .project import ROOT, check_path


class DataError(SparseTrainingError, RuntimeError):
    """A data set is missing, damaged or out of reach."""


# SHA-256 of the four decompressed files.
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MNIST_MEAN, MNIST_STD = 0.1307, 0.3081
NETWORK_PATIENCE_SECONDS = 5.0  # for the first piece of a download, and for each one after it
PIECE_BYTES = 2**18
MOST_BYTES = 2**26  # more than the largest file, decompressed
CLASSES = 10


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

    def to(self, device: str | torch.device) -> Digits:
        """Return the same data with its tensors on ``device``.

        Raises:
            InvalidArgumentError: there is no such device.
        """
        tensors = {
            f.name: getattr(self, f.name).to(device) for f in dataclasses.fields(self) if f.name[-2:] in ("_x", "_y")
        }
        return dataclasses.replace(self, **tensors)

    def sha256(self) -> str:
        """Return the SHA-256 of all four tensors' bytes, as recorded beside measured numbers."""
        digest = hashlib.sha256()
        for tensor in (self.train_x, self.train_y, self.test_x, self.test_y):
            digest.update(tensor.detach().cpu().resolve_neg().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"Digits(name={self.name!r}, train={len(self.train_x)}, test={len(self.test_x)}, source={self.source!r})"


def load_data(
    name: str = "auto", train_size: int | None = None, root: str | Path | None = None, seed: int = 0
) -> Digits:
    """Load digits as in-memory tensors.

    Args:
        name: ``"mnist"``; ``"digits"`` (scikit-learn's 1,797 real digits, resized to 28×28; needs no network);
            or ``"auto"``: MNIST if it can be had, else digits, and a printed line says which and why.
        train_size: keep at most this many training images (a stratified subset drawn with ``seed``); None: all.
        root: MNIST's folder in torchvision's layout (``root/MNIST/raw/``, ``.gz`` or decompressed). Without it,
            the environment variable ``TUTORIAL_DATA``, else ``data/`` in the project. Files that are not there
            are downloaded into it, from servers that keep it waiting for at most five seconds at a time. Every
            file's decompressed SHA-256 is checked on every load.
        seed: seed of the training subset.

    Raises:
        InvalidArgumentError: unknown name, or a ``train_size`` below 10 (one image per class).
        DataError: MNIST is damaged (the file and both checksums are named) or cannot be downloaded.
    """
    if name not in ("auto", "mnist", "digits"):
        raise InvalidArgumentError(f"unknown data set {name!r}; use 'auto', 'mnist' or 'digits'")
    use = f"use a whole number of at least {CLASSES}, or None"
    require(train_size is None or train_size >= CLASSES, "train_size", train_size, use)
    folder = _home_filled_in(check_path("root", root or os.environ.get("TUTORIAL_DATA") or ROOT / "data"))
    if name == "digits":
        data = _embedded_digits()
    elif name == "mnist":
        data = _mnist(folder)
    else:
        data = _mnist_or_digits(folder)
    return _subset(data, train_size, seed)


def _home_filled_in(folder: Path) -> Path:
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise InvalidArgumentError(
            f"root={str(folder)!r}: whose home that is, is not known; use a full path"
        ) from error


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
    return next((p for p in (raw / file, raw / f"{file}.gz") if os.path.isfile(p)), None)


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
    """Download the files that are missing, each verified before it is moved into place in one step.

    A server that fails is not asked again: two silent ones cost ten seconds.
    """
    from torchvision.datasets import MNIST

    raw = folder / "MNIST" / "raw"
    failures = []
    try:
        raw.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
            for mirror in MNIST.mirrors:
                try:
                    for file in MNIST_SHA256:
                        if _stored(raw, file) is None:
                            arrived = Path(temporary) / file
                            arrived.write_bytes(_downloaded(f"{mirror}{file}.gz", file))
                            arrived.replace(raw / file)
                    return
                except DataError as failure:
                    failures.append(str(failure))
    except OSError as error:
        raise DataError(f"{raw} does not hold MNIST and cannot be written ({error}); {_remedy(raw)}") from error
    raise DataError(f"{raw} does not hold MNIST and no server gave it ({'; '.join(failures)}); {_remedy(raw)}")


def _remedy(raw: Path) -> str:
    return (
        f"put its four files into {raw}, or set TUTORIAL_DATA to a folder that holds MNIST/raw, "
        "or use load_data('digits')"
    )


def _downloaded(url: str, file: str) -> bytes:
    """Return MNIST's ``file`` from ``url``, decompressed and verified.

    Raises:
        DataError: there is no answer, or another file; the message is one line.
    """
    try:
        received = _received(url)
    except Exception as error:  # whatever a server can make urllib raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DataError(f"{url}: {reason}") from error
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(received)) as zipped:
            content = zipped.read(MOST_BYTES)
    except (OSError, EOFError, zlib.error):
        content = b""
    if hashlib.sha256(content).hexdigest() != MNIST_SHA256[file]:
        raise DataError(f"{url} sent {len(received)} bytes that are not MNIST's {file}: cut short, or another page")
    return content


def _received(url: str) -> bytes:
    """Return what a server sends, as long as each piece of it comes within a few seconds.

    A thread asks, because resolving a name has no time-out; where it waits for a silent server it is left behind.

    Raises:
        Exception: whatever urllib raises; TimeoutError where the server, or the resolution of its name, is too slow.
    """
    pieces: queue.Queue[bytes | Exception] = queue.Queue()

    def ask() -> None:
        try:
            with urllib.request.urlopen(url, timeout=NETWORK_PATIENCE_SECONDS) as response:
                for _ in range(MOST_BYTES // PIECE_BYTES):
                    pieces.put(response.read(PIECE_BYTES))
            pieces.put(b"")  # as after the last piece: an endless answer is cut, and then not what was asked for
        except Exception as error:
            pieces.put(error)

    threading.Thread(target=ask, daemon=True).start()
    received = bytearray()
    with tqdm(desc=f"downloading {url.rsplit('/', 1)[-1]}", unit="B", unit_scale=True, delay=2, leave=False) as bar:
        while True:
            try:
                piece = pieces.get(timeout=NETWORK_PATIENCE_SECONDS)
            except queue.Empty:
                slow = f"less than {PIECE_BYTES // 1024} KiB came in {NETWORK_PATIENCE_SECONDS:g} seconds"
                raise TimeoutError(slow) from None
            if isinstance(piece, Exception):
                raise piece
            if not piece:
                return bytes(received)
            received += piece
            bar.update(len(piece))
