"""Write the address of the project's repository into all files that name it.

    python tools/set_repository.py OWNER/NAME

The setting is ``Repository`` in ``pyproject.toml``; all other places repeat it. In notebooks only the cells' text is
changed, not their outputs. Needs nothing but Python. Afterwards, ``make`` installs the project again.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETTING = re.compile(r'^Repository = "https://github\.com/([^"/]+/[^"/]+)"$', re.MULTILINE)
# An owner has letters, digits and single hyphens; a name also has dots and underscores.
VALID = re.compile(
    r"(?!.*--)[A-Za-z0-9](?:[A-Za-z0-9-]{0,37}[A-Za-z0-9])?/(?!\.{1,2}$)(?!.*\.git$)[\w.-]{1,100}", re.ASCII
)
PLACES = ("pyproject.toml", "README.md", "CITATION.cff", "notebooks/*.ipynb")
# The text of a cell, as nbformat and JupyterLab write it: its lines stand between these two.
SOURCE = re.compile(r'^   "source": \[\n.*?^   \]$', re.MULTILINE | re.DOTALL)


def files(root: Path) -> list[Path]:
    """Return the files that name the address."""
    return [path for place in PLACES for path in sorted(root.glob(place))]


def present(root: Path) -> str:
    """Return ``OWNER/NAME`` as ``pyproject.toml`` has it.

    Raises:
        ValueError: it does not have exactly one such line.
    """
    found = SETTING.findall((root / "pyproject.toml").read_text(encoding="utf-8"))
    if len(found) != 1:
        raise ValueError(
            f'pyproject.toml has {len(found)} lines like Repository = "https://github.com/OWNER/NAME"; one is needed'
        )
    return str(found[0])


def replaced(text: str, old: str, new: str) -> tuple[str, int]:
    """Return the text with the new address in all places of the old one, and how many places there were."""
    place = re.compile(rf"(github\.com/|colab\.research\.google\.com/github/){re.escape(old)}(?![\w-]|\.\w)")
    return place.subn(rf"\g<1>{new}", text)


def replaced_in_cells(notebook: str, old: str, new: str) -> tuple[str, int]:
    """Return a notebook's file with the address replaced in its cells' text, and how many places there were."""
    total = 0

    def one(cell: re.Match[str]) -> str:
        nonlocal total
        text, count = replaced(cell[0], old, new)
        total += count
        return text

    return SOURCE.sub(one, notebook), total


def set_repository(root: Path, address: str) -> int:
    """Replace the address in all files; return how many places there were.

    Args:
        root: the project's folder.
        address: the new ``OWNER/NAME``.

    Raises:
        ValueError: ``address`` is not ``OWNER/NAME``, or a file does not name the present one; nothing is changed then.
    """
    if not VALID.fullmatch(address):
        raise ValueError(
            f"address={address!r} is not OWNER/NAME, as in octocat/hello-world; leave out the rest of the URL"
        )
    old, total = present(root), 0
    changed: dict[Path, bytes] = {}
    for path in files(root):
        change = replaced_in_cells if path.suffix == ".ipynb" else replaced
        text, count = change(path.read_bytes().decode("utf-8"), old, address)
        if not count:
            raise ValueError(f"{path} does not name https://github.com/{old}; write that address into it first")
        changed[path] = text.encode("utf-8")
        total += count
    for path, content in changed.items():
        path.write_bytes(content)
    return total


def main() -> None:
    """Change the address that the command line gives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", metavar="OWNER/NAME")
    try:
        places = set_repository(ROOT, parser.parse_args().address)
    except ValueError as error:
        parser.error(str(error))
    print(f"changed {places} places in {len(files(ROOT))} files; run make to install the project again")


if __name__ == "__main__":
    main()
