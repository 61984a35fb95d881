"""A real shell on a pseudo-terminal, with the Tab key."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sys
import time
from pathlib import Path

from tests.conftest import ROOT

START = {"bash": ["bash", "--noprofile", "--norc", "-i"], "zsh": ["zsh", "-f", "-i"]}
SETUP = {
    "bash": """PS1='$ '
bind 'set show-all-if-ambiguous on'
bind 'set page-completions off'
bind 'set completion-query-items 0'
bind 'set enable-bracketed-paste off'
bind -x '"\\C-g": printf "\\n<<%s>>\\n" "$READLINE_LINE"; READLINE_LINE=; READLINE_POINT=0'
""",
    "zsh": """PS1='$ '
LISTMAX=10000
unsetopt automenu zle_bracketed_paste
show() { zle -I; print -r -- "<<$BUFFER>>"; BUFFER= }
zle -N show
bindkey '^G' show
""",
}
PATIENCE_S = 60
"""How long an answer may take on a busy machine; an idle one needs a third of a second."""


def program(folder: Path) -> Path:
    """A folder for $PATH with this checkout's eagle3 in it."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "eagle3"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m eagle3cli "$@"\n')
    script.chmod(0o755)
    return folder


class Terminal:
    """An interactive shell in ``folder`` whose Tab key is pressed by ``tab``."""

    def __init__(self, shell: str, folder: Path, home: Path, setup: str) -> None:
        self.name, self.seen = shell, ""
        environment = {
            **{name: os.environ[name] for name in ("LANG", "LC_ALL") if name in os.environ},
            "PATH": f"{program(home / 'bin')}:{os.environ['PATH']}",
            "HOME": str(home),
            "TERM": "dumb" if shell == "bash" else "vt100",
            "COLUMNS": "200",
        }
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execvpe(shell, START[shell], environment)
        script = home / f"setup.{shell}"
        script.write_text(SETUP[shell] + setup + "\n")
        self._type(f"stty cols 200 rows 500; . {script}; printf 're%s\\n' ady\n")
        self._read_until("ready")

    def tab(self, line: str, times: int = 1) -> tuple[str, str]:
        """Type ``line`` and Tab; returns the line as it is then, and all that was shown."""
        self.seen = ""
        self._type(line + "\t" * times + "\x07")
        self._read_until(">>")
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\x07", "", self.seen)
        before, _, after = shown.rpartition("<<")
        return after.partition(">>")[0], before

    def close(self) -> None:
        """End the shell."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.file)

    def _type(self, text: str) -> None:
        os.write(self.file, text.encode())

    def _read_until(self, mark: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while mark not in self.seen:
            if time.monotonic() > end:
                raise AssertionError(f"the shell did not answer: {self.seen[-2000:]!r}")
            if select.select([self.file], [], [], 0.2)[0]:
                self.seen += os.read(self.file, 65536).decode(errors="replace")
