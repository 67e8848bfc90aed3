"""Build the site from README, docs/, the notebooks as they are stored, and the docstrings of both packages.

    python -m tools.site [--output build/site]

Nothing is executed and nothing is fetched. Every warning of Sphinx is an error. The pages open from files, without a
server. ``docs/site/conf.py`` has Sphinx's settings, ``tools/site_extension.py`` what is changed in the pages.
"""

from __future__ import annotations

import argparse
import inspect
import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nbformat

import truly_sparse
import tutorial_lib
from tools.set_repository import present
from tutorial_lib.project import ROOT

PACKAGES = (truly_sparse, tutorial_lib)
# Modules that are imported by their own names.
BY_NAME = (
    *("truly_sparse.recipes.base", "truly_sparse.recipes.decade"),
    *("tutorial_lib.callbacks", "tutorial_lib.compare", "tutorial_lib.contenders"),
)
# All pages and pictures beside README, which becomes the index. A new file of such a name needs no entry anywhere.
COLLECTED = ("CHANGELOG.md", "CONTRIBUTING.md", "docs/*.md", "notebooks/*.ipynb", "figures/*.png")
CONTENTS = """
```{toctree}
:hidden:
:glob:
:caption: Notebooks

notebooks/*
```

```{toctree}
:hidden:
:glob:
:caption: Documents

docs/results
docs/*
```

```{toctree}
:hidden:
:caption: API reference

api/truly_sparse
api/tutorial_lib
All names <genindex>
```

```{toctree}
:hidden:
:caption: Project

CONTRIBUTING
CHANGELOG
Repository <REPOSITORY>
```
"""
LINK = re.compile(r"(?<=\]\()([^)#:\s]+)")


def repository() -> str:
    """Return the address of the project's repository."""
    return f"https://github.com/{present(ROOT)}"


def source_address(path: Path) -> str:
    """Return the address at which the repository shows a file or folder of this project."""
    return f"{repository()}/{'tree' if path.is_dir() else 'blob'}/main/{path.relative_to(ROOT).as_posix()}"


def relinked(text: str, folder: str, collected: set[str]) -> str:
    """Return Markdown whose links to README go to the index, and those to files that are no page to the repository."""

    def target(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[0]))
        if path == "README.md":
            return posixpath.relpath("index.md", folder or ".")
        elsewhere = path not in collected and (ROOT / path).exists()
        return source_address(ROOT / path) if elsewhere else link[0]

    return LINK.sub(target, text)


def write_page(path: Path, into: Path, collected: set[str]) -> None:
    """Copy a page, with its links changed as ``relinked`` says."""
    folder = path.parent.relative_to(ROOT).as_posix().removeprefix(".")
    if path.suffix == ".ipynb":
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = relinked(cell.source, folder, collected)
            cell.source = cell.source.removeprefix("# NBVAL_CHECK_OUTPUT\n")  # for the tests, not for readers
        nbformat.write(notebook, into)
    else:
        into.write_text(relinked(path.read_text(encoding="utf-8"), folder, collected), encoding="utf-8")


def defining_module(package: ModuleType, name: str) -> str:
    """Return the name of the module in which something that a package exports is defined."""
    value = getattr(package, name)
    if hasattr(value, "__module__"):
        return value.__module__
    return next(m.__name__ for m in vars(package).values() if inspect.ismodule(m) and name in vars(m))


def exports(package: ModuleType) -> dict[str, list[str]]:
    """Return the public modules of a package, each with those of its names that the package exports."""
    found: dict[str, list[str]] = {name: [] for name in BY_NAME if name.startswith(f"{package.__name__}.")}
    for name in package.__all__:
        value = getattr(package, name)
        if inspect.ismodule(value):
            found.setdefault(value.__name__, [])
        else:
            found.setdefault(defining_module(package, name), []).append(name)
    return dict(sorted(found.items()))


def api_page(package: ModuleType) -> str:
    """Return a page, as reStructuredText, with the docstrings of the public modules of a package."""
    parts = [heading(package.__name__, "="), f".. automodule:: {package.__name__}\n   :no-members:"]
    for module, names in exports(package).items():
        parts.append(heading(module, "-"))
        if names:
            parts.append(f".. code-block:: python\n\n   from {package.__name__} import {', '.join(names)}")
        parts.append(f".. automodule:: {module}\n   :members:")
    return "\n\n".join(parts) + "\n"


def heading(title: str, line: str) -> str:
    """Return a heading of reStructuredText."""
    return f"{title}\n{line * len(title)}"


def collect(into: Path) -> None:
    """Write what Sphinx reads into a new folder: the tree of the project's pages, its pictures and the API pages."""
    paths = [path for pattern in COLLECTED for path in sorted(ROOT.glob(pattern))]
    collected = {path.relative_to(ROOT).as_posix() for path in paths}
    for path in paths:
        copy = into / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            shutil.copy(path, copy)
        else:
            write_page(path, copy, collected)
    write_page(ROOT / "README.md", into / "index.md", collected)
    with (into / "index.md").open("a", encoding="utf-8") as index:
        index.write(CONTENTS.replace("REPOSITORY", repository()))
    (into / "api").mkdir()
    for package in PACKAGES:
        (into / "api" / f"{package.__name__}.rst").write_text(api_page(package), encoding="utf-8")


def build(output: Path) -> None:
    """Build the site into a folder, which is emptied first.

    Raises:
        subprocess.CalledProcessError: Sphinx warned of something, and printed it.
    """
    source = output.with_name(f"{output.name}-source")
    for folder in (output, source):
        shutil.rmtree(folder, ignore_errors=True)
    collect(source)
    settings = ROOT / "docs" / "site"
    options = ["-n", "-W", "--keep-going", "-q", "-c", settings, "-d", source / ".doctrees"]
    subprocess.run([sys.executable, "-m", "sphinx", *options, source, output], cwd=ROOT, check=True)


def main() -> None:
    """Build the site and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "site")
    output = parser.parse_args().output
    build(output)
    print(f"{len(list(output.rglob('*.html')))} pages; open {output}/index.html")


if __name__ == "__main__":
    main()
