"""Where progress is shown."""

from __future__ import annotations

import sys
from typing import Any, TextIO


def progress_stream() -> TextIO:
    """Return standard output in a notebook, and standard error elsewhere."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return sys.stdout if hasattr(shell, "kernel") else sys.stderr
