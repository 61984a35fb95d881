"""Write what a command shows on a colour terminal as an SVG picture that loads nothing.

python examples/picture.py PICTURE.svg COMMAND [ARGUMENT ...]
"""

from __future__ import annotations

import io
import os
import pty
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

COLUMNS = 110


def shown(command: list[str]) -> str:
    """What the command writes to a terminal; exits where it fails."""
    ours, its = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdout=its, env=environment)
    os.close(its)
    parts = []
    with suppress(OSError):  # Linux tells the end of a terminal by an error
        while part := os.read(ours, 4096):
            parts.append(part)
    if process.wait():
        raise SystemExit(f"failed: {shlex.join(command)}")
    return b"".join(parts).decode().replace("\r\n", "\n")


def picture(command: list[str]) -> str:
    """The SVG of the command line and what it shows."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {shlex.join(command)}\n", style="bold"))
    console.print(Text.from_ansi(shown(command)))
    svg = console.export_svg(title=" ".join(command[:2]), theme=MONOKAI)
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # fonts from the network


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(picture(sys.argv[2:]), encoding="utf-8")
