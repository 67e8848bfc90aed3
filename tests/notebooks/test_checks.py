"""The checks of the exercises: right answers pass, untouched stubs are not checked, wrong ones get their symptom."""

import itertools
import math
import random
import re
import subprocess
import sys
from fractions import Fraction

import nbformat
import numpy as np
import pytest
import torch

from tests.notebooks.mutants import helpers, mutants
from tests.notebooks.right_answers import PRELUDE, RIGHT
from tests.notebooks.wrong_answers import WRONG
from tools.solutions import NOTEBOOKS, exercises_of, solved
from truly_sparse import InvalidArgumentError
from truly_sparse.topology import layer_nnz
from tutorial_lib import TutorialCNN, exercises
from tutorial_lib.exercises.rewiring import erk_shares

FOUND = [exercise for path in sorted(NOTEBOOKS.glob("*.ipynb")) for exercise in exercises_of(path)]
EXERCISES = {exercise.check: exercise for exercise in FOUND}
NAMES = [name for name in exercises.__all__ if name.startswith("check_")]

# Mutants that do what the solution does, and why. Each stands for all mutants of its check whose change contains it.
EQUIVALENT = {
    "check_forget": {
        "-> if value.shape == weight.shape": "torch's optimizers remember tensors only",
        "value.shape == mask.shape": "a mask has the shape of its weight",
    },
    "check_grow": {"score[active] = -2": "any negative score loses"},
    "check_fair_time": {"-> return np.median(seconds)": "a number of numpy is a number"},
    "check_spmm": {"-> y = np.zeros((len(pointers) - 1, x.shape[1]))": "the result may be float64"},
    "check_transpose": {"first.setdefault('rows'": "where the nonzeros stand row by row, a stable sort needs no rows"},
    "check_interval": {"float(np.mean(samples))) -> n, mean = (len(samples), np.mean(samples))": "a number of numpy"},
    "check_growth_rule": {
        "min(5 * count": "how many candidates there are is a matter of degree",
        "min(3 * count": "how many candidates there are is a matter of degree",
        "-> order = fan_out[candidates % inputs].argsort(stable=False)": "of equal inputs any may be chosen",
        "-> order = fan_out[candidates % inputs].argsort()": "of equal inputs any may be chosen",
    },
    "check_equal_width": {"width = 0 -> width = -1": "a width of 0 is always within the budget"},
    "check_even_blocks": {
        "(k - k // math.lcm(tall, wide))": "the columns may be shifted in either direction",
        "math.lcm(wide, tall)": "the least common multiple is symmetric",
    },
}


def symptom(exercise, case):
    with pytest.raises(exercises.CheckFailedError) as failure:
        exercise.attempt(exercise.wrong(case))
    return str(failure.value)


def outcome(exercise, mutant):
    """Run a mutant; return ``passed``, ``named`` if the check names a symptom, or ``raised`` if it raises itself."""
    try:
        return "passed" if "passed" in exercise.attempt(mutant, helpers()) else "raised"
    except exercises.CheckFailedError:
        return "named"
    except Exception:
        return "raised"


# ------------------------------------------------------------------------------------------ completeness


def test_every_check_has_its_exercise_and_every_exercise_its_answers():
    assert sorted(NAMES) == sorted(EXERCISES) == sorted(WRONG) == sorted(RIGHT)
    assert len(FOUND) == len(EXERCISES), "a check is used by two exercises"
    assert all(len(answers) >= 4 for answers in RIGHT.values())
    assert all(len(answers) >= 8 for answers in WRONG.values())
    assert EQUIVALENT.keys() <= set(NAMES)


def test_two_to_four_exercises_in_each_notebook():
    notebooks = [exercise.notebook for exercise in FOUND]
    for path in NOTEBOOKS.glob("*.ipynb"):
        assert 2 <= notebooks.count(path.stem) <= 4, path.name


# ------------------------------------------------------------------------------------------ right, untouched, wrong


@pytest.mark.parametrize("name", EXERCISES)
def test_the_folded_solution_passes_every_time(name):
    for _ in range(5):
        assert EXERCISES[name].attempt(EXERCISES[name].solution) == f"{name}: passed\n"


@pytest.mark.parametrize(("name", "place"), [(name, i) for name, answers in RIGHT.items() for i in range(len(answers))])
def test_a_right_answer_in_another_style_passes(name, place):
    function = re.findall(r"\((\w+)\)$", EXERCISES[name].call)[0]
    source = re.sub(r"\bf\(", f"{function}(", RIGHT[name][place])
    assert EXERCISES[name].attempt(PRELUDE + source) == f"{name}: passed\n"


@pytest.mark.parametrize("name", EXERCISES)
def test_an_untouched_stub_is_not_checked(name):
    stub = EXERCISES[name].stub.rsplit("\n", 1)[0]
    assert EXERCISES[name].attempt(stub) == f"{name}: not attempted yet\n"


@pytest.mark.parametrize("name", EXERCISES)
def test_each_wrong_answer_has_its_own_symptom(name):
    for case in WRONG[name]:
        message = symptom(EXERCISES[name], case)
        assert re.search(case[-1], message), message
    # Inputs are drawn anew at every call, so two messages may happen to show the same numbers: patterns are compared.
    assert len({expected for *_, expected in WRONG[name]}) == len(WRONG[name])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EXERCISES)
def test_every_mutant_of_the_solution_is_refused(name):
    exercise, equivalent = EXERCISES[name], EQUIVALENT.get(name, {})
    outcomes = {change: outcome(exercise, mutant) for change, mutant in mutants(exercise.solution).items()}
    passed = [change for change, what in outcomes.items() if what == "passed"]
    assert [change for change in passed if not any(text in change for text in equivalent)] == []
    assert list(outcomes.values()).count("named") >= 5
    for text in equivalent:
        assert any(text in change for change in passed), f"no mutant with {text!r} passes"


def test_what_torch_imports_is_not_memory_of_the_answer():
    code = f"from tutorial_lib import exercises\n{PRELUDE}{RIGHT['check_weight_gradient'][2]}"
    command = [sys.executable, "-c", f"{code}\nexercises.check_weight_gradient(f)"]
    assert subprocess.check_output(command, text=True) == "check_weight_gradient: passed\n"


def test_the_shares_of_the_check_are_those_of_the_library():
    model = TutorialCNN()
    shapes = [p.shape for name, p in model.named_parameters() if name.endswith("weight")]
    for sparsity in (0.5, 0.8, 0.95, 0.99):
        counts = list(layer_nnz(model, sparsity, "erk").values())
        assert erk_shares(shapes, sum(counts)) == pytest.approx(counts, abs=1)


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

    def late(values, count):
        yield 1 / 0

    with pytest.raises(ZeroDivisionError):
        exercises.check_prune(late)


def test_a_function_that_takes_other_arguments_is_refused():
    with pytest.raises(exercises.CheckFailedError, match=r"cannot be called with 2 arguments .*: keep the first line"):
        exercises.check_prune(lambda values: values)


@pytest.mark.parametrize("name", NAMES)
def test_a_check_leaves_global_random_numbers_as_they_were(name):
    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = state()
    EXERCISES[name].attempt(EXERCISES[name].solution)
    with pytest.raises(exercises.CheckFailedError):
        getattr(exercises, name)(
            lambda *arguments: (torch.rand(3), np.random.random(), random.random(), len(arguments))
        )
    assert state() == before


ODD = {
    "text": "later",
    "a number": 7,
    "a negative number": -0.5,
    "NaN": float("nan"),
    "infinity": torch.tensor(math.inf),
    "a huge number": 1e308,
    "an endless fraction": Fraction(1, 3),
    "no real number": 1j,
    "a flag": True,
    "None in a list": [None],
    "an empty list": [],
    "an uneven list": [[1], [2, 3]],
    "a dictionary": {"a": 1},
    "a set": {1, 2},
    "three things": (None, "x", 2),
    "an object": object(),
    "a cube": np.zeros((2, 2, 2)),
    "many numbers": np.arange(10_000),
    "texts": np.array(["a", "b"]),
    "flags": torch.ones(5, dtype=torch.bool),
    "a sparse tensor": torch.eye(3).to_sparse(),
    "a tensor without memory": torch.zeros(3, device="meta"),
    "a layer": torch.nn.Linear(2, 2),
}


@pytest.mark.parametrize("returned", ODD.values(), ids=ODD)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "check_forget"])  # which returns nothing
def test_a_return_value_of_another_type_fails_the_check(name, returned):
    with pytest.raises(exercises.CheckFailedError) as failure:
        getattr(exercises, name)(lambda *arguments: returned)
    assert "\n" not in str(failure.value) and len(str(failure.value)) < 600


def test_no_library_hides_a_dense_product_or_a_loop_over_single_numbers():
    def dense(rows, columns, x, grad_y):
        return (torch.from_numpy(grad_y) @ torch.from_numpy(x).T)[rows, columns]

    def numbers(values, columns, pointers, x):
        x = torch.from_numpy(x)
        y = torch.zeros(len(pointers) - 1, x.shape[1])
        for row in range(len(y)):
            for k in range(pointers[row], pointers[row + 1]):
                for b in range(x.shape[1]):
                    y[row, b] += values[k] * x[columns[k], b]
        return y

    def lists(values, columns, pointers, x):
        x, products = x.tolist(), []
        for start, end in itertools.pairwise(pointers):
            batch = range(len(x[0]))
            products.append([sum(values[k] * x[columns[k]][b] for k in range(start, end)) for b in batch])
        return products

    def row_by_row(values, columns, pointers, x):
        products = np.zeros((len(pointers) - 1, x.shape[1]))
        for row, (start, end) in enumerate(itertools.pairwise(pointers)):
            weights = torch.zeros(len(x))
            weights[columns[start:end]] = torch.from_numpy(values[start:end]).float()
            products[row] = weights @ torch.from_numpy(x).float()
        return products

    with pytest.raises(exercises.CheckFailedError, match=r"a dense gradient .* was built"):
        exercises.check_weight_gradient(dense)
    for answer in (numbers, lists):
        with pytest.raises(exercises.CheckFailedError, match="it takes single numbers of x"):
            exercises.check_spmm(answer)
    with pytest.raises(exercises.CheckFailedError, match="the product is a dense one"):
        exercises.check_spmm(row_by_row)


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
    assert re.search(r"Not yet: -\d.\d\d was pruned", shown.stdout) and "expect(" not in shown.stdout


# ------------------------------------------------------------------------------------------ for instructors


def test_the_notebooks_for_instructors_are_solved_and_hold_the_messages():
    path = NOTEBOOKS / "03_dst_loop.ipynb"
    before, notebook = nbformat.read(path, as_version=4), solved(path)
    done = [cell for cell in notebook.cells if "exercise" in cell.metadata.get("tags", [])]
    assert [cell.outputs[0].text for cell in done] == [
        f"{exercise.check}: passed\n" for exercise in FOUND if exercise.notebook == path.stem
    ]
    assert not any("NotImplementedError" in cell.source for cell in done)
    told = [cell.source for cell in notebook.cells if cell.source.startswith("**For instructors.**")]
    assert len(told) == len(done) and all(text.count("\n- Not yet: ") >= 8 for text in told)
    assert len(notebook.cells) == len(before.cells) + len(done)
    assert "\n- Not yet: the largest weights were chosen\n" in told[0]
    nbformat.validate(notebook)
