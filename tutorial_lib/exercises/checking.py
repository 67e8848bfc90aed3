"""What all checks of exercises share: run an answer, and report the symptom where it is wrong."""

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
        # IPython shows this in place of a traceback: the check's own lines would only hide the message.
        return [f"Not yet: {self}"]


def exercise(check: Callable[[Answer], None]) -> Callable[[Answer], None]:
    """Turn a function that raises on a wrong answer into a check that leaves an untouched stub alone, and reports."""

    @wraps(check)
    def run(answer: Answer) -> None:
        try:
            if _is_untouched(answer):
                raise NotImplementedError
            check(answer)
        except NotImplementedError as error:
            if error.args:  # not a stub's: torch says so of an operation that it lacks
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
    """Tell whether an error came up while the answer ran, not while a check looked at what it returned."""
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
    if not holds:
        raise CheckFailedError(symptom)


def result(answer: Answer, *arguments: Any) -> Any:
    """Call the answer and return what it returns, which must be something."""
    result = answer(*arguments)
    name = getattr(answer, "__name__", type(answer).__name__)
    expect(result is not None, f"{name} returns None; is a `return` missing?")
    return result


def close(a: object, b: object, tolerance: float = 1e-5) -> bool:
    """Tell whether two arrays have one shape and nearly equal numbers; None is close to nothing."""
    if a is None or b is None:
        return False
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return a.shape == b.shape and np.allclose(a, b, rtol=tolerance, atol=tolerance)


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
