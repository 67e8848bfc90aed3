"""Programs are prepared once per topology; after a rewiring the program of the topology before serves as a template.

Of two topologies with as many weights, the programs differ in the addresses of the plans alone. Everything else (calls,
phases, workspaces) is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .plan import Part, address
from .records import Pass, Plan
from .stage import Stage

if TYPE_CHECKING:
    from .program import Program

KEPT = 16  # entries of a cache: programs per index (later layers' topologies and input shapes change), and templates
PLANS = Pass._fields.index("plans")
NO_ADDRESSES = dict.fromkeys(
    ("indptr", "t_indptr", "t_perm", "cols", "t_rows", "row_chunks", "col_chunks", "offsets", "by_input"), 0
)
Made = TypeVar("Made")
_templates: dict[Any, Program] = {}


def kept(cache: dict[Any, Made], key: Any, make: Callable[[], Made]) -> Made:
    """Return the entry of a cache, or make it."""
    found = cache.get(key)
    if found is None:
        found = make()
        if len(cache) >= KEPT:
            cache.clear()
        cache[key] = found
    return found


def known(stages: Sequence[Stage], key: Any) -> Program | None:
    """Return the program of a pass if it was prepared before; for the arguments see :func:`prepared`."""
    found: Program | None = stages[0].index.programs.get(_whole(stages, key))
    return found


def prepared(stages: Sequence[Stage], key: Any, parts: list[Part], make: Callable[[list[Part]], Program]) -> Program:
    """Return the program of a pass, made from a template if there is one.

    Args:
        stages: the layers.
        key: what the program depends on in addition to them.
        parts: the plan of each layer, and what belongs to it.
        make: makes the program of these parts.
    """
    sizes = tuple(
        (*part.plan._replace(**NO_ADDRESSES), part.scratch, *stage[1:])
        for part, stage in zip(parts, stages, strict=True)
    )
    program = _with_plans(kept(_templates, (key, sizes), lambda: make(parts)), parts)
    return kept(stages[0].index.programs, _whole(stages, key), lambda: program)


def _whole(stages: Sequence[Stage], key: Any) -> Any:
    return key, *[(stage.index.number, stage.relu, stage.pool) for stage in stages]


def are_alike(some: Program, other: Program) -> bool:
    """Tell whether two programs have one template, so that the workspaces of one serve the other."""
    return some.idle is other.idle


def _with_plans(template: Program, parts: list[Part]) -> Program:
    """Return a program that differs from another in its plans only."""
    record, _, *shared = template.alive
    record = record.copy()
    listed: list[Plan] = [part.plan for part in parts]
    plans = np.array(listed[::-1] if template.gradient_sizes else listed, np.int64)  # in the order of the pass
    record[PLANS] = address(plans)
    layers = [  # a program of a few samples has none
        layer._replace(plan=part.plan, alive=part.alive)
        for layer, part in zip(template.layers, parts, strict=bool(template.layers))
    ]
    return template._replace(layers=layers, address=address(record), alive=(record, plans, *shared))
