"""The claims of the notebooks: each sentence stands in its notebook, and a claim that cannot fail is found.

Whether they hold is checked after each notebook has run (``notebooks/conftest.py``; ``make claims`` for more seeds).
"""

import re

import nbformat
import numpy as np
import pytest

from tests.notebooks.claims import CLAIMS, Claim, can_fail, check
from tools.claims import prepared
from tutorial_lib.project import ROOT

NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}


def text_of(path):
    return "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")


def test_every_notebook_has_claims_and_there_are_at_least_sixty():
    assert sorted(CLAIMS) == sorted(NOTEBOOKS)
    assert sum(map(len, CLAIMS.values())) >= 60
    assert all(len({claim.name for claim in claims}) == len(claims) for claims in CLAIMS.values())


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_sentence_stands_in_its_notebook(notebook):
    text = " ".join(text_of(NOTEBOOKS[notebook]).split())
    assert [claim.name for claim in CLAIMS[notebook] if claim.sentence not in text] == []


VALUES = [(1.0, 2.0), ([1, 2, 3], 3), (np.array([[1.0, 2.0]]), -1.0), ("works",)]


@pytest.mark.parametrize("values", VALUES, ids=str)
def test_a_claim_that_always_holds_says_nothing(values):
    assert not can_fail(Claim("empty", "", lambda v: values, lambda *numbers: True), values)


def test_a_claim_that_compares_can_fail():
    assert can_fail(Claim("order", "", lambda v: (1.0, 2.0), lambda a, b: a < b), (1.0, 2.0))
    assert can_fail(Claim("bound", "", lambda v: (97.0,), lambda a: a > 94), (97.0,))


def test_what_does_not_hold_is_named_with_its_values(monkeypatch):
    claim = Claim("learns", "It learns.", lambda v: (v.accuracy,), lambda accuracy: accuracy > 94)
    monkeypatch.setitem(CLAIMS, "01_paradox", [claim])
    assert check("01_paradox", {"accuracy": 97.0}) == []
    (wrong,) = check("01_paradox", {"accuracy": 50.0})
    assert "learns: does not hold for (50.0,)" in wrong and "It learns." in wrong


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_make_claims_replaces_seeds_and_data(notebook):
    cells = [cell.source for cell in prepared(NOTEBOOKS[notebook], "digits", 7).cells if cell.cell_type == "code"]
    assert not re.search(r"(manual_seed\(|seed=)0\b", "\n".join(cells))
    assert "'digits'" in "\n".join(cells) and notebook in cells[-1]
