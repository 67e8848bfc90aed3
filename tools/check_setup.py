"""A report on whether this machine is ready for the course: python tools/check_setup.py."""

from __future__ import annotations

import importlib.metadata
import io
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from truly_sparse import SparseTrainingError, fuse, sparsify, warmup
from tutorial_lib import TutorialCNN, load_data, mask_model
from tutorial_lib.project import ROOT

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "numba", "matplotlib", "pandas", "scikit-learn", "ipywidgets")
TIMED_STEPS = 5


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        what: the subject.
        state: ``"ok"``, ``"note"`` (the course works, with limits) or ``"wrong"``.
        found: the result.
        mend: what to do; empty if nothing.
    """

    what: str
    state: str
    found: str
    mend: str = ""


def versions() -> Finding:
    """Python and the packages that the notebooks import."""
    have, missing = [f"Python {platform.python_version()}"], []
    for name in PACKAGES:
        try:
            have.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding("versions", "wrong", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Finding("versions", "ok", ", ".join(have))


def threads() -> Finding:
    """Torch's threads, against the processors that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = torch.get_num_threads()
    found = f"torch uses {count} on {usable} processors"
    if count > usable:
        return Finding("threads", "note", found, f"set OMP_NUM_THREADS={usable} before starting, or runs slow down")
    return Finding("threads", "ok", found)


def gpu() -> Finding:
    """A GPU, which no notebook needs."""
    if torch.cuda.is_available():
        return Finding("GPU", "ok", torch.cuda.get_device_name())
    return Finding("GPU", "ok", "none; no notebook needs one")


def data() -> Finding:
    """Real MNIST, or the digits that stand in for it."""
    try:
        loaded = load_data()
    except SparseTrainingError as error:
        return Finding("data", "wrong", str(error), "see The data in README")
    if loaded.name == "mnist":
        return Finding("data", "ok", loaded.source)
    mend = "all notebooks run, but the accuracies differ; to have MNIST, see The data in README"
    return Finding("data", "note", loaded.source, mend)


def write_access(folder: Path = ROOT) -> Finding:
    """Whether results and downloads can be written."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
    except OSError as error:
        return Finding("writing", "wrong", f"{folder}: {error}", "copy the project to a folder of your own")
    return Finding("writing", "ok", str(folder))


def fast_path() -> Finding:
    """Whether the compiled kernels work here, and agree with the masked network."""
    try:
        start = time.perf_counter()
        warmup()
        seconds = time.perf_counter() - start
        torch.manual_seed(0)
        masked = mask_model(TutorialCNN(), sparsity=0.95, seed=0).eval()
        images = torch.randn(8, 1, 28, 28)
        with torch.no_grad():
            difference = (fuse(sparsify(masked))(images) - masked(images)).abs().max().item()
    except Exception as error:  # a compiler on an unknown machine may raise anything
        return Finding("fast path", "wrong", f"{type(error).__name__}: {error}", "pip install --upgrade numba")
    if not difference < 1e-4:
        return Finding("fast path", "wrong", f"differs from masked by {difference:.1e}", "please report this machine")
    return Finding("fast path", "ok", f"kernels ready in {seconds:.1f} s, same outputs as the masked network")


def step_time(network: Callable[[torch.nn.Module], torch.nn.Module], what: str) -> Finding:
    """The fastest of a few training steps of the tutorial's network, batch 64."""
    torch.manual_seed(0)
    model = network(TutorialCNN())
    optimizer = torch.optim.Adam(model.parameters())
    images, labels = torch.randn(64, 1, 28, 28), torch.arange(64) % 10
    seconds = []
    for _ in range(TIMED_STEPS + 2):
        start = time.perf_counter()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return Finding(what, "ok", f"{1e3 * min(seconds[2:]):.1f} ms")


def findings() -> list[Finding]:
    """Return all findings; where the fast path works, with the time of a truly sparse step."""
    report = [versions(), threads(), gpu(), data(), write_access(), fast_path()]
    report.append(step_time(lambda model: model, "dense step"))
    if report[5].state == "ok":
        report.append(step_time(lambda m: fuse(sparsify(mask_model(m, sparsity=0.95, seed=0))), "sparse step"))
    return report


def text(report: Sequence[Finding]) -> str:
    """Return the report as a person reads it."""
    lines = []
    for finding in report:
        lines.append(f"{finding.state:5s}  {finding.what:11s}  {finding.found}")
        lines += [f"{'':20s}→ {finding.mend}"] if finding.mend else []
    wrong = sum(finding.state == "wrong" for finding in report)
    return "\n".join([*lines, f"{wrong} of {len(report)} are wrong" if wrong else "ready"])


def main() -> int:
    """Print the report; return 0 if the course can begin, else 1."""
    report = findings()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an ASCII terminal cannot show the arrow
    print(text(report))
    return int(any(finding.state == "wrong" for finding in report))


if __name__ == "__main__":
    sys.exit(main())
