"""The measuring tools run from beginning to end; how fast things are is their business, not a test's."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import referee
from tools import blocks_tables, lab
from tutorial_lib import load_result

ROOT = Path(__file__).parent.parent


def run(*command):
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def figures():
    return {path: path.stat().st_mtime_ns for path in (ROOT / "figures").iterdir()}


def test_quick_bench_measures_every_row_and_writes_nothing():
    before = figures()
    out = run("benchmarks/bench.py", "--quick")
    for row in ("Dense+Mask", "dense channels_last", "truly sparse (this project)", "torch CSR", "scipy CSR"):
        assert f"\n{row} " in out
    for work in ("inference", "training step", "fc 1000", "bytes", "time per nonzero", "layer, peak"):
        assert work in out[out.index("to reach") :]
    assert figures() == before


def test_quick_race_of_structures_measures_every_rival_and_writes_nothing():
    before = figures()
    work = re.split(r"\n(?! )", run("benchmarks/structures.py", "--quick").strip())
    assert len(work) == 10 and figures() == before
    for name, *rows in map(str.splitlines, work):
        rivals = {
            "linear": "torch CSR",
            "convol": "one weight an output",
            "unifor": "Dense+Mask",
            "erk, i": "auto",
            "erk, s": "auto",
        }
        for row in ("dense", "1×1", "4×1", "4×4", "8×8", "16×1", rivals[name[:6]]):
            assert any(line.startswith(f"  {row} ") for line in rows), (name, row)


def test_gpu_bench_compares_the_same_work():
    assert "all 4 rows compute the same" in run("benchmarks/bench_gpu.py", "--check")


def test_a_study_is_complete_only_with_every_run_of_its_plan():
    runs = load_result("referee")["runs"]
    assert referee.is_complete(runs)
    for race in runs:
        for lost in (0, len(runs[race]["seed"]) - 1):
            without = {name: column[:lost] + column[lost + 1 :] for name, column in runs[race].items()}
            assert not referee.is_complete(runs | {race: without})


@pytest.mark.parametrize("handler, status", [("SIG_DFL", -signal.SIGTERM), ("SIG_IGN", -signal.SIGKILL)])
def test_a_server_that_hangs_while_closing_is_ended(handler, status):
    program = f"import signal, time; signal.signal(signal.SIGTERM, signal.{handler}); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    with process.stdout as said:
        said.readline()
        assert lab.ended(process, seconds=0.5 if handler == "SIG_IGN" else 30) == status


def test_an_aim_of_blocks_is_judged_against_the_best_structure_and_not_without_the_rival(monkeypatch):
    rows = {
        work: {"dense": 160.0, "torch CSR": 40.0, "1×1": 16.0, "4×1": 10.0, "8×8": 20.0}
        for work, *_ in blocks_tables.LAYER_AIMS
    }
    networks = {
        f"{scheme}, {work}": {"Dense+Mask": 20.0, "dense": 15.0, "1×1": 1.5, "auto": 1.0}
        for scheme in ("uniform", "erk")
        for work, *_ in blocks_tables.NETWORK_AIMS
    }
    record = {
        name: {work: {way: {"fastest µs": us} for way, us in of.items()} for work, of in table.items()}
        for name, table in (("rows", rows), ("networks", networks))
    }
    monkeypatch.setattr(blocks_tables, "load_result", lambda name: record)
    found = {work: rest for work, *rest in blocks_tables.speeds_table()[1]}
    both = "linear 1000, batch 64, forward and gradients, × "
    assert found[both + "dense"] == ["16.0", "≥ 10", "yes"] and found[both + "torch CSR"] == ["4.00", "≥ 3", "yes"]
    assert found[both + "sparselab"] == ["not measured", "≥ 6", ""]
    assert found["CNN, erk, step of 64 images, × 1×1"] == ["1.50", "≥ 1.6", "no"]
    monkeypatch.setattr(blocks_tables, "load_result", lambda name: None)
    assert blocks_tables.speeds_table()[1] == [] and blocks_tables.convolution_words() == "Not recorded yet."
