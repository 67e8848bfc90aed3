"""Predict, run, reconcile: commit to an answer first, then compare it with the measured result."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import ipywidgets
from IPython import get_ipython
from IPython.display import display

from truly_sparse.arguments import require
from truly_sparse.errors import InvalidArgumentError

Answer = float | str


class Prediction:
    """A question about an experiment that has not been run yet, and the reader's answer.

    Attributes:
        question: what is asked.
        unit: of a number, such as ``"%"``.
        options: what to choose from; empty if the answer is a number.
        guess: the reader's answer; None for no answer yet.
        measured: the result; None before the measurement.
    """

    def __init__(self, question: str, unit: str = "", options: Sequence[str] = ()) -> None:
        require(len({*options}) == len(options), "options", options, "name each once")
        self.question, self.unit, self.options = question, unit, tuple(options)
        self.guess: Answer | None = None
        self.measured: Answer | None = None

    def commit(self, guess: Answer) -> None:
        """Set the answer. The last one before the measurement counts.

        Raises:
            InvalidArgumentError: the result is known already, or the answer is none of the possible ones.
        """
        if self.measured is not None:
            known = self.said(self.measured)
            raise InvalidArgumentError(
                f"guess {guess!r} comes late: {known} was measured; run the question's cell again"
            )
        self.guess = self._checked(guess)

    def said(self, answer: Answer | None) -> str:
        """Return an answer as text with its unit: ``"9.7%"``, ``"SET"``, ``"no guess"``."""
        if answer is None:
            return "no guess"
        if isinstance(answer, str):
            return answer
        return f"{_short(answer)}{self.unit if self.unit in ('%', '×') else f' {self.unit}'.rstrip()}"

    def _checked(self, guess: Answer) -> Answer:
        if self.options:
            if guess not in self.options:
                raise InvalidArgumentError(f"{guess!r} is none of the options: {', '.join(self.options)}")
        elif not _is_number(guess):
            raise InvalidArgumentError(f"{guess!r} is no finite number; give one such as 12.5")
        return guess


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def _is_number(answer: Answer) -> bool:
    return isinstance(answer, numbers.Real) and not isinstance(answer, bool) and math.isfinite(answer)


def ask(question: str, unit: str = "", options: Sequence[str] = (), guess: Answer | None = None) -> Prediction:
    """Ask for a prediction: a small form in a notebook, plain text elsewhere. Never waits for the answer.

    Args:
        question: what is asked.
        unit: of a number, such as ``"%"``.
        options: what to choose from; leave it out to ask for a number.
        guess: an answer given at once; the way to answer where no form is shown.

    Raises:
        InvalidArgumentError: the guess is not a number, or none of the options.
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
    """Return the form: a field, a button that commits, and a line that shows the committed answer."""
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
    """Print the guess and the measured result. Later guesses are refused.

    Args:
        prediction: what :func:`ask` returned.
        measured: a number, one of the options, or a text such as ``"never"``.
    """
    prediction.measured = measured
    line = f"{prediction.question}  guessed: {prediction.said(prediction.guess)}, measured: {prediction.said(measured)}"
    print(line + _verdict(prediction))


def _verdict(prediction: Prediction) -> str:
    guess, measured = prediction.guess, prediction.measured
    if guess is None or measured is None:
        return ""
    if isinstance(guess, str) or isinstance(measured, str):
        return " (as predicted)" if guess == measured else " (a surprise)"
    if prediction.unit == "×" and guess > 0 and measured > 0:
        off = max(guess / measured, measured / guess)
        return f" (off by a factor of {_short(off)})"
    return f" (off by {prediction.said(abs(guess - measured))})"
