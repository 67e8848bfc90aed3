"""Execute the notebooks in order, each on a fresh kernel, with progress, and print what came out.

python tools/run_notebooks.py --output build/notebooks     # keep notebooks/ as it is
python tools/run_notebooks.py --output notebooks           # in place
"""

from __future__ import annotations

import argparse
import copy
import resource
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from tqdm import tqdm

from tutorial_lib import load_result, profile, save_result
from tutorial_lib.project import ROOT

NOTEBOOKS = ROOT / "notebooks"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
HEADLINE_TAG = "headline"


def execute(source: Path, bar: tqdm) -> tuple[nbformat.NotebookNode, float, list[float]]:
    """Run one notebook from a fresh kernel; return it with its outputs, its seconds, and those of each code cell.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(source, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    begun: list[float] = []
    cells: list[float] = []

    def before(cell: nbformat.NotebookNode, cell_index: int) -> None:
        begun.append(time.perf_counter())
        bar.set_postfix_str(_first_line(cell))

    def after(cell: nbformat.NotebookNode, cell_index: int, execute_reply: dict) -> None:
        cells.append(time.perf_counter() - begun[-1])
        bar.update()

    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(NOTEBOOKS)}},
        on_cell_execute=before,
        on_cell_executed=after,
    )
    start = time.perf_counter()
    client.execute()
    return notebook, time.perf_counter() - start, cells


def longest_without_bar(notebook: nbformat.NotebookNode, cells: list[float]) -> float:
    """Return the seconds of the longest code cell that shows no progress bar."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shows = ["%|" in "".join(o.text for o in cell.outputs if o.output_type == "stream") for cell in code]
    return max((s for s, bar in zip(cells, shows, strict=True) if not bar), default=0.0)


def _first_line(cell: nbformat.NotebookNode) -> str:
    return (cell.source.strip().splitlines() or [""])[0][:50]


def without_widget_state(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return a copy without widget views and their state, which only a live kernel can show."""
    clean = copy.deepcopy(notebook)
    clean.metadata.pop("widgets", None)
    for cell in clean.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if WIDGET_VIEW not in o.get("data", {})]
    return clean


def headline(notebook: nbformat.NotebookNode) -> str:
    """Return the last printed line of the cell tagged ``headline``."""
    for cell in notebook.cells:
        if HEADLINE_TAG in cell.metadata.get("tags", []):
            text = "".join(o.text for o in cell.outputs if o.output_type == "stream")
            return (text.strip().splitlines() or [""])[-1]
    return ""


def write(notebook: nbformat.NotebookNode, target: Path) -> None:
    """Write a notebook in one step, so that an interruption leaves the old file."""
    partial = target.with_suffix(".partial")
    nbformat.write(notebook, partial)
    partial.replace(target)


def main() -> int:
    """Run all notebooks; return 0 if none failed, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the executed notebooks")
    parser.add_argument("--record", action="store_true", help="write the times to figures/notebook_times.json")
    parser.add_argument("only", nargs="*", help="run only notebooks whose names start so, for example 03")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    sources = sorted(
        p for p in NOTEBOOKS.glob("*.ipynb") if not arguments.only or p.name.startswith(tuple(arguments.only))
    )
    if not sources:
        parser.error(f"no notebook's name starts with {' or '.join(arguments.only)}")
    rows, longest, failed = [], {}, False
    for source in sources:
        count = sum(cell.cell_type == "code" for cell in nbformat.read(source, as_version=4).cells)
        with tqdm(total=count, desc=source.stem, unit="cell", ncols=120) as bar:
            try:
                notebook, seconds, cells = execute(source, bar)
            except (CellExecutionError, DeadKernelError) as error:
                failed = True
                print(f"\n{source.name} failed:\n{error}", file=sys.stderr)
                rows.append({"notebook": source.stem, "seconds": float("nan"), "headline": "FAILED"})
                continue
        write(without_widget_state(notebook), arguments.output / source.name)
        longest[source.stem] = round(longest_without_bar(notebook, cells), 1)
        rows.append({"notebook": source.stem, "seconds": round(seconds, 1), "headline": headline(notebook)})
    table = pd.DataFrame(rows)
    print(f"\nprofile: {profile().name}\n{table.to_string(index=False, justify='left')}")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e9
    print(
        f"total {table['seconds'].sum():.0f} s; largest notebook process {peak:.2f} GB; written to {arguments.output}/"
    )
    if arguments.record and not failed:
        before = load_result("notebook_times") or {"seconds": {}, "peak_gb": 0.0}
        times = before["seconds"] | {row["notebook"]: row["seconds"] for row in rows}
        silent = before.get("longest cell without progress bar", {}) | longest
        peak = max(peak, before["peak_gb"])
        command = f"python tools/run_notebooks.py --output {arguments.output} --record"
        save_result(
            "notebook_times",
            {"seconds": times, "longest cell without progress bar": silent, "peak_gb": peak},
            command=command,
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
