"""The checks of the exercises: solutions pass, untouched stubs are not checked, wrong answers get their symptom."""

import ast
import itertools
import re

import nbformat
import pytest

from tests.notebooks.wrong_answers import WRONG
from truly_sparse import InvalidArgumentError
from tutorial_lib import exercises
from tutorial_lib.project import ROOT


class Exercise:
    """An exercise of a notebook: its stub, its solutions, and the notebook's import statements."""

    def __init__(self, notebook, stub, help_text, imports):
        self.notebook, self.stub, self.imports = notebook, stub, imports
        (self.check,) = re.findall(r"^exercises\.(check_\w+)\(\w+\)$", stub, flags=re.MULTILINE)
        self.solutions = re.findall(r"<summary>Solution</summary>\n\n```python\n(.*?)```", help_text, flags=re.DOTALL)

    def attempt(self, source):
        """Run the stub's cell with other code for the function."""
        namespace = {}
        exec(self.imports, namespace)
        call = self.stub.splitlines()[-1]
        exec(f"{source}\n\n{call}", namespace)


def imports_of(cells):
    """Return the import statements of a notebook's code cells, which solutions may use."""
    found = []
    for cell in cells:
        source = re.sub(r"^(\s*)[!%].*$", r"\1pass", cell.source, flags=re.MULTILINE)
        found += [ast.unparse(node) for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    return "\n".join(found)


def exercises_of_notebooks():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        imports = imports_of(cell for cell in cells if cell.cell_type == "code")
        for cell, after in itertools.pairwise(cells):
            if "exercise" in cell.metadata.get("tags", []):
                yield Exercise(path.stem, cell.source, after.source, imports)


EXERCISES = {exercise.check: exercise for exercise in exercises_of_notebooks()}
NAMES = [name for name in exercises.__all__ if name.startswith("check_")]


def source_of(exercise, case):
    """The wrong answer's code, under the name that the stub's cell calls."""
    (solution,) = exercise.solutions
    if len(case) == 2:
        (name,) = re.findall(r"\((\w+)\)$", exercise.stub)
        return case[0].replace("def f(", f"def {name}(")
    assert case[0] in solution, f"the solution of {exercise.check} has changed: no {case[0]!r} in it"
    return solution.replace(case[0], case[1])


def symptom(exercise, case):
    with pytest.raises(exercises.CheckFailedError) as failure:
        exercise.attempt(source_of(exercise, case))
    return str(failure.value)


# ------------------------------------------------------------------------------------------ completeness


def test_every_check_has_its_exercise_and_every_exercise_its_wrong_answers():
    assert sorted(NAMES) == sorted(EXERCISES) == sorted(WRONG)
    assert len(list(exercises_of_notebooks())) == len(EXERCISES), "a check is used by two exercises"
    assert all(len(cases) >= 3 for cases in WRONG.values())


def test_two_to_four_exercises_in_each_notebook():
    notebooks = [exercise.notebook for exercise in EXERCISES.values()]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert 2 <= notebooks.count(path.stem) <= 4, path.name


# ------------------------------------------------------------------------------------------ right, untouched, wrong


@pytest.mark.parametrize("name", EXERCISES)
def test_the_folded_solution_passes(name, capsys):
    (solution,) = EXERCISES[name].solutions
    EXERCISES[name].attempt(solution)
    assert capsys.readouterr().out == f"{name}: passed\n"


@pytest.mark.parametrize("name", EXERCISES)
def test_an_untouched_stub_is_not_checked(name, capsys):
    EXERCISES[name].attempt(EXERCISES[name].stub.rsplit("\n", 1)[0])
    assert capsys.readouterr().out == f"{name}: not attempted yet\n"


@pytest.mark.parametrize("name", EXERCISES)
def test_each_wrong_answer_has_its_own_symptom(name):
    messages = [symptom(EXERCISES[name], case) for case in WRONG[name]]
    for message, (*_, expected) in zip(messages, WRONG[name], strict=True):
        assert re.search(expected, message), message
    told_apart = {expected for *_, expected in WRONG[name]}
    assert len(told_apart) == len(set(messages)) == len(messages)


def test_a_forgotten_return_is_named():
    def prune(values, count):
        values.abs().argsort()[:count]

    with pytest.raises(exercises.CheckFailedError, match="prune returns None; is a `return` missing"):
        exercises.check_prune(prune)


# ------------------------------------------------------------------------------------------ messages of the checks


def test_stubs_of_any_kind_are_untouched_and_a_constant_is_not(capsys):
    def documented(values, count):
        """Return the positions of the smallest weights."""

    def dots(values, count): ...

    def dots_returned(values, count):
        return ...

    for stub in (documented, dots, dots_returned):
        exercises.check_prune(stub)
    assert capsys.readouterr().out == "check_prune: not attempted yet\n" * 3
    with pytest.raises(exercises.CheckFailedError):
        exercises.check_break_even(lambda value, index: 0.9)


def test_an_error_inside_an_answer_is_passed_on():
    with pytest.raises(ZeroDivisionError):
        exercises.check_prune(lambda values, count: 1 / 0)

    def lacking(values, count):
        raise NotImplementedError("no such operation for this layout")

    with pytest.raises(NotImplementedError, match="no such operation"):
        exercises.check_prune(lacking)


@pytest.mark.parametrize("name", NAMES)
def test_a_return_value_of_another_type_fails_the_check(name):
    for returned in ("later", 7, [1, 2], {"a": 1}):
        if name == "check_forget":  # asked for is a change, not a result
            continue
        with pytest.raises(exercises.CheckFailedError):
            getattr(exercises, name)(lambda *arguments, returned=returned: returned)


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_that_is_no_function_is_refused(name):
    with pytest.raises(InvalidArgumentError, match="answer=3; pass the function that you wrote"):
        getattr(exercises, name)(3)


def test_the_notebook_shows_the_symptom_and_no_lines_of_the_check():
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell()
    with capture_output() as shown:
        shell.run_cell("from tutorial_lib import exercises\nexercises.check_prune(lambda v, n: v.argsort()[:n])")
    assert "Not yet: -3.0 was pruned" in shown.stdout and "expect(" not in shown.stdout
