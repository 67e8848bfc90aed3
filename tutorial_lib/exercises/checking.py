"""What the checks share: they run an answer, and describe the symptom if it is wrong."""

from __future__ import annotations

import dis
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import torch

from truly_sparse.arguments import require
from truly_sparse.errors import SparseTrainingError

Answer = Callable[..., Any]


class CheckFailedError(SparseTrainingError, AssertionError):
    """An answer to an exercise is wrong; the message describes the symptom."""

    def _render_traceback_(self) -> list[str]:
        # IPython prints this in place of the traceback, which would show the source of the check.
        return [f"Not yet: {self}"]


def exercise(check: Callable[[Answer], None]) -> Callable[[Answer], None]:
    """Decorate a function that raises :class:`CheckFailedError` for a wrong answer.

    The decorated check prints whether the answer has passed, or has not been attempted. An error raised by the answer
    itself is passed on. Any other error means that the check could not process the answer's return value, and is
    reported as :class:`CheckFailedError`.
    """
    name = check.__name__

    @wraps(check)
    def run(answer: Answer) -> None:
        require(callable(answer), "answer", answer, "pass the function that you wrote")
        try:
            if _is_untouched(answer):
                raise NotImplementedError
            check(answer)
        except NotImplementedError as error:
            if error.args:  # raised by torch for a missing operation, not by a stub
                raise
            print(f"{name}: not attempted yet")
        except CheckFailedError:
            raise
        except Exception as error:
            if _raised_in(answer, error):
                raise
            raise CheckFailedError(
                f"the return value of {_name_of(answer)} cannot be checked ({type(error).__name__}: {error}): "
                "compare its type and shape with the exercise's text"
            ) from error
        else:
            print(f"{name}: passed")

    return run


def _name_of(answer: Answer) -> str:
    return getattr(answer, "__name__", type(answer).__name__)


def _raised_in(answer: Answer, error: Exception) -> bool:
    """Return whether an error was raised while the answer ran, rather than while a check read what it returned."""
    return any(frame.f_code is getattr(answer, "__code__", None) for frame, _ in traceback.walk_tb(error.__traceback__))


def _is_untouched(answer: Answer) -> bool:
    """Return whether the body of a function consists of ``...``, ``pass`` or a docstring only."""
    trivial = {"RESUME", "NOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST"}
    if not hasattr(answer, "__code__"):
        return False
    steps = list(dis.get_instructions(answer))
    loaded = [step.argval for step in steps if step.opname in ("LOAD_CONST", "RETURN_CONST")]
    return {step.opname for step in steps} <= trivial and loaded[-1] in (None, ...)


def expect(holds: object, symptom: str) -> None:
    """Raise :class:`CheckFailedError` with the symptom unless ``holds`` is true."""
    if not holds:
        raise CheckFailedError(symptom)


def result(answer: Answer, *arguments: Any) -> Any:
    """Call the answer and return what it returns; None is a failed check."""
    returned = answer(*arguments)
    expect(returned is not None, f"{_name_of(answer)} returns None; is a `return` missing?")
    return returned


def close(a: object, b: object, tolerance: float = 1e-5) -> bool:
    """Return whether two arrays have the same shape and nearly equal numbers; False if one of them is None."""
    if a is None or b is None:
        return False
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return a.shape == b.shape and np.allclose(a, b, rtol=tolerance, atol=tolerance)


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return standard normal numbers from a generator with this seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
