"""``tools/set_repository.py`` changes every place that names the repository, and nothing else."""

import shutil

import pytest

from tools.set_repository import files, present, set_repository
from tutorial_lib.project import ROOT


@pytest.fixture
def copy(tmp_path):
    for path in files(ROOT):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    return tmp_path


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in files(root)}


def test_every_place_changes_and_the_way_back_gives_the_same_bytes(copy):
    before, old = contents(copy), present(copy)
    places = set_repository(copy, "octocat/hello.world_2")
    after = contents(copy)
    assert present(copy) == "octocat/hello.world_2" and places > len(after) and after.keys() == before.keys()
    for path, content in after.items():
        assert old.encode() not in content and b"octocat/hello.world_2" in content, path
        assert content.replace(b"octocat/hello.world_2", old.encode()) == before[path], "something else has changed"
    assert set_repository(copy, old) == places
    assert contents(copy) == before


@pytest.mark.parametrize(
    "address", ["", "octocat", "octocat/", "/name", "a/b/c", "https://github.com/a/b", "o c/name", "-a/name", "a/b c"]
)
def test_what_is_no_address_changes_nothing(copy, address):
    before = contents(copy)
    with pytest.raises(ValueError, match="is not OWNER/NAME"):
        set_repository(copy, address)
    assert contents(copy) == before


def test_a_file_without_the_address_is_named_and_nothing_changes(copy):
    (copy / "CITATION.cff").write_text("repository-code: elsewhere\n", encoding="utf-8")
    before = contents(copy)
    with pytest.raises(ValueError, match=r"CITATION\.cff does not name https://github\.com/"):
        set_repository(copy, "octocat/hello")
    assert contents(copy) == before
