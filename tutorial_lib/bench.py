"""Fair measurement: same work, taken in turns, warmed up, medians with spread, and where a number came from."""

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

from truly_sparse.arguments import check_choice, require, shown
from truly_sparse.errors import InvalidArgumentError

from .data import Digits
from .project import FIGURES, ROOT, check_path, profile

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "numba", "matplotlib")


@dataclass(frozen=True)
class Benchmark:
    """Timings of several candidates that did the same work.

    Attributes:
        seconds: every timed run, by candidate name, in the order taken.
        threads: torch's thread count during the runs.
        device: ``"cpu"`` or ``"cuda"``.
    """

    seconds: dict[str, list[float]]
    threads: int
    device: str

    def __post_init__(self) -> None:
        for name, runs in self.seconds.items():
            if not runs or not all(0 <= run < math.inf for run in runs):
                raise InvalidArgumentError(f"seconds[{name!r}]={shown(runs)}; give at least one finite time")

    def median(self, name: str) -> float:
        """Return a candidate's median in seconds.

        Raises:
            InvalidArgumentError: no such candidate.
        """
        check_choice("name", name, self.seconds)
        return float(np.median(self.seconds[name]))

    def table(self) -> pd.DataFrame:
        """Return milliseconds (median, quartiles, fastest, slowest) and the speed relative to the first candidate."""
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
    """Time several callables in turn (A A B B C C A A …), so that a slow moment of the machine hits all alike.

    In each turn a candidate is called twice and the second call is timed: caches and threads are then as its own loop
    leaves them, and not as the candidate before it did. Before all that, every candidate's output is compared with the
    first one's. Outputs on a GPU are timed with CUDA events.

    Args:
        candidates: name → callable without arguments that returns its output, a tensor or an array.
        runs: timed runs of each.
        warmup: untimed runs of each before.
        tolerance: largest absolute difference allowed between outputs; None where there is nothing to compare.

    Raises:
        InvalidArgumentError: no candidates, fewer than one run, or outputs that differ (named, with the difference).
    """
    if not candidates or runs < 1 or warmup < 0:
        raise InvalidArgumentError(
            f"{len(candidates)} candidates, runs={runs}, warmup={warmup}; give at least one of each, warmup from 0"
        )
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
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
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
                f"{name!r} returns {array.shape}, {first!r} {arrays[first].shape}; "
                "give candidates that do the same work"
            )
        difference = float(np.abs(array - arrays[first]).max(initial=0.0))
        if not difference <= tolerance:
            raise InvalidArgumentError(
                f"{name!r} and {first!r} differ by {difference:.3g}, more than tolerance={tolerance:.3g}; "
                "they do not do the same work, give candidates that do"
            )


def _as_array(name: str, output: Any) -> np.ndarray:
    """Return an output as numbers that can be subtracted."""
    array = None
    try:
        if torch.is_tensor(output):
            output = output.detach().cpu().resolve_conj().resolve_neg()
            output = (output.float() if output.dtype == torch.bfloat16 else output).numpy()
        array = np.asarray(output)
    except (TypeError, ValueError, RuntimeError):  # a sparse tensor, a ragged list, ...
        pass
    if array is None or array.dtype.kind not in "biufc":
        raise InvalidArgumentError(
            f"{name!r} returns {shown(output)}, which are no numbers to compare; use tolerance=None"
        )
    return array.astype(np.int64) if array.dtype.kind in "bu" else array


def provenance(command: str, seed: int | None = None, data: Digits | None = None) -> dict[str, Any]:
    """Return where a number comes from: command, commit, date, machine, threads, versions, data, seed."""
    return {
        "command": command,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_clean": _git("status", "--porcelain", "--", "tutorial_lib", "tools") == "",
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
    """Write ``folder/name.json`` with the values and their provenance, in one step that cannot be half done.

    Args:
        name: file name without its ending.
        values: what was measured; anything that JSON can hold, numbers finite.
        command: the command that measures it again.
        seed: seed of the run, if one number says it.
        data: data set that was used, recorded by name, size and checksum.
        folder: where to write.

    Raises:
        InvalidArgumentError: a value that JSON cannot hold, such as NaN; or a name that leads out of the folder.
    """
    _check_name(name)
    try:
        text = json.dumps({"values": values, "provenance": provenance(command, seed, data)}, indent=1, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(
            f"result {name!r} with values={shown(values)} cannot be written as JSON ({error}); use finite plain values"
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
    """Return the recorded ``values`` of ``name``, or None where nobody has measured it.

    Raises:
        InvalidArgumentError: a name that leads out of the folder, or a file that :func:`save_result` has not written.
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


def summarize(samples: list[float]) -> dict[str, Any]:
    """Return ``{"mean", "low", "high", "samples"}`` of repeated measurements.

    Raises:
        InvalidArgumentError: no samples, or one that is not finite.
    """
    if not samples or not all(math.isfinite(s) for s in samples):
        raise InvalidArgumentError(f"cannot summarize {samples!r}; give at least one finite number")
    return {"mean": float(np.mean(samples)), "low": min(samples), "high": max(samples), "samples": samples}


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
