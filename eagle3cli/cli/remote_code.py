"""What a person should know before Python code of a model runs on this machine."""

from __future__ import annotations

import json
from pathlib import Path

from eagle3cli.console.out import Out
from eagle3cli.settings.errors import DEFAULT
from eagle3cli.settings.load import Loaded

KEY = "target.trust_remote_code"


def warn_of_remote_code(loaded: Loaded, out: Out) -> None:
    """Say which code may run and who allowed it (a flag, or a line of a settings file); nothing where none may."""
    target = loaded.settings.target
    if not target.trust_remote_code or not target.model_path or loaded.origin(KEY) == DEFAULT:
        return
    folder = Path(target.model_path).expanduser()
    if folder.is_dir():
        files = code_files(folder)
        what = f"{', '.join(files)} of {folder}" if files else f"Python code that {folder} names (none lies in it)"
    else:
        pinned = f"revision {target.revision}" if target.revision else "the newest revision; --revision pins one"
        what = f"Python code of the hub repository {target.model_path} ({pinned})"
    out.warn(f"{loaded.origin(KEY)}: {what} may run on this machine with your rights; read it first")


def code_files(folder: Path) -> list[str]:
    """The Python files that the configs of a model folder name in ``auto_map``; else all that lie there."""
    files: set[str] = set()
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        try:
            auto_map = json.loads(path.read_text(encoding="utf-8"))["auto_map"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue
        for value in auto_map.values() if isinstance(auto_map, dict) else ():
            classes = value if isinstance(value, list) else [value]
            files |= {f"{name.rpartition('--')[2].partition('.')[0]}.py" for name in classes if isinstance(name, str)}
    return sorted(files) or sorted(path.name for path in folder.glob("*.py"))
