"""From token rows to a hidden-state store: batches of similar length, one shard after another, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from eagle3cli.backends.capture.passes import length_batches, run_batch, take_sample
from eagle3cli.backends.target.head import fingerprint
from eagle3cli.backends.target.hf import pick_device
from eagle3cli.backends.target.on_policy import OnPolicyMeter
from eagle3cli.backends.target.target import LiveTarget
from eagle3cli.data.hidden_states.forecast import check_space, plan_store, report_size
from eagle3cli.data.hidden_states.quantize import Quantization
from eagle3cli.data.hidden_states.rows import TOKENS, RowCodec, RowCounts, count_rows
from eagle3cli.data.hidden_states.store import Index, StoreMeta, TargetIdentity, vocab_hash
from eagle3cli.data.hidden_states.writer import StoreWriter
from eagle3cli.data.tokens.rows import TokenRow, TokenRows, images_hash
from eagle3cli.data.tokens.vocab import VocabMapping
from eagle3cli.errors import DataError
from eagle3cli.models.config import DraftConfig
from eagle3cli.runtime.devices import compute_type
from eagle3cli.runtime.distributed import SINGLE_PROCESS, Ranks
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.stop import Stop
from eagle3cli.runtime.units import size_text, time_text
from eagle3cli.settings.models import TargetSettings

Rows = Sequence[TokenRow] | TokenRows


@dataclass(frozen=True)
class StoreOptions:
    """How a store is to be made."""

    encoding: Quantization | Literal["auto"]
    batch_tokens: int
    shard_mb: int
    batch_size: int | None = None


@dataclass(frozen=True)
class CaptureResult:
    """What one capture did; sizes are those of the whole store."""

    rows: int
    tokens: int
    bytes: int
    encoding: Quantization
    shards: int
    shards_before: int
    seconds: float

    def text(self, folder: Path) -> str:
        """For people; ``folder`` is the store's."""
        captured = self.shards - self.shards_before
        return (
            f"{self.rows} rows, {self.tokens} tokens, {self.encoding}, {size_text(self.bytes)} in {folder}; "
            f"{captured} of {self.shards} shards captured now, in {time_text(self.seconds)}"
        )


def with_compute_dtype(target: TargetSettings, name: str) -> TargetSettings:
    """``target`` with the type that ``hidden_states.dtype`` names; auto leaves it as it is."""
    if name == "auto":
        return target
    kind = compute_type(name, pick_device(target.device))
    return target.model_copy(update={"dtype": str(kind).removeprefix("torch.")})


def identify_target(target: TargetSettings, draft: DraftConfig) -> TargetIdentity:
    """The target that these settings mean, without loading the target."""
    own_type = "float32" if pick_device(target.device).type == "cpu" else "checkpoint"
    return TargetIdentity(
        target=target.model_path,
        revision=target.revision,
        target_hash=fingerprint(target.model_path, revision=target.revision),
        aux_layers=draft.aux_layers,
        hidden_size=draft.target_hidden_size,
        vocab_size=draft.vocab_size,
        compute_dtype=own_type if target.dtype == "auto" else target.dtype,
    )


def capture(
    load: Callable[[], LiveTarget],
    rows: Rows,
    folder: Path,
    identity: TargetIdentity,
    vocab: VocabMapping,
    options: StoreOptions,
    *,
    report: Reporter,
    stop: Stop,
    ranks: Ranks = SINGLE_PROCESS,
    meter: OnPolicyMeter | None = None,
) -> CaptureResult:
    """Capture the rows' states into ``folder``, or what an earlier capture has left to do; ``meter`` judges the rows.

    Of several ranks each captures every ``ranks.world_size``-th shard. ``load`` is called only when there is something
    to capture. Raises Eagle3Error when the forecast does not fit the disk or the disk fills up, Stopped on a signal;
    finished shards are kept.
    """
    started = time.monotonic()
    counts = count_rows(rows)
    if not bool((counts.counts_N3 > 0).all(1).any()):
        fix = "check --chat-template, and look at the rows with `eagle3 view`"
        raise DataError(
            "no-reply-tokens", f"none of the {len(rows)} rows has a token that carries loss", where=str(folder), fix=fix
        )
    with ranks.main_process_first():
        writer, codec, rate = _open(load, rows, folder, identity, vocab, options, counts, ranks, report)
    with writer:
        if writer.pending:
            if ranks.is_main and rate is not None:
                report.info(f"about {time_text(counts.tokens / rate)} at {rate:,.0f} tokens a second")
            _fill(writer, codec, load(), rows, counts, options, report, stop, meter)
        ranks.barrier()
        if ranks.is_main:
            writer.finish()
    seconds = time.monotonic() - started
    shards = (writer.layout.shards, writer.done_before)
    return CaptureResult(len(rows), counts.tokens, writer.bytes, writer.meta.encoding, *shards, seconds)


def _open(
    load: Callable[[], LiveTarget],
    rows: Rows,
    folder: Path,
    identity: TargetIdentity,
    vocab: VocabMapping,
    options: StoreOptions,
    counts: RowCounts,
    ranks: Ranks,
    report: Reporter,
) -> tuple[StoreWriter, RowCodec, float | None]:
    """Begin the store, with its encoding fitted to a sample, or find what an earlier run left; also tokens a second."""
    meta = StoreMeta(
        **vars(identity),
        data_hash=counts.data_hash,
        images_hash=images_hash(rows),
        rows=len(rows),
        vocab_hash=vocab_hash(vocab),
        shard_mb=options.shard_mb,
        encoding="bf16",  # until it is chosen
    )
    meta, layout, existing = plan_store(folder, meta, options.encoding, counts, report)
    if ranks.is_main:
        report_size(folder, layout, meta, counts, report)
    index = existing.index if existing is not None else None
    sample = None
    if index is None:
        check_space(folder, layout.total, report)
        sample = take_sample(load(), rows, counts, meta.encoding, options.batch_tokens)
        index = Index(counts, sample.codec, vocab)
        error = sample.facts["error"]
        report.info(
            f"{meta.encoding}: relative error {error['aux']:.2g} of auxiliary states, {error['last']:.2g} of last ones "
            f"(on {sample.facts['tokens']} tokens)"
        )
    writer = StoreWriter(
        folder,
        meta,
        layout,
        index,
        report,
        sample=sample.facts if sample is not None else None,
        computed=_computed(options),
        rank=ranks.rank,
        ranks=ranks.world_size,
    )
    if sample is None and writer.pending and ranks.is_main:
        check_space(folder, writer.bytes_left, report)
    return writer, index.codec, sample.tokens_per_second * ranks.world_size if sample is not None else None


def _computed(options: StoreOptions) -> dict[str, Any]:
    """What may change a state's last bits: the shapes and the number of parts in which it is computed."""
    return {
        "batch_tokens": options.batch_tokens,
        "batch_size": options.batch_size,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
    }


def _fill(
    writer: StoreWriter,
    codec: RowCodec,
    target: LiveTarget,
    rows: Rows,
    counts: RowCounts,
    options: StoreOptions,
    report: Reporter,
    stop: Stop,
    meter: OnPolicyMeter | None,
) -> None:
    """Capture this rank's pending shards; only one batch of states is in memory at a time."""
    codec = codec.to(target.device)
    layout = writer.layout
    folder = writer.folder
    lengths_N = counts.counts_N3[:, TOKENS]
    tokens = [
        int(lengths_N[layout.rows(shard).start : layout.rows(shard).stop].sum()) for shard in range(layout.shards)
    ]
    left = sum(tokens[shard] for shard in writer.pending)
    total = left if writer.ranks > 1 else sum(tokens)
    with report.task(f"capturing {folder.name}", total, unit="tokens", done=total - left) as task:
        for saved, shard in enumerate(writer.pending, writer.done_before):
            numbers = layout.rows(shard)
            lengths: list[int] = lengths_N[numbers.start : numbers.stop].tolist()
            with writer.writing(shard) as put:
                for batch in length_batches(numbers, lengths, options.batch_tokens, options.batch_size):
                    stop.check(f"{saved} of {layout.shards} shards are saved in {folder}")
                    states = run_batch(target, [rows[n] for n in batch], meter, batch)
                    for number, blob in zip(batch, codec.pack(states), strict=True):
                        put(number, blob)
                    task.advance(sum(len(row.token_ids_S) for row in states))
