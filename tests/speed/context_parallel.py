"""Memory of a long row on one process and dealt to several (``--context-parallel``), beside what `plan` foretells.

    PYTHONPATH=. python tests/speed/context_parallel.py                          # 64k tokens on one and on two
    PYTHONPATH=. python tests/speed/context_parallel.py --length 16384 --processes 1 2 3

A narrow draft on states at random, in a store of the usual kind, so that no target has to run; with ``--window`` (1,024
tokens by default, 0 for none) the attention of 64k tokens takes seconds. Shown is the highest resident memory of the
first process, and what the row adds to it: the same step over 64 tokens is taken off.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
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
from tests.speed.memory_forecast import ROOT, Model

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


def eagle3(folder: Path, *words: str) -> Any:
    """What a command says."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "eagle3cli", *words, "--json"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout)


def measure(folder: Path, store: str, processes: int, window: int) -> tuple[float, float, float]:
    """Megabytes foretold and taken, and the loss of the first step."""
    words = ["train", "--mode", "offline", "--target-model-path", "target", "--train-hidden-states-path", store]
    words += ["--draft-init", "random", "--ttt-length", str(STEPS), "--batch-size", "1", "--total-steps", "2"]
    words += ["--num-epochs", "2", "--log-interval", "1", "--threads", "1", "--output-dir", "run", "--overwrite"]
    words += ["--draft-window", str(window)] if window else []
    words += ["--gpus", str(processes), "--context-parallel", str(processes)] if processes > 1 else []
    foretold = eagle3(folder, *words, "--dry-run")["memory"]["peak_bytes"] / 1e6
    eagle3(folder, *words)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    return foretold, max(step["peak_memory"] for step in steps) / 1e6, steps[0]["loss"]


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
        _, bare, _ = measure(folder, "short", 1, asked.window)
        print(
            "| processes | forecast MB | measured MB | ratio | of the row | loss |\n|---|---|---|---|---|---|",
            flush=True,
        )
        for processes in asked.processes:
            foretold, taken, loss = measure(folder, "long", processes, asked.window)
            ratio = foretold / taken
            print(
                f"| {processes} | {foretold:,.0f} | {taken:,.0f} | {ratio:.2f} | {taken - bare:,.0f} | {loss:.6f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
