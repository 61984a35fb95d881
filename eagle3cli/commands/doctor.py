"""eagle3 doctor: what this machine has and lacks, and how to fix it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from eagle3cli.cli.command import Command
from eagle3cli.cli.completion.complete import SHELLS
from eagle3cli.cli.completion.install import running_shell, state
from eagle3cli.console.out import Out
from eagle3cli.errors import FAILED, UsageError
from eagle3cli.runtime.doctor.finding import Finding, examine
from eagle3cli.settings.load import FOLDER_FILE, load
from eagle3cli.settings.tables import Settings


def run(settings: Settings, out: Out) -> int | None:
    """Examine the machine; exit code 1 if something will fail."""
    from eagle3cli.runtime.doctor import hardware, hub, limits, packages

    checks = (
        *(packages.python, packages.requirements),
        *(hardware.cores, hardware.memory, hardware.gpus, hardware.attention),
        *(limits.disks, limits.shared_memory, limits.open_files),
        *(hub.hub, packages.servers, packages.trackers, packages.quickstart),
        *(settings_file, completion),
    )
    findings = examine(checks)
    problems = sum(finding.state == "problem" for finding in findings)
    lines = []
    for f in findings:
        text = f"{f.check}: {f.detail}"
        lines += textwrap.wrap(text, 100, initial_indent=f"{f.state:<10}", subsequent_indent=" " * 12)
        lines += [f"{'':<10}fix: {f.fix}"] if f.fix else []  # on one line, to be copied
    lines.append(f"{problems} problem{'' if problems == 1 else 's'}" if problems else "no problems")
    out.result({"problems": problems, "checks": [f.as_dict() for f in findings]}, "\n".join(lines))
    return FAILED if problems else None


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
    installed = state(shell)
    if installed == "current":
        yield Finding("completion", "ok", f"installed for {shell}")
    else:
        text = "of another version" if installed == "old" else "not installed"
        yield Finding("completion", "note", f"{text} for {shell}", f"eagle3 --install-completion {shell}")


COMMAND = Command(
    name="doctor",
    summary="Check this machine, and say how to fix what is wrong.",
    examples=("eagle3 doctor", "eagle3 doctor --json"),
    run=run,
    lenient=True,
)
