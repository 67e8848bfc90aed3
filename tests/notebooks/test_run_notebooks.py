"""The notebook runner: reports, refuses to keep failures, and needs no network."""

import sys

import nbformat
import pytest

from tools import run_notebooks
from tutorial_lib import load_result


@pytest.fixture
def folder(tmp_path, monkeypatch):
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    monkeypatch.setattr(run_notebooks, "NOTEBOOKS", notebooks)
    return notebooks


def write(path, *sources):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    notebook.cells[-1].metadata["tags"] = ["headline"]
    nbformat.write(notebook, path)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["run_notebooks.py", *map(str, arguments)])
    return run_notebooks.main()


def test_runs_in_order_and_reports(folder, tmp_path, monkeypatch, capsys):
    write(folder / "02_b.ipynb", "print('first')\nprint('second headline')")
    write(folder / "01_a.ipynb", "x = 20", "print(x + 1)")
    assert run(monkeypatch, "--output", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert printed.index("01_a") < printed.index("02_b") and "second headline" in printed and "21" in printed
    done = nbformat.read(tmp_path / "out" / "01_a.ipynb", as_version=4)
    assert [cell.execution_count for cell in done.cells] == [1, 2]
    assert (
        nbformat.read(folder / "01_a.ipynb", as_version=4).cells[0].execution_count is None
    )  # the source is left alone


def test_a_failing_cell_fails_the_run_and_is_not_written(folder, tmp_path, monkeypatch, capsys):
    write(folder / "01_bad.ipynb", "1 / 0")
    write(folder / "02_good.ipynb", "print('fine')")
    assert run(monkeypatch, "--output", tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert "FAILED" in captured.out and "ZeroDivisionError" in captured.err and "fine" in captured.out
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["02_good.ipynb"]


def test_a_name_that_no_notebook_has(folder, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--output", tmp_path / "out", "99")
    assert "no notebook's name starts with 99" in capsys.readouterr().err


def test_progress_bars_are_stored_as_their_last_state(folder, tmp_path, monkeypatch):
    write(folder / "01_a.ipynb", "for i in range(3): print(i, end='\\r')\nprint('done')")
    run(monkeypatch, "--output", tmp_path / "out")
    (output,) = nbformat.read(tmp_path / "out" / "01_a.ipynb", as_version=4).cells[0].outputs
    assert output.text == "done\n"


def test_a_real_notebook_runs_without_network_and_without_mnist(tmp_path, monkeypatch, capsys):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.setenv("TUTORIAL_DATA", str(tmp_path / "empty"))
    monkeypatch.setenv("TUTORIAL_PROFILE", "quick")
    assert run(monkeypatch, "--output", tmp_path / "out", "01") == 0
    assert "scikit-learn's digits" in (tmp_path / "out" / "01_paradox.ipynb").read_text(encoding="utf-8")


def test_the_longest_cell_without_a_progress_bar():
    bar, plain = (
        nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("stream", text=t)]) for t in ("9%|█ ", "9%")
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("x"), bar, plain])
    assert run_notebooks.longest_without_bar(notebook, [60.0, 3.0]) == 3.0


@pytest.mark.parametrize("path", sorted(run_notebooks.NOTEBOOKS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_recorded_times_are_within_the_budget(path):
    """Quick profile, two cores: 90 seconds a notebook, 45 a cell that shows no progress."""
    recorded = load_result("notebook_times")
    assert recorded["seconds"][path.stem] <= 90
    assert recorded["longest cell without progress bar"][path.stem] <= 45
