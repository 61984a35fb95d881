"""How hard the tests bite: the share of small errors, put into the code on purpose, that they notice.

    python tests/speed/bite/bite.py --out bite.jsonl

Each mutant (``mutants.py``) of the modules where a silent error costs most (``areas.py``) is written into a copy of the
tree, and the tests nearest to its module (``nearest.py``) run on it until one fails or ``--budget`` CPU seconds are
spent. A run that was broken off goes on with the mutants that ``--out`` lacks.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import areas
from mutants import Mutant, draw
from nearest import Nearest, durations

PRELOADED = ("torch", "transformers", "pydantic", "typer", "hypothesis.strategies", "safetensors.torch", "rich.console")
LEFT_OUT = (".git", ".venv", ".engines", ".minimum", "*_cache", ".hypothesis")
KILLED = {"killed", "timeout"}
SOUND: set[str] = set()
"""Tests that were seen to pass on the code as it is."""
FILES = 40
"""The nearest test files that are looked at."""
LONGEST_TEST_S = 12.0
NEVER_RUN = {"engine", "gpu", "families"}


class WithinBudget:
    """A pytest plugin: quick tests first, slow ones that are known to be short enough after them, until the seconds of
    the budget are spent; write down the first test that fails."""

    def __init__(self, budget_s: float, seconds: dict[tuple[str, str], float]):
        self.budget_s = budget_s
        self.seconds = seconds
        self.failed = ""

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        quick = []
        slow = []
        for item in items:
            marks = {mark.name for mark in item.iter_markers()}
            known = self.seconds.get((str(item.path.relative_to(config.rootpath)), item.name), math.inf)
            if marks & NEVER_RUN:
                continue
            if "slow" not in marks:
                quick.append(item)
            elif known <= LONGEST_TEST_S:
                slow.append(item)
        items[:] = quick + slow

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self, item: Any) -> None:
        if sum(os.times()[:4]) > self.budget_s:
            item.session.shouldstop = "the budget is spent"

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed = report.nodeid


def _tests(copy: Path, files: list[str], plugin: WithinBudget, answer: Any) -> None:
    """In a forked process: run the tests, answer with the one that failed (or "")."""
    os.setsid()
    os.chdir(copy)
    sys.path[0] = str(copy)
    sys.dont_write_bytecode = True
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-profile=fixed"]
    pytest.main([*options, *files], plugins=[plugin])
    answer.send(plugin.failed)
    os._exit(0)


def run_tests(copy: Path, files: list[str], plugin: WithinBudget) -> tuple[str, str]:
    """``survived``, ``killed`` or ``timeout``, and the test that failed."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_tests, args=(copy, files, plugin, send))
    child.start()
    send.close()
    status = "timeout"
    failed = ""
    if receive.poll(6 * plugin.budget_s + 60):
        try:
            failed = receive.recv()
        except EOFError:
            failed = "the process died"
        status = "killed" if failed else "survived"
    if child.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    child.join()
    return status, failed


def try_mutant(mutant: Mutant, copy: Path, tests: list[str], plugin: WithinBudget) -> dict[str, Any]:
    """The record of one mutant: the copy's file is changed, tested and put back with its time of change.

    It is ``unsound``, and not killed, where the test that failed fails without the change too.
    """
    place = copy / mutant.path
    source = place.read_bytes()
    times = place.stat()
    begun = time.monotonic()
    place.write_bytes(mutant.of(source))
    try:
        status, test = run_tests(copy, tests, plugin)
    finally:
        place.write_bytes(source)
        os.utime(place, ns=(times.st_atime_ns, times.st_mtime_ns))
    if "::" in test and test not in SOUND:
        if run_tests(copy, [test], plugin)[0] == "survived":
            SOUND.add(test)
        else:
            status = "unsound"
    return {**asdict(mutant), "status": status, "test": test, "seconds": round(time.monotonic() - begun, 1)}


def _work(number: int, options: argparse.Namespace, todo: list[Mutant], folder: Path) -> None:
    copy = folder / f"copy-{number}"
    shutil.copytree(options.root, copy, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    compiled = [sys.executable, "-m", "compileall", "-q", "eagle3cli", "tests"]
    subprocess.run(compiled, cwd=copy, check=False)
    nearest = Nearest(copy)
    seconds = durations(options.durations, copy)
    for mutant in todo[number :: options.jobs]:
        tests = [str(path) for path in nearest.tests(Path(mutant.path))]
        record = try_mutant(mutant, copy, tests[:FILES], WithinBudget(options.budget, seconds))
        with options.out.open("a") as lines:
            lines.write(json.dumps(record) + "\n")
        print(f"{record['status']:9} {record['seconds']:6.1f} s  {mutant.id}  {record['test']}", flush=True)


def table(records: list[dict[str, Any]]) -> str:
    """Mutants and the share killed, by area and in all, and the survivors."""
    every = Counter(record["area"] for record in records)
    killed = Counter(record["area"] for record in records if record["status"] in KILLED)
    lines = ["| area | mutants | killed | share |", "|---|---|---|---|"]
    lines += [f"| {area} | {n} | {killed[area]} | {killed[area] / n:.0%} |" for area, n in every.items()]
    lines.append(f"| all | {every.total()} | {killed.total()} | {killed.total() / max(1, every.total()):.1%} |")
    survivors = [record for record in records if record["status"] not in KILLED]
    lines += [f"{r['status']}: {r['path']}:{r['line']}  {r['old']!r} -> {r['new']!r}  ({r['id']})" for r in survivors]
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[3], help="the tree to try")
    parser.add_argument(
        "--out", type=Path, required=True, help="one JSON line a mutant; a run goes on where it stopped"
    )
    parser.add_argument("--mutants", type=int, default=200)
    parser.add_argument("--seed", type=int, default=32)
    parser.add_argument("--area", action="append", choices=list(areas.AREAS))
    parser.add_argument("--survivors", type=Path, help="only the mutants that survived in this file of an earlier run")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--budget", type=float, default=40.0, help="CPU seconds of tests for one mutant")
    parser.add_argument("--durations", type=Path, help="a --junitxml of the tests, to know how long each takes")
    parser.add_argument("--list", action="store_true", help="show the mutants and stop")
    return parser.parse_args()


def main() -> None:
    options = parse()
    options.root = options.root.resolve()
    paths = {area: areas.files(options.root, area) for area in areas.AREAS}
    drawn = draw(options.root, paths, options.mutants, options.seed)
    if options.survivors:
        earlier = [json.loads(line) for line in options.survivors.read_text().splitlines()]
        names = {record["id"] for record in earlier if record["status"] not in KILLED}
        drawn = [mutant for mutant in drawn if mutant.id in names]
    drawn = [mutant for mutant in drawn if not options.area or mutant.area in options.area]
    if options.list:
        print("\n".join(f"{m.area}: {m.path}:{m.line}  {m.old!r} -> {m.new!r}  ({m.id})" for m in drawn))
        return
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    names = {record["id"] for record in done}
    todo = [mutant for mutant in drawn if mutant.id not in names]
    for name in PRELOADED:
        __import__(name)
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("fork")
        workers = [context.Process(target=_work, args=(n, options, todo, Path(folder))) for n in range(options.jobs)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            raise SystemExit(
                "a process of this measurement failed, its mutants are missing: run the same command again"
            )
    print(table([json.loads(line) for line in options.out.read_text().splitlines()]))


if __name__ == "__main__":
    main()
