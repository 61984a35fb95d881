"""eagle3 hidden-states verify, info, convert, import: what is done with stores that are there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eagle3cli.commands.command import Command

if TYPE_CHECKING:
    pass

ACTIONS: tuple[Command, ...] = ()
