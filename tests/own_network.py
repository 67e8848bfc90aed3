"""The code of ``docs/your-own-network.md``, to be run by tests."""

import re

import torch

from tutorial_lib.project import ROOT

PAGE = ROOT / "docs" / "your-own-network.md"
BLOCKS = dict(re.findall(r"<!-- code: (\w+) -->\n```python\n(.+?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))


def run_blocks(*names):
    """Run these blocks in one namespace, from a fixed seed, and return it. Files go into the current folder."""
    torch.manual_seed(0)
    namespace = {}
    for name in names:
        exec(compile(BLOCKS[name], f"{PAGE.name}: {name}", "exec"), namespace)
    return namespace
