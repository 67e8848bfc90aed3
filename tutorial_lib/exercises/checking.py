"""The machinery of all checks: run an answer, and report the symptom if it is wrong."""

from __future__ import annotations

import dis
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import torch

from truly_sparse.errors import SparseTrainingError

Answer = Callable[..., Any]


class CheckFailedError(SparseTrainingError, AssertionError):
    """An answer to an exercise does not hold; the message names the symptom."""

    def _render_traceback_(self) -> list[str]:
        # IPython shows this in place of a traceback through the check's own lines.
        return [f"Not yet: {self}"]


def exercise(check: Callable[[Answer], None]) -> Callable[[Answer], None]:
    """Turn a function that raises on a wrong answer into a check: it reports the outcome, and skips untouched stubs."""

    @wraps(check)
    def run(answer: Answer) -> None:
        if not callable(answer):
            raise TypeError(f"answer={answer!r} is not a function; pass the function without calling it")
        try:
            if _is_untouched(answer):
                raise NotImplementedError
            check(answer)
        except NotImplementedError as error:
            if error.args:  # raised by torch for a missing operation, not by a stub
                raise
            print(f"{check.__name__}: not attempted yet")
        except CheckFailedError:
            raise
        except Exception as error:
            if _raised_in(answer, error):
                raise
            name = getattr(answer, "__name__", type(answer).__name__)
            raise CheckFailedError(
                f"what {name} returns cannot be checked ({type(error).__name__}: {error}): "
                "compare its type and shape with those asked for"
            ) from error
        else:
            print(f"{check.__name__}: passed")

    return run


def _raised_in(answer: Answer, error: Exception) -> bool:
    """Tell whether an error was raised by the answer, and not by the check of its result."""
    return any(frame.f_code is getattr(answer, "__code__", None) for frame, _ in traceback.walk_tb(error.__traceback__))


def _is_untouched(answer: Answer) -> bool:
    """Tell whether a function's body is nothing but ``...`` (or ``pass``, or a docstring)."""
    trivial = {"RESUME", "NOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST"}
    if not hasattr(answer, "__code__"):
        return False
    steps = list(dis.get_instructions(answer))
    loaded = [step.argval for step in steps if step.opname in ("LOAD_CONST", "RETURN_CONST")]
    return {step.opname for step in steps} <= trivial and loaded[-1] in (None, ...)


def expect(holds: object, symptom: str) -> None:
    """Fail the check with this symptom unless the condition holds."""
    if not holds:
        raise CheckFailedError(symptom)


def result(answer: Answer, *arguments: Any) -> Any:
    """Call the answer and return its result, which must not be None."""
    result = answer(*arguments)
    name = getattr(answer, "__name__", type(answer).__name__)
    expect(result is not None, f"{name} returns None; is a `return` missing?")
    return result


def close(a: object, b: object, tolerance: float = 1e-5) -> bool:
    """Tell whether two arrays have the same shape and nearly equal numbers; None is never close."""
    if a is None or b is None:
        return False
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return a.shape == b.shape and np.allclose(a, b, rtol=tolerance, atol=tolerance)


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return standard normal numbers of this shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
