"""The exercises' checks: folded solutions pass, untouched stubs are left alone, wrong answers hear their symptom."""

import ast
import itertools
import re

import nbformat
import pytest

from tutorial_lib import exercises
from tutorial_lib.project import ROOT


class Exercise:
    """An exercise as it stands in a notebook: its stub, its solution, and what is imported by then."""

    def __init__(self, notebook, stub, help_text, imports):
        self.notebook, self.stub, self.imports = notebook, stub, imports
        (self.check,) = re.findall(r"^exercises\.(check_\w+)\(\w+\)$", stub, flags=re.MULTILINE)
        self.solutions = re.findall(r"<summary>Solution</summary>\n\n```python\n(.*?)```", help_text, flags=re.DOTALL)

    def attempt(self, source):
        """Run the stub's cell with other code for the function, as a reader would."""
        namespace = {}
        exec(self.imports, namespace)
        call = self.stub.splitlines()[-1]
        exec(f"{source}\n\n{call}", namespace)


def imports_of(cells):
    """The import statements of a notebook's code cells: all of what a solution may use, but for what it imports."""
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

# Plausible wrong answers and the symptom that each must be told. Of a solution: text to replace, what by, symptom.
# Answers that start with "def" stand for themselves.
WRONG = {
    # 01
    "check_active_weights": [
        (' if name.endswith("weight")', "", "biases are counted"),
        ("round(", "int(", "a fraction was cut off"),
        ("(1 - sparsity)", "sparsity", "these are the removed ones"),
        ("round((1 - sparsity) * weights)", "(1 - sparsity) * weights", "not a whole number"),
        (
            "def f(model, sparsity):\n"
            "    return sum(round((1 - sparsity) * p.numel()) for p in model.parameters() if p.dim() > 1)",
            "rounded in each layer",
        ),
    ],
    "check_global_prune": [
        (
            "def f(weights, sparsity):\n"
            "    return [w.abs() > w.abs().flatten().sort().values[round(sparsity * w.numel()) - 1] for w in weights]",
            "rank all layers together",
        ),
        ("w.abs().flatten()", "w.flatten()", "rank by magnitude, not by value"),
        (").indices]", ", largest=False).indices]", "the smallest are kept"),
        ("round((1 - sparsity)", "round(sparsity", "42 of 60 weights kept|True where one is removed"),
        (
            "def f(weights, sparsity):\n"
            "    magnitude = torch.cat([w.abs().flatten() for w in weights]).sort().values\n"
            "    threshold = magnitude[round(sparsity * len(magnitude))]\n"
            "    return [w.abs() >= threshold for w in weights]",
            "cannot split ties",
        ),
    ],
    # 02
    "check_masked_linear": [
        (", weight * mask,", ", weight,", "the mask has no effect"),
        ("    return", "    weight.data *= mask\n    return", "the stored weight has changed"),
        (", weight * mask,", ", weight.detach() * mask,", "no gradient reaches the weight"),
        (", weight * mask,", ", weight + (weight * mask - weight).detach(),", "leaks past the mask"),
        (", bias)\n", ")\n", "the bias is missing"),
    ],
    "check_forget": [
        (
            "def f(optimizer, weight, mask):\n    weight.grad[~mask] = 0",
            "SGD: 3 steps later a removed weight has drifted",
        ),
        (
            "def f(optimizer, weight, mask):\n"
            "    if 'momentum_buffer' in optimizer.state[weight]:\n"
            "        optimizer.state[weight]['momentum_buffer'][~mask] = 0",
            "Adam: 3 steps later a removed weight has drifted",
        ),
        ("value[~mask] = 0", "value.zero_()", "momentum_buffer of kept weights was lost"),
        ("def f(optimizer, weight, mask):\n    optimizer.state.clear()", "state was deleted"),
        (
            "value[~mask] = 0\n",
            "value[~mask] = 0\n        else:\n            value.zero_()\n",
            "step belongs to all weights and was reset",
        ),
    ],
    # 03
    "check_prune": [
        (".abs()", "", "-3.0 was pruned"),
        ("[:count]", "[-count:]", "the largest weights were chosen"),
        (
            "def f(values, count):\n"
            "    return (values.abs() <= values.abs().sort().values[count - 1]).nonzero().squeeze(1)",
            "a threshold takes all ties",
        ),
        ("argsort()", "sort().values", "return their positions"),
        (
            "def f(values, count):\n    return values.abs() < values.abs().sort().values[count]",
            "this is a mask",
        ),
    ],
    "check_erk": [
        ("        full |= over\n", "        return shares\n", "cap it and share the rest out"),
        (
            "        full |= over\n",
            "        return [min(a, b) for a, b in zip(shares, sizes)]\n",
            "what a full layer cannot take, others get",
        ),
        (
            "            return shares\n",
            "            return [share / size for share, size in zip(shares, sizes)]\n",
            "these are densities",
        ),
        (
            "sum(shape)",
            "(shape[0] + shape[1]) * math.prod(shape[2:])",
            "that is ER",
        ),
        ("sum(shape)", "math.prod(shape)", "that is uniform"),
    ],
    "check_grow": [
        ("    score[active] = -1\n", "", "hold a connection already"),
        ("gradient.abs()", "gradient.clone()", "a large negative gradient is as good a reason"),
        (".indices", ".values", "these are gradients"),
        (
            "def f(gradient, active, count):\n"
            "    score = gradient.abs().flatten()\n"
            "    free = torch.ones(len(score), dtype=torch.bool)\n"
            "    free[active] = False\n"
            "    return score[free].topk(count).indices",
            "translate them to flat places",
        ),
        (
            "    score = gradient.abs().flatten()\n",
            "    gradient.view(-1)[active] = 0\n    score = gradient.abs().flatten()\n",
            "the gradient itself was changed",
        ),
    ],
    "check_prune_share": [
        ("min(1.0, step / (until * total_steps))", "step / (until * total_steps)", "rewiring must stop"),
        ("step / (until * total_steps)", "step / total_steps", "must reach 0 at `until`"),
        (" / 2", "", "half is missing"),
        ("1 + math.cos", "1 - math.cos", "it starts at 0 and grows"),
        ("(1 + math.cos(math.pi * progress)) / 2", "(1 - progress)", "is it a cosine"),
    ],
    # 04
    "check_exploration": [
        ("np.logical_or.accumulate(masks)", "masks", "the density of each moment"),
        (".mean(axis=1)", ".sum(axis=1) / masks[0].sum()", "divided by the active connections"),
        ("np.logical_or.accumulate(masks)", "masks.cumsum(axis=0)", "left and found again count twice"),
        (".mean(axis=1)", ".sum(axis=1)", "these are numbers of connections"),
        ("return ", "return 100 * ", "these are percent"),
        (
            "np.logical_or.accumulate(masks).mean(axis=1)",
            "np.array([masks.any(axis=0).mean()])",
            "one rate per moment",
        ),
    ],
    "check_survival": [
        ("np.logical_and.accumulate(masks[birth:][:, newborn])", "masks[birth:][:, newborn]", "that is overlap"),
        (" & ~masks[birth - 1] if birth > 0 else masks[0]", "", "place 0 is older than this birth"),
        (".mean(axis=1)", ".sum(axis=1) / masks[birth].sum()", "divided by all active connections"),
        (" if birth > 0 else masks[0]", "", "none is compared with the last moment"),
        ("masks[birth:]", "masks", "one share per moment from birth on"),
    ],
    # 05
    "check_csr": [
        ("np.concatenate([[0], lengths.cumsum()])", "lengths.cumsum()", "the leading 0 is missing"),
        ("np.concatenate([[0], lengths.cumsum()])", "lengths", "these are the rows' lengths"),
        ("np.concatenate([[0], lengths.cumsum()])", "rows", "these are the rows of COO"),
        ("np.bincount(rows, minlength=len(matrix))", "np.unique(rows, return_counts=True)[1]", "an empty row has one"),
        (
            "    rows, columns = matrix.nonzero()",
            "    columns, rows = matrix.T.nonzero()",
            "that is CSC",
        ),
        ("matrix[rows, columns]", "matrix.flatten()", "20 values stored for 5 nonzeros"),
    ],
    "check_fair_time": [
        ("    call()\n    seconds", "    seconds", "the cold first call is inside"),
        ("np.median(", "np.mean(", "a mean, ruled by one hiccup"),
        ("np.median(", "np.min(", "the luckiest call"),
        (
            "def f(call, clock, runs):\n"
            "    call()\n"
            "    start = clock()\n"
            "    for _ in range(runs):\n"
            "        call()\n"
            "    return (clock() - start) / runs",
            "time every call",
        ),
    ],
    # 06
    "check_break_even": [
        ("(value_bytes + index_bytes)", "index_bytes", "a nonzero costs its value and its index"),
        ("return value_bytes", "return index_bytes", "that is the sparsity"),
        ("+ index_bytes", "+ 2 * index_bytes", "two indices a nonzero is COO"),
        ("value_bytes / (value_bytes + index_bytes)", "0.5", "one half holds only"),
    ],
    "check_best_gain": [
        (
            "return seconds(size**2, 4) / seconds((1 - sparsity) * size**2, 8)",
            "return seconds((1 - sparsity) * size**2, 8) / seconds(size**2, 4)",
            "not the other way round",
        ),
        (
            "max(2 * weights * batch / peak, moved / bandwidth)",
            "2 * weights * batch / peak + moved / bandwidth",
            "the slower one decides",
        ),
        ("size**2, 8)", "size**2, 4)", "8 bytes, not 4"),
        (" + 2 * 4 * size * batch", "", "input and output are moved too"),
        ("max(2 * weights * batch / peak, moved / bandwidth)", "2 * weights * batch / peak", "memory has a roof"),
    ],
    # 07
    "check_spmm": [
        ("y[row] += ", "y[row] = ", "each row holds only its last nonzero"),
        ("y[row] += values[k] * x[columns[k]]", "y[columns[k]] += values[k] * x[row]", "the transposed product"),
        (
            "            y[row] += values[k] * x[columns[k]]",
            "            for b in range(x.shape[1]):\n                y[row, b] += values[k] * x[columns[k], b]",
            "one number at a time",
        ),
        (
            "def f(values, columns, pointers, x):\n"
            "    return np.add.reduceat(values[:, None] * x[columns], pointers[:-1].clip(max=len(values) - 1))",
            "row 1 is empty",
        ),
    ],
    "check_transpose": [
        ('np.argsort(columns, kind="stable")', "np.arange(len(columns))", "still stand row by row"),
        ('np.argsort(columns, kind="stable")', 'np.argsort(columns, kind="stable").argsort()', "that is the inverse"),
        ('np.argsort(columns, kind="stable")', "np.sort(columns)", "no permutation"),
        ('np.argsort(columns, kind="stable")', 'np.argsort(-columns, kind="stable")', "the columns do not rise"),
        ('np.argsort(columns, kind="stable")', "np.lexsort((-rows, columns))", "the rows do not rise"),
    ],
    "check_weight_gradient": [
        (
            'np.einsum("kb,kb->k", grad_y[rows], x[columns])',
            "(grad_y @ x.T)[rows, columns]",
            "a dense gradient .* was built",
        ),
        ("return np.einsum(", "return 1 / x.shape[1] * np.einsum(", "a mean over the batch"),
        ("grad_y[rows], x[columns]", "grad_y[columns], x[rows]", "rows and columns are swapped"),
        ('"kb,kb->k"', '"kb,kb->kb"', "one number per nonzero"),
    ],
    # 08
    "check_interval": [
        ("stats.t.ppf(0.975, n - 1)", "1.96", "use Student's t"),
        (" / math.sqrt(n)", "", "the spread of single runs"),
        (", ddof=1", "", "Divide by n - 1"),
        ("mean - half, mean + half", "mean, half", "not centred on the mean"),
    ],
    "check_growth_rule": [
        (
            "def f(layer, active, count, generator):\n"
            "    size = math.prod(layer.dense_shape)\n"
            "    return random_grow(active, size, count, generator)",
            "chosen no more often than others",
        ),
        (".sort().values", "", "not sorted"),
        ("[:count]", "", "nnz drifts"),
        (
            "    candidates = random_grow(active, size, min(4 * count, size - len(active)), generator)",
            "    candidates = torch.randperm(size, generator=generator)[: 4 * count]",
            "are active already",
        ),
        (
            "fan_out[candidates % inputs].argsort(stable=True)",
            "torch.randperm(len(candidates))",
            "two different answers",
        ),
        (
            "    fan_out = torch.bincount(active % inputs, minlength=inputs)\n"
            "    order = fan_out[candidates % inputs].argsort(stable=True)",
            "    fan_in = torch.bincount(active // inputs, minlength=outputs)\n"
            "    order = fan_in[candidates // inputs].argsort(stable=True)",
            "it feeds outputs with few inputs",
        ),
    ],
    "check_equal_width": [
        ("    return width", "    return width + 1", "more than the budget"),
        (
            "def f(budget, inputs, outputs):\n    return budget // (inputs + outputs)",
            "the two hidden layers are not counted",
        ),
        ("    return width", "    return width - 1", "leaves room"),
        ("    return width", "    return width + 0.5", "whole neurons"),
    ],
}


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
def test_an_untouched_stub_is_left_alone(name, capsys):
    EXERCISES[name].attempt(EXERCISES[name].stub.rsplit("\n", 1)[0])
    assert capsys.readouterr().out == f"{name}: not attempted yet\n"


@pytest.mark.parametrize("name", EXERCISES)
def test_each_wrong_answer_hears_a_symptom_of_its_own(name):
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


# ------------------------------------------------------------------------------------------ how a check speaks


def test_stubs_of_any_kind_count_as_untouched_and_a_constant_does_not(capsys):
    def documented(values, count):
        """What is asked for."""

    def dots(values, count): ...

    def dots_returned(values, count):
        return ...

    for stub in (documented, dots, dots_returned):
        exercises.check_prune(stub)
    assert capsys.readouterr().out == "check_prune: not attempted yet\n" * 3
    with pytest.raises(exercises.CheckFailedError):
        exercises.check_break_even(lambda value, index: 0.9)


def test_an_error_inside_an_answer_is_shown_as_it_is():
    with pytest.raises(ZeroDivisionError):
        exercises.check_prune(lambda values, count: 1 / 0)

    def lacking(values, count):
        raise NotImplementedError("no such operation for this layout")

    with pytest.raises(NotImplementedError, match="no such operation"):
        exercises.check_prune(lacking)


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_of_another_kind_is_named_and_no_check_breaks(name):
    """What a check makes of a string, a number, a list or a function of other arguments."""
    for returned in ("later", 7, [1, 2], {"a": 1}):
        if name == "check_forget":  # asked for is a change, not a result
            continue
        with pytest.raises(exercises.CheckFailedError):
            getattr(exercises, name)(lambda *arguments, returned=returned: returned)


def test_the_notebook_shows_the_symptom_and_no_lines_of_the_check():
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell()
    with capture_output() as shown:
        shell.run_cell("from tutorial_lib import exercises\nexercises.check_prune(lambda v, n: v.argsort()[:n])")
    assert "Not yet: -3.0 was pruned" in shown.stdout and "_expect" not in shown.stdout
