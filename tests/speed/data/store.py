"""Whether reading hidden states feeds training, and whether memory stays flat over many rows.

    python tests/speed/data/store.py --store cache/hidden_states/train --target TARGET [--steps 12] [--set a.b=c ...]
    python tests/speed/data/store.py --rows 100000

The first line trains a few steps on the store with the quickstart's settings and compares with the loader alone, in the
same order, from the system's cache and from the disk. The second writes a store of many short rows to a temporary
folder and reads all of it in a shuffled order. One JSON line each; exit code 1 where the loader is less than 5 times as
fast as the steps, or memory grows by more than 32 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from eagle3cli.backends.batches.prefetch import Prefetched, read_ahead
from eagle3cli.backends.batches.store import StoreSource
from eagle3cli.data.hidden_states.quantize import QUANTIZATIONS
from eagle3cli.data.hidden_states.rows import PackedRow, StateRow, aux_count, count_rows, row_codec, teacher_positions
from eagle3cli.data.hidden_states.store import Index, Store, StoreMeta, vocab_hash
from eagle3cli.data.hidden_states.writer import StoreWriter, plan_layout
from eagle3cli.data.tokens.rows import TokenRow
from eagle3cli.data.tokens.vocab import from_ids
from eagle3cli.runtime.distributed import SINGLE_PROCESS
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.load import load
from eagle3cli.settings.packaged import find_recipe
from eagle3cli.training.batches import Sampler, upcoming
from eagle3cli.training.build import build

WANTED_RATIO, WANTED_GROWTH_MB = 5.0, 32.0
HIDDEN, LAYERS = 64, (1, 3, 4)


def arguments() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="a store that is there")
    parser.add_argument("--target", help="the target's folder")
    parser.add_argument("--steps", type=int, default=12, help="timed training steps")
    parser.add_argument("--set", nargs="*", default=[], help="settings on top of the quickstart's")
    parser.add_argument("--rows", type=int, help="make a store of so many rows")
    parser.add_argument("--encoding", choices=QUANTIZATIONS, default="int8", help="of the store that is made")
    return parser.parse_args()


def step_speed(store: Path, target: str, steps: int, sets: list[str]) -> float:
    """Tokens a second of whole training steps, after two that warm up."""
    with tempfile.TemporaryDirectory() as folder:
        given = [f"target.model_path={target}", f"data.train_hidden_states_path={store}", f"train.output_dir={folder}"]
        settings = load([find_recipe("quickstart")], [*given, "draft.init=random", *sets]).settings
        trainer = build(settings, Silent())
        spent, tokens = 0.0, 0
        for step in range(steps + 2):
            rows = trainer.batches.sampler.batch(step)
            began = time.perf_counter()
            trainer.train_step()
            if step >= 2:
                spent += time.perf_counter() - began
                tokens += sum(trainer.batches.source.lengths[row] for row in rows)
    return tokens / spent


def loader_speed(folder: Path, batch_size: int, *, cold: bool) -> float:
    """Tokens a second of the loader alone over one epoch in training order."""
    store = Store(folder)
    if cold:
        for path in folder.iterdir():
            with path.open("rb") as f:
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    order = Sampler(len(store), batch_size, seed=0)
    source = read_ahead(StoreSource(store), upcoming(order, 0, None, store.lengths, SINGLE_PROCESS))
    began = time.perf_counter()
    for step in range(order.steps_per_epoch):
        source.batch(order.batch(step))
    return sum(store.lengths) / (time.perf_counter() - began)


def head_travel_gb(folder: Path, batch_size: int) -> tuple[float, float]:
    """How far a disk's head goes in one epoch, in training order and in the order in which rows are read ahead."""
    store, read = Store(folder), list[int]()
    source = StoreSource(store)
    inner = source.stores.packed

    def packed(row: int) -> PackedRow:
        read.append(row)
        return inner(row)

    source.stores.packed = packed  # type: ignore[method-assign]
    order = Sampler(len(store), batch_size, seed=0)
    ahead = read_ahead(source, (order.batch(step) for step in range(order.steps_per_epoch)))
    for step in range(order.steps_per_epoch):
        ahead.batch(order.batch(step))
    begins = np.concatenate([[0], np.cumsum([store.size(row) for row in range(len(store))])])

    def travel(rows: list[int]) -> float:
        at = np.array(rows)
        return float(np.abs(begins[at[1:]] - begins[at[:-1] + 1]).sum() / 1e9)

    return travel(order.shuffled(0)), travel(read)


def made_rows(count: int) -> Iterator[TokenRow]:
    """Short rows, the second half of each a reply."""
    random = np.random.default_rng(0)
    for number in range(count):
        length = int(random.integers(20, 60))
        mask = np.zeros(length, dtype=np.uint8)
        mask[length // 2 :] = 1
        yield TokenRow(str(number), random.integers(0, 320, length).astype(np.int32), mask)


def make_store(folder: Path, count: int, encoding: str) -> None:
    """A store of random states."""
    random = torch.Generator().manual_seed(0)
    counts = count_rows(made_rows(count))
    sample = torch.randn(2000, 3 * HIDDEN, generator=random)
    codec = row_codec(encoding, layers=3, hidden=HIDDEN, aux_RC=sample, last_RH=sample[:, :HIDDEN])  # type: ignore[arg-type]
    vocab = from_ids(range(100), 320)
    shape = {"aux_layers": LAYERS, "hidden_size": HIDDEN, "vocab_size": 320, "rows": count, "shard_mb": 100}
    made = {"data_hash": counts.data_hash, "vocab_hash": vocab_hash(vocab), "encoding": encoding}
    meta = StoreMeta(target="", revision=None, target_hash="", compute_dtype="float32", **shape, **made)
    rows = made_rows(count)
    with StoreWriter(folder, meta, plan_layout(counts, codec, 100), Index(counts, codec, vocab), Silent()) as writer:
        for shard in writer.pending:
            with writer.writing(shard) as put:
                for number in writer.layout.rows(shard):
                    row = next(rows)
                    mask = torch.from_numpy(row.loss_mask).bool()
                    where = teacher_positions(mask)
                    states = torch.randn(aux_count(where), 3 * HIDDEN, generator=random)
                    ids = torch.from_numpy(row.token_ids).long()
                    packed = StateRow(ids, mask, states, states[: len(where), :HIDDEN], ids[: len(where)])
                    put(number, codec.pack([packed])[0])
        writer.finish()


def memory_mb() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def memory_over(folder: Path) -> dict[str, float]:
    """Memory after a tenth of the rows and at its highest from there on, reading all of them in a shuffled order."""
    store = Store(folder)
    order = Sampler(len(store), 8, seed=0)
    shuffled = order.shuffled(0)
    batches = [shuffled[at : at + 8] for at in range(0, len(shuffled), 8)]
    source = Prefetched(StoreSource(store), iter(batches), window_bytes=16_000_000)
    early, most = 0.0, 0.0
    for number, rows in enumerate(batches):
        source.batch(rows)
        if number == len(batches) // 10:
            early = memory_mb()
        if early and number % 100 == 0:
            most = max(most, memory_mb())
    return {"rows": len(store), "store_mb": store.bytes / 1e6, "after_a_tenth_mb": early, "most_mb": most}


def main() -> int:
    """Measure what was asked for."""
    a = arguments()
    torch.set_num_threads(1)
    good = True
    if a.store:
        step = step_speed(a.store, a.target, a.steps, a.set)
        batch = 8
        found = {name: loader_speed(a.store, batch, cold=name == "disk") for name in ("disk", "cache")}
        ratio = min(found.values()) / step
        good &= ratio >= WANTED_RATIO
        told = {"store": str(a.store), "encoding": Store(a.store).meta.encoding, "step_tokens_per_s": round(step, 1)}
        loader = {f"loader_{name}_tokens_per_s": round(speed) for name, speed in found.items()}
        apart, ahead = head_travel_gb(a.store, batch)
        travel = {"head_travel_gb": round(apart, 1), "head_travel_read_ahead_gb": round(ahead, 1)}
        print(json.dumps({**told, **loader, "ratio": round(ratio, 1), **travel}), flush=True)
    if a.rows:
        with tempfile.TemporaryDirectory() as place:
            make_store(Path(place) / "store", a.rows, a.encoding)
            found = memory_over(Path(place) / "store")
        good &= found["most_mb"] - found["after_a_tenth_mb"] <= WANTED_GROWTH_MB
        print(json.dumps({name: round(value, 1) for name, value in found.items()}), flush=True)
    return 0 if good else 1


sys.exit(main())
