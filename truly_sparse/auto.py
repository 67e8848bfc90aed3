"""``structure="auto"``: the blocks of a layer, from a table of measured times.

``structures.json`` beside this file says for linear layers and convolutions of several sizes which blocks a training
step prefers: the smallest ones within a tenth of the fastest. On the tutorial's network small blocks were more accurate
at 99% sparsity (``figures/co_design.json``). ``benchmarks/structures.py`` measures and writes the table on one machine.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .structure import Structure

TABLE = Path(__file__).with_name("structures.json")


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


def automatic(shape: Sequence[int]) -> Structure:
    """Return the blocks for a layer with a dense weight of this shape: those of the measured size closest to it.

    Args:
        shape: ``(out, in)`` of a linear layer, ``(out, in // groups, *kernel)`` of a convolution.
    """
    measured = _table()["linear" if len(shape) == 2 else "convolution"]
    wanted = math.log(max(1, shape[0] * shape[1]))
    nearest = min(measured, key=lambda row: abs(math.log(row["outputs"] * row["inputs"]) - wanted))
    return Structure(*nearest["structure"])
