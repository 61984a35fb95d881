"""What is known of a run's rows before any is made: from a look at the sources that are here, else typical lengths.

Local sources are read from their beginning through prepare's own reader, for a moment and in a temporary folder.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from eagle3cli.data.chat.tokenizer import encode_rendered, load_tokenizer
from eagle3cli.data.conversations.conversation import to_conversation
from eagle3cli.data.ledger import Ledger
from eagle3cli.data.prepare.prepare import settle
from eagle3cli.data.prepare.reader import Reader
from eagle3cli.data.prepare.row_table import KEPT
from eagle3cli.data.sources.dataset_specs import DatasetSpec, read_rows
from eagle3cli.data.sources.lines import SourceRow, parse_line
from eagle3cli.errors import Eagle3Error
from eagle3cli.pipeline.forecast.ranges import Range, as_range, between
from eagle3cli.serving.regenerate.recorded import find_recorded
from eagle3cli.settings.data import PrepareSettings
from eagle3cli.settings.tables import Settings

LOOKED_AT = 2000
"""Rows of a source that are read."""
LOOK_SECONDS = 3.0
TOKENIZED = 200
"""Rows that are tokenized to see how long they are."""
CHAT_TURNS = Range(2, 4)
"""Of the multi-turn presets; ShareGPT's first 3,000 rows, cut after four, have 2.7."""
MULTI_TURN = ("ultrachat", "sharegpt", "eaglechat")
PROMPT_TOKENS = Range(40, 310)
"""Mean of a user's message: half and twice what ShareGPT has, 459 characters of three to five a token."""
REPLY_TOKENS = 140
"""Least mean of a reply: half of what ShareGPT has, 1,427 characters. The most is regenerate.max_tokens."""
SHORTEST_SHARE = 1 / 8
"""Least mean of a reply where the limit is short, as a share of the limit."""
CHARACTERS = Range(2.5, 5.5)
"""Of a token, where no tokenizer is here."""
TEMPLATE_TOKENS = Range(3, 12)
"""That a chat template puts around a message, where no tokenizer is here."""
HEAD_TOKENS = Range(0, 40)
"""That it puts before them all."""
SPREAD = Range(0.75, 1.33)
"""The mean of all rows against that of those looked at."""


@dataclass(frozen=True)
class Known:
    """What is known of the rows that prepare will write; all but ``rows`` are means of a row."""

    rows: Range
    row_bytes: Range
    """Of a row in the result."""
    turns: Range
    """Replies that a row asks for."""
    prompt_tokens: Range
    """All that is no reply, with what the template adds."""
    reply_tokens: Range
    """Of one reply."""
    bytes_per_token: Range
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Look:
    """The beginning of the local sources, as prepare would keep it."""

    kept: int
    whole: bool
    expected: float
    """Rows that all of it would give, scaled where only its beginning was read."""
    row_bytes: Sequence[int]
    conversations: Sequence[Sequence[dict[str, Any]]]


def known_rows(settings: Settings) -> Known:
    """What prepare's settings and its sources tell. Raises as prepare would for sources that cannot be."""
    specs, _ = settle(settings.prepare)
    replies, reply_note = _replies(settings)
    if all(spec.files and not spec.endless for spec in specs) and (look := _look(specs, settings.prepare)).kept:
        return _seen(settings, look, replies, reply_note)
    return _typical(settings, specs, replies, reply_note)


def _typical(settings: Settings, specs: Sequence[DatasetSpec], replies: Range, reply_note: str) -> Known:
    options = settings.prepare
    turns = CHAT_TURNS if all(spec.name in MULTI_TURN for spec in specs) else Range(1, CHAT_TURNS.high)
    if options.prompts_only:
        turns = Range(1, 1)
    turns = turns.at_most(options.max_turns or turns.high)
    prompts = turns * (PROMPT_TOKENS + TEMPLATE_TOKENS * 2) + HEAD_TOKENS
    sample_size = options.sample_size
    names = ", ".join(spec.name for spec in specs)
    full = (
        f"that they hold {sample_size:,} usable rows is assumed"
        if sample_size
        else "how many rows they hold is not known"
    )
    notes = (
        f"rows: {names} not read here; {full}",
        f"prompts: taken as {PROMPT_TOKENS.low:.0f} to {PROMPT_TOKENS.high:.0f} tokens and {turns.low:.0f} to "
        f"{turns.high:.0f} turns a row (ShareGPT as packaged: 2.7 turns, messages of 459 characters)",
        reply_note,
    )
    row_bytes = (prompts + turns * Range(0, 1500 / CHARACTERS.low)) * CHARACTERS + Range(60, 400)
    rows = Range(sample_size or 1, sample_size or 10_000_000)
    return Known(rows, row_bytes, turns, prompts, replies, CHARACTERS, notes)


def _seen(settings: Settings, look: Look, replies: Range, reply_note: str) -> Known:
    """From the rows that were read."""
    sample_size = settings.prepare.sample_size
    rows = Range(look.kept, look.kept) if look.whole else Range(max(look.kept, look.expected / 2), 2 * look.expected)
    rows = rows.at_most(sample_size or rows.high)
    users = [[m for m in row if m["role"] != "assistant"] for row in look.conversations]
    turns = _mean([sum(m["role"] == "user" for m in row) for row in users], rows, look.whole)
    turns = Range(max(1.0, turns.low), max(1.0, turns.high))
    tokenizer = _tokenizer(settings)
    if tokenizer is None:
        characters = _mean([sum(len(m["content"]) for m in row) for row in users], rows, look.whole)
        prompts = characters / CHARACTERS + turns * TEMPLATE_TOKENS * 2 + HEAD_TOKENS
        how = f"{CHARACTERS.low} to {CHARACTERS.high} characters a token"
    else:
        counted = [_tokens_around(tokenizer, row) for row in users[:TOKENIZED]]
        prompts = _mean(counted, rows, look.whole and len(users) <= TOKENIZED)
        prompts = Range(0.9 * prompts.low, 1.1 * prompts.high + HEAD_TOKENS.high)
        how = "counted with the target's tokenizer"
    share = "all rows" if look.whole else f"the first {look.kept:,} usable rows"
    notes = (f"rows and prompts: {share} of the sources read, {how}", reply_note)
    row_bytes = _mean(look.row_bytes, rows, look.whole)
    return Known(rows, row_bytes, turns, prompts, replies, _bytes_per_token(tokenizer), notes)


def _mean(values: Sequence[float], rows: Range, whole: bool) -> Range:
    """The mean of the rows that will be drawn: of all that there are at the extremes, else about that of those seen."""
    ordered = sorted(values)
    count = max(1, min(len(ordered), round(rows.low)))
    if whole or ordered[0] == ordered[-1]:
        return Range(sum(ordered[:count]) / count, sum(ordered[-count:]) / count)
    return SPREAD * (sum(ordered) / len(ordered))


def _look(specs: Sequence[DatasetSpec], options: PrepareSettings) -> Look:
    """Read the beginning of every source, as prepare would."""
    until = time.monotonic() + LOOK_SECONDS * len(specs)
    with (
        TemporaryDirectory(prefix="eagle3-") as folder,
        Reader(Path(folder), options, Ledger(io.StringIO())) as reader,
    ):
        expected = 0.0
        whole = True
        for spec in specs:
            source = reader.begin(spec, several=len(specs) > 1)
            read = _read(reader, read_rows(spec, shuffle_seed=None), until)
            whole = whole and read is None
            scale = 1.0 if read is None else _size(spec) / max(1, read)
            expected += scale * (source.end - source.first)
        reader.find_duplicates()
        kept = reader.rows.count(KEPT)
        lines = [line for source in reader.sources for line in reader.lines(source)]
    rows = [parse_line(1, line).value for line in lines]
    conversations = [[dict(m) for m in to_conversation(row).messages] for row in rows if row is not None]
    return Look(kept, whole, expected, [len(line) for line in lines], conversations)


def _read(reader: Reader, lines: Any, until: float) -> int | None:
    """Take in rows until enough are there or time is up; bytes of what was read, or None where that was all."""
    size = 0
    line: SourceRow
    for number, line in enumerate(lines, 1):
        reader.take(line)
        size += len(str(line.value))
        if number >= LOOKED_AT or time.monotonic() > until:
            return size if next(iter(islice(lines, 1)), None) is not None else None
    return None


def _size(spec: DatasetSpec) -> int:
    return sum(path.stat().st_size for path in spec.files)


def _replies(settings: Settings) -> tuple[Range, str]:
    """The mean of a reply, and where that is from."""
    config = settings.regenerate
    limit = config.max_tokens
    if config.recorded:
        recorded = [str(line.value.get("reply", "")) for line in _recorded(config.recorded) if line.value]
        texts = [text for text in recorded if text]
        if texts:
            characters = sum(map(len, texts)) / len(texts)
            mean = (Range(characters, characters) / CHARACTERS).at_most(limit)
            return mean, f"replies: {characters:.0f} characters on average in the recorded ones, {config.recorded}"
    low = max(1.0, min(REPLY_TOKENS, limit * SHORTEST_SHARE))
    note = (
        f"replies: {low:.0f} to {limit:,} tokens on average: never more than regenerate.max_tokens, and seldom fewer "
        "than half of ShareGPT's"
    )
    return Range(low, limit), note


def _recorded(name: str) -> list[SourceRow]:
    from eagle3cli.data.sources.lines import read_jsonl

    return list(read_jsonl(find_recorded(name)))


def _tokenizer(settings: Settings) -> Any:
    """The target's tokenizer where it is here."""
    from eagle3cli.cli.local_target import planned_target

    try:
        with planned_target(settings) as local:
            return load_tokenizer(
                local.target.model_path,
                revision=local.target.revision,
                trust_remote_code=local.target.trust_remote_code,
            )
    except Eagle3Error:
        return None


def _tokens_around(tokenizer: Any, prompts: Sequence[dict[str, Any]]) -> float:
    """Tokens of a row with replies of no text."""
    messages: list[dict[str, Any]] = []
    for message in prompts:
        messages += [message, {"role": "assistant", "content": ""}] if message["role"] == "user" else [message]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:  # a template may refuse anything in words of its own; regenerate tells it then
        text = "".join(str(m["content"]) for m in prompts)
        return len(encode_rendered(tokenizer, text)) + 2 * TEMPLATE_TOKENS.high * len(prompts)
    return len(encode_rendered(tokenizer, str(text)))


def _bytes_per_token(tokenizer: Any) -> Range:
    """Bytes that a token of a reply takes in JSON; without a tokenizer as of common ones."""
    if tokenizer is None:
        return CHARACTERS
    sizes = [len(token.encode("utf-8", "replace")) for token in tokenizer.get_vocab()]
    longest = max(sizes, default=1)
    return between(as_range(0.2), min(6.0, 2.0 * longest))
