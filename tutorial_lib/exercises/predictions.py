"""Predictions: the reader commits to an answer before an experiment, and compares it with the result after."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import ipywidgets
from IPython import get_ipython
from IPython.display import display
from typing_extensions import TypeIs

from truly_sparse.arguments import require
from truly_sparse.errors import InvalidArgumentError

Answer = float | str


class Prediction:
    """A question about the result of an experiment, and the reader's answer.

    Attributes:
        question: the question.
        unit: unit of a numeric answer, such as ``"%"``.
        options: the possible answers; empty if the answer is a number.
        guess: the answer that the reader committed; None if there is none.
        measured: the measured result; None before :func:`reconcile`.
    """

    def __init__(self, question: str, unit: str = "", options: Sequence[str] = ()) -> None:
        distinct = not isinstance(options, str) and len({*options}) == len(options)
        require(distinct, "options", options, "give a list that names each option once")
        self.question, self.unit, self.options = question, unit, tuple(options)
        self.guess: Answer | None = None
        self.measured: Answer | None = None

    def commit(self, guess: Answer) -> None:
        """Set the answer. It can be changed until :func:`reconcile` is called.

        Raises:
            InvalidArgumentError: the result is known already, or the answer is not a number or one of the options.
        """
        if self.measured is not None:
            result = self.said(self.measured)
            raise InvalidArgumentError(
                f"guess={guess!r} is too late: the result, {result}, is known; run the cell with ask() again"
            )
        if self.options:
            require(guess in self.options, "guess", guess, f"use one of {', '.join(self.options)}")
        else:
            require(_is_number(guess), "guess", guess, "give a finite number, such as 12.5")
        self.guess = guess

    def said(self, answer: Answer | None) -> str:
        """Return an answer as text, with its unit: ``"9.7%"``, ``"SET"``, ``"no guess"``."""
        if answer is None:
            return "no guess"
        if isinstance(answer, str):
            return answer
        return f"{_short(answer)}{self.unit if self.unit in ('%', '×') else f' {self.unit}'.rstrip()}"


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def _is_number(answer: Answer | None) -> TypeIs[float]:
    return isinstance(answer, numbers.Real) and not isinstance(answer, bool) and math.isfinite(answer)


def ask(question: str, unit: str = "", options: Sequence[str] = (), guess: Answer | None = None) -> Prediction:
    """Ask for a prediction: with a form in a notebook, as plain text elsewhere. The call returns at once.

    Args:
        question: the question.
        unit: unit of a numeric answer, such as ``"%"``.
        options: the possible answers; empty to ask for a number.
        guess: the answer, for readers without the form.

    Raises:
        InvalidArgumentError: the guess is not a number or one of the options, or an option is repeated.
    """
    prediction = Prediction(question, unit, options)
    choice = f" ({' / '.join(options)})" if options else f" ({unit})" if unit else ""
    print(f"Predict: {question}{choice}")
    if guess is not None:
        prediction.commit(guess)
        print(f"  your guess: {prediction.said(guess)}")
    else:
        print("  commit in the form, or write guess=... into this cell")
        if hasattr(get_ipython(), "kernel"):
            display(_form(prediction))
    return prediction


def _form(prediction: Prediction) -> ipywidgets.Widget:
    """Return a form with an input field, a button that commits its value, and a status line."""
    if prediction.options:
        field = ipywidgets.Dropdown(options=prediction.options, value=None)
    else:
        field = ipywidgets.FloatText(layout={"width": "8em"})
    button = ipywidgets.Button(description="Commit", tooltip=prediction.question)
    state = ipywidgets.Label("no guess yet")

    def commit(_: ipywidgets.Button) -> None:
        try:
            prediction.commit(field.value)
        except InvalidArgumentError as error:
            state.value = str(error)
        else:
            state.value = f"committed: {prediction.said(prediction.guess)}"

    button.on_click(commit)
    return ipywidgets.HBox([field, ipywidgets.Label(prediction.unit), button, state])


def reconcile(prediction: Prediction, measured: Answer) -> None:
    """Print the guess beside the measured result. The guess can no longer be changed then.

    Args:
        prediction: what :func:`ask` returned.
        measured: a number, one of the options, or a text such as ``"never"``.

    Raises:
        InvalidArgumentError: there is no result.
    """
    require(measured is not None, "measured", measured, "give a number or a text")
    line = f"{prediction.question}  guessed: {prediction.said(prediction.guess)}, measured: {prediction.said(measured)}"
    prediction.measured = measured
    print(line + _verdict(prediction))


def _verdict(prediction: Prediction) -> str:
    guess, measured = prediction.guess, prediction.measured
    if guess is None:
        return ""
    if not (_is_number(guess) and _is_number(measured)):
        return " (as predicted)" if guess == measured else " (a surprise)"
    if prediction.unit == "×" and guess > 0 and measured > 0:
        off = max(guess / measured, measured / guess)
        return f" (off by a factor of {_short(off)})"
    return f" (off by {prediction.said(abs(guess - measured))})"
