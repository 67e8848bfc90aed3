"""Arguments are checked at the door: a refusal names the argument, its value, and what to give instead."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import math
import numbers
import os
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from .errors import InvalidArgumentError

LARGEST_SEED = 2**63 - 1
TOO_LARGE = 2**63  # for a whole number in compiled code
_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "True or False",
    types.NoneType: "None",
    np.ndarray: "a numpy array",
    nn.Module: "an nn.Module",
    torch.Tensor: "a torch.Tensor (dense)",
}
_SERIES = (tuple, list, collections.abc.Sequence)
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100


def checked(door: Any) -> Any:
    """Let a function, or the constructor of a class, take only what its type hints say (a decorator).

    A number is no text and no truth value, a text is no list of texts; numpy's numbers count as numbers, and arrive as
    Python's own. The parts of lists and dictionaries are looked at too. Wrapped around what is called rarely: it takes
    some microseconds.

    Raises:
        InvalidArgumentError: from the wrapped function, for the first argument of another type.
    """
    if isinstance(door, type):
        door.__init__ = checked(door.__init__)
        return door
    signature = inspect.signature(door)
    # Hints are texts until somebody asks: by then every module that they name has been imported.
    hints = functools.cache(functools.partial(typing.get_type_hints, door))

    @functools.wraps(door)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            hint = hints().get(name, Any)
            if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                continue
            if not _fits(value, hint):
                raise InvalidArgumentError(f"{name}={shown(value)} is {_kind(value)}; give {_in_words(hint)}")
            listed = isinstance(value, np.ndarray) and value.ndim == 1 and typing.get_origin(hint) in _SERIES
            bound.arguments[name] = _plain(value.tolist() if listed else value)
        return door(*bound.args, **bound.kwargs)

    return call


def _fits(value: Any, hint: Any) -> bool:
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool) and not _is_too_large(value)
    if kind is Any:
        return True
    if kind is bool:
        return isinstance(value, (bool, np.bool_))
    if kind is collections.abc.Callable:
        return callable(value)
    if kind in _SERIES:
        if isinstance(value, (str, bytes)) or not isinstance(value, (collections.abc.Sequence, np.ndarray)):
            return False
        if not inner or (isinstance(value, np.ndarray) and value.ndim == 0):
            return not inner
        if kind is tuple and inner[-1] is not ...:
            return len(value) == len(inner) and all(map(_fits, value, inner))
        return all(_fits(each, inner[0]) for each in value)
    if kind in (dict, collections.abc.Mapping):
        return isinstance(value, collections.abc.Mapping) and (
            not inner or all(_fits(key, inner[0]) and _fits(item, inner[1]) for key, item in value.items())
        )
    if kind is collections.abc.Iterable:
        return isinstance(value, collections.abc.Iterable) and not isinstance(value, (str, bytes))
    return isinstance(value, kind) and not (isinstance(value, torch.Tensor) and not is_dense(value))


def _plain(value: Any) -> Any:
    """Return numpy's numbers (and fractions) as Python's own: torch does not take them everywhere, and they wrap."""
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, numbers.Real):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    if type(value) in (tuple, list) and any(_plain(each) is not each for each in value):
        return type(value)(map(_plain, value))
    return value


def _is_too_large(number: numbers.Real) -> bool:
    return not isinstance(number, float) and (number >= TOO_LARGE or number <= -TOO_LARGE)


def is_dense(tensor: Any) -> bool:
    """Tell whether it is an ordinary tensor: not sparse, nested, quantized or of another library's layout."""
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not tensor.is_quantized
    )


def _in_words(hint: Any) -> str:
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return " or ".join(map(_in_words, inner))
    if kind is tuple and inner and inner[-1] is not ...:
        return f"({', '.join(map(_in_words, inner))})"
    if kind in _SERIES:
        return f"a list, each of it {_in_words(inner[0])}" if inner else "a list"
    if kind is collections.abc.Iterable:
        return "something to go through one by one"
    if kind in (dict, collections.abc.Mapping):
        return f"a dictionary (from {_in_words(inner[0])} to {_in_words(inner[1])})" if inner else "a dictionary"
    if kind is collections.abc.Callable:
        return "a function"
    if kind is Any:
        return "anything"
    return _WORDS.get(kind) or f"a {getattr(kind, '__name__', kind)}"


def _kind(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, torch.Tensor) and not is_dense(value):
        return f"no dense tensor (layout {value.layout})"
    if isinstance(value, numbers.Real) and _is_too_large(value):
        return "too large to compute with"
    return f"of type {type(value).__name__}"


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


def check_seed(seed: int, most: int = LARGEST_SEED) -> None:
    """Refuse a seed that a random generator does not take.

    Raises:
        InvalidArgumentError: it is below 0 or above ``most``.
    """
    require(0 <= seed <= most, "seed", seed, f"use a whole number from 0 to {most}")


def check_path(name: str, path: str | Path) -> Path:
    """Return a path if it is one that the system can be asked about.

    Raises:
        InvalidArgumentError: it holds what no file name can, such as a zero byte.
    """
    try:
        possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        possible = False
    require(possible, name, str(path), "use a path without zero bytes and broken characters")
    return Path(path)


def check_device(device: str | torch.device | None) -> None:
    """Refuse a device that is not there.

    Raises:
        InvalidArgumentError: torch does not know it, or there is none here.
    """
    if device is not None and str(device).startswith("cuda") and not torch.cuda.is_available():
        raise InvalidArgumentError(f"device={str(device)!r}, but torch sees no GPU here; use device='cpu'")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).split("\n")[0][:100]
        raise InvalidArgumentError(f"device={str(device)!r} cannot be used ({why}); use device='cpu'") from error


def check_places(name: str, flat: torch.Tensor, shape: Sequence[int]) -> np.ndarray:
    """Return flat indices into a dense weight as a numpy array if all of them lie in it, in whatever order.

    Args:
        name: what a message calls them.
        flat: int64, of one dimension.
        shape: of the dense weight.

    Raises:
        InvalidArgumentError: wrong dtype or dimension, or out of range.
    """
    if not isinstance(flat, torch.Tensor) or flat.dtype != torch.int64 or flat.dim() != 1 or flat.is_meta:
        what = f"{flat.dtype} {tuple(flat.shape)} on {flat.device}" if isinstance(flat, torch.Tensor) else shown(flat)
        raise InvalidArgumentError(f"{name} are {what}; give a one-dimensional int64 tensor.")
    positions = flat.detach().cpu().numpy()
    size, low, high = math.prod(shape), positions.min(initial=0), positions.max(initial=-1)
    if low < 0 or high >= size:
        bad = low if low < 0 else high
        raise InvalidArgumentError(f"{name}: {bad} is out of range for shape {tuple(shape)}; use 0 to {size - 1}.")
    return positions


def check_connections(name: str, flat: torch.Tensor, shape: Sequence[int]) -> np.ndarray:
    """Return flat indices into a dense weight as a numpy array if they are a topology: sorted, none twice.

    Raises:
        InvalidArgumentError: wrong dtype or dimension, out of range, unsorted or duplicate.
    """
    positions = check_places(name, flat, shape)
    wrong = np.flatnonzero(positions[1:] <= positions[:-1])
    if len(wrong):
        before, after = positions[wrong[0]], positions[wrong[0] + 1]
        what = "duplicate" if before == after else "unsorted"
        raise InvalidArgumentError(f"{name} are {what}: {before} is followed by {after}; use torch.unique.")
    return positions


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


def check_columns(name: str, table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse a table that is empty, lacks a column, or holds in one of them something else than its kind.

    Raises:
        InvalidArgumentError: no rows, a column is missing, one (but the contender's) does not hold numbers, or an
            accuracy is not finite.
    """
    missing = [column for column in columns if column not in table.columns]
    if missing or not len(table):
        raise InvalidArgumentError(
            f"{name} has {len(table)} rows and the columns {shown(list(table.columns))}; "
            f"give at least one row, and {', '.join(map(repr, columns))}"
        )
    for column in columns:
        held = table[column]
        if column == "contender":
            fits = held.map(type).eq(str).all()
        else:
            fits = pd.api.types.is_numeric_dtype(held) and (column != "accuracy" or np.isfinite(held).all())
        what = "texts" if column == "contender" else "finite numbers"
        require(fits, f"{name}[{column!r}]", held.tolist(), f"give {what}")


# ------------------------------------------------------------------------------------------ layers


def check_tensors(device: str | torch.device | None, dtype: torch.dtype | None) -> None:
    """Refuse what a layer's weights cannot have.

    Raises:
        InvalidArgumentError: a device that is not there, or a type that is not for training.
    """
    check_device(device)
    trained = (None, torch.float16, torch.bfloat16, torch.float32, torch.float64)
    require(dtype in trained, "dtype", dtype, "use torch.float32 or another floating type of 2, 4 or 8 bytes")


def check_sizes(**sizes: int) -> None:
    """Refuse negative sizes.

    Raises:
        InvalidArgumentError: one is below 0.
    """
    for name, size in sizes.items():
        require(size >= 0, name, size, "use a whole number of at least 0")


Pair = tuple[int, int]


def check_convolution(
    in_channels: int,
    out_channels: int,
    kernel_size: int | Pair,
    stride: int | Pair,
    padding: str | int | Pair,
    dilation: int | Pair,
    groups: int,
) -> tuple[Pair, Pair, str | Pair, Pair]:
    """Return kernel size, stride, padding (a text as it is) and dilation of a convolution as pairs.

    Raises:
        InvalidArgumentError: one of them, or a number of channels or groups, is outside its range.
    """
    check_sizes(in_channels=in_channels, out_channels=out_channels)
    for name, channels in (("input", in_channels), ("output", out_channels)):
        if groups < 1 or channels % groups:
            raise InvalidArgumentError(f"groups={groups!r}; use a divisor of the {channels} {name} channels")
    pairs = []
    for name, value, least in (
        ("kernel_size", kernel_size, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        if isinstance(value, str):
            check_choice(name, value, ("valid", "same"))
            require(value != "same" or stride in (1, (1, 1)), name, value, "with stride 1, or give numbers")
            pairs.append(value)
            continue
        pair = (value, value) if isinstance(value, numbers.Integral) else tuple(value)
        require(min(pair) >= least, name, value, f"use whole numbers of at least {least}")
        pairs.append(tuple(map(int, pair)))
    return tuple(pairs)


def check_values(values: torch.Tensor, count: int) -> None:
    """Refuse anything but ``count`` numbers in a row.

    Raises:
        InvalidArgumentError: another shape, not numbers that are measured, or on the meta device.
    """
    if values.shape != (count,) or not values.is_floating_point() or values.is_meta:
        raise InvalidArgumentError(
            f"values are {values.dtype} {tuple(values.shape)} on {values.device}; give {count} floating numbers"
        )
