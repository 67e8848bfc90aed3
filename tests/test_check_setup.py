"""The pre-flight report: right about a machine that is ready, and clear about one that is not."""

import subprocess
import sys

import pytest
import torch

from tools import check_setup
from tutorial_lib.data import DataError


def test_as_a_program_where_all_is_well(tmp_path, monkeypatch):
    done = subprocess.run([sys.executable, check_setup.__file__], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("ready\n"), done.stdout + done.stderr
    for line in ("versions", "threads", "GPU", "data", "writing", "fast path", "dense step", "sparse step"):
        assert f"  {line} " in done.stdout
    assert torch.__version__.split("+")[0] in done.stdout


def test_one_wrong_finding_is_the_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(check_setup, "findings", lambda: [check_setup.Finding("data", "wrong", "torn", "mend it")])
    assert check_setup.main() == 1
    assert capsys.readouterr().out.splitlines() == [
        "wrong  data         torn",
        f"{'':20s}→ mend it",
        "1 of 1 are wrong",
    ]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(check_setup, "PACKAGES", ("numpy", "no-such-package"))
    finding = check_setup.versions()
    assert finding.state == "wrong" and finding.mend == "pip install no-such-package"


def test_too_many_threads_are_noted(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4096)
    assert check_setup.threads().state == "note" and "OMP_NUM_THREADS" in check_setup.threads().mend


def test_digits_in_place_of_mnist_are_a_note(tmp_path, monkeypatch, digits):
    monkeypatch.setattr(check_setup, "load_data", lambda: digits)
    assert check_setup.data().state == "note" and "accuracies differ" in check_setup.data().mend


def test_damaged_data_are_wrong(monkeypatch):
    def damaged():
        raise DataError("train-images is damaged")

    monkeypatch.setattr(check_setup, "load_data", damaged)
    assert check_setup.data().state == "wrong" and "damaged" in check_setup.data().found


def test_a_folder_that_cannot_be_written(tmp_path):
    finding = check_setup.write_access(tmp_path / "missing")
    assert finding.state == "wrong" and "folder of your own" in finding.mend
    assert check_setup.write_access(tmp_path).state == "ok" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["raises", "computes something else"])
def test_a_fast_path_that_does_not_work(monkeypatch, how):
    def broken(model):
        if how == "raises":
            raise RuntimeError("no compiler")
        return lambda images: torch.zeros(len(images), 10) + 1

    monkeypatch.setattr(check_setup, "fuse", broken)
    finding = check_setup.fast_path()
    assert finding.state == "wrong" and finding.mend
    assert ("no compiler" if how == "raises" else "differs from masked") in finding.found
