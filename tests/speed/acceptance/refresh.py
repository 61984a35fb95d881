"""A log of a code assistant that serves a target, and what ``eagle3 refresh`` makes of it. Prints one JSON line.

    PYTHONPATH=. python tests/speed/acceptance/refresh.py --run runs/q --output runs/refresh [-- --time-budget 10m]

The domain is one that the draft of the run has not seen: functions of Python's standard library, to be written from
their docstrings. The target's greedy replies are the log; writing them is the server's work and not counted. What
stands behind ``--`` goes to ``eagle3 refresh``. CPU seconds are those of the whole command.

``--poison`` spoils the replies, which the log goes on calling the target's greedy ones: each stands behind the next
prompt (``swapped``), its words are shuffled (``words``), its first sentence goes round (``loops``), or it is ChatGPT's,
to prompts of ShareGPT (``others``).
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

MODULES = """
argparse ast asyncio base64 bisect calendar cmd codecs collections configparser contextlib copy csv datetime decimal
difflib dis email.message email.utils enum fileinput fnmatch fractions ftplib functools getopt gettext glob gzip hashlib
heapq hmac html http.client http.cookies imaplib inspect io ipaddress itertools json locale logging mailbox math
mimetypes ntpath operator optparse os pathlib pdb pickle pkgutil platform plistlib poplib posixpath pprint profile queue
quopri random re reprlib sched secrets selectors shelve shlex shutil smtplib socket socketserver sqlite3 ssl statistics
string struct subprocess sysconfig tarfile tempfile textwrap threading timeit tokenize trace traceback tracemalloc types
typing unittest.case unittest.mock urllib.parse urllib.request uuid warnings wave weakref webbrowser xml.dom.minidom
xml.etree.ElementTree xml.sax.saxutils xmlrpc.client zipfile zipimport
"""
ASKED = (
    "Write a Python function `{call}`. {says}",
    "Implement `{call}` in Python: {says}",
    "{says} Show me the code of `{call}`.",
)
WORDS = 60


def functions() -> Iterator[tuple[str, str]]:
    """Name with parameters and the docstring's first paragraph of what the standard library has."""
    for module_name in MODULES.split():
        module = importlib.import_module(module_name)
        for name, thing in sorted(vars(module).items()):
            parts = [(f"{name}.{n}", part) for n, part in sorted(vars(thing).items())] if inspect.isclass(thing) else []
            for called, part in [(name, thing), *parts]:
                if called.rpartition(".")[2].startswith("_") or not inspect.isroutine(part):
                    continue
                says = " ".join((inspect.getdoc(part) or "").split("\n\n")[0].split())
                if not 5 <= len(says.split()) <= WORDS:
                    continue
                try:
                    yield f"{called}{inspect.signature(part)}", says
                except (TypeError, ValueError):
                    yield f"{called}()", says


def prompts(count: int) -> list[str]:
    """What people ask the assistant; no docstring twice."""
    by_text = {says: call for call, says in functions()}
    chosen = sorted(by_text.items(), key=lambda item: zlib.crc32(item[0].encode()))[:count]
    return [ASKED[i % len(ASKED)].format(call=call, says=says) for i, (says, call) in enumerate(chosen)]


def eagle3(*words: object) -> str:
    """A command, with its JSON; rows of a data set may be damaged (exit code 3)."""
    argv = [sys.executable, "-m", "eagle3cli", *map(str, words)]
    ran = subprocess.run(argv, stdout=subprocess.PIPE, text=True)
    if ran.returncode not in (0, 3):
        raise SystemExit(ran.returncode)
    return ran.stdout


def cpu_seconds() -> float:
    """Of all commands so far."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def write_log(path: Path, target: Path, folder: Path, rows: int) -> None:
    """The log of a server of the target."""
    asked = folder / "asked.jsonl"
    asked.write_text(
        "".join(
            json.dumps({"id": str(i), "conversations": [{"role": "user", "content": text}]}) + "\n"
            for i, text in enumerate(prompts(rows))
        )
    )
    where = ("--model-path", target, "--engine", "local", "--dtype", "fastest", "--device", "cpu")
    eagle3("regenerate", "--input-path", asked, "--output-dir", folder / "replies", "--max-tokens", 128, *where)
    with path.open("w") as log:
        for shard in sorted((folder / "replies").glob("shard_*")):
            for row in map(json.loads, shard.open()):
                *messages, reply = row["conversations"]
                request = {"model": target.name, "temperature": 0, "max_tokens": 128, "messages": messages}
                choice = {"index": 0, "message": reply, "finish_reason": row["finish"][0]}
                log.write(json.dumps({"request": request, "response": {"choices": [choice]}}) + "\n")


def poisoned(log: Path, kind: str) -> Path:
    """The log with spoilt replies."""
    path = log.with_name(f"{kind}-{log.name}")
    if kind == "others":
        folder = log.with_name("others")
        eagle3("prepare", "sharegpt", "--output-path", folder, "--sample-size", 400, "--max-prompt-words", 100)
        rows = [row["conversations"] for row in map(json.loads, (folder / "train.jsonl").open())]
        pairs = [row[:2] for row in rows if row[0]["role"] == "user" and len(row[1]["content"].split()) > 20]
        lines = [json.loads(line) for line, _ in zip(log.open(), pairs, strict=False)]
        for line, (asked, reply) in zip(lines, pairs, strict=False):
            line["request"]["messages"] = [asked]
            line["response"]["choices"][0]["message"]["content"] = " ".join(reply["content"].split()[:100])
    else:
        lines = [json.loads(line) for line in log.open()]
        replies = [line["response"]["choices"][0]["message"]["content"] for line in lines]
        for at, line in enumerate(lines):
            words = replies[at].split(" ")
            sentence = replies[at].split(". ")[0].replace("\n", " ")[:120]
            spoilt = {
                "swapped": replies[at - 1],
                "words": " ".join(random.Random(at).sample(words, len(words))),
                "loops": f"{sentence}. " * 12,
            }
            line["response"]["choices"][0]["message"]["content"] = spoilt[kind]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def main() -> None:
    """Make the log where there is none, refresh a copy of the draft, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=800)
    parser.add_argument("--poison", choices=("swapped", "words", "loops", "others"))
    parser.add_argument("words", nargs="*", help="for eagle3 refresh")
    a = parser.parse_args()
    a.output.mkdir(parents=True, exist_ok=True)
    log = a.output / f"server-{a.rows}.jsonl"
    if not log.is_file():
        write_log(log, next((a.run / "target").iterdir()), a.output, a.rows)
    log = log if a.poison is None else poisoned(log, a.poison)
    draft = a.output / "draft"
    shutil.rmtree(f"{draft}.versions", ignore_errors=True)
    draft.unlink() if draft.is_symlink() else shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(a.run / "draft", draft)
    shutil.copytree(a.run / "train", a.output / "train", dirs_exist_ok=True)
    began = time.monotonic()
    before = cpu_seconds()
    result = json.loads(eagle3("refresh", draft, "--logs", log, "--json", *a.words))
    numbers = {name: result.get(name) for name in ("promoted", "state", "acceptance")}
    cost = {
        "cpu_s": round(cpu_seconds() - before),
        "s": round(time.monotonic() - began),
        "cpus": os.cpu_count(),
    }
    print(json.dumps({**numbers, "rows": result["rows"], **cost}))


if __name__ == "__main__":
    main()
