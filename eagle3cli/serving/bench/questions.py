"""Questions out of the rows of benchmark data sets, each in its own layout, with what a right answer is held to.

Rows that hold ``turns`` or a conversation are asked as they stand, whatever the task.
"""

from __future__ import annotations

from dataclasses import dataclass

from eagle3cli.data.conversations.conversation import to_conversation
from eagle3cli.errors import DataError
from eagle3cli.serving.bench.benchmarks import BENCHMARKS, Check, Row, complete


@dataclass(frozen=True)
class Question:
    """What is asked, turn by turn; ``check`` judges the answer to the first turn."""

    id: str
    turns: tuple[str, ...]
    category: str = ""
    system: str | None = None
    check: Check | None = None


def question_of(row: Row, number: int, task: str = "") -> Question:
    """The question in a row of ``task``'s data; raises DataError where there is none."""
    row_id = next((str(row[key]) for key in ("id", "question_id", "task_id") if row.get(key) is not None), str(number))
    category = str(row.get("category") or "")
    known = BENCHMARKS.get(task)
    check = known.check(row) if known and known.check else None
    turns = row.get("turns")
    if turns is None and known and known.text and (text := known.text(row)) is not None:
        turns = [text]
    elif turns is None and {"prompt", "entry_point"} <= row.keys():
        turns = [complete(row)]
    if turns is not None:
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn for turn in turns):
            raise DataError("turns is not a list of texts")
        return Question(row_id, tuple(turns), category, None, check)
    conversation = to_conversation({key: value for key, value in row.items() if key != "finish"})
    asked = tuple(str(m["content"]) for m in conversation.messages if m["role"] == "user")
    system = next((str(m["content"]) for m in conversation.messages if m["role"] == "system"), None)
    return Question(row_id, asked, category, system, check)
