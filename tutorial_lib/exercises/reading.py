"""What an answer returned, in whatever style: numbers of any type, arrays of any library, lists and sets."""

from __future__ import annotations

import decimal
import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from truly_sparse.arguments import shown


def array(value: Any) -> np.ndarray:
    """Return numbers of any kind as an array: of torch, of numpy, nested lists of them, fractions.

    Raises:
        ValueError, TypeError: the value cannot be read as numbers.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, (list, tuple)):
        value = [array(part) if isinstance(part, (torch.Tensor, list, tuple)) else part for part in value]
    read = np.asarray(value)
    return read.astype(np.float64) if read.dtype == object else read


def number(value: Any) -> float:
    """Return a single real number of any type as float.

    Raises:
        ValueError: the value is no finite real number.
    """
    if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, (numbers.Real, decimal.Decimal)) or isinstance(value, bool):
        raise ValueError(f"{shown(value)} is not a single number")
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    return float(value)


def close(a: Any, b: Any, tolerance: float = 1e-5) -> bool:
    """Return whether two arrays or numbers have the same shape and nearly equal numbers.

    A number of low precision, such as float16, may differ by a few units of its last place.
    """
    tolerance = max(tolerance, precision(a), precision(b))
    a, b = array(a).astype(np.float64), array(b).astype(np.float64)
    if a.shape != b.shape or not a.size:
        return a.shape == b.shape
    scale = max(1.0, float(np.abs(b[np.isfinite(b)]).max(initial=0.0)))
    return np.allclose(a, b, rtol=tolerance, atol=tolerance * scale)


def precision(value: Any) -> float:
    """Return the relative error to expect of numbers of this type; 0 if they are exact."""
    if isinstance(value, (list, tuple)) and value:
        return max(map(precision, value))
    if isinstance(value, torch.Tensor):
        return 8 * torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind == "f":
        return 8 * float(np.finfo(value.dtype).eps)
    return 0.0


def alike(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    """Return whether two values of any type are the same; numbers may differ by the relative ``tolerance``."""
    if isinstance(a, nn.Module) and isinstance(b, nn.Module):
        a, b = a.state_dict(), b.state_dict()
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(alike(a[key], b[key], tolerance) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(alike(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, (torch.Tensor, np.ndarray, float)) and isinstance(b, (torch.Tensor, np.ndarray, float)):
        a, b = array(a), array(b)
        same = a.shape == b.shape and a.dtype == b.dtype
        return same and np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
    return type(a) is type(b) and bool(a == b)


def in_short(value: Any) -> str:
    """Return numbers as a short text, such as ``0.5, -2, 1.25``; only the first six of many."""
    numbers = array(value).astype(np.float64).ravel()
    text = ", ".join(f"{n:.0f}" if n.is_integer() and abs(n) < 1e15 else f"{n:.5g}" for n in map(float, numbers[:6]))
    return f"{text}, … ({numbers.size} numbers)" if numbers.size > 10 else text or "nothing"
