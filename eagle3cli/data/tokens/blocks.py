"""Blocks of a file's rows to blocks of token rows; a bad row is told with its place and reason and stops nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from eagle3cli.data.chat.preformatted import ReplyDelimiters
from eagle3cli.data.chat.tokenizer import eos_ids, load_tokenizer
from eagle3cli.data.conversations.conversation import source_of, to_conversation
from eagle3cli.data.images.processor import ImageProcessor
from eagle3cli.data.sources.files import format_of, read_file
from eagle3cli.data.sources.lines import SourceRow, parse_line, read_raw_lines
from eagle3cli.data.tokens.encode import Encoder
from eagle3cli.data.tokens.lengths import Counted, sum_kept
from eagle3cli.data.tokens.rows import TokenRow, to_batch
from eagle3cli.errors import DataError

BLOCK_ROWS = 256
BLOCK_BYTES = 1 << 20
CACHED_WORDS = 100_000
"""Words whose tokens the tokenizer remembers; its own 10,000 are full after some hundred conversations."""

Item = tuple[int, bytes] | SourceRow
Repair = tuple[int, str, tuple[str, ...]]
"""Line and id of a row that was set right, and how."""


@dataclass(frozen=True)
class EncoderConfig:
    """All that decides what a row's tokens and mask are."""

    model_path: str
    revision: str | None
    trust_remote_code: bool
    chat_template: str
    max_length: int
    last_turn_only: bool
    is_preformatted: bool
    system_prompt: str | None = None
    text_marks: ReplyDelimiters | None = None
    chat_options: tuple[tuple[str, Any], ...] = ()

    def encoder(self) -> Encoder:
        """The encoder; loads the tokenizer."""
        tokenizer = load_tokenizer(self.model_path, revision=self.revision, trust_remote_code=self.trust_remote_code)
        model = tokenizer.backend_tokenizer.model
        if hasattr(model, "_resize_cache"):
            model._resize_cache(CACHED_WORDS)
        return Encoder(
            tokenizer,
            eos_ids(tokenizer, self.model_path),
            chat_template=self.chat_template,
            max_length=self.max_length,
            last_turn_only=self.last_turn_only,
            system_prompt=self.system_prompt,
            text_marks=self.text_marks,
            chat_options=dict(self.chat_options),
            image_processor=self.image_processor,
        )

    @property
    def image_processor(self) -> ImageProcessor:
        """What the target makes of images."""
        return ImageProcessor(self.model_path, self.revision, self.trust_remote_code)


@dataclass
class EncodedBlock:
    """What became of some neighbouring rows."""

    read: int = 0
    rows: list[TokenRow] = field(default_factory=list)
    rejected: list[tuple[int, str, str]] = field(default_factory=list)
    """Line, id and reason."""
    repairs: list[Repair] = field(default_factory=list)


@dataclass(frozen=True)
class PackedBlock:
    """A block as it travels between processes."""

    read: int
    batch: pa.RecordBatch
    truncated: int
    no_span: list[tuple[int, str]]
    """Line and id of rows that train nothing."""
    rejected: list[tuple[int, str, str]]
    repairs: list[Repair]
    kept: Counted
    """What maximum lengths leave of its rows."""


def encode_items(encoder: Encoder, items: list[Item], path: str, *, preformatted: bool) -> EncodedBlock:
    """Encode rows; a bad one is told with its reason and stops nothing."""
    block = EncodedBlock(read=len(items))
    usable: list[tuple[int, str, str, tuple[str, ...]]] = []
    inputs: list[Any] = []
    for item in items:
        line = item if isinstance(item, SourceRow) else parse_line(*item, path)
        try:
            value = line.parsed()
            if preformatted:
                inputs.append(_text_of(value))
                usable.append((line.number, inputs[-1][0], source_of(value), line.repairs))
            else:
                conversation = to_conversation(value).with_images(Path(path).parent)
                inputs.append(conversation)
                repairs = (*line.repairs, *conversation.repairs)
                usable.append((line.number, conversation.id, conversation.source, repairs))
        except (DataError, RecursionError) as error:
            reason = error.message if isinstance(error, DataError) else "nested too deeply"
            block.rejected.append((line.number, line.id, reason))
    encoded = encoder.encode_text(inputs) if preformatted else encoder.encode(inputs)
    for (number, name, source, repairs), row in zip(usable, encoded, strict=True):
        if isinstance(row, DataError):
            block.rejected.append((number, name, row.message))
            continue
        block.rows.append(replace(row, id=row.id or f"line-{number}", line=number, source=source))
        if repairs:
            block.repairs.append((number, block.rows[-1].id, repairs))
    return block


def _text_of(value: dict[str, Any]) -> tuple[str, str]:
    if not isinstance(value.get("text"), str):
        raise DataError(
            "row-text", "no text (a pre-formatted row is {id, text}; conversations need no --is-preformatted)"
        )
    if not value["text"].strip():
        raise DataError("row-text", "text is empty")
    return str(value.get("id") or ""), value["text"]


def blocks_of(path: Path) -> Iterator[list[Item]]:
    """The file's rows in blocks; JSON lines stay unparsed, so that workers share that work."""
    rows: Iterator[Item] = read_raw_lines(path) if format_of(path) == "lines" else read_file(path)
    block: list[Item] = []
    size = 0
    while True:
        try:
            item = next(rows, None)
        except DataError as error:  # a compressed file that breaks off: its whole lines count
            place = (error.where or "").rpartition(":")[2]
            item = SourceRow(int(place), None, error.message, path=str(path)) if place.isdigit() else None
            rows = iter(())
            if item is None:
                raise
        if item is None:
            break
        block.append(item)
        size += len(item[1]) if isinstance(item, tuple) else 4096
        if len(block) >= BLOCK_ROWS or size >= BLOCK_BYTES:
            yield block
            block = []
            size = 0
    if block:
        yield block


def pack(block: EncodedBlock) -> PackedBlock:
    """The block as Arrow columns."""
    return PackedBlock(
        read=block.read,
        batch=to_batch(block.rows),
        truncated=sum(row.truncated for row in block.rows),
        no_span=[(row.line, row.id) for row in block.rows if row.no_span],
        rejected=block.rejected,
        repairs=block.repairs,
        kept=sum_kept(row.kept for row in block.rows if row.kept is not None),
    )
