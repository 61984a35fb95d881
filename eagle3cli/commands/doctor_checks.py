"""What the doctor checks, in the order in which it is told."""

from __future__ import annotations

from collections.abc import Iterator

from eagle3cli.cli.completion.complete import SHELLS
from eagle3cli.cli.completion.install import running_shell, state
from eagle3cli.errors import UsageError
from eagle3cli.runtime.doctor import hardware, hub, limits, packages
from eagle3cli.runtime.doctor.finding import Check, Finding
from eagle3cli.settings.load import FOLDER_FILE, load


def settings_file() -> Iterator[Finding]:
    """The settings file of this folder."""
    if not FOLDER_FILE.is_file():
        yield Finding("settings", "ok", f"no {FOLDER_FILE} here: the defaults are in force")
        return
    try:
        count = len(load().origins)
    except UsageError as error:
        first = str(error).split("\n")[0]
        yield Finding("settings", "problem", first if error.where else f"{FOLDER_FILE}: {first}", "eagle3 config check")
        return
    yield Finding("settings", "ok", f"{FOLDER_FILE} is fine, {count} setting{'' if count == 1 else 's'} given")


def completion() -> Iterator[Finding]:
    """Whether the Tab key works after eagle3."""
    shell = running_shell()
    if shell not in SHELLS:
        return
    found = state(shell)
    if found == "current":
        yield Finding("completion", "ok", f"installed for {shell}")
    else:
        told = "of another version" if found == "old" else "not installed"
        yield Finding("completion", "note", f"{told} for {shell}", f"eagle3 --install-completion {shell}")


CHECKS: tuple[Check, ...] = (
    *(packages.python, packages.requirements),
    *(hardware.cores, hardware.memory, hardware.gpus, hardware.attention),
    *(limits.disks, limits.shared_memory, limits.open_files),
    *(hub.hub, packages.servers, packages.trackers, packages.quickstart),
    *(settings_file, completion),
)
