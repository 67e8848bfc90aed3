"""Write the notebooks for instructors: every exercise solved and checked, with what its check says to wrong answers.

    python -m tools.solutions [--output build/solutions]

Only the cells of the exercises are run, which takes seconds; all others keep the outputs that they have.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nbformat

from tests.notebooks.wrong_answers import WRONG
from tutorial_lib.exercises import CheckFailedError
from tutorial_lib.project import ROOT

NOTEBOOKS = ROOT / "notebooks"


@dataclass
class Exercise:
    """An exercise of a notebook.

    Attributes:
        notebook: the notebook's name.
        cell: the place of the exercise's cell; that of its hint and solution comes next.
        stub: the source of the cell.
        solution: the solution's source, without the call of the check.
        imports: the notebook's import statements.
    """

    notebook: str
    cell: int
    stub: str
    solution: str
    imports: str

    @property
    def call(self) -> str:
        """The line that calls the check."""
        return self.stub.splitlines()[-1]

    @property
    def check(self) -> str:
        """The name of the check."""
        (name,) = re.findall(r"^exercises\.(check_\w+)\(\w+\)$", self.call)
        return name

    def attempt(self, source: str, names: Mapping[str, object] | None = None) -> str:
        """Run the exercise's cell with another source of the function; return what the check prints.

        Args:
            source: the function.
            names: what it may use besides the notebook's imports.

        Raises:
            CheckFailedError: the answer is wrong.
        """
        namespace = dict(names or {})
        exec(self.imports, namespace)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(f"{source}\n\n{self.call}", namespace)
        return printed.getvalue()

    def wrong(self, case: tuple[str, ...]) -> str:
        """Return the source of a wrong answer: a whole function, or the solution with a part of it replaced."""
        if len(case) == 2:
            (name,) = re.findall(r"\((\w+)\)$", self.call)
            return case[0].replace("def f(", f"def {name}(")
        if case[0] not in self.solution:
            raise ValueError(f"the solution of {self.check} has changed: no {case[0]!r} in it")
        return self.solution.replace(case[0], case[1])


def imports_of(notebook: nbformat.NotebookNode) -> str:
    """Return the import statements of a notebook's code cells, which solutions may use."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            source = re.sub(r"^(\s*)[!%].*$", r"\1pass", cell.source, flags=re.MULTILINE)
            statements = ast.parse(source).body
            found += [ast.unparse(node) for node in statements if isinstance(node, ast.Import | ast.ImportFrom)]
    return "\n".join(found)


def exercises_of(path: Path) -> list[Exercise]:
    """Return the exercises of a notebook, in order."""
    notebook = nbformat.read(path, as_version=4)
    found, imports = [], imports_of(notebook)
    for place, (cell, after) in enumerate(itertools.pairwise(notebook.cells)):
        if "exercise" in cell.metadata.get("tags", []):
            solution = re.search(r"<summary>Solution</summary>\n\n```python\n(.*?)```", after.source, re.DOTALL)
            if solution is None:
                raise ValueError(f"{path.name}: no solution after the exercise in cell {place}")
            found.append(Exercise(path.stem, place, cell.source, solution[1], imports))
    return found


def messages(exercise: Exercise) -> list[str]:
    """Return what the check says to each of the typical wrong answers."""
    said = []
    for case in WRONG[exercise.check]:
        try:
            exercise.attempt(exercise.wrong(case))
        except CheckFailedError as error:
            said.append(str(error))
    return said


def solved(path: Path) -> nbformat.NotebookNode:
    """Return a notebook whose exercises hold their solutions, and below each the check's messages."""
    notebook = nbformat.read(path, as_version=4)
    for exercise in reversed(exercises_of(path)):
        cell = notebook.cells[exercise.cell]
        cell.source = f"{exercise.solution}\n\n{exercise.call}"
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=exercise.attempt(exercise.solution))]
        lines = ["**For instructors.** What the check says to typical wrong answers (numbers differ every time):", ""]
        text = "\n".join([*lines, *(f"- Not yet: {message}" for message in messages(exercise))])
        notebook.cells.insert(exercise.cell + 2, nbformat.v4.new_markdown_cell(text))
    return notebook


def main() -> None:
    """Write all notebooks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "solutions")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    count = 0
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        nbformat.write(solved(path), output / path.name)
        count += len(exercises_of(path))
    print(f"{count} exercises solved and checked, in {output}/")


if __name__ == "__main__":
    main()
