"""llama.cpp's ``llama-server``: where it is, whether it knows EAGLE-3 drafts, and how to get one that does."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

from eagle3cli.errors import UsageError

NAME = "llama-server"
SPEC_TYPE = "draft-eagle3"
"""What its help names once it reads EAGLE-3 drafts."""
GET = (
    "brew install llama.cpp, or build it (https://github.com/ggml-org/llama.cpp: cmake -B build && cmake --build build "
    "--target llama-server); then put it on the PATH, or give its path: --llama-server"
)


def find_llama_server(path: str = "") -> str | None:
    """The program that ``path`` means, or the one on the PATH; None where there is none."""
    if path and Path(path).expanduser().is_file():
        return str(Path(path).expanduser().absolute())
    return shutil.which(path or NAME)


def llama_server(path: str = "", *, drafts: bool = False) -> str:
    """The program; ``drafts``: it has to know EAGLE-3. Raises UsageError, which says how to get one."""
    program = find_llama_server(path)
    if program is None:
        where = f"--llama-server {path}" if path else "--engine llama.cpp"
        raise UsageError("missing-engine", f"no {NAME} here", where=where, fix=GET)
    if drafts and not knows_drafts(program):
        raise UsageError(
            "package-too-old",
            f"this {NAME} is older than EAGLE-3 drafts (no --spec-type {SPEC_TYPE})",
            where=program,
            fix=GET,
        )
    return program


@lru_cache
def knows_drafts(program: str) -> bool:
    """Whether a llama-server's help names EAGLE-3 drafts."""
    return SPEC_TYPE in _said(program, "--help")


def version_of(program: str) -> str:
    """What a llama-server calls its version; empty where it does not say."""
    match = re.search(r"version: (.+)", _said(program, "--version"))
    return match[1].strip() if match else ""


def _said(program: str, flag: str) -> str:
    try:
        done = subprocess.run([program, flag], capture_output=True, text=True, timeout=30, errors="replace")
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout + done.stderr
