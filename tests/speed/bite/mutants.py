"""Mutants: one small change each to the text of a function, with an id that survives unrelated edits of its file."""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SWAPS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "//"),
    ast.FloorDiv: ("//", "*"),
    ast.Div: ("/", "*"),
    ast.Mod: ("%", "//"),
    ast.BitAnd: ("&", "|"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
}
EXTREMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
# What changes words or speed alone: no test should see it.
SHOWN = {"info", "warning", "warn", "debug", "print", "note", "progress", "advance", "empty_cache", "collect", "round"}
SHOWN_FUNCTIONS = {"__repr__", "__str__", "describe"}
# Branches that this machine cannot take.
ELSEWHERE = ("cuda", "triton", "xpu", "mps", "flash")


@dataclass(frozen=True)
class Mutant:
    """``path`` with the characters from ``begin`` to ``end`` (byte offsets) replaced by ``new``."""

    id: str
    area: str
    path: str
    line: int
    begin: int
    end: int
    old: str
    new: str

    def of(self, source: bytes) -> bytes:
        """The file's text with the change."""
        return source[: self.begin] + self.new.encode() + source[self.end :]


@dataclass(frozen=True)
class Change:
    """One possible change: the node's operator and the place of the replaced text."""

    kind: str
    begin: int
    end: int
    new: str


class Text:
    """A module's source with byte offsets for the places of its nodes."""

    def __init__(self, source: bytes):
        self.source = source
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def begin(self, node: ast.expr | ast.stmt) -> int:
        return self.starts[node.lineno - 1] + node.col_offset

    def end(self, node: ast.expr | ast.stmt) -> int:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self.starts[node.end_lineno - 1] + node.end_col_offset

    def get(self, node: ast.expr | ast.stmt) -> str:
        return self.source[self.begin(node) : self.end(node)].decode()


def _operator(text: Text, operator: ast.AST, left: ast.expr, right: ast.expr) -> Iterator[Change]:
    if type(operator) not in SWAPS:
        return
    old, new = SWAPS[type(operator)]
    at = text.source.find(old.encode(), text.end(left), text.begin(right))
    if at >= 0:
        yield Change(type(operator).__name__, at, at + len(old), new)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _expression(text: Text, node: ast.expr) -> Iterator[Change]:
    match node:
        case ast.Compare(left=left, ops=[operator], comparators=[right]):
            yield from _operator(text, operator, left, right)
        case ast.BinOp(left=left, op=operator, right=right) if not (_is_text(left) or _is_text(right)):
            yield from _operator(text, operator, left, right)
        case ast.BoolOp(op=operator, values=[left, right]):
            yield from _operator(text, operator, left, right)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield Change("Not", text.begin(node), text.begin(operand), "")
        case ast.Constant(value=bool() as value):
            yield Change("Bool", text.begin(node), text.end(node), str(not value))
        case ast.Constant(value=int() as number):
            yield Change("Int", text.begin(node), text.end(node), str(number + 1))
        case ast.IfExp(test=test) if not isinstance(test, ast.Compare):
            yield Change("IfExp", text.begin(test), text.end(test), f"(not ({text.get(test)}))")
        case ast.Call(func=ast.Name(id=name) as function) if name in EXTREMES:
            yield Change("Extreme", text.begin(function), text.end(function), EXTREMES[name])


def _statement(text: Text, node: ast.stmt) -> Iterator[Change]:
    match node:
        case ast.If(test=test) | ast.While(test=test) if not isinstance(test, ast.Compare | ast.UnaryOp):
            yield Change("If", text.begin(test), text.end(test), f"not ({text.get(test)})")
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield Change("Removed", text.begin(node), text.end(node), "pass")
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield Change("Return", text.begin(value), text.end(value), "None")


def _called(node: ast.AST) -> str:
    if isinstance(node, ast.Expr | ast.Await):
        node = node.value
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _children(text: Text, node: ast.AST) -> Iterator[ast.AST]:
    """What is below a node, without annotations, decorators, and branches for another machine."""
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "decorator_list", "msg", "type_params"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child


def _skipped(text: Text, node: ast.AST) -> bool:
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom | ast.arg):
        return True
    if isinstance(node, ast.FunctionDef) and (node.name in SHOWN_FUNCTIONS or "flash" in node.name):
        return True
    if isinstance(node, ast.If | ast.IfExp) and any(word in text.get(node.test).lower() for word in ELSEWHERE):
        return True
    return _called(node) in SHOWN or _called(node).endswith("Error")


def _walk(text: Text, node: ast.AST, name: str, within: bool) -> Iterator[tuple[str, ast.AST, Change]]:
    for child in _children(text, node):
        if _skipped(text, child):
            continue
        inner = name
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{name}.{child.name}" if name else child.name
        inside = within or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        if within and isinstance(child, ast.expr):
            yield from ((inner, child, change) for change in _expression(text, child))
        elif within and isinstance(child, ast.stmt):
            yield from ((inner, child, change) for change in _statement(text, child))
        yield from _walk(text, child, inner, inside)


def mutants_of(path: str, source: bytes, area: str = "") -> list[Mutant]:
    """Every mutant of a module that still parses. ``path`` names it in the ids."""
    text = Text(source)
    counts: Counter[tuple[str, str]] = Counter()
    found = []
    for name, node, change in _walk(text, ast.parse(source), "", False):
        assert isinstance(node, ast.expr | ast.stmt)
        number = counts[name, change.kind]
        counts[name, change.kind] += 1
        old = source[change.begin : change.end].decode()
        mutant = Mutant(
            f"{path}:{name}:{change.kind}:{number}", area, path, node.lineno, change.begin, change.end, old, change.new
        )
        if _parses(mutant.of(source)):
            found.append(mutant)
    return found


def _parses(source: bytes) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def draw(root: Path, areas: dict[str, list[Path]], count: int, seed: int) -> list[Mutant]:
    """``count`` mutants, equally many of each area. The order is that of a hash, so that a mutant that is drawn today
    is drawn after an edit elsewhere too."""
    drawn: list[Mutant] = []
    for number, (area, paths) in enumerate(areas.items()):
        share = (number + 1) * count // len(areas) - number * count // len(areas)
        every = [mutant for path in paths for mutant in mutants_of(str(path), (root / path).read_bytes(), area)]
        every.sort(key=lambda mutant: hashlib.sha256(f"{seed} {mutant.id}".encode()).digest())
        drawn += every[:share]
    return drawn
