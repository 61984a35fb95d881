"""Questions out of the rows of benchmark data sets, each in its own layout, with what a right answer is held to.

Rows that hold ``turns`` or a conversation are asked as they stand, whatever the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eagle3cli.data.conversations.conversation import to_conversation
from eagle3cli.data.conversations.images import refuse_images
from eagle3cli.errors import DataError
from eagle3cli.serving.bench.benchmarks import BENCHMARKS, WITHHELD, Check, DatasetRow, complete


class Withheld(DataError):
    """A row whose text its data set may not pass on."""


@dataclass(frozen=True)
class Question:
    """What is asked, turn by turn; ``check`` judges the answer to the first turn."""

    id: str
    turns: tuple[str, ...]
    category: str = ""
    system: str | None = None
    check: Check | None = None


def question_of(row: DatasetRow, number: int, benchmark: str = "") -> Question:
    """The question in a row of ``benchmark``'s data; raises DataError where there is none, Withheld where its text is
    not in the data set."""
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
            raise DataError("turns is not a list of texts")
        return Question(row_id, _told(turns), category, None, check)
    # Only what was asked counts, whatever became of the replies.
    asked = {key: value for key, value in row.items() if key != "finish"}
    messages = to_conversation(asked, empty_replies=True).messages
    refuse_images(messages, "eagle3 bench")
    turns = tuple(str(message["content"]) for message in messages if message["role"] == "user")
    system = next((str(message["content"]) for message in messages if message["role"] == "system"), None)
    return Question(row_id, _told(turns), category, system, check)


def _told(turns: Sequence[str]) -> tuple[str, ...]:
    if any(WITHHELD in turn for turn in turns):
        raise Withheld("the text is not in the data set: it is to be fetched from its source")
    return tuple(turns)
