"""Run the notebooks from several seeds, on MNIST and on the small digits, and print which of their claims hold.

    python tools/claims.py                         # all notebooks, 3 seeds, both data sets: about half an hour
    python tools/claims.py 03 --seeds 0 --data digits

The claims are those of ``tests/notebooks/claims.py``. Before a run, the notebook's seeds are replaced. A second table
has the accuracies of the trainings.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import nbformat
import pandas as pd
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell
from tqdm import tqdm

from tutorial_lib.project import ROOT

NOTEBOOKS = ROOT / "notebooks"
SEED = re.compile(r"(manual_seed\(|seed=)0\b")
DATA = ("mnist", "digits")
# Goes after the imports: these defaults are what the notebooks do not write down.
SETTINGS = """
for name in ("load_data", "fit"):
    function = globals().get(name)
    if name == "load_data" and function:
        function.__defaults__ = ({data!r}, *function.__defaults__[1:])
    elif function:
        function.__kwdefaults__["seed"] = {seed}
"""
RESULTS = """
import json, sys

sys.path.insert(0, {root!r})
from tests.notebooks.claims import accuracies, results

variables = dict(globals())
print(json.dumps([results({notebook!r}, variables), accuracies({notebook!r}, variables)]))
"""


def prepared(path: Path, data: str, seed: int) -> nbformat.NotebookNode:
    """Return a notebook that uses this data set and seed, and prints at its end what came of its claims."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.source = [], SEED.sub(rf"\g<1>{seed}", cell.source)
    imports = next(i for i, cell in enumerate(notebook.cells) if "from tutorial_lib import" in cell.source)
    notebook.cells.insert(imports + 1, new_code_cell(SETTINGS.format(data=data, seed=seed)))
    notebook.cells.append(new_code_cell(RESULTS.format(root=str(ROOT), notebook=path.stem)))
    return notebook


def run(path: Path, data: str, seed: int) -> tuple[dict[str, str], dict[str, float]]:
    """Return, by claim, an empty text where it holds and what is wrong elsewhere; and the accuracy of each training."""
    notebook = prepared(path, data, seed)
    resources = {"metadata": {"path": str(NOTEBOOKS)}}
    try:
        NotebookClient(notebook, timeout=None, kernel_name="python3", resources=resources).execute()
    except CellExecutionError as error:
        return {"(runs to its end)": str(error).strip().splitlines()[-1]}, {}
    printed = "".join(out.text for out in notebook.cells[-1].outputs if out.get("name") == "stdout")
    claims, accuracies = json.loads(printed.strip().splitlines()[-1])
    return claims, accuracies


def main() -> int:
    """Run what was asked for; return 1 if a claim did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", choices=DATA, nargs="+", default=list(DATA))
    parser.add_argument("only", nargs="*", help="run only notebooks whose names start so, for example 03")
    asked = parser.parse_args()
    paths = [p for p in sorted(NOTEBOOKS.glob("*.ipynb")) if not asked.only or p.name.startswith(tuple(asked.only))]
    jobs = [(path, data, seed) for path in paths for data in asked.data for seed in asked.seeds]
    rows, trained = [], []
    for path, data, seed in tqdm(jobs, unit="run"):
        claims, accuracies = run(path, data, seed)
        trained += [(path.stem, name, data, seed, accuracy) for name, accuracy in accuracies.items()]
        for claim, wrong in claims.items():
            rows.append((path.stem, claim, f"{data} {seed}", wrong))
            if wrong:
                tqdm.write(f"{path.stem}, {data}, seed {seed}: {claim}: {wrong}", file=sys.stderr)
    table = pd.DataFrame(rows, columns=["notebook", "claim", "run", "wrong"])
    table["holds"] = table["wrong"] == ""
    table["of"] = 1
    print(table.groupby(["notebook", "claim"], sort=False)[["holds", "of"]].sum().to_string())
    print(f"{table['holds'].sum()} of {len(table)} hold")
    if trained:
        accuracy = pd.DataFrame(trained, columns=["notebook", "training", "data", "seed", "accuracy %"])
        print(accuracy.pivot(index=["notebook", "training"], columns=["data", "seed"]).round(2).to_string())
    return int(not table["holds"].all())


if __name__ == "__main__":
    sys.exit(main())
