"""Replies rewritten by the target itself, row by row, so that the draft learns the target's own words.

Every input row ends in exactly one place: the shard, or the error file with its reason. A killed run goes on with the
rows that are missing, and the finished shards are those of an uninterrupted run.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from eagle3cli.data.chat.template import Chat, template_options
from eagle3cli.data.chat.tokenizer import load_tokenizer
from eagle3cli.data.conversations.conversation import to_conversation
from eagle3cli.data.conversations.system_prompt import system_prompt_text
from eagle3cli.data.sources.files import format_of
from eagle3cli.data.sources.lines import SourceRow, parse_line, read_raw_lines
from eagle3cli.errors import DataError, UsageError
from eagle3cli.runtime.report import ProgressBar, Reporter, SilentProgressBar
from eagle3cli.runtime.stop import catch_stop
from eagle3cli.serving.client.pool import Rules
from eagle3cli.serving.conversation import OpenConversation
from eagle3cli.serving.regenerate.changed_images import refuse_changed_images
from eagle3cli.serving.regenerate.engines import identify_target, open_generator
from eagle3cli.serving.regenerate.outputs import Outputs
from eagle3cli.serving.regenerate.pending import open_conversation
from eagle3cli.serving.regenerate.recorded import Recorded, find_reply, load_recorded
from eagle3cli.serving.regenerate.shards import ReplyShard, RowOutcome, ShardFolder, failed, read_rows
from eagle3cli.settings.serving import RegenerateSettings
from eagle3cli.settings.tables import Settings

LONGEST_REASON = 200
OWN_NUMBERS = ("too long", "not valid JSON", "no such image", "the image ")
"""Beginnings of reasons that go on with a row's own numbers or names."""


@dataclass
class Regenerated:
    """What came of a run; the counts are of all shards in the folder, ``now`` of this run alone."""

    folder: Path
    rows: int = 0
    recorded: int = 0
    generated: int = 0
    errors: int = 0
    tokens: int = 0
    shards: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    nothing_new: bool = False
    """Every row had its outcome before this run."""
    rows_now: int = 0
    tokens_now: int = 0
    seconds: float = 0.0


def regenerate(settings: Settings, report: Reporter, rules: Rules | None = None) -> Regenerated:
    """Write the shards of ``settings.regenerate``; goes on where an earlier run ended.

    Raises UsageError for settings that do not fit what is in the folder, Stopped after a signal (work is saved),
    Eagle3Error when no server is left.
    """
    config = settings.regenerate
    path = input_path_of(config)
    total, digest = survey(path)
    first, end = range_of(config.sample_range, total)
    made_with = made_with_of(settings, digest)
    # Before anything claims the folder.
    recorded = load_recorded(config.recorded, made_with, report, partial(prompt_with, settings))
    start = time.monotonic()
    folder = ShardFolder(config.output_dir)
    with folder.locked(), catch_stop(report) as stop:
        folder.open(made_with, overwrite=config.overwrite, target_path=settings.target.model_path)
        refuse_changed_images(folder.folder)
        shards = shards_in(config, first, end)
        if config.retry_errors and not sum([folder.reopen(shard) for shard in shards]):
            report.info("no failed rows to retry")
        outputs = Outputs(folder, shards)
        with outputs.opened(), ExitStack() as stack:
            rows = _Rows(settings, made_with["system_prompt"], recorded, outputs)
            conversations = rows.open_conversations(path, first, end)
            head = list(islice(conversations, 1))  # with nothing to write no engine is started
            generator = stack.enter_context(open_generator(settings, report, rules)) if head else None
            with report.task("regenerate", total=end - first, unit="rows", done=outputs.done) as rows.progress:
                if generator is not None:
                    generator.generate(chain(head, conversations), rows.add, partial(rows.progress.advance, 0), stop)
            stop.check(f"{outputs.done} of {end - first} rows are in {folder.folder}")
        result = _count(folder, shards)
    if rows.cut_reasoning:
        report.warn(
            f"{rows.cut_reasoning:,} of {rows.good:,} rows end in reasoning that --max-tokens {config.max_tokens:,} "
            "cut: nothing of that reply is left to train on. Allow more tokens, keep the reasoning "
            "(--is-reasoning-model), or let the target answer without it (--chat-template-kwargs enable_thinking=false)"
        )
    result.nothing_new = not rows.added
    result.rows_now = rows.good
    result.tokens_now = rows.tokens
    result.seconds = time.monotonic() - start
    return result


def shards_in(config: RegenerateSettings, first: int, end: int) -> list[ReplyShard]:
    """The shards of these input rows."""
    return [ReplyShard(a, min(a + config.num_per_shard, end)) for a in range(first, end, config.num_per_shard)]


def input_path_of(config: RegenerateSettings) -> Path:
    """The conversations; raises UsageError where none are named."""
    if config.input_path is None:
        raise UsageError(
            "missing-data",
            "no input",
            where="--input-path",
            fix="run eagle3 prepare first, or give conversations (jsonl)",
        )
    if config.input_path.is_dir():
        return config.input_path / "train.jsonl"
    return config.input_path


def survey(path: Path) -> tuple[int, str]:
    """Rows of the input and a hash of their content, in one pass."""
    if path.is_file() and path.stat().st_size and format_of(path) != "lines":
        fix = f"bring it to one row a line first: eagle3 prepare {path}"
        raise DataError(
            "unreadable-file", "holds a JSON array or a parquet table, not JSON lines", where=str(path), fix=fix
        )
    rows = 0
    digest = hashlib.sha256()
    for _, raw in read_raw_lines(path):
        rows += 1
        digest.update(raw)
    if not rows:
        raise DataError("no-rows", "the file has no rows", where=str(path), fix="check --input-path")
    return rows, digest.hexdigest()


def range_of(text: str | None, total: int) -> tuple[int, int]:
    """Rows ``A:B`` of ``total``, counted from 0; either side may be left out."""
    if text is None:
        return 0, total
    a, colon, b = text.partition(":")
    if not colon or not all(side.isdigit() or not side for side in (a, b)):
        raise UsageError(
            "invalid-value", f"{text!r} is not A:B", where="--sample-range", fix="e.g. --sample-range 0:1000"
        )
    first = int(a or 0)
    end = min(int(b or total), total)
    if first >= end:
        raise UsageError(
            "invalid-value",
            f"{text} holds none of the {total} rows",
            where="--sample-range",
            fix="choose rows that exist",
        )
    return first, end


def made_with_of(settings: Settings, digest: str) -> dict[str, Any]:
    """The settings that the shards depend on. Raises for a wrong model before anything claims the folder."""
    config = settings.regenerate
    return {
        **identify_target(settings),
        "input_sha256": digest,
        **reply_settings(settings),
        "num_per_shard": config.num_per_shard,
        "sample_range": config.sample_range,
    }


def reply_settings(settings: Settings) -> dict[str, Any]:
    """The settings that a reply depends on."""
    config = settings.regenerate
    names = ("turns", "max_tokens", "temperature", "top_p", "top_k", "seed", "is_reasoning_model", "reasoning_effort")
    return {
        "chat_template": settings.data.chat_template,
        "chat_template_kwargs": list(settings.data.chat_template_kwargs),
        "system_prompt": system_prompt_text(config.system_prompt),
        **{name: getattr(config, name) for name in names},
    }


def prompt_with(settings: Settings, options: Sequence[str]) -> str:
    """The prompt of one message as the target's chat template writes it with ``options``."""
    target = settings.target
    tokenizer = load_tokenizer(target.model_path, revision=target.revision, trust_remote_code=target.trust_remote_code)
    chat = Chat(tokenizer, settings.data.chat_template, template_options(options))
    return chat.render([{"role": "user", "content": "Hello."}], add_generation_prompt=True)


class _Rows:
    """The input's rows on their way to their outcomes."""

    def __init__(self, settings: Settings, system_prompt: str | None, recorded: Recorded, outputs: Outputs) -> None:
        self.turns = settings.regenerate.turns
        self.system_prompt = system_prompt
        self.recorded = recorded
        self.outputs = outputs
        self.progress: ProgressBar = SilentProgressBar()
        self.added = 0
        self.good = 0
        self.tokens = 0
        self.cut_reasoning = 0

    def open_conversations(self, path: Path, first: int, end: int) -> Iterator[OpenConversation]:
        """Where the target has to reply; rows in which it need not get their outcome on the way."""
        for row, (line_number, raw) in enumerate(islice(read_raw_lines(path), first, end), first):
            if self.outputs.is_done(row):
                continue
            conversation = self._read(row, parse_line(line_number, raw, str(path)))
            if isinstance(conversation, RowOutcome):
                self.add(conversation)
                continue
            reply = find_reply(self.recorded, conversation.id, conversation.prompt())
            if reply is not None:
                conversation.append_reply(*reply)
            if conversation.is_complete:
                self.add(RowOutcome(row, "recorded", conversation.to_row()))
            else:
                yield conversation

    def add(self, outcome: RowOutcome) -> None:
        """Keep an outcome."""
        self.outputs.add(outcome)
        self.added += 1
        self.good += outcome.by != "error"
        self.tokens += outcome.tokens
        self.cut_reasoning += outcome.by == "generated" and _is_cut_reasoning(outcome.value)
        self.progress.advance(free=outcome.by == "recorded")

    def _read(self, row: int, line: SourceRow) -> OpenConversation | RowOutcome:
        """The conversation of an input row, or its error."""
        try:
            conversation = to_conversation(line.parsed()).with_images(Path(line.path).parent)
            return open_conversation(row, conversation, self.turns, self.system_prompt, line.number)
        except DataError as error:
            return failed(row, line.number, line.id, error.message)


def _is_cut_reasoning(row: dict[str, Any]) -> bool:
    """Whether nothing is left of the last reply, though it was as long as may be: all of it was reasoning."""
    return row["finish"][-1:] == ["length"] and not row["conversations"][-1]["content"]


def _count(folder: ShardFolder, shards: list[ReplyShard]) -> Regenerated:
    result = Regenerated(folder.folder)
    for shard in shards:
        counts = folder.summary(shard)
        assert counts is not None
        result.shards += 1
        for name in ("rows", "recorded", "generated", "errors", "tokens"):
            setattr(result, name, getattr(result, name) + counts[name])
        if counts["errors"]:
            errors = read_rows(folder.folder / f"error_{shard.name}.jsonl")
            result.reasons.update(_group(row["reason"]) for row in errors)
    return result


def _group(reason: str) -> str:
    """The reason without a row's own numbers, so that equal reasons are counted together."""
    return reason.partition(":")[0] if reason.startswith(OWN_NUMBERS) else reason[:LONGEST_REASON]
