"""``eagle3 --install-completion`` and ``--show-completion``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from eagle3cli.cli.completion.complete import SHELLS
from eagle3cli.cli.completion.shells import script
from eagle3cli.console.out import Out
from eagle3cli.errors import UsageError
from eagle3cli.runtime.files import write_text
from eagle3cli.settings.errors import suggest


def run_flag(argv: Sequence[str]) -> int:
    """Run ``--install-completion [SHELL]`` or ``--show-completion [SHELL]``; returns the exit code."""
    flag, *rest = [word for word in argv if word != "--debug"]
    if len(rest) > 1:
        raise UsageError(
            "invalid-value", f"one shell at most, not {' '.join(rest)}", where=flag, fix=f"eagle3 {flag} bash"
        )
    shell = rest[0] if rest else running_shell()
    if shell not in SHELLS:
        close = suggest(shell, SHELLS)
        fix = f"did you mean {close}?" if close else f"name one: eagle3 {flag} bash (or zsh, fish)"
        raise UsageError("invalid-value", f"no completion for {shell or 'an unknown shell'}", where=flag, fix=fix)
    out = Out()
    if flag == "--show-completion":
        out.print(script(shell).rstrip("\n"))
        return 0
    written = install(shell)
    out.info(f"wrote {' and '.join(map(str, written))}; start a new {shell}, then press Tab after: eagle3")
    return 0


def running_shell() -> str:
    """The shell that started this program, else the one of $SHELL."""
    try:
        parent = Path(f"/proc/{os.getppid()}/comm").read_text().strip()
    except OSError:
        parent = ""
    return parent if parent in SHELLS else Path(os.environ.get("SHELL", "")).name


def script_path(shell: str) -> Path:
    """Where the installed script of a shell is."""
    home = Path.home()
    if shell == "fish":  # fish reads this folder by itself
        return Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "fish" / "completions" / "eagle3.fish"
    return Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share") / "eagle3" / f"eagle3.{shell}"


def startup_file(shell: str) -> Path | None:
    """The file that reads the script when the shell starts; fish needs none."""
    names = {"bash": Path.home() / ".bashrc", "zsh": Path(os.environ.get("ZDOTDIR") or Path.home()) / ".zshrc"}
    return names.get(shell)


def install(shell: str) -> list[Path]:
    """Write the script and, once, the line that reads it; returns the files written."""
    path = script_path(shell)
    startup = startup_file(shell)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, script(shell))
    if startup is None:
        return [path]
    line = f'[ -r "{path}" ] && . "{path}"'
    before = startup.read_text(encoding="utf-8") if startup.is_file() else ""
    if line in before.splitlines():
        return [path]
    with startup.open("a", encoding="utf-8") as file:  # added to, so that a link stays one and its mode is kept
        file.write(("" if before.endswith("\n") or not before else "\n") + f"# eagle3's completion\n{line}\n")
    return [path, startup]


def state(shell: str) -> str:
    """``current``, ``old`` (written by another version) or ``missing``."""
    path = script_path(shell)
    startup = startup_file(shell)
    if not path.is_file():
        return "missing"
    if startup is not None and not (startup.is_file() and str(path) in startup.read_text(encoding="utf-8")):
        return "missing"
    return "current" if path.read_text(encoding="utf-8") == script(shell) else "old"
