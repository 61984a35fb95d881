"""Rows of all sources, read once: each becomes a line of a spool file and of the row table, or an entry of the ledger.

What is held in memory does not grow with the rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from eagle3cli.data.conversations.conversation import Conversation, cut_turns, first_prompt, join_runs, to_conversation
from eagle3cli.data.conversations.filters import unwanted_kinds, unwanted_reply
from eagle3cli.data.conversations.layouts import parse_mapping
from eagle3cli.data.conversations.messages import Message
from eagle3cli.data.ledger import Ledger
from eagle3cli.data.prepare.duplicates import band_keys, mark_duplicates, mark_near_duplicates
from eagle3cli.data.prepare.row_table import HELD_OUT, KEPT, RowTable
from eagle3cli.data.sources.dataset_specs import DatasetSpec
from eagle3cli.data.sources.lines import SourceRow
from eagle3cli.errors import DataError
from eagle3cli.settings.data import PrepareSettings

LONG_MESSAGE = 500_000
"""Characters of a message beyond which it is past nearly every context window."""


@dataclass
class Source:
    """One data set that is being read: its rows are ``first`` to ``end - 1`` of all, in the lines of ``spool``."""

    spec: DatasetSpec
    spool: IO[bytes]
    first: int
    end: int
    mapping: dict[str, str]
    is_chosen: Callable[[Conversation], bool] | None
    read: int = 0
    name: str = ""
    """What its rows are told apart by, where there is more than one source."""

    def written(self, rows: RowTable) -> int:
        """Rows of the source that are in the result."""
        return rows.count(KEPT, HELD_OUT, first=self.first, end=self.end)


@dataclass
class Reader:
    """All that was read. ``folder`` is for files that live as long as this does; use it in a ``with`` block."""

    folder: Path
    options: PrepareSettings
    ledger: Ledger
    sources: list[Source] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    """Names of the files, by their numbers in the table."""

    def __enter__(self) -> Reader:
        self.stack = ExitStack()
        self.rows = self.stack.enter_context(RowTable(self.folder, self.options.seed))
        self.unwanted = unwanted_kinds(self.options.drop_truncated, self.options.drop_loops, self.options.drop_refusals)
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)

    def begin(self, spec: DatasetSpec, *, several: bool) -> Source:
        """Start with the next source; ``several``: it is one of more than one, so --map is for those without preset."""
        spool = self.stack.enter_context((self.folder / f"rows-{len(self.sources)}").open("w+b"))
        mapping = dict(spec.preset.mapping) if spec.preset else {}
        if spec.preset is None or not several:
            mapping |= parse_mapping(self.options.map)
        is_chosen = spec.preset.make_filter() if spec.preset and spec.preset.make_filter else None
        name = spec.name if several else ""
        source = Source(spec, spool, len(self.rows), len(self.rows), mapping, is_chosen, name=name)
        self.sources.append(source)
        return source

    def take(self, line: SourceRow) -> bool:
        """Keep a row of the newest source, or tell the ledger why not; returns whether it was kept."""
        source = self.sources[-1]
        source.read += 1
        self.ledger.read += 1
        try:
            conversation = self._convert(line, source)
            if conversation is None:
                return False
            name = conversation.id or f"{source.spec.name}-{source.read}"
            named = replace(conversation, id=name, source=conversation.source or source.name)
            encoded = json.dumps(named.to_row(), ensure_ascii=False, allow_nan=False).encode()
            self.rows.add(conversation, name, self._file(line), line.number, offset=source.spool.tell())
        except (DataError, RecursionError, ValueError, TypeError) as error:
            self.ledger.drop("rejected", line.place, line.id, _reason(error))
            return False
        self.ledger.repair(conversation.repairs, line.place, name)
        longest = max(len(message["content"]) for message in conversation.messages)
        if longest > LONG_MESSAGE:
            warning = f"a message of {longest:,} characters, past nearly every context"
            self.ledger.drop("warning", line.place, name, warning, counted_as="a message past nearly every context")
        if self.options.near_duplicates:
            self.rows.add_bands(band_keys(conversation.messages))
        source.spool.write(encoded + b"\n")
        source.end += 1
        return True

    def _file(self, line: SourceRow) -> int:
        if not self.paths or self.paths[-1] != line.path:
            self.paths.append(line.path)
        return len(self.paths) - 1

    def place_of(self, file: int, line: int) -> str:
        """``file:line`` by the file's number."""
        return f"{self.paths[file]}:{line}"

    def _convert(self, line: SourceRow, source: Source) -> Conversation | None:
        """The row as it is kept, or None after telling the ledger why not; raises DataError where it is none."""
        value = line.parsed()
        # A preset's mapping names its id column; a local file of the same layout may lack it.
        present = {role: column for role, column in source.mapping.items() if role != "id" or column in value}
        conversation = to_conversation(value, present).with_images(Path(line.path).parent if line.path else None)
        if source.is_chosen is not None and not source.is_chosen(conversation):
            self.ledger.left_out["not chosen by the preset"] += 1
            return None
        conversation = replace(conversation, repairs=(*line.repairs, *conversation.repairs))
        reason = _unwanted(conversation, self.options) or unwanted_reply(conversation, self.unwanted)
        if reason:
            self.ledger.drop("filtered", line.place, conversation.id, reason)
            return None
        preset = source.spec.preset
        if self.options.prompts_only or (preset is not None and preset.prompts_only):
            return first_prompt(conversation)
        most = self.options.max_turns
        return join_runs(cut_turns(conversation, most) if most else conversation)

    def find_duplicates(self) -> None:
        """Mark the duplicates among the rows so far, the others as kept."""
        self.rows.run(f"UPDATE rows SET disposition = {KEPT} WHERE disposition <> {KEPT}")
        self.rows.run("DELETE FROM duplicates")
        mark_duplicates(self.rows)
        if self.options.near_duplicates:
            mark_near_duplicates(self.rows, self.options.near_duplicates, self._messages)

    def _messages(self, row: int) -> Sequence[Message]:
        spool = next(source.spool for source in self.sources if source.first <= row < source.end)
        spool.seek(self.rows.run("SELECT offset FROM rows WHERE row = ?", row).fetchone()[0])
        messages: list[Message] = json.loads(spool.readline())["conversations"]
        spool.seek(0, 2)
        return messages

    def lines(self, source: Source) -> Iterator[bytes]:
        """The rows of a source as they will stand in the result, in order."""
        source.spool.seek(0)
        return iter(source.spool)


def _reason(error: Exception) -> str:
    if isinstance(error, DataError):
        return error.message
    return "nested too deeply" if isinstance(error, RecursionError) else f"holds what JSON cannot: {error}"


def _unwanted(conversation: Conversation, options: PrepareSettings) -> str:
    if conversation.user_turns < options.min_turns:
        return f"fewer than {options.min_turns} user turns"
    if options.max_prompt_words and len(conversation.prompt.split()) > options.max_prompt_words:
        return f"first user message longer than {options.max_prompt_words} words"
    return ""
