"""Memory of a long row on one process and dealt to several (``--context-parallel``), beside what `plan` foretells.

    PYTHONPATH=. python tests/speed/scaling/context_parallel.py                          # 64k tokens on one and on two
    PYTHONPATH=. python tests/speed/scaling/context_parallel.py --length 16384 --processes 1 2 3

A narrow draft on states at random, in a store of the usual kind, so that no target has to run; with ``--window`` (1,024
tokens by default, 0 for none) the attention of 64k tokens takes seconds. Shown is the highest resident memory of the
first process, and what the row adds to a process's own: the same step over 64 tokens is taken off.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eagle3cli.backends.target.head import fingerprint
from eagle3cli.data.hidden_states.rows import StateRow, aux_count, count_rows, row_codec, teacher_positions
from eagle3cli.data.hidden_states.store import StoreMeta, vocab_hash
from eagle3cli.data.hidden_states.writer import Index, StoreWriter, plan_layout
from eagle3cli.data.tokens.rows import TokenRow
from eagle3cli.data.tokens.vocab import from_ids
from eagle3cli.runtime.report import Silent
from tests.speed.scaling.memory_forecast import ROOT, Model

HIDDEN, VOCAB, DRAFT_VOCAB, STEPS = 64, 4096, 2048, 3
AUX_LAYERS = (1, 3, 4)
WITH_LOSS = 0.7
LEAST = 64


def write_store(folder: Path, target: Path, length: int) -> None:
    """One row of so many tokens, the end of it a reply."""
    random = torch.Generator().manual_seed(0)
    mask = np.arange(length) >= (1 - WITH_LOSS) * length
    row = TokenRow(
        "long", torch.randint(0, DRAFT_VOCAB, (length,), generator=random).int().numpy(), mask.view(np.uint8)
    )
    where = teacher_positions(torch.from_numpy(mask))
    states = StateRow(
        token_ids_S=torch.from_numpy(row.token_ids.astype("int64")),
        loss_mask_S=torch.from_numpy(mask),
        aux_UC=torch.randn(aux_count(where), HIDDEN * len(AUX_LAYERS), generator=random).bfloat16(),
        last_RH=torch.randn(len(where), HIDDEN, generator=random).bfloat16(),
        top_R=torch.randint(0, DRAFT_VOCAB, (len(where),), generator=random),
    )
    vocab = from_ids(list(range(DRAFT_VOCAB)), VOCAB)
    codec = row_codec("bf16", layers=len(AUX_LAYERS), hidden=HIDDEN, aux_RC=states.aux_UC, last_RH=states.last_RH)
    index = Index(count_rows([row]), codec, vocab)
    meta = StoreMeta(
        target=str(target),
        revision=None,
        target_hash=fingerprint(str(target)),
        aux_layers=AUX_LAYERS,
        hidden_size=HIDDEN,
        vocab_size=VOCAB,
        compute_dtype="float32",
        data_hash=index.counts.data_hash,
        rows=1,
        vocab_hash=vocab_hash(vocab),
        shard_mb=1000,
        encoding="bf16",
    )
    with StoreWriter(folder, meta, plan_layout(index.counts, codec, shard_mb=1000), index, Silent()) as store:
        for shard in store.pending:
            with store.writing(shard) as put:
                put(0, codec.pack([states])[0])
        store.finish()


def eagle3(folder: Path, *words: str) -> tuple[Any, float]:
    """What a command says, and the most megabytes that one of its processes had to itself.

    The files that are mapped into a process are left out: how much of them counts as resident varies by 170 MB.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "eagle3cli", *words, "--json"]
    out, errors = folder / "out.json", folder / "errors.txt"
    with out.open("w") as told, errors.open("w") as failed:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=told, stderr=failed)
    most = 0.0
    while process.poll() is None:
        most = max(most, *map(own_megabytes, family(process.pid)))
        time.sleep(0.01)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors.read_text()[-3000:]}")
    return json.loads(out.read_text()), most


def family(pid: int) -> list[int]:
    """A process and all that it has started."""
    children: list[int] = []
    with suppress(OSError):
        for file in Path(f"/proc/{pid}/task").glob("*/children"):
            children += [each for child in file.read_text().split() for each in family(int(child))]
    return [pid, *children]


def own_megabytes(pid: int | str) -> float:
    """Resident memory of a process that is no file's; 0 where it has just ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


@dataclass(frozen=True)
class Measured:
    """Megabytes of one process of a run, and the loss of its first step."""

    foretold: float
    resident: float
    """At most, by the run's own history."""
    own: float
    """The same without the files that are mapped into it."""
    loss: float


def measure(folder: Path, store: str, processes: int, window: int) -> Measured:
    """Two steps on the row of a store, planned and run."""
    words = ["train", "--mode", "offline", "--target-model-path", "target", "--train-hidden-states-path", store]
    words += ["--draft-init", "random", "--ttt-length", str(STEPS), "--batch-size", "1", "--total-steps", "2"]
    words += ["--num-epochs", "2", "--log-interval", "1", "--threads", "1", "--output-dir", "run", "--overwrite"]
    words += ["--draft-window", str(window)] if window else []
    words += ["--gpus", str(processes), "--context-parallel", str(processes)] if processes > 1 else []
    foretold = eagle3(folder, *words, "--dry-run")[0]["memory"]["peak_bytes"] / 1e6
    _, own = eagle3(folder, *words)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    return Measured(foretold, max(step["peak_memory"] for step in steps) / 1e6, own, steps[0]["loss"])


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=65_536)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--window", type=int, default=1024)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Model(HIDDEN, 8, 2, 1, 176, VOCAB).write(folder / "target")
        for store, length in (("long", asked.length), ("short", LEAST)):
            write_store(folder / store, folder / "target", length)
        bare = measure(folder, "short", 1, asked.window)
        print(
            "| processes | forecast MB | measured MB | ratio | of the row | loss |\n|---|---|---|---|---|---|",
            flush=True,
        )
        for processes in asked.processes:
            run = measure(folder, "long", processes, asked.window)
            sizes = f"{run.foretold:,.0f} | {run.resident:,.0f} | {run.foretold / run.resident:.2f}"
            print(f"| {processes} | {sizes} | {run.own - bare.own:,.0f} | {run.loss:.6f} |", flush=True)


if __name__ == "__main__":
    main()
