"""The structure of the two packages: imports point downward only, and files and functions stay small."""

import ast

import pytest

from tutorial_lib.project import ROOT

# From the bottom up: a module may import from its own package only modules that stand before it.
ENGINE = (
    "errors progress arguments position_loops positions computed parametrized copies attention structure auto "
    "interface adapters topology interrupt rules blocks schedule driver_checks dst gradual recipes report init "
    "optim averages cpu reference backend eager places seal ops sparse_layer layers conv1d own_rule convert fuse "
    "step"
).split()

LIBRARY = (
    "project models data masked recorder checkpoint callbacks train cost csr contenders compare bench viz "
    "referee_plots schematics player exercises"
).split()
PACKAGES = {"truly_sparse": ENGINE, "tutorial_lib": LIBRARY}
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_LINES_OF_A_KERNEL = 400, 60, 90
SMALL_FILES, SMALL_LINES = 18, 3800


def module(path):
    """Return the package of a file, and its module or folder inside it."""
    package, *rest = path.relative_to(ROOT).with_suffix("").parts
    return package, rest[0]


def imported(path):
    """Yield (package, module) for each import of one of the two packages; module is None for the package itself."""
    parts = path.relative_to(ROOT).parts[:-1]
    in_types_only = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            in_types_only |= set(ast.walk(node))
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node in in_types_only:
            continue
        names = (node.module or "").split(".") if node.module else []
        full = [*parts[: len(parts) - node.level + 1], *names] if node.level else names
        if full and full[0] in PACKAGES:
            if len(full) > 1:
                yield full[0], full[1]
            else:
                yield from ((full[0], alias.name if alias.name in PACKAGES[full[0]] else None) for alias in node.names)


def test_every_module_has_its_place_in_the_order():
    for package, order in PACKAGES.items():
        there = {path.stem for path in (ROOT / package).iterdir() if path.suffix == ".py" or path.is_dir()}
        assert there - {"__init__", "__pycache__", "py"} - {"py.typed"} == set(order)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downward(path):
    package, name = module(path)
    for other, target in imported(path):
        if package == "truly_sparse":
            assert other == "truly_sparse", "the engine imports nothing of the helper library"
        if other == package and target is not None and name != "__init__" and target != name:
            order = PACKAGES[package]
            assert order.index(target) < order.index(name), f"{name} imports {target}, which stands above it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_small(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            inside = [d for part in ast.walk(node) if isinstance(part, ast.FunctionDef) for d in part.decorator_list]
            compiled = any(ast.unparse(d).startswith(("compiled", "kernel(")) for d in inside)
            most = MOST_LINES_OF_A_KERNEL if compiled else MOST_LINES_OF_A_FUNCTION
            assert node.end_lineno - node.lineno + 1 <= most, node.name


def test_the_helper_library_is_small():
    files = list((ROOT / "tutorial_lib").glob("*.py"))
    assert len(files) <= SMALL_FILES
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) <= SMALL_LINES
