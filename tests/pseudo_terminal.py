"""A command on a terminal of its own, and what a person would see there."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.conftest import ROOT

LINES, COLUMNS = 40, 110
STYLES = re.compile(r"\x1b\[[0-9;?]*[mhl]")
MOVES = re.compile(r"\x1b\[(\d*)([A-K])|\r|\n|[^\x1b\r\n]+|\x1b.")


def on_terminal(words: Sequence[str], cwd: Path, seen: Callable[[str], None] = lambda text: None) -> tuple[int, str]:
    """Run `eagle3 WORDS` on a terminal; ``seen`` gets all text so far after each piece. Returns exit code and text."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    plain = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    env = {**plain, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "eagle3cli", *words]
    process = subprocess.Popen(command, cwd=cwd, env=env, stdin=its, stdout=its, stderr=its)
    os.close(its)
    data = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux tells the end of a terminal by an error
            break
        if not part:
            break
        data += part
        seen(data.decode(errors="replace"))
    os.close(ours)
    return process.wait(timeout=150), data.decode(errors="replace")


def screen(text: str) -> list[str]:
    """The lines that stand on a terminal after ``text``: colours left out, the cursor's moves up and erasures done."""
    rows, row, column = [""], 0, 0
    for match in MOVES.finditer(STYLES.sub("", text)):
        piece = match[0]
        if piece == "\r":
            column = 0
        elif piece == "\n":
            row += 1
            column = 0
            rows += [""] * (row + 1 - len(rows))
        elif match[2] == "A":
            row = max(0, row - int(match[1] or 1))
        elif match[2] == "K":
            rows[row] = "" if match[1] == "2" else rows[row][:column]
        elif not piece.startswith("\x1b"):
            rows[row] = rows[row][:column].ljust(column) + piece + rows[row][column + len(piece) :]
            column += len(piece)
    return [line.rstrip() for line in rows]
