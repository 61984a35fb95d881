"""From token rows to a hidden-state store: batches of similar length, one shard after another, resumable."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from eagle3cli.backends.head import fingerprint
from eagle3cli.backends.hf import HfTarget, pick_device
from eagle3cli.data.rows import TokenRow, TokenRows
from eagle3cli.data.store import StateRow, StoreMeta, aux_count, teacher_positions, vocab_hash
from eagle3cli.data.store_writer import Plan, StoreWriter, plan_store
from eagle3cli.data.vocab import VocabMapping
from eagle3cli.errors import DataError, Eagle3Error, ModelError
from eagle3cli.models.config import DraftConfig
from eagle3cli.runtime.devices import compute_type
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.stop import Stop
from eagle3cli.settings.tables import Target

SPARE_BYTES = 64_000_000
"""Free space that is left over on top of the forecast."""


@dataclass(frozen=True)
class Origin:
    """What the states come from, known before the target is loaded."""

    target: str
    target_hash: str
    aux_layers: tuple[int, ...]
    hidden_size: int
    vocab_size: int
    compute_dtype: str


def computing_in(target: Target, name: str) -> Target:
    """``target`` with the type that ``hidden_states.dtype`` names; auto leaves it as it is."""
    if name == "auto":
        return target
    kind = compute_type(name, pick_device(target.device))
    return target.model_copy(update={"dtype": str(kind).removeprefix("torch.")})


def origin_of(target: Target, draft: DraftConfig) -> Origin:
    """The origin that these settings mean, without loading the target."""
    own_type = "float32" if pick_device(target.device).type == "cpu" else "checkpoint"
    return Origin(
        target=target.model_path,
        target_hash=fingerprint(target.model_path, revision=target.revision),
        aux_layers=draft.aux_layers,
        hidden_size=draft.target_hidden_size,
        vocab_size=draft.vocab_size,
        compute_dtype=own_type if target.dtype == "auto" else target.dtype,
    )


@dataclass(frozen=True)
class Captured:
    """What one capture did; sizes are those of the whole store."""

    rows: int
    tokens: int
    bytes: int
    shards: int
    shards_before: int
    seconds: float


def capture(
    load: Callable[[], HfTarget],
    rows: Sequence[TokenRow] | TokenRows,
    folder: Path,
    origin: Origin,
    vocab: VocabMapping,
    *,
    batch_tokens: int,
    shard_mb: int,
    report: Reporter,
    stop: Stop,
) -> Captured:
    """Capture the rows' states into ``folder``, or what an earlier capture has left to do.

    ``load`` is called only when there is something to capture. Raises Eagle3Error when the forecast does not fit the
    disk or the disk fills up, Stopped on a signal; finished shards are kept.
    """
    began = time.monotonic()
    plan = plan_store(rows, hidden_size=origin.hidden_size, aux_layers=len(origin.aux_layers), shard_mb=shard_mb)
    tokens, _, teachers = (int(n) for n in plan.counts_N3.sum(0))
    if not teachers:
        fix = "check --chat-template, and look at the rows with `eagle3 view`"
        raise DataError(f"none of the {len(rows)} rows has a token that carries loss", where=str(folder), fix=fix)
    meta = StoreMeta(
        **vars(origin), data_hash=plan.data_hash, rows=len(rows), vocab_hash=vocab_hash(vocab), shard_mb=shard_mb
    )
    with StoreWriter(folder, meta, plan, vocab, report) as writer:
        pending = writer.pending
        needed = sum(plan.shard_bytes(shard) for shard in pending)
        if pending:
            _forecast(folder, plan, needed, tokens, report)
            target = load()
            before = [n for s in range(plan.shards) if s not in pending for n in plan.shard_rows(s)]
            done = int(plan.counts_N3[before, 0].sum())
            with report.task(f"capturing {folder.name}", tokens, unit="tokens", done=done) as task:
                for saved, shard in enumerate(pending, plan.shards - len(pending)):
                    numbers = plan.shard_rows(shard)
                    states: dict[int, StateRow] = {}
                    for batch in length_batches(numbers, [len(rows[n]) for n in numbers], batch_tokens):
                        stop.check(f"{saved} of {plan.shards} shards are saved in {folder}")
                        states.update(zip(batch, capture_batch(target, [rows[n] for n in batch]), strict=True))
                        task.advance(sum(len(rows[n]) for n in batch))
                    writer.write(shard, [states[n] for n in numbers])
        if not writer.complete:
            writer.finish()
    total = sum(file.stat().st_size for file in folder.iterdir())
    return Captured(len(rows), tokens, total, plan.shards, plan.shards - len(pending), time.monotonic() - began)


def length_batches(numbers: Sequence[int], lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Rows grouped so that a group, padded to its longest row, has at most ``batch_tokens``; longest rows first.

    A row longer than that comes alone.
    """
    order = sorted(range(len(numbers)), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    longest = 0
    for i in order:
        if batch and (len(batch) + 1) * longest > batch_tokens:
            yield batch
            batch = []
        if not batch:
            longest = lengths[i]
        batch.append(numbers[i])
    if batch:
        yield batch


def capture_batch(target: HfTarget, rows: Sequence[TokenRow]) -> list[StateRow]:
    """One pass of the target; of each row what a store keeps, in the store's type on the CPU."""
    try:
        states = target.capture([row.token_ids.tolist() for row in rows])
        found = []
        for row, (aux_SC, last_SH) in zip(rows, states, strict=True):
            mask = torch.from_numpy(row.loss_mask.astype(bool))
            where = teacher_positions(mask)
            last_RH = last_SH[where.to(last_SH.device)]
            found.append(
                StateRow(
                    token_ids_S=torch.from_numpy(row.token_ids.astype("int64")),
                    loss_mask_S=mask,
                    aux_UC=aux_SC[: aux_count(where)].to("cpu", torch.bfloat16, copy=True),
                    last_RH=last_RH.to("cpu", torch.bfloat16),
                    top_R=target.top_tokens(last_RH).cpu(),
                )
            )
    except torch.cuda.OutOfMemoryError as error:
        fix = "lower --batch-tokens (or --max-length) and run the same command again"
        raise ModelError("the GPU's memory is too small for a batch", where="--batch-tokens", fix=fix) from error
    return found


def _forecast(folder: Path, plan: Plan, needed: int, tokens: int, report: Reporter) -> None:
    """Say what the capture will take, and stop where it does not fit."""
    free = shutil.disk_usage(folder).free
    total = sum(plan.bytes_per_row)
    report.info(
        f"{folder}: {len(plan.bytes_per_row)} rows, {tokens} tokens, {plan.shards} shards, {size_text(total)} "
        f"({total / max(tokens, 1):.0f} bytes a token); {size_text(needed)} to write, {size_text(free)} free"
    )
    if needed + SPARE_BYTES > free:
        fix = "make space, choose another disk with --output-path, or capture fewer rows with --sample-size"
        raise Eagle3Error(f"needs {size_text(needed)} but {size_text(free)} are free", where=str(folder), fix=fix)


def size_text(count: int) -> str:
    """Bytes for people: 1.3 GB."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit in ("bytes", "kB") else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
