"""What the checks share: they call an answer on fresh inputs, and describe the symptom if it is wrong."""

from __future__ import annotations

import copy
import dis
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import numpy as np
import torch

from truly_sparse.arguments import require
from truly_sparse.errors import SparseTrainingError

from .reading import alike, array, close, in_short

Answer = Callable[..., Any]


class CheckFailedError(SparseTrainingError, AssertionError):
    """An answer to an exercise is wrong; the message describes the symptom."""

    def _render_traceback_(self) -> list[str]:
        # IPython prints this in place of the traceback, which would show the source of the check.
        return [f"Not yet: {self}"]


class _Attempt:
    """An answer under test. It keeps the error that the answer raised, to tell it from an error of the check."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.__name__ = answer, getattr(answer, "__name__", type(answer).__name__)
        self.raised: Exception | None = None

    def __call__(self, *arguments: Any) -> Any:
        with _random_global_state():
            try:
                returned = self.answer(*arguments)
                return list(returned) if isinstance(returned, Iterator) else returned
            except Exception as error:
                inside = error.__traceback__ is not None and error.__traceback__.tb_next is not None
                if isinstance(error, TypeError) and not inside:  # the call itself failed
                    raise CheckFailedError(
                        f"{self.__name__} cannot be called with {len(arguments)} arguments ({error}): "
                        "keep the first line of the exercise"
                    ) from error
                self.raised = error
                raise


@contextmanager
def _random_global_state() -> Iterator[None]:
    """Seed the global generators of Python, numpy and torch at random, and restore them at the end."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = int(fresh().integers(2**31))
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


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
        if _is_untouched(answer):
            print(f"{name}: not attempted yet")
            return
        attempt = _Attempt(answer)
        try:
            with _random_global_state():
                check(attempt)
        except CheckFailedError:
            raise
        except Exception as error:
            if error is not attempt.raised:
                said = " ".join(str(error).split())[:300]
                raise CheckFailedError(
                    f"the return value of {attempt.__name__} cannot be checked ({type(error).__name__}: {said}): "
                    "compare its type and shape with the exercise's text"
                ) from error
            if not isinstance(error, NotImplementedError) or error.args:  # torch gives a reason, a stub does not
                raise
            print(f"{name}: not attempted yet")
        else:
            print(f"{name}: passed")

    return run


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


def result(answer: Answer, /, **arguments: Any) -> Any:
    """Call an answer twice, and return what it returned.

    Args:
        answer: the function to call.
        arguments: its arguments, in order. The names are those of the messages.

    Raises:
        CheckFailedError: it returns None, changes an argument, or returns something else the second time.
    """
    first, second = call(answer, **arguments), call(answer, **arguments)
    expect(
        alike(first, second, tolerance=1e-4),
        "the same arguments gave two different answers: it depends on random numbers or on earlier calls",
    )
    return first


def call(answer: Answer, /, **arguments: Any) -> Any:
    """Call an answer once, and return what it returned; see :func:`result`."""
    before = copy.deepcopy(arguments)
    returned = answer(*arguments.values())
    for name, value in arguments.items():
        expect(alike(value, before[name]), f"the argument {name} itself was changed; work on a copy")
    expect(returned is not None, f"{getattr(answer, '__name__', 'it')} returns None; is a `return` missing?")
    return returned


def diagnose(given: Any, right: Any, mistakes: Mapping[str, Any], of: str = "") -> None:
    """Raise :class:`CheckFailedError` unless a number or an array is right.

    Args:
        given: what the answer returned.
        right: what it should have returned.
        mistakes: symptom → what an answer with this mistake returns.
        of: what the number is and for which arguments; begins the message.
    """
    if close(given, right):
        return
    of = of or in_short(given)
    for symptom, wrong in mistakes.items():
        expect(not close(given, wrong), f"{of}: {symptom}")
    raise CheckFailedError(f"{of}; expected {in_short(right)}")


def fresh() -> np.random.Generator:
    """Return a generator of random numbers that differ at every call."""
    return np.random.default_rng()


def draws(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return standard normal numbers, other ones at every call."""
    return torch.from_numpy(fresh().standard_normal(shape)).to(dtype)


def shuffled(things: Sequence[Any]) -> list[Any]:
    """Return the things in random order."""
    return [things[i] for i in fresh().permutation(len(things))]


def positions(given: Any, size: int, kind: str, of: str) -> np.ndarray:
    """Return, sorted, the positions that an answer chose, in any order, in a list of ``size`` things.

    Args:
        given: what the answer returned.
        size: the number of things to choose from.
        kind: what is asked for, such as ``positions``.
        of: whose values an answer may have returned in their place.

    Raises:
        CheckFailedError: these are no positions, or one is chosen twice.
    """
    chosen = array(sorted(given) if isinstance(given, (set, frozenset)) else given)
    expect(chosen.dtype != bool, f"this is a mask; return {kind}")
    expect(chosen.ndim == 1, f"an array of shape {chosen.shape}; return {kind} in one dimension, [count]")
    expect(chosen.dtype.kind in "iu", f"these are values of {of} or other real numbers; return their {kind}")
    outside = chosen[(chosen < 0) | (chosen >= size)]
    expect(not outside.size, f"{in_short(outside)} are no {kind}: they go from 0 to {size - 1}")
    twice = len(chosen) - len(np.unique(chosen))
    expect(not twice, f"{twice} of the {kind} are chosen more than once")
    return np.sort(chosen)
