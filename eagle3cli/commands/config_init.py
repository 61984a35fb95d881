"""eagle3 config init: the questions on a terminal, and the file."""

from __future__ import annotations

import sys
from pathlib import Path

from eagle3cli.console.out import Out
from eagle3cli.runtime.files import refuse_existing, write_text
from eagle3cli.settings.load import FOLDER_FILE
from eagle3cli.settings.schema import FILE
from eagle3cli.settings.starter import ask_all, values_of
from eagle3cli.settings.toml import commented_toml

EDITOR = (
    f"# Editors that know TOML check and complete this file: eagle3 config schema > {FILE}, and as the first line:\n"
)


def write_starter(file: Path, *, ask: bool, overwrite: bool, out: Out) -> None:
    """Ask where a person sits at the terminal, then write the file; nothing is written when the answers end early."""
    refuse_existing(file, overwrite)
    answers = {}
    if ask and sys.stdin.isatty() and sys.stderr.isatty():
        out.info("Enter takes what stands in brackets; every other setting is written as a comment.")
        answers = ask_all(_ask, out.info)
    pointer = f"#:schema ./{FILE}"
    if (file.parent / FILE).is_file():
        text = f"{pointer}\n{commented_toml(values_of(answers))}"
    else:
        text = commented_toml(values_of(answers), f"{EDITOR}#   {pointer}")
    write_text(file, text)
    then = "remove the # before what you want to set"
    if answers:
        step = "eagle3 prepare" if file == FOLDER_FILE else f"eagle3 prepare --config {file}"
        then = f"the whole chain from it: eagle3 run {file}; each step by itself:\nnext: {step}"
    out.result({"file": file, "settings": values_of(answers)}, f"wrote {file}; {then}")


def _ask(question: str, default: str) -> str:
    sys.stderr.write(f"{question} [{default}]: ")
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:  # Ctrl-D
        raise KeyboardInterrupt
    return line.strip()
