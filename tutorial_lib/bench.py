"""Timing in turns with equal outputs checked, and result files that record where a number comes from."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from truly_sparse.arguments import require, shown
from truly_sparse.errors import InvalidArgumentError

from .data import Digits
from .project import FIGURES, ROOT, check_path, profile

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "numba", "matplotlib")
MEASURED_FOLDERS = ("truly_sparse", "tutorial_lib", "benchmarks", "tools")
MOST_RUNS = 10**6


@dataclass(frozen=True)
class Benchmark:
    """Timings of several candidates that computed the same outputs.

    Attributes:
        seconds: candidate name → the seconds of its timed runs, in order.
        threads: torch's number of threads during the runs.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        InvalidArgumentError: a candidate without runs, or a time that is negative or not finite.
    """

    seconds: dict[str, list[float]]
    threads: int
    device: str

    def __post_init__(self) -> None:
        for name, runs in self.seconds.items():
            if not runs or not all(0 <= run < math.inf for run in runs):
                raise InvalidArgumentError(f"seconds[{name!r}]={shown(runs)}; give at least one finite time")

    def median(self, name: str) -> float:
        """Return a candidate's median time in seconds."""
        return float(np.median(self.seconds[name]))

    def table(self) -> pd.DataFrame:
        """Return one row per candidate: milliseconds, and its speed relative to the first candidate."""
        rows = {}
        for name, runs in self.seconds.items():
            low, median, high = 1e3 * np.percentile(runs, (25, 50, 75))
            rows[name] = {
                "median ms": median,
                "25% ms": low,
                "75% ms": high,
                "fastest ms": 1e3 * min(runs),
                "slowest ms": 1e3 * max(runs),
            }
        table = pd.DataFrame.from_dict(rows, orient="index")
        table["× faster than first"] = table["median ms"].iloc[0] / table["median ms"]
        return table


def benchmark(
    candidates: dict[str, Callable[[], Any]],
    *,
    runs: int = 10,
    warmup: int = 2,
    tolerance: float | None = 1e-4,
) -> Benchmark:
    """Time several callables in turn (A A B B C C A A …), so that a slow phase of the machine affects all of them.

    In each turn a candidate is called twice and the second call is timed, so that the caches hold its own data and not
    the previous candidate's. Before timing, every candidate's output is compared with the first one's. If an output is
    on a GPU, CUDA events measure the times.

    Args:
        candidates: name → callable without arguments that returns a tensor or an array.
        runs: timed runs per candidate, 1 to 1,000,000.
        warmup: untimed runs per candidate before them, 0 to 1,000,000.
        tolerance: largest absolute difference allowed between outputs; None: do not compare.

    Raises:
        InvalidArgumentError: no candidates, ``runs`` or ``warmup`` out of range, or outputs that differ.
    """
    require(candidates, "candidates", candidates, "give at least one")
    require(1 <= runs <= MOST_RUNS, "runs", runs, f"use a whole number from 1 to {MOST_RUNS:,}")
    require(0 <= warmup <= MOST_RUNS, "warmup", warmup, f"use a whole number from 0 to {MOST_RUNS:,}")
    require(tolerance is None or tolerance >= 0, "tolerance", tolerance, "use a number of at least 0, or None")
    outputs = {name: candidate() for name, candidate in candidates.items()}
    if tolerance is not None:
        _check_same_outputs(outputs, tolerance)
    on_gpu = any(torch.is_tensor(output) and output.is_cuda for output in outputs.values())
    timer = _gpu_seconds if on_gpu else _cpu_seconds
    for _ in range(warmup):
        for candidate in candidates.values():
            candidate()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(runs):
        for name, candidate in candidates.items():
            candidate()
            seconds[name].append(timer(candidate))
    return Benchmark(seconds, torch.get_num_threads(), "cuda" if on_gpu else "cpu")


def _cpu_seconds(candidate: Callable[[], Any]) -> float:
    start = time.perf_counter()
    candidate()
    return time.perf_counter() - start


def _gpu_seconds(candidate: Callable[[], Any]) -> float:
    start = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    candidate()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def _check_same_outputs(outputs: dict[str, Any], tolerance: float) -> None:
    arrays = {name: _as_array(name, output) for name, output in outputs.items()}
    first = next(iter(arrays))
    for name, array in arrays.items():
        if array.shape != arrays[first].shape:
            raise InvalidArgumentError(
                f"{name!r} returns an array of shape {array.shape}, {first!r} one of shape {arrays[first].shape}; "
                "give candidates that compute the same"
            )
        difference = float(np.abs(array - arrays[first]).max(initial=0.0))
        if not difference <= tolerance:
            raise InvalidArgumentError(
                f"{name!r} and {first!r} differ by {difference:.3g}, more than tolerance={tolerance:.3g}; "
                "give candidates that compute the same"
            )


def _as_array(name: str, output: Any) -> np.ndarray:
    """Return an output as an array whose entries can be subtracted: signed, and not bfloat16."""
    array = None
    try:
        if torch.is_tensor(output):
            output = output.detach().cpu().resolve_conj().resolve_neg()
            output = (output.float() if output.dtype == torch.bfloat16 else output).numpy()
        array = np.asarray(output)
    except (TypeError, ValueError, RuntimeError):  # for example a sparse tensor
        pass
    if array is None or array.dtype.kind not in "biufc":
        raise InvalidArgumentError(
            f"{name!r} returns {shown(output)}, which cannot be compared; return numbers, or use tolerance=None"
        )
    return array.astype(np.int64) if array.dtype.kind in "bu" else array


def provenance(command: str, seed: int | None = None, data: Digits | None = None) -> dict[str, Any]:
    """Return what is recorded with a result: command, commit, date, machine, threads, versions, data, seed."""
    return {
        "command": command,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_clean": _git("status", "--porcelain", "--", *MEASURED_FOLDERS) == "",
        "date_utc": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "profile": profile().name,
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "data": None if data is None else {"name": data.name, "train": len(data.train_x), "sha256": data.sha256()},
        "seed": seed,
    }


def save_result(
    name: str,
    values: dict[str, Any],
    *,
    command: str,
    seed: int | None = None,
    data: Digits | None = None,
    folder: str | Path = FIGURES,
) -> Path:
    """Write ``folder/name.json`` with the values and their provenance; an error leaves an existing file unchanged.

    Args:
        name: file name without its extension.
        values: the measured values; anything that JSON can represent, numbers finite.
        command: the command that repeats the measurement.
        seed: seed of the run, if it has a single one.
        data: the data set that was used; its name, size and checksum are recorded.
        folder: folder of the file.

    Raises:
        InvalidArgumentError: a value that JSON cannot represent, such as NaN; a ``name`` that contains a folder; or a
            file that cannot be written.
    """
    _check_name(name)
    try:
        record = {"values": dict(**values), "provenance": provenance(command, seed, data)}
        text = json.dumps(record, indent=1, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(
            f"values={shown(values)}, command={shown(command)} cannot be written as JSON ({error}); "
            "use finite numbers, text, lists, and dictionaries with text as keys"
        ) from error
    folder = check_path("folder", folder)
    partial, path = folder / f".{name}.json.partial", folder / f"{name}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise InvalidArgumentError(
            f"name={shown(name)} cannot be written to folder={str(folder)!r} ({error}); choose another"
        ) from error
    return path


def load_result(name: str, folder: str | Path = FIGURES) -> dict[str, Any] | None:
    """Return the ``values`` that :func:`save_result` wrote to ``folder/name.json``, or None if there is no such file.

    Raises:
        InvalidArgumentError: a ``name`` that contains a folder, or a damaged file.
    """
    _check_name(name)
    path = check_path("folder", folder) / f"{name}.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))["values"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidArgumentError(f"name={name!r}: {path} is damaged ({error!r}); measure it again") from error


def _check_name(name: str) -> None:
    plain = bool(name) and check_path("name", name).name == name
    require(plain, "name", name, "use a plain file name, without folders")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
