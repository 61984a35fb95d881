"""eagle3 view-train-data: rows of the training data, token by token; another name of `eagle3 view`."""

from __future__ import annotations

from eagle3cli.cli.command import Command
from eagle3cli.commands.view import FIELDS, run

COMMAND = Command(
    name="view-train-data",
    summary="Show rows of the training data: green is trained, red is not.",
    examples=("eagle3 view-train-data 1 2",),
    fields=FIELDS,
    arguments=("view.rows",),
    run=run,
)
