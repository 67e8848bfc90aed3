"""After a notebook's last cell, nbval checks what its text says about its numbers (``tests/notebooks/claims.py``)."""

from collections import defaultdict

from nbformat.v4 import new_code_cell
from nbval.plugin import IPyNbCell, IPyNbFile

CHECK = """import sys

sys.path.insert(0, {root!r})
from tests.notebooks.claims import check

wrong = check({notebook!r}, dict(globals()))
assert not wrong, "\\n".join(wrong)
"""


def pytest_collection_modifyitems(session, config, items):
    last = {item.parent: place for place, item in enumerate(items) if isinstance(item, IPyNbCell)}
    for notebook, place in sorted(last.items(), key=lambda pair: -pair[1]):
        cell = new_code_cell(CHECK.format(root=str(config.rootpath), notebook=notebook.path.stem))
        items.insert(place + 1, _item(notebook, items[place].cell_num + 1, cell))


def _item(notebook: IPyNbFile, number: int, cell) -> IPyNbCell:
    return IPyNbCell.from_parent(
        notebook, name="claims", cell_num=number, cell=cell, options=defaultdict(bool)
    )
