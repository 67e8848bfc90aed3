"""Data sets as tensors in memory: MNIST if available, otherwise scikit-learn's embedded 8×8 digits."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import logging
import os
import tempfile
import threading
import zlib
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from truly_sparse.arguments import check_count, require, shown
from truly_sparse.errors import InvalidArgumentError, SparseTrainingError

from .project import ROOT, check_path


class DataError(SparseTrainingError, RuntimeError):
    """A data set is missing or damaged, or cannot be downloaded."""


# SHA-256 of the four decompressed files.
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MNIST_MEAN, MNIST_STD = 0.1307, 0.3081
NETWORK_PATIENCE_SECONDS = 5.0  # in which at least PIECE_BYTES of a download must arrive
PIECE_BYTES = 2**18
MOST_BYTES = 2**26  # more than the largest file, decompressed
CLASSES = 10
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Digits:
    """A data set of 28×28 grey digits in memory, normalised to about zero mean and unit standard deviation.

    Attributes:
        train_x: float32 ``[N, 1, 28, 28]``.
        train_y: int64 ``[N]``, labels 0 to 9.
        test_x: float32 ``[M, 1, 28, 28]``.
        test_y: int64 ``[M]``.
        name: ``"mnist"`` or ``"digits"``.
        source: a description of its origin.
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
        """Return the same data with its tensors on ``device``."""
        device = torch.device(device)
        tensors = {
            f.name: getattr(self, f.name).to(device) for f in dataclasses.fields(self) if f.name[-2:] in ("_x", "_y")
        }
        return dataclasses.replace(self, **tensors)

    def sha256(self) -> str:
        """Return the SHA-256 of the bytes of all four tensors, as recorded with measured numbers."""
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
            or ``"auto"``: MNIST if available, else digits; a printed line says which, a debug log why.
        train_size: keep at most this many training images (a stratified subset drawn with ``seed``); None: all.
        root: MNIST's folder in torchvision's layout (``root/MNIST/raw/``, ``.gz`` or decompressed); None: the
            environment variable ``TUTORIAL_DATA``, or ``data/`` in the project. Missing files are downloaded into it; a
            server that sends too little for five seconds is given up. The SHA-256 of each decompressed file is verified
            on each load.
        seed: seed of the training subset.

    Raises:
        InvalidArgumentError: unknown name, or a ``train_size`` below 10 (one image per class).
        DataError: MNIST is damaged (the file and both checksums are named) or cannot be downloaded.
    """
    if name not in ("auto", "mnist", "digits"):
        raise InvalidArgumentError(f"unknown data set {name!r}; use 'auto', 'mnist' or 'digits'")
    use = f"use a whole number of at least {CLASSES}, or None"
    check_count("seed", seed, least=0)
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
        _log.debug("MNIST is not used: %s", why)
        missing = any(_stored(folder / "MNIST" / "raw", file) is None for file in MNIST_SHA256)
        print(
            f"data: scikit-learn's digits ({len(data.train_x)} training images) in place of MNIST, "
            + ("which is not here and could not be downloaded" if missing else "whose files here are damaged")
            + '. load_data("mnist") says why; for MNIST, connect to the network or set TUTORIAL_DATA to its folder.'
        )
    else:
        print(f"data: MNIST ({len(data.train_x)} training images, checksums verified)")
    return data


def _subset(data: Digits, train_size: int | None, seed: int) -> Digits:
    if train_size is None or train_size >= len(data.train_x):
        return data
    # A stratified split needs one image per class on each side.
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
    path = _stored(raw, file) or raw / file
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
    # The checksum guarantees the layout: a 16-byte header, then 28×28 bytes per image.
    pixels = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    return (torch.from_numpy(pixels.astype(np.float32)) / 255 - MNIST_MEAN) / MNIST_STD


def _labels(content: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=8).astype(np.int64))


def _download_mnist(folder: Path) -> None:
    """Download the missing files with pooch, which verifies each before it moves it into place in one step.

    A server that fails is not asked again, so two silent servers cost ten seconds.
    """
    import pooch
    from torchvision.datasets import MNIST

    pooch.get_logger().setLevel("WARNING")
    raw = folder / "MNIST" / "raw"
    failures = []
    try:
        raw.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
            for mirror in MNIST.mirrors:
                try:
                    for file, checksum in MNIST_SHA256.items():
                        if _stored(raw, file) is None:
                            url, target = f"{mirror}{file}.gz", {"fname": file, "path": temporary}
                            arrived = pooch.retrieve(url, checksum, downloader=_download_gzip, **target)
                            Path(arrived).replace(raw / file)
                    return
                except (_ServerError, ValueError) as error:  # ValueError: pooch's, of a checksum
                    failures.append(f"{mirror}{file}.gz: " + " ".join(str(error).split())[:200])
    except OSError as error:
        raise DataError(f"{raw} does not hold MNIST and cannot be written ({error}); {_remedy(raw)}") from error
    raise DataError(f"{raw} does not hold MNIST and no server gave it ({'; '.join(failures)}); {_remedy(raw)}")


def _remedy(raw: Path) -> str:
    return (
        f"put its four files into {raw}, or set TUTORIAL_DATA to a folder that holds MNIST/raw, "
        "or use load_data('digits')"
    )


class _ServerError(Exception):
    """A server is silent, too slow, or sends something else than a gzip file."""


class _Buffer(io.BytesIO):
    """Memory that a download is written to; writing fails beyond MOST_BYTES and after ``abandoned`` was set."""

    abandoned = False

    def write(self, piece: Any) -> int:
        """Append a piece."""
        if self.abandoned or self.tell() + len(piece) > MOST_BYTES:
            raise _ServerError(f"it sent more than {MOST_BYTES:,} bytes")
        return super().write(piece)


def _download_gzip(url: str, output_file: str, pooch: Any) -> None:
    """Downloader for pooch: fetch a .gz file within the limits of time and size, and write it decompressed.

    pooch's own downloader waits without limit for the resolution of a name, and for a server that sends a byte now and
    then. It therefore runs in a thread, which is abandoned when too little arrives.
    """
    from pooch import HTTPDownloader

    buffer, done = _Buffer(), Future[None]()

    def fetch() -> None:
        try:
            HTTPDownloader(timeout=NETWORK_PATIENCE_SECONDS, headers={"Accept-Encoding": "identity"})(
                url, buffer, pooch
            )
            done.set_result(None)
        except Exception as error:
            done.set_exception(error)

    threading.Thread(target=fetch, daemon=True).start()
    before = 0
    with tqdm(desc=f"downloading {url.rsplit('/', 1)[-1]}", unit="B", unit_scale=True, delay=2, leave=False) as bar:
        while not wait([done], timeout=NETWORK_PATIENCE_SECONDS).done:
            arrived = buffer.tell() - before
            if arrived < PIECE_BYTES:
                buffer.abandoned = True
                slow = f"less than {PIECE_BYTES // 1024} KiB came in {NETWORK_PATIENCE_SECONDS:g} seconds"
                raise _ServerError(slow)
            before += arrived
            bar.update(arrived)
    try:
        done.result()
        with gzip.GzipFile(fileobj=io.BytesIO(buffer.getvalue())) as zipped:
            content = zipped.read(MOST_BYTES)
    except Exception as error:  # requests, urllib3 and gzip may raise anything
        raise _ServerError(f"{type(error).__name__}: {error}") from error
    Path(output_file).write_bytes(content)
    Path(output_file).chmod(0o644)  # pooch's temporary file is readable by its owner only
