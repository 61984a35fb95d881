"""Prompts that the target writes itself: it is given its own empty user header and says what a user would say there.

A chunk of prompts is decoded together and then appended to a part file, so that a killed run goes on where it was. Each
prompt has its own random stream, so the same seed gives the same prompts, however often the run was interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from eagle3cli.backends.target.head import fingerprint
from eagle3cli.backends.target.hf import load_target, read_target_config
from eagle3cli.data.chat.template import Chat
from eagle3cli.data.chat.tokenizer import encode_rendered, eos_ids, leading_special_token, load_tokenizer
from eagle3cli.data.prepare.prepare import Author
from eagle3cli.data.sources.lines import SourceRow
from eagle3cli.data.sources.mixture import SELF_ROWS
from eagle3cli.errors import ModelError
from eagle3cli.models.sampling import Sampling
from eagle3cli.runtime.devices import set_threads
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.stop import catch_stop
from eagle3cli.serving.decode.batches import decoding
from eagle3cli.serving.engine import context_length
from eagle3cli.settings.tables import Settings

PART = "self.part.jsonl"
CHUNK = 256
BATCH = 64
LONGEST = 512
"""Tokens of a prompt; one that has no end by then is rejected."""
TEMPERATURE = 1.0
TOP_P = 0.95
_MARK = "\ue000\ue001"


def self_author(settings: Settings, report: Reporter) -> Author:
    """The target as a source of `prepare`; it is loaded when the first prompt is wanted. Raises for a wrong model."""
    prepare = settings.prepare
    target = settings.target
    read_target_config(target)
    made_with = {
        "target": Path(target.model_path).name,
        "target_weights": fingerprint(target.model_path, revision=target.revision),
        "chat_template": settings.data.chat_template,
        "seed": prepare.seed,
        "chunk": min(CHUNK, prepare.sample_size or SELF_ROWS),
    }

    def lines(folder: Path) -> Iterator[SourceRow]:
        return _prompts(folder / PART, made_with, settings, report)

    return Author(made_with, lines, lambda folder: (folder / PART).unlink(missing_ok=True))


def _prompts(path: Path, made_with: dict[str, Any], settings: Settings, report: Reporter) -> Iterator[SourceRow]:
    chunk = int(made_with["chunk"])
    first = 0
    writer = None
    with _opened(path, made_with) as part, catch_stop(report) as stop:
        while True:
            done: dict[int, dict[str, Any]] = {}
            while len(done) < chunk and (raw := part.readline()):
                entry = json.loads(raw)
                done[entry["index"]] = entry
            missing = [index for index in range(first, first + chunk) if index not in done]
            if missing:
                writer = writer or _PromptWriter(settings, report)
                for entry in writer.write(missing):
                    done[entry["index"]] = entry
                    part.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
                    if stop.requested is not None:
                        break
                part.flush()
                stop.check(f"the prompts so far are in {path}")
            for index in range(first, first + chunk):
                yield _source_row(done[index], str(made_with["target"]))
            first += chunk


def _opened(path: Path, made_with: dict[str, Any]) -> IO[bytes]:
    """The part file behind its first line, which says what it was made with; one that differs or is torn is cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.open("a+b")
    part.seek(0)
    header = json.dumps(made_with).encode() + b"\n"
    end = 0
    if part.readline() == header:
        end = len(header)
        while (raw := part.readline()).endswith(b"\n"):
            end += len(raw)
    part.truncate(end)
    if not end:
        part.write(header)
        part.flush()
    part.seek(len(header))
    return part


def _source_row(entry: dict[str, Any], target: str) -> SourceRow:
    number = int(entry["index"]) + 1
    place = f"self:{target}"
    if entry["finish"] == "length":
        return SourceRow(number, None, f"the prompt has no end within {entry['tokens']} tokens", path=place)
    return SourceRow(number, {"prompt": entry["text"]}, path=place)


class _PromptWriter:
    """The target in this process, behind its user header."""

    def __init__(self, settings: Settings, report: Reporter) -> None:
        target = settings.target
        path = target.model_path
        self.seed = settings.prepare.seed
        self.tokenizer = load_tokenizer(path, revision=target.revision, trust_remote_code=target.trust_remote_code)
        before, after = user_header(self.tokenizer, settings.data.chat_template)
        self.header = encode_rendered(self.tokenizer, before)
        self.eos_ids = eos_ids(self.tokenizer, path) | leading_special_token(self.tokenizer, after)
        set_threads(target.threads)
        self.model = load_target(target, report).model
        self.limit = max(1, min(LONGEST, context_length(self.model) - len(self.header) - 1))

    def write(self, indices: list[int]) -> Iterator[dict[str, Any]]:
        """The prompts with these numbers, as they end."""
        sampling = Sampling(TEMPERATURE, TOP_P, 0, self.seed)
        with decoding(self.model, min(BATCH, len(indices)), self.eos_ids, sampling) as decoder:
            for index in indices:
                decoder.add(index, self.header, self.limit)
            while not decoder.is_finished:
                for reply in decoder.step():
                    ids = reply.token_ids[:-1] if reply.finish == "stop" else reply.token_ids
                    text = str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()
                    yield {"index": reply.index, "text": text, "finish": reply.finish, "tokens": len(ids)}


def user_header(tokenizer: Any, chat_template: str) -> tuple[str, str]:
    """What the chat template writes before and after a first user message; raises ModelError where it leaves it out."""
    text = Chat(tokenizer, chat_template).render([{"role": "user", "content": _MARK}])
    before, mark, after = text.partition(_MARK)
    if not mark or not before:
        fix = "give a chat template that begins user turns with a header"
        raise ModelError(
            "unknown-template",
            "the chat template has no user header to start from",
            where="data.chat_template",
            fix=fix,
        )
    return before, after
