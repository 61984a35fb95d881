"""What the command table says of a command before its module is imported."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CommandSpec:
    """One command of the table; the module holds COMMAND (a Command) or ``app`` (a Typer of subcommands).

    ``summary`` is the line of ``eagle3 --help``; a Command's own summary says more and heads its help.
    """

    name: str
    summary: str
    step: str

    @property
    def module(self) -> str:
        """Where the command is."""
        return "eagle3cli.commands." + self.name.replace("-", "_")
