"""Write the address of the project's repository into all files that name it.

    python tools/set_repository.py OWNER/NAME

The present address is read from ``pyproject.toml`` (``Repository``). Afterwards, ``make`` installs the project again.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from tutorial_lib.project import ROOT

SETTING = re.compile(r'^Repository = "https://github\.com/([^"/]+/[^"/]+)"$', re.MULTILINE)
VALID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,38})/[A-Za-z0-9._-]{1,100}")
PLACES = ("pyproject.toml", "README.md", "CITATION.cff", "notebooks/*.ipynb")


def files(root: Path) -> list[Path]:
    """Return the files that name the address."""
    return [path for place in PLACES for path in sorted(root.glob(place))]


def present(root: Path) -> str:
    """Return ``OWNER/NAME`` as ``pyproject.toml`` has it."""
    (address,) = SETTING.findall((root / "pyproject.toml").read_text(encoding="utf-8"))
    return str(address)


def set_repository(root: Path, address: str) -> int:
    """Replace the address in all files; return how many places there were.

    Raises:
        ValueError: ``address`` is not ``OWNER/NAME``, or a file does not name the present one; nothing is changed then.
    """
    if not VALID.fullmatch(address):
        raise ValueError(f"address={address!r} is not OWNER/NAME, as in octocat/hello-world")
    old = re.compile(rf"(github\.com/|colab\.research\.google\.com/github/){re.escape(present(root))}(?![\w.-])")
    changed: dict[Path, bytes] = {}
    total = 0
    for path in files(root):
        text, count = old.subn(rf"\g<1>{address}", path.read_bytes().decode("utf-8"))
        if not count:
            raise ValueError(
                f"{path} does not name https://github.com/{present(root)}; write that address into it first"
            )
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
    print(f"changed {places} places in {len(files(ROOT))} files")


if __name__ == "__main__":
    main()
