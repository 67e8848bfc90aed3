"""Argument validation: errors name the argument, its value, and the accepted range."""

from __future__ import annotations

import functools
import math
import os
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .errors import InvalidArgumentError

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100


def shown(value: Any) -> str:
    """Return a value as error messages show it: one short line; type, dtype and shape of tensors and arrays."""
    if isinstance(value, torch.Tensor) and value.is_nested:
        return f"nested {type(value).__name__} {value.dtype}"  # a nested tensor has no shape
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"{type(value).__name__} {value.dtype} {tuple(value.shape)}"
    if isinstance(value, nn.Module):
        return type(value).__name__
    return " ".join(_short.repr(value).split())


def require(condition: Any, name: str, value: Any, remedy: str) -> None:
    """Raise unless ``condition`` is true.

    Args:
        condition: what must hold.
        name: the argument.
        value: its value.
        remedy: what to use instead.

    Raises:
        InvalidArgumentError: the condition is false.
    """
    if not condition:
        raise InvalidArgumentError(f"{name}={shown(value)}; {remedy}")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise InvalidArgumentError unless ``value`` is one of ``choices``."""
    choices = list(choices)
    require(isinstance(value, str) and value in choices, name, value, f"use one of {', '.join(choices)}")


def check_count(name: str, value: int, least: int) -> int:
    """Return ``value`` as int if it is a whole number from ``least`` up to what an index holds, else raise.

    Raises:
        InvalidArgumentError: another type, or out of range.
    """
    fits = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and least <= value < 2**63
    require(fits, name, value, f"use a whole number of at least {least}")
    return int(value)


def check_model(model: object) -> None:
    """Refuse what is no module, and a class where a module of it is meant.

    Raises:
        InvalidArgumentError: see above.
    """
    if isinstance(model, type):
        raise InvalidArgumentError(f"model={model.__name__} is a class; give an instance")
    require(isinstance(model, nn.Module), "model", model, "give a torch.nn.Module")


def check_patterns(name: str, patterns: Iterable[str | type[nn.Module]]) -> None:
    """Refuse one text or class where a list is meant: the letters of a text would be taken for patterns."""
    fits = not isinstance(patterns, (str, bytes)) and all(
        isinstance(each, str) or (isinstance(each, type) and issubclass(each, nn.Module)) for each in patterns
    )
    require(fits, name, patterns, f"give a list of name patterns or classes, such as {name}=['conv*', nn.Linear]")


def pair(name: str, size: int | tuple[int, int], least: int) -> tuple[int, int]:
    """Return a size, stride or padding as (vertical, horizontal).

    Raises:
        InvalidArgumentError: one of the two is below ``least``.
    """
    sizes = tuple(size) if isinstance(size, Iterable) else (size, size)
    whole = [isinstance(each, (int, np.integer)) and not isinstance(each, bool) for each in sizes]
    fits = len(sizes) == 2 and all(whole) and min(sizes) >= least
    require(fits, name, size, f"use whole numbers of at least {least}, one or two")
    return int(sizes[0]), int(sizes[1])


def is_dense(tensor: Any) -> bool:
    """Tell whether ``tensor`` is an ordinary torch.Tensor: not sparse, nested or quantized."""
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not tensor.is_quantized
    )


def check_memory(name: str, value: Any, needed: int, device: str | torch.device | None = None) -> None:
    """Refuse an allocation larger than the machine's memory, for which the system would kill the process.

    Args:
        name: the argument that makes it so large.
        value: its value.
        needed: bytes.
        device: where they would be allocated; None: torch's default device. Only the CPU's memory is checked.

    Raises:
        InvalidArgumentError: the bytes do not fit.
    """
    where = torch.get_default_device() if device is None else torch.device(device)
    if where.type == "cpu" and needed > memory_bytes():
        raise InvalidArgumentError(
            f"{name}={shown(value)} takes {needed / 1e9:,.0f} GB of memory, and this machine has "
            f"{memory_bytes() / 1e9:,.0f} GB; use less"
        )


@functools.cache
def memory_bytes() -> float:
    """Return the bytes of memory that this process may use; infinity where the system does not say."""
    limits = [math.inf]
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in ("memory.max", "memory/memory.limit_in_bytes"):  # of a container: control groups, version 2 and 1
        path = Path("/sys/fs/cgroup") / file
        text = path.read_text(encoding="ascii").strip() if path.is_file() else ""
        limits += [int(text)] if text.isdigit() else []
    return min(limits)
