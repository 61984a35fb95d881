"""Replies rewritten by the target itself, row by row, so that the draft learns the target's own words.

Every input row ends in exactly one place: the shard, or the error file with its reason. A killed run goes on with the
rows that are missing, and the finished shards are those of an uninterrupted run.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from eagle3cli.backends.head import fingerprint
from eagle3cli.backends.hf import HfTarget, load_target, read_target_config
from eagle3cli.backends.positions import grouped
from eagle3cli.data.conversations import to_conversation
from eagle3cli.data.sources import Line, format_of, parse_line, read_raw_lines
from eagle3cli.data.system_prompt import system_prompt_text
from eagle3cli.data.tokenizer import eos_ids, load_tokenizer, render_prompt
from eagle3cli.errors import DataError, ModelError, UsageError
from eagle3cli.runtime.devices import set_threads
from eagle3cli.runtime.report import Reporter, Task
from eagle3cli.runtime.stop import Stop, catch_stop
from eagle3cli.serving.generate import Decoder, Reply, Sampling
from eagle3cli.serving.recorded import Recorded, load_recorded
from eagle3cli.serving.script import Script, without_reasoning, write_script
from eagle3cli.serving.shards import Entry, Shard, ShardFolder, read_rows
from eagle3cli.settings.tables import Regenerate, Settings


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
    rows_now: int = 0
    tokens_now: int = 0
    seconds: float = 0.0


def regenerate(settings: Settings, report: Reporter) -> Regenerated:
    """Write the shards of ``settings.regenerate``; goes on where an earlier run ended.

    Raises UsageError for settings that do not fit what is in the folder, Stopped after a signal (work is saved).
    """
    wanted = settings.regenerate
    path = _input_path(wanted)
    total, digest = _survey(path)
    first, end = _range(wanted.sample_range, total)
    made_with = _made_with(settings, digest)
    result = Regenerated(wanted.output_dir)
    begun = time.monotonic()
    folder = ShardFolder(wanted.output_dir)
    with folder.locked(), catch_stop(report) as stop:
        folder.open(made_with, overwrite=wanted.overwrite)
        shards = [Shard(a, min(a + wanted.num_per_shard, end)) for a in range(first, end, wanted.num_per_shard)]
        if wanted.retry_errors and not sum([folder.reopen(shard) for shard in shards]):
            report.info("no failed rows to retry")
        recorded = load_recorded(wanted.recorded, made_with, report)
        writer = _Writer(settings, recorded, made_with["system_prompt"], report)
        finished = sum(shard.end - shard.first for shard in shards if folder.summary(shard))
        with report.task("regenerate", total=end - first, unit="rows", done=finished) as task:
            for shard in shards:
                if not folder.summary(shard):
                    _one_shard(folder, shard, path, writer, task, stop)
        _count(result, folder, shards)
    result.rows_now, result.tokens_now = writer.rows, writer.tokens
    result.seconds = time.monotonic() - begun
    return result


def _input_path(wanted: Regenerate) -> Path:
    if wanted.input_path is None:
        raise UsageError("no input", where="--input-path", fix="give the conversations (jsonl) that prepare wrote")
    if wanted.input_path.is_dir():
        return wanted.input_path / "train.jsonl"
    return wanted.input_path


def _survey(path: Path) -> tuple[int, str]:
    """Rows of the input and a hash of their content, in one pass."""
    if path.is_file() and path.stat().st_size and format_of(path) != "lines":
        fix = f"bring it to one row a line first: eagle3 prepare {path}"
        raise DataError("holds a JSON array or a parquet table, not JSON lines", where=str(path), fix=fix)
    rows, digest = 0, hashlib.sha256()
    for _, raw in read_raw_lines(path):
        rows += 1
        digest.update(raw)
    if not rows:
        raise DataError("the file has no rows", where=str(path), fix="check --input-path")
    return rows, digest.hexdigest()


def _range(text: str | None, total: int) -> tuple[int, int]:
    """Rows ``A:B`` of ``total``, counted from 0; either side may be left out."""
    if text is None:
        return 0, total
    a, colon, b = text.partition(":")
    if not colon or not all(side.isdigit() or not side for side in (a, b)):
        raise UsageError(f"{text!r} is not A:B", where="--sample-range", fix="e.g. --sample-range 0:1000")
    first, end = int(a or 0), min(int(b or total), total)
    if first >= end:
        raise UsageError(f"{text} holds none of the {total} rows", where="--sample-range", fix="choose rows that exist")
    return first, end


def _made_with(settings: Settings, digest: str) -> dict[str, Any]:
    """The settings that the shards depend on. Raises for a wrong model before anything claims the folder."""
    wanted, target = settings.regenerate, settings.target
    read_target_config(target)
    names = ("turns", "max_tokens", "temperature", "top_p", "top_k", "seed", "is_reasoning_model")
    return {
        "target": Path(target.model_path).name,
        "target_weights": fingerprint(target.model_path, revision=target.revision),
        "input_sha256": digest,
        "chat_template": settings.data.chat_template,
        "system_prompt": system_prompt_text(wanted.system_prompt),
        **{name: getattr(wanted, name) for name in names},
        "num_per_shard": wanted.num_per_shard,
        "sample_range": wanted.sample_range,
    }


def _one_shard(folder: ShardFolder, shard: Shard, path: Path, writer: _Writer, task: Task, stop: Stop) -> None:
    """Bring one shard to its end, or to where the person stopped it."""
    part = folder.part(shard)
    task.advance(len(part.done))
    scripts = []
    for row, (number, raw) in enumerate(islice(read_raw_lines(path), shard.first, shard.end), shard.first):
        if row not in part.done:
            script = writer.read(row, parse_line(number, raw, str(path)))
            if isinstance(script, Entry):
                part.add(script)
                task.advance()
            else:
                scripts.append(script)
    try:
        for entry in writer.write(scripts, stop):
            part.add(entry)
            task.advance(1, **writer.notes())
        stop.check(f"{len(part.done)} of {shard.end - shard.first} rows of the shard are in {part.path}")
    except BaseException:
        part.close()
        raise
    folder.finish(shard, part)


class _Writer:
    """The target at work on scripts; it is loaded when the first reply has to be generated."""

    def __init__(self, settings: Settings, recorded: Recorded, system_prompt: str | None, report: Reporter) -> None:
        self.settings, self.recorded, self.system_prompt, self.report = settings, recorded, system_prompt, report
        self.rows = self.tokens = 0
        self._begun: float | None = None
        self._tools: _Tools | None = None

    def notes(self) -> dict[str, object]:
        """What is shown beside the bar."""
        if self._begun is None:
            return {}
        return {"reply_tokens_per_s": round(self.tokens / max(1e-9, time.monotonic() - self._begun), 1)}

    def read(self, row: int, line: Line) -> Script | Entry:
        """The script of an input row, or its error."""
        row_id = str((line.value or {}).get("id") or "")
        try:
            if line.value is None:
                raise DataError(line.problem or "not a row")
            conversation = to_conversation(line.value)
            script = write_script(row, conversation, self.settings.regenerate.turns, self.system_prompt)
        except DataError as error:
            return _failed(row, line.number, row_id, error.what)
        script.line = line.number
        return script

    def write(self, scripts: list[Script], stop: Stop) -> Iterator[Entry]:
        """The outcome of every script, in the order in which they end."""
        left = []
        for script in scripts:
            used = self.recorded.find(script.id, script.prompt()) if script.replies == 0 else None
            if used is not None:
                script.reply(*used)
            if script.is_over:
                self.rows += 1
                yield Entry(script.row, "recorded", script.to_row())
            else:
                left.append(script)
        if left and stop.requested is None:
            self._tools = self._tools or _load_tools(self.settings, self.report)
            self._begun = self._begun or time.monotonic()
            yield from self._generate(left, self._tools, stop)

    def _generate(self, scripts: list[Script], tools: _Tools, stop: Stop) -> Iterator[Entry]:
        wanted = self.settings.regenerate
        sampling = Sampling(wanted.temperature, wanted.top_p, wanted.top_k, wanted.seed)
        decoder = Decoder(tools.target.model, min(wanted.batch_size, len(scripts)), tools.ends, sampling)
        running = {script.row: script for script in scripts}
        # Rows of similar length run together; the letters are close enough to the tokens to sort by.
        waiting = iter(sorted(scripts, key=lambda script: sum(len(m["content"]) for m in script.prompt())))
        with grouped(tools.target.model):
            while stop.requested is None:
                while decoder.wants_more and (script := next(waiting, None)) is not None:
                    yield from self._ask(script, tools, decoder)
                if decoder.is_finished:
                    return
                for reply in decoder.step():
                    script = running[reply.index]
                    script.tokens += len(reply.token_ids)
                    self.tokens += len(reply.token_ids)
                    script.reply(tools.text(reply, keep_reasoning=wanted.is_reasoning_model), reply.finish)
                    yield from self._ask(script, tools, decoder)

    def _ask(self, script: Script, tools: _Tools, decoder: Decoder) -> Iterator[Entry]:
        """Queue the script's next prompt; where there is none, or no room for a reply, the row's outcome."""
        if not script.is_over:
            try:
                prompt = tools.encode(script)
            except ModelError as error:
                yield _failed(script.row, script.line, script.id, error.what)
                return
            room = tools.context - len(prompt)
            if room > 0:
                limit = min(self.settings.regenerate.max_tokens, room)
                decoder.add(script.row, prompt, limit, stream=f"{script.row}:{script.replies}", soon=script.replies > 0)
                return
            if not script.replies:
                reason = f"too long for the context: {len(prompt)} tokens of {tools.context}"
                yield _failed(script.row, script.line, script.id, reason)
                return
            script.cut()
        self.rows += 1
        yield Entry(script.row, "generated", script.to_row(), script.tokens)


@dataclass(frozen=True)
class _Tools:
    target: HfTarget
    tokenizer: Any
    ends: frozenset[int]
    context: int
    encode: Callable[[Script], list[int]]

    def text(self, reply: Reply, *, keep_reasoning: bool) -> str:
        ids = reply.token_ids[:-1] if reply.finish == "stop" else reply.token_ids
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return text if keep_reasoning else without_reasoning(text)


def _load_tools(settings: Settings, report: Reporter) -> _Tools:
    target = settings.target
    tokenizer = load_tokenizer(target.model_path, revision=target.revision, trust_remote_code=target.trust_remote_code)
    template = settings.data.chat_template

    def encode(script: Script) -> list[int]:
        tools = [dict(tool) for tool in script.tools] or None
        return render_prompt(tokenizer, script.prompt(), chat_template=template, tools=tools)

    set_threads(target.threads)
    loaded = load_target(target, report)
    context = int(getattr(loaded.model.config, "max_position_embeddings", 0) or 1 << 30)
    return _Tools(loaded, tokenizer, eos_ids(tokenizer, target.model_path), context, encode)


def _failed(row: int, line: int, row_id: str, reason: str) -> Entry:
    return Entry(row, "error", {"row": row, "line": line, "id": row_id, "reason": reason})


def _count(result: Regenerated, folder: ShardFolder, shards: list[Shard]) -> None:
    for shard in shards:
        counts = folder.summary(shard)
        assert counts is not None
        result.shards += 1
        for name in ("rows", "recorded", "generated", "errors", "tokens"):
            setattr(result, name, getattr(result, name) + counts[name])
        if counts["errors"]:
            errors = read_rows(folder.folder / f"error_{shard.name}.jsonl")
            result.reasons.update(_general(row["reason"]) for row in errors)


def _general(reason: str) -> str:
    """The reason without a row's own numbers, so that equal reasons are counted together."""
    return reason.partition(":")[0] if reason.startswith(("too long", "not valid JSON")) else reason
