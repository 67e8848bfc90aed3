"""Argument validation: errors name the argument, its value, and the accepted range."""

from __future__ import annotations

import functools
import math
import os
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .errors import InvalidArgumentError

_short = reprlib.Repr()


_short.maxstring = _short.maxother = 100


def is_dense(tensor: Any) -> bool:
    """Tell whether it is an ordinary tensor: not sparse, nested, quantized or of another library's layout."""
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not tensor.is_quantized
    )


def shown(value: Any) -> str:
    """Return a value as a message shows it: in one line, short; of tensors and arrays, type and shape."""
    if isinstance(value, torch.Tensor) and value.is_nested:
        return f"nested {type(value).__name__} {value.dtype}"  # it has no shape to tell
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"{type(value).__name__} {value.dtype} {tuple(value.shape)}"
    if isinstance(value, nn.Module):
        return type(value).__name__
    return " ".join(_short.repr(value).split())


def require(holds: Any, name: str, value: Any, remedy: str) -> None:
    """Refuse ``value`` as the argument ``name`` unless something holds of it; ``remedy`` says what to use instead.

    Raises:
        InvalidArgumentError: it does not hold.
    """
    if not holds:
        raise InvalidArgumentError(f"{name}={shown(value)}; {remedy}")


def check_choice(name: str, value: str, choices: Sequence[str] | Mapping[str, Any]) -> None:
    """Refuse a word that is none of the choices.

    Raises:
        InvalidArgumentError: it is none of them.
    """
    require(value in choices, name, value, f"use one of {', '.join(choices)}")


def check_memory(name: str, value: Any, needed: int, device: str | torch.device | None = None) -> None:
    """Refuse what is larger than the machine's memory: the system would end the process without a word.

    Args:
        name: the argument that makes it so large.
        value: its value.
        needed: bytes.
        device: where they would be; None: where torch makes tensors now. Only a CPU's memory is looked at.

    Raises:
        InvalidArgumentError: it does not fit.
    """
    where = torch.get_default_device() if device is None else torch.device(device)
    if where.type == "cpu" and needed > memory_bytes():
        have = f"{memory_bytes() / 1e9:,.0f} GB"
        raise InvalidArgumentError(
            f"{name}={shown(value)} takes {needed / 1e9:,.0f} GB of memory, and this machine has {have}; use less"
        )


@functools.cache
def memory_bytes() -> float:
    """Return the bytes of memory that this process may use, as far as the system tells; else infinity."""
    limits = [math.inf]
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in ("memory.max", "memory/memory.limit_in_bytes"):  # of a container: control groups, version 2 and 1
        path = Path("/sys/fs/cgroup") / file
        text = path.read_text(encoding="ascii").strip() if path.is_file() else ""
        limits += [int(text)] if text.isdigit() else []
    return min(limits)
