"""Mutants of the solutions: copies with one small change, each of which a check has to refuse."""

import ast
import copy

import numpy as np
import torch
from torch import nn

OPERATORS = {
    ast.Add: [ast.Sub],
    ast.Sub: [ast.Add],
    ast.Mult: [ast.Div, ast.Add],
    ast.Div: [ast.Mult, ast.FloorDiv],
    ast.FloorDiv: [ast.Mod, ast.Div],
    ast.Mod: [ast.FloorDiv],
    ast.Pow: [ast.Mult],
    ast.BitAnd: [ast.BitOr],
    ast.BitOr: [ast.BitAnd],
    ast.Lt: [ast.LtE, ast.Gt],
    ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.Lt],
    ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
    ast.And: [ast.Or],
}
# A function or method by its name, and what may stand in its place by mistake.
NAMES = {
    "round": ["int", "math.ceil"],
    "max": ["min", "sum"],
    "min": ["max", "sum"],
    "sum": ["max", "len"],
    "cos": ["sin"],
    "sqrt": ["abs"],
    "mean": ["sum", "max"],
    "median": ["mean", "min", "max"],
    "std": ["var"],
    "prod": ["fsum"],
    "numel": ["dim"],
    "cumsum": ["copy"],
    "logical_or": ["logical_and"],
    "logical_and": ["logical_or"],
    "zeros": ["ones"],
    "indices": ["values"],
    "values": ["indices"],
    "nonzero": ["any"],
    "bincount": ["unique"],
    "argsort": ["sort"],
    "weight": ["bias"],
    "endswith": ["startswith"],
}


def scribbled(returned, argument):
    """Change an argument of an answer after its result is computed; raise if there is nothing to change."""
    returned = returned.clone() if isinstance(returned, torch.Tensor) else copy.deepcopy(returned)
    if isinstance(argument, list) and not isinstance(argument[0], torch.Tensor):
        argument.reverse()
        return returned
    target = argument[0] if isinstance(argument, list) else argument
    target = next(target.parameters()).detach() if isinstance(target, nn.Module) else target
    if not isinstance(target, torch.Tensor | np.ndarray):
        raise TypeError("nothing to write into")
    flat = (target.detach() if isinstance(target, torch.Tensor) else target).reshape(-1)
    flat[-1] = not flat[-1] if flat.dtype in (torch.bool, np.bool_) else flat[-1] + 1
    return returned


class Endless(Exception):
    """A loop of a mutant does not end."""


class Ticker:
    """Ends a loop after more rounds than any solution takes."""

    def __init__(self):
        self.left = 10_000

    def __call__(self):
        self.left -= 1
        if self.left < 0:
            raise Endless


def _copies(tree, change):
    """Yield copies of a tree in which one node is changed: ``change(node)`` yields functions that change a node."""
    for place, node in enumerate(ast.walk(tree)):
        for apply in change(node):
            copied = copy.deepcopy(tree)
            twin = next(n for i, n in enumerate(ast.walk(copied)) if i == place)
            apply(twin)
            yield copied


def _operators(node):
    if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp):
        for other in OPERATORS.get(type(node.op), []):
            yield lambda twin, other=other: setattr(twin, "op", other())
    if isinstance(node, ast.Compare):
        for other in OPERATORS.get(type(node.ops[0]), []):
            yield lambda twin, other=other: setattr(twin, "ops", [other()])
    if isinstance(node, ast.UnaryOp):
        yield lambda twin: _become(twin, twin.operand)


def _constants(node):
    if isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield lambda twin: setattr(twin, "value", not twin.value)
        elif isinstance(node.value, int):
            yield lambda twin: setattr(twin, "value", twin.value + 1)
            yield lambda twin: setattr(twin, "value", twin.value - 1)
        elif isinstance(node.value, float):
            yield lambda twin: setattr(twin, "value", twin.value * 0.95)


def _names(node):
    name = getattr(node, "id", getattr(node, "attr", None))
    if isinstance(node, ast.Name | ast.Attribute):
        for other in NAMES.get(name, []):
            if "." in other:
                yield lambda twin, other=other: _become(twin, ast.parse(other, mode="eval").body)
            else:
                yield lambda twin, other=other: setattr(twin, "id" if isinstance(twin, ast.Name) else "attr", other)


def _calls(node):
    """Leave out a call: ``f(x)`` and ``x.f()`` become ``x``; or one of its keywords."""
    if not isinstance(node, ast.Call):
        return
    for place in range(len(node.keywords)):
        yield lambda twin, place=place: twin.keywords.pop(place)
    if isinstance(node.func, ast.Attribute) and not isinstance(node.func.value, ast.Name):
        yield lambda twin: _become(twin, twin.func.value)
    elif len(node.args) == 1:
        yield lambda twin: _become(twin, twin.args[0])
    elif isinstance(node.func, ast.Attribute) and not node.args:
        yield lambda twin: _become(twin, twin.func.value)
    if len(node.args) == 2 and not node.keywords and getattr(node.func, "id", "") not in ("min", "max"):
        yield lambda twin: twin.args.reverse()


def _parts(node):
    """Leave out a statement, a condition, or a part of an expression."""
    if isinstance(node, ast.FunctionDef | ast.For | ast.While | ast.If):
        for place, statement in enumerate(node.body):
            if not isinstance(statement, ast.Return | ast.FunctionDef):
                yield lambda twin, place=place: twin.body.__setitem__(place, ast.Pass())
    if isinstance(node, ast.If):
        yield lambda twin: setattr(twin, "test", ast.Constant(True))
    if isinstance(node, ast.IfExp):
        yield lambda twin: _become(twin, twin.body)
        yield lambda twin: _become(twin, twin.orelse)
    if isinstance(node, ast.BinOp):
        yield lambda twin: _become(twin, twin.left)
        yield lambda twin: _become(twin, twin.right)
    if isinstance(node, ast.BoolOp):
        yield lambda twin: _become(twin, twin.values[0])
        yield lambda twin: _become(twin, twin.values[1])
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
        yield lambda twin: _become(twin, twin.value)
    if isinstance(node, ast.comprehension) and node.ifs:
        yield lambda twin: twin.ifs.clear()
    if isinstance(node, ast.AugAssign):
        yield lambda twin: _become(twin, ast.Assign(targets=[twin.target], value=twin.value))
    if isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Load) and len(node.elts) == 2:
        yield lambda twin: twin.elts.reverse()


def _become(node, other):
    """Turn a node into another one, in place."""
    other = copy.deepcopy(other)
    node.__class__ = other.__class__
    node.__dict__.clear()
    node.__dict__.update(other.__dict__)


def _function(tree):
    return next(node for node in tree.body if isinstance(node, ast.FunctionDef))


def _swapped(names):
    """Return a change that takes another argument in the place of one."""

    def change(node):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in names:
            for other in names:
                yield lambda twin, other=other: setattr(twin, "id", other)

    return change


def _frozen(tree, name):
    """The answer takes an argument from its first call in all later ones."""
    copied = copy.deepcopy(tree)
    _function(copied).body.insert(0, ast.parse(f"{name} = first.setdefault({name!r}, {name})").body[0])
    return copied


def _scribbled(tree, name):
    """The answer changes an argument before it returns."""
    copied = copy.deepcopy(tree)
    for node in ast.walk(copied):
        if isinstance(node, ast.Return):
            node.value = ast.Call(ast.Name("scribbled"), [node.value, ast.Name(name)], [])
    return copied


def _ending(tree):
    """Return a mutant's source, in which every ``while`` counts its rounds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.While):
            node.body.insert(0, ast.parse("tick()").body[0])
    return ast.unparse(ast.fix_missing_locations(tree))


def _plain(source):
    """Return the tree of a solution without type hints."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
    return tree


def mutants(source):
    """Return the mutants of a solution: what was changed → source.

    A mutant may refer to names that :func:`helpers` defines.
    """
    tree = _plain(source)
    names = [argument.arg for argument in _function(tree).args.args]
    changes = (_operators, _constants, _names, _calls, _parts, _swapped(names))
    made = [mutant for change in changes for mutant in _copies(tree, change)]
    for name in names:
        made += [_frozen(tree, name), _scribbled(tree, name)]
    before, found = ast.unparse(tree), {}
    for mutant in made:
        after = ast.unparse(ast.fix_missing_locations(mutant))
        if after != before:
            found[_difference(before, after)] = _ending(mutant)
    return found


def helpers():
    """Return new objects for the names that a mutant may use."""
    return {"first": {}, "scribbled": scribbled, "tick": Ticker()}


def _difference(before, after):
    """Return the first line that differs, before and after; lines that are only in one of them count."""
    old, new = before.splitlines(), after.splitlines()
    place = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    if len(old) < len(new):
        return f"+ {new[place].strip()}"
    return f"{old[place].strip()} -> {new[place].strip()}" if len(old) == len(new) else f"- {old[place].strip()}"
