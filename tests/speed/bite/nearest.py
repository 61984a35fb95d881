"""Which tests run on a mutant: those that import its module, straight or through others, nearest first."""

from __future__ import annotations

import ast
import re
import xml.etree.ElementTree as ElementTree
from collections import deque
from pathlib import Path


def _module_path(root: Path, name: str) -> Path | None:
    base = root / Path(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path.relative_to(root)
    return None


def _imports(root: Path, path: Path) -> set[Path]:
    """The files of this repository that a file imports, inside of functions too; for a command that a test types, the
    command's file."""
    source = (root / path).read_text(encoding="utf-8")
    found: set[Path | None] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {_module_path(root, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(("eagle3cli", "tests")):
            found.add(_module_path(root, node.module))
            found |= {_module_path(root, f"{node.module}.{alias.name}") for alias in node.names}
    if path.parts[0] == "tests":
        for word in re.findall(r'"([a-z][a-z-]+)"', source):
            found |= set(_command_files(root, word))
    return {file for file in found if file is not None}


def _command_files(root: Path, word: str) -> list[Path]:
    name = word.replace("-", "_")
    return [path.relative_to(root) for path in (root / "eagle3cli" / "commands").rglob(f"{name}.py")]


class Nearest:
    """The static graph of imports of a tree, asked for the test files of a module."""

    def __init__(self, root: Path):
        files = [path.relative_to(root) for top in ("eagle3cli", "tests") for path in (root / top).rglob("*.py")]
        importers: dict[Path, set[Path]] = {}
        for path in files:
            for imported in _imports(root, path):
                importers.setdefault(imported, set()).add(path)
        self.importers = importers

    def tests(self, module: Path) -> list[Path]:
        """Test files that reach ``module``: fewest steps first, its own folder before others."""
        distance = {module: 0}
        waiting = deque([module])
        while waiting:
            at = waiting.popleft()
            for importer in self.importers.get(at, ()):
                if importer not in distance:
                    distance[importer] = distance[at] + 1
                    waiting.append(importer)
        tests = [path for path in distance if path.parts[0] == "tests" and path.name.startswith("test_")]
        return sorted(tests, key=lambda test: (distance[test] - 2 * _shared_folders(module, test), str(test)))


def _shared_folders(module: Path, test: Path) -> int:
    """How many folders of the two are alike; one more where the test is named after the module."""
    count = 0
    for one, other in zip(module.parts[1:-1], test.parts[1:-1], strict=False):
        if one != other:
            break
        count += 1
    return count + (test.name == f"test_{module.name}")


def durations(junit: Path | None, root: Path) -> dict[tuple[str, str], float]:
    """Seconds by (file, test's name) of a run with ``--junitxml``; none where there was none."""
    if junit is None:
        return {}
    seconds: dict[tuple[str, str], float] = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        place = Path(*case.get("classname", "").split("."))
        while place.parts and not (root / place.with_suffix(".py")).is_file():
            place = place.parent
        seconds[str(place.with_suffix(".py")), case.get("name", "")] = float(case.get("time", 0))
    return seconds
