"""Questions out of the rows of benchmark data sets, each in its own layout, with what a right answer is held to.

Rows that hold ``turns`` or a conversation are asked as they stand, whatever the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle3cli.data.conversations.conversation import to_conversation
from eagle3cli.data.conversations.images import (
    images_of,
    place_images,
    refuse_images,
    row_images,
    with_checked_images,
)
from eagle3cli.data.conversations.messages import PARTS, Message
from eagle3cli.errors import DataError
from eagle3cli.serving.bench.benchmarks import BENCHMARKS, WITHHELD, Check, DatasetRow, complete


class Withheld(DataError):
    """A row whose text its data set may not pass on."""


class NoImage(DataError):
    """A row with an image that cannot be used."""


@dataclass(frozen=True)
class Question:
    """What is asked, turn by turn; ``check`` judges the answer to the first turn."""

    id: str
    turns: tuple[str, ...]
    category: str = ""
    system: str | None = None
    check: Check | None = None
    parts: tuple[tuple[Any, ...], ...] = ()
    """Of each turn its texts and images in order, empty for one of text alone; none where all are."""

    def asked(self, turn: int) -> Message:
        """The message of a turn, counted from 0."""
        parts = self.parts[turn] if self.parts else ()
        return {"role": "user", "content": self.turns[turn], **({PARTS: list(parts)} if parts else {})}


def question_of(row: DatasetRow, number: int, benchmark: str = "", folder: Path | None = None) -> Question:
    """The question in a row of ``benchmark``'s data, whose images are below ``folder``. Raises DataError where there is
    none, Withheld where its text is not in the data set, NoImage where an image cannot be used."""
    row_id = next((str(row[key]) for key in ("id", "question_id", "task_id") if row.get(key) is not None), str(number))
    category = str(row.get("category") or "")
    layout = BENCHMARKS.get(benchmark)
    check = layout.check(row) if layout and layout.check else None
    turns = row.get("turns")
    if turns is None and layout and layout.text and (text := layout.text(row)) is not None:
        turns = [text]
    elif turns is None and {"prompt", "entry_point"} <= row.keys():
        turns = [complete(row)]
    if turns is not None:
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn for turn in turns):
            raise DataError("question-layout", "turns is not a list of texts")
        asked = _with_images([{"role": "user", "content": turn} for turn in turns], folder, row)
        return Question(row_id, _told(asked), category, None, check, _parts(asked))
    # Only what was asked counts, whatever became of the replies.
    without = {key: value for key, value in row.items() if key != "finish"}
    messages = to_conversation(without, empty_replies=True).messages
    asked = _with_images([message for message in messages if message["role"] == "user"], folder)
    systems = [message for message in messages if message["role"] == "system"]
    refuse_images(systems, "a system message")
    system = str(systems[0]["content"]) if systems else None
    return Question(row_id, _told(asked), category, system, check, _parts(asked))


def _with_images(messages: Sequence[Message], folder: Path | None, row: DatasetRow | None = None) -> Sequence[Message]:
    """The messages with their images, and with those of the row's columns, as they can be used."""
    try:
        placed = messages if row is None else place_images(messages, row_images(row))
        return with_checked_images(placed, folder)
    except DataError as error:
        raise NoImage(error.code, error.message) from error


def _parts(messages: Sequence[Message]) -> tuple[tuple[Any, ...], ...]:
    if not images_of(messages):
        return ()
    return tuple(tuple(message.get(PARTS) or ()) for message in messages)


def _told(messages: Sequence[Message]) -> tuple[str, ...]:
    turns = tuple(str(message["content"]) for message in messages)
    if any(WITHHELD in turn for turn in turns):
        raise Withheld("text-withheld", "the text is not in the data set: it is to be fetched from its source")
    return turns
