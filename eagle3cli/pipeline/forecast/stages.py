"""What each stage takes, from the rows that reach it, the models' shapes and the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from eagle3cli.backends.capture.memory import pass_parts
from eagle3cli.data.hidden_states.quantize import Quantization
from eagle3cli.data.hidden_states.rows import empty_codec
from eagle3cli.data.tokens.plan import TOKEN_BYTES
from eagle3cli.pipeline.forecast import training
from eagle3cli.pipeline.forecast.chain import Chain
from eagle3cli.pipeline.forecast.machine import START_SECONDS, Machine
from eagle3cli.pipeline.forecast.models import Shapes
from eagle3cli.pipeline.forecast.ranges import Range, between
from eagle3cli.pipeline.forecast.rows import Known
from eagle3cli.runtime.units import parse_duration
from eagle3cli.serving.bench.configs import parse_config, with_baselines
from eagle3cli.settings.tables import Settings
from eagle3cli.training.forecast.memory import draft_weights

READ_BYTES = Range(1e6, 5e7)
"""Bytes of text that prepare and merge take in a second."""
TOKENS_READ = Range(2e4, 1e6)
"""Tokens that cache encodes and masks in a second."""
SMALL_FILES = Range(300, 60_000)
"""Bytes of manifests and summaries."""
ROW_BYTES = Range(40, 300)
"""Of a row beside its texts: its id, its roles, how it ended."""
ANSWER_BYTES = Range(10, 5000)
"""Of an answer in the result files of bench."""
SAVED_DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
SERVER_MEMORY = Range(0.6, 0.9)
"""Share of a GPU that a server takes for weights and cache."""


@dataclass(frozen=True)
class StageForecast:
    """What a stage takes; None where it is not known, or where the stage has no such thing."""

    rows: Range | None = None
    tokens: Range | None = None
    disk: Range | None = None
    """Bytes that stay."""
    memory: Range | None = None
    """Bytes of each device at the peak."""
    seconds: Range | None = None

    def numbers(self) -> dict[str, Any]:
        """For JSON: low and high of each, null where there is none."""
        minutes = None if self.seconds is None else self.seconds * (1 / 60)
        values = {"rows": self.rows, "tokens": self.tokens, "disk_bytes": self.disk, "memory_bytes": self.memory}
        return {name: value and value.numbers() for name, value in (values | {"minutes": minutes}).items()}


@dataclass(frozen=True)
class Measurement:
    """Answers that are decoded in one go of bench."""

    answers: Range
    tokens: Range
    """Of an answer."""
    batch: int
    depth: int
    """Tokens that the draft proposes; 0 without it."""


@dataclass(frozen=True)
class Forecaster:
    """Forecasts of all stages; without ``shapes`` only of what depends on no model."""

    settings: Settings
    known: Known
    chain: Chain
    shapes: Shapes | None
    machine: Machine
    own_seconds: float | None = None
    """The most that the replies take where their number follows from the time; None where recorded ones may serve."""

    def of(self, stage: str) -> StageForecast:
        """The forecast of a stage by its name."""
        forecast: StageForecast = getattr(self, f"_{stage.replace('-', '_')}")()
        return forecast

    def _target(self) -> StageForecast:
        if self.shapes is None:
            return StageForecast()
        is_fetched = self.shapes.checkpoint.high > 0 and not self.shapes.is_converted
        seconds = None if is_fetched else self.shapes.checkpoint / Range(1e7, 1e9) + Range(0, 30)
        return StageForecast(disk=self.shapes.checkpoint, seconds=seconds)

    def _prepare(self) -> StageForecast:
        rows = self.chain.prompts
        disk = rows * self.known.row_bytes + SMALL_FILES
        return StageForecast(rows=rows, disk=disk, seconds=disk / READ_BYTES + Range(0, 120))

    def _regenerate(self) -> StageForecast:
        chain = self.chain
        disk = self._texts(chain.answered) + SMALL_FILES
        if self.shapes is None:
            return StageForecast(rows=chain.prompts, tokens=chain.written, disk=disk)
        config = self.settings.regenerate
        batch = config.batch_size if self.machine.engine == "local" else self.settings.server.max_concurrency
        seconds = self.machine.decode_seconds(chain.written, chain.replies.high, chain.row, self.shapes, batch)
        if self.own_seconds is not None:
            seconds = seconds.at_most(self.own_seconds)
        seconds += self.machine.start_seconds()
        if config.recorded and self.own_seconds is None:
            seconds = Range(0, seconds.high)
        memory = self._decoding_memory(batch, chain.row)
        return StageForecast(chain.prompts, chain.written, disk, memory, seconds)

    def _merge(self) -> StageForecast:
        rows = self._all_rows()
        disk = self._texts(rows) + SMALL_FILES
        return StageForecast(rows=rows, disk=disk, seconds=disk / READ_BYTES + Range(0, 5))

    def _cache(self) -> StageForecast:
        tokens = self._all_tokens()
        vocab = self.shapes.target.vocab if self.shapes else 300_000
        disk = tokens * TOKEN_BYTES * Range(0.9, 1.2) + self._all_rows() * Range(0, 80)
        disk += Range(8, 80) * vocab + SMALL_FILES
        return StageForecast(self._all_rows(), tokens, disk, seconds=tokens / TOKENS_READ + Range(1, 20))

    def _hidden_states(self) -> StageForecast:
        rows, tokens = self._all_rows(), self._all_tokens()
        if self.shapes is None:
            return StageForecast(rows=rows, tokens=tokens)
        seconds = self.machine.capture_seconds(tokens, self.shapes) + START_SECONDS
        return StageForecast(rows, tokens, self._store(), self._capture_memory(), seconds)

    def _train(self) -> StageForecast:
        chain = self.chain
        steps, seen = training.steps_of(self.settings, chain.trained)
        tokens = None if steps is None else seen * chain.row
        if self.shapes is None:
            return StageForecast(rows=chain.trained, tokens=tokens)
        data = (chain.trained, chain.row, chain.loss)
        budget = parse_duration(self.settings.train.time_budget)
        if tokens is None and budget is not None:
            tokens = training.tokens_within(self.machine, self.shapes, *data, budget)
        return StageForecast(
            rows=chain.trained,
            tokens=tokens,
            disk=training.disk_of_training(self.settings, self.shapes, steps),
            memory=training.memory_of_training(self.machine, self.shapes, *data),
            seconds=training.seconds_of_training(self.machine, self.shapes, *data, chain.held),
        )

    def _eval(self) -> StageForecast:
        rows = self.chain.held.at_most(self.settings.eval.rows or self.settings.run.held_out_prompts)
        tokens = rows * self.chain.row * Range(0.5, 1.5)
        if self.shapes is None:
            return StageForecast(rows=rows, tokens=tokens)
        seconds = training.seconds_of_evaluation(self.machine, self.shapes, tokens, self.chain.row, self.chain.loss)
        memory = training.memory_of_evaluation(self.machine, self.shapes, self.chain.row)
        return StageForecast(rows, tokens, Range(0, 100_000), memory, seconds)

    def _export(self) -> StageForecast:
        if self.shapes is None:
            return StageForecast()
        size = draft_weights(self.shapes.draft) * SAVED_DTYPES[self.settings.export.dtype]
        disk = Range(0.95 * size, 1.05 * size + 16 * self.shapes.draft.vocab_size + 20_000)
        return StageForecast(disk=disk, seconds=disk / Range(5e7, 2e9) + Range(0.1, 20))

    def _bench(self) -> StageForecast:
        parts = self._measurements()
        answers = sum((part.answers for part in parts), Range(0, 0))
        tokens = sum((part.answers * part.tokens for part in parts), Range(0, 0))
        disk = answers * ANSWER_BYTES + tokens * Range(0, 8) + SMALL_FILES * Range(1, 4)
        prompts = self.chain.held.at_most(self.settings.run.held_out_prompts) + Range(0, parts[-1].answers.high)
        if self.shapes is None:
            return StageForecast(rows=prompts, tokens=tokens, disk=disk)
        seconds = self.machine.start_seconds(len(parts))
        row = self.chain.row
        for part in parts:
            work = part.answers * part.tokens
            options = (part.answers.high, row, self.shapes, part.batch, part.depth)
            seconds += self.machine.decode_seconds(work, *options)
        memory = self._decoding_memory(max(part.batch for part in parts), row)
        return StageForecast(prompts, tokens, disk, memory, seconds)

    def _measurements(self) -> list[Measurement]:
        """All of bench: the held-out prompts, those that are timed, then the tasks, of which some may not be there."""
        run, bench = self.settings.run, self.settings.bench
        held = self.chain.held.at_most(run.held_out_prompts) * bench.repeats
        timed = self.chain.held.at_most(run.speed_prompts) * bench.repeats
        new = Range(max(1.0, run.new_tokens / 8), run.new_tokens)
        depths = sorted({0, *(k for k in (1, 2, 3, run.k) if k <= run.k)})
        parts = [Measurement(held, new, run.batch_size, depth) for depth in (0, run.k)]
        parts += [Measurement(timed, new, 1, depth) for depth in depths]
        questions = float(sum(map(_questions, bench.benchmark_list)) * bench.repeats * len(set(bench.temperature)))
        configs = with_baselines([parse_config(text) for text in bench.config_list])
        asked = Range(1.0, bench.max_tokens)
        return parts + [Measurement(Range(0, questions), asked, each.batch, each.steps) for each in configs]

    def _all_rows(self) -> Range:
        return (self.chain.trained + self.chain.held).at_most(self.chain.answered.high)

    def _all_tokens(self) -> Range:
        return self._all_rows() * self.chain.row

    def _texts(self, rows: Range) -> Range:
        """Bytes of rows with their replies."""
        chain = self.chain
        replies = chain.written / Range(max(1.0, chain.prompts.low), max(1.0, chain.prompts.high))
        replies = Range(max(replies.low, 0.0), replies.high)
        whole = Range(0.2 * self.known.row_bytes.low, self.known.row_bytes.high)
        return rows * (whole + replies * self.known.bytes_per_token + ROW_BYTES * self.known.turns)

    def _store(self) -> Range:
        """Bytes of both stores; int4 to int8 where the settings leave it open."""
        assert self.shapes is not None
        encoding = self.settings.hidden_states.encoding
        names: tuple[Quantization, ...] = ("int4", "int8") if encoding == "auto" else (encoding,)
        ends = [self._bytes(self.chain.trained, name) + self._bytes(self.chain.held, "bf16") for name in names]
        return between(ends[0], ends[-1]) + SMALL_FILES

    def _bytes(self, rows: Range, encoding: Quantization) -> Range:
        assert self.shapes is not None
        draft = self.shapes.draft
        codec = empty_codec(encoding, layers=len(draft.aux_layers), hidden=draft.target_hidden_size)
        row, loss = self.chain.row, self.chain.loss
        ends = [(row.low, row.low if loss.low else 0, loss.low), (row.high, row.high, min(row.high, loss.high + 1))]
        low, high = (float(codec.sizes(torch.tensor([[round(n) for n in end]])).sum()) for end in ends)
        return Range(0.6 * rows.low * low, 1.1 * rows.high * high)

    def _capture_memory(self) -> Range:
        assert self.shapes is not None
        tokens = self.settings.hidden_states.batch_tokens
        aux = self.shapes.draft.aux_width
        each = self._element()
        passes = sum(pass_parts(self.shapes.target, tokens, tokens, aux=aux, each=each).values())
        weights = self.shapes.target.weight_bytes(each) / self.settings.target.tp_size
        return Range(weights, weights + 1.5 * passes + 1.5e9)

    def _decoding_memory(self, batch: int, context: Range) -> Range:
        assert self.shapes is not None
        each = self._element()
        target = self.shapes.target
        weights = target.weight_bytes(each) / max(1, self.settings.server.tp_size)
        if self.machine.engine != "local":
            whole = self.machine.memory or 0
            return Range(max(weights, SERVER_MEMORY.low * whole), max(weights, SERVER_MEMORY.high * whole))
        cache = 2 * target.key_value * target.layers * each * batch
        logits = 6.0 * 4 * batch * target.vocab
        return Range(weights, 1.2 * weights + cache * 2 * context.high + logits + 1.5e9)

    def _element(self) -> int:
        return 4 if self.machine.device == "cpu" and self.settings.target.dtype in ("auto", "float32") else 2


def _questions(word: str) -> int:
    """The rows of NAME:ROWS."""
    count = word.rpartition(":")[2]
    return int(count) if count.isdecimal() else 1000
