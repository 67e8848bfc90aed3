"""Predictions: committed before an experiment, compared with the result after; "Run All" does not wait for them."""

import nbformat
import pytest
from nbclient import NotebookClient

from truly_sparse import InvalidArgumentError
from tutorial_lib import Prediction, ask, reconcile
from tutorial_lib.exercises.predictions import _form


def test_a_guess_is_compared_with_the_result(capsys):
    accuracy = ask("What is left?", unit="%", guess=50)
    reconcile(accuracy, 9.7)
    assert capsys.readouterr().out == (
        "Predict: What is left? (%)\n  your guess: 50%\nWhat is left?  guessed: 50%, measured: 9.7% (off by 40.3%)\n"
    )


@pytest.mark.parametrize(
    ("unit", "options", "guess", "measured", "said"),
    [
        ("×", (), 20, 0.8, "guessed: 20×, measured: 0.8× (off by a factor of 25)"),
        ("×", (), 2, 5300.0, "guessed: 2×, measured: 5,300× (off by a factor of 2,650)"),
        ("", (), 400, 360, "guessed: 400, measured: 360 (off by 40)"),
        ("points", (), -1, 0.5, "guessed: -1 points, measured: 0.5 points (off by 1.5 points)"),
        ("%", (), 50, "never", "guessed: 50%, measured: never (a surprise)"),
        ("", ("SET", "RigL"), "SET", "SET", "guessed: SET, measured: SET (as predicted)"),
        ("", ("SET", "RigL"), "SET", "RigL", "guessed: SET, measured: RigL (a surprise)"),
    ],
)
def test_every_kind_of_answer(unit, options, guess, measured, said, capsys):
    reconcile(ask("Q?", unit=unit, options=options, guess=guess), measured)
    assert capsys.readouterr().out.splitlines()[-1] == f"Q?  {said}"


def test_without_a_guess_and_without_a_notebook(capsys):
    reconcile(ask("Q?", options=["a", "b"]), "b")
    assert capsys.readouterr().out == (
        "Predict: Q? (a / b)\n  commit in the form, or write guess=... into this cell\n"
        "Q?  guessed: no guess, measured: b\n"
    )


def test_invalid_guesses_and_options_are_refused():
    for guess in ("many", float("nan"), True):
        with pytest.raises(InvalidArgumentError, match=f"guess={guess!r}; give a finite number"):
            ask("Q?", guess=guess)
    with pytest.raises(InvalidArgumentError, match="guess='c'; use one of a, b"):
        ask("Q?", options=["a", "b"], guess="c")
    for options in ("ab", ["a", "a"]):
        with pytest.raises(InvalidArgumentError, match="names each option once"):
            ask("Q?", options=options)


def test_without_a_result_a_guess_can_still_be_committed():
    prediction = Prediction("Q?")
    with pytest.raises(InvalidArgumentError, match="measured=None"):
        reconcile(prediction, None)
    with pytest.raises(TypeError):
        reconcile(prediction, [1])
    prediction.commit(3)
    assert prediction.guess == 3


def test_the_form_commits_until_the_result_is_known():
    prediction = Prediction("Q?", unit="%")
    field, _, button, state = _form(prediction).children
    field.value = 12.5
    assert prediction.guess is None  # typing alone does not commit
    button.click()
    assert prediction.guess == 12.5 and state.value == "committed: 12.5%"
    reconcile(prediction, 80.0)
    field.value = 80.0
    button.click()
    assert prediction.guess == 12.5 and "too late: the result, 80%, is known" in state.value


def test_the_form_offers_the_options_and_selects_none():
    prediction = Prediction("Q?", options=["a", "b"])
    field, _, button, state = _form(prediction).children
    button.click()
    assert prediction.guess is None and "guess=None; use one of a, b" in state.value
    field.value = "b"
    button.click()
    assert prediction.guess == "b"


def test_run_all_without_a_front_end_does_not_wait():
    source = 'from tutorial_lib import ask, reconcile\nguess = ask("Q?", unit="%")'
    cells = [nbformat.v4.new_code_cell(source), nbformat.v4.new_code_cell("reconcile(guess, 3.0)")]
    done = NotebookClient(nbformat.v4.new_notebook(cells=cells), timeout=60, kernel_name="python3").execute()
    question, form = done.cells[0].outputs
    assert question.text.startswith("Predict: Q? (%)") and "application/vnd.jupyter.widget-view+json" in form.data
    assert done.cells[1].outputs[0].text == "Q?  guessed: no guess, measured: 3%\n"
