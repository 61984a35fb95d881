"""Whether a hidden-state store is what it was when it was written: every byte, every count."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path

from eagle3cli.data.hidden_states.rows import LAST, PackedRow, add_row, aux_count, teacher_positions
from eagle3cli.data.hidden_states.store import Store
from eagle3cli.errors import DataError
from eagle3cli.runtime.report import Reporter

THREADS = 4


@dataclass(frozen=True)
class Damage:
    """Something that is not as it was written."""

    path: Path
    row: int | None
    """Row of the store; None where it is not one row's."""
    what: str

    def __str__(self) -> str:
        place = f"{self.path.name}: " if self.row is None else f"{self.path.name}: row {self.row}: "
        return place + self.what


def check_store(store: Store, report: Reporter) -> list[Damage]:
    """Read the whole store; what is wrong with it, in the order of the rows."""
    damage: list[Damage] = []
    digest = blake2b(digest_size=16)
    with (
        report.task(f"checking {store.folder.name}", len(store)) as task,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        for shard in range(len(store.shapes)):
            path = store.path(shard)
            numbers = range(store.starts[shard], store.starts[shard + 1])
            try:
                entry = store.shard(shard).entry
            except DataError as error:
                damage.append(Damage(path, None, error.message))
                continue
            if entry != store.manifest["files"].get(path.name):
                damage.append(Damage(path, None, "its table of checksums is not the one that was written"))
            for number, (ids, mask, wrong) in zip(numbers, pool.map(partial(_read, store), numbers), strict=True):
                damage += [Damage(path, number, what) for what in wrong]
                add_row(digest, ids, mask)
                task.advance()
    if not damage and digest.hexdigest() != store.meta.data_hash:
        damage.append(Damage(store.folder, None, "tokens and masks are not those that were captured"))
    return damage


def _read(store: Store, number: int) -> tuple[bytes, bytes, list[str]]:
    """A row's token ids and mask, and what is wrong with it; no ids where its bytes are damaged."""
    try:
        row = store.packed(number)
    except DataError as error:
        return b"", b"", [error.message]
    return row.token_ids_S.numpy().tobytes(), row.loss_mask_S.numpy().tobytes(), list(_wrong(store, row, number))


def _wrong(store: Store, row: PackedRow, number: int) -> Iterator[str]:
    """What does not fit in a row whose bytes are as they were written."""
    teacher = teacher_positions(row.loss_mask_S)
    if (aux_count(teacher), len(teacher)) != tuple(store.counts_N3[number, LAST - 1 :].tolist()):
        yield "its counts do not fit its mask"
    for name, ids in (("token ids", row.token_ids_S), ("top tokens", row.top_R)):
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < store.meta.vocab_size:
            yield f"{name} outside the vocabulary of {store.meta.vocab_size}"
    if len(row.loss_mask_S) and int(row.loss_mask_S.max()) > 1:
        yield "its mask holds other values than 0 and 1"
