"""eagle3 doctor: what this machine has and lacks, and how to fix it."""

from __future__ import annotations

import textwrap

from eagle3cli.cli.command import Command
from eagle3cli.console.out import Out
from eagle3cli.errors import FAILED
from eagle3cli.settings.tables import Settings


def run(settings: Settings, out: Out) -> int | None:
    """Examine the machine; exit code 1 if something will fail."""
    from eagle3cli.commands.doctor_checks import CHECKS
    from eagle3cli.runtime.doctor.finding import examine

    found = examine(CHECKS)
    problems = sum(f.state == "problem" for f in found)
    lines = []
    for f in found:
        said = f"{f.check}: {f.detail}"
        lines += textwrap.wrap(said, 100, initial_indent=f"{f.state:<10}", subsequent_indent=" " * 12)
        lines += [f"{'':<10}fix: {f.fix}"] if f.fix else []  # on one line, to be copied
    lines.append(f"{problems} problem{'' if problems == 1 else 's'}" if problems else "no problems")
    out.result({"problems": problems, "checks": [f.as_dict() for f in found]}, "\n".join(lines))
    return FAILED if problems else None


COMMAND = Command(
    name="doctor",
    summary="Check this machine, and say how to fix what is wrong.",
    examples=("eagle3 doctor", "eagle3 doctor --json"),
    run=run,
    lenient=True,
)
