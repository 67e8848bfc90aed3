"""The code of ``docs/your-own-network.md`` and ``docs/your-own-rule.md``, to be run by tests."""

import re

import torch

from tutorial_lib.project import ROOT

PAGE = ROOT / "docs" / "your-own-network.md"
RULE_PAGE = ROOT / "docs" / "your-own-rule.md"


def blocks_of(page):
    """Return the blocks of code of a page by name."""
    return dict(re.findall(r"<!-- code: (\w+) -->\n```python\n(.+?)```", page.read_text(encoding="utf-8"), re.DOTALL))


BLOCKS = blocks_of(PAGE)


def run_blocks(*names, page=PAGE):
    """Run these blocks in one namespace, from a fixed seed, and return it. Files go into the current folder."""
    torch.manual_seed(0)
    namespace, blocks = {}, blocks_of(page)
    for name in names:
        exec(compile(blocks[name], f"{page.name}: {name}", "exec"), namespace)
    return namespace
