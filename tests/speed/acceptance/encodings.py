"""What each encoding of hidden states costs: bytes, error, and acceptance length after the same training.

    python tests/speed/acceptance/encodings.py --store runs/quickstart/hidden_states/train \
        --eval-store runs/held_out/train \
        --target runs/quickstart/target/SmolLM2-135M-Instruct.Q4_1 --output runs/encodings [--steps 242] [--seeds 0 1]

Both stores must be bf16. The first is converted to every other encoding by ``eagle3 hidden-states convert``; ``eagle3
train`` with the quickstart's settings and ``eagle3 eval`` do the rest, on one thread. SpecForge's size is that of files
written here in its format (ids and mask in int64, all states in bf16, one file a row). Run again it goes
on where it stopped. One JSON line an encoding.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from eagle3cli.data.hidden_states.quantize import QUANTIZATIONS
from eagle3cli.data.hidden_states.store import Store
from eagle3cli.settings.packaged import find_recipe

SPECFORGE_ROWS = 64


def arguments() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="a bf16 store to train on")
    parser.add_argument("--eval-store", type=Path, required=True, help="a bf16 store of other replies")
    parser.add_argument("--target", required=True, help="the target's folder")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--encodings", nargs="+", choices=QUANTIZATIONS, default=list(QUANTIZATIONS))
    parser.add_argument("--steps", type=int, default=242)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--k", type=int, default=5, help="draft steps of the acceptance length")
    return parser.parse_args()


def eagle3(*words: str | Path) -> dict[str, Any]:
    """The result of a command."""
    line = [sys.executable, "-m", "eagle3cli", *map(str, words), "--threads", "1", "--json"]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def specforge_bytes(store: Store) -> float:
    """Bytes a token of some of these rows as SpecForge would write them."""
    layers, hidden = len(store.meta.aux_layers), store.meta.hidden_size
    tokens = written = 0
    with tempfile.TemporaryDirectory() as folder:
        for n in range(0, len(store), max(1, len(store) // SPECFORGE_ROWS)):
            length = store.lengths[n]
            row = {
                "input_ids": torch.zeros(length, dtype=torch.int64),
                "loss_mask": torch.zeros(length, dtype=torch.int64),
                "aux_hidden_state": torch.zeros(1, length, layers * hidden, dtype=torch.bfloat16),
                "hidden_state": torch.zeros(1, length, hidden, dtype=torch.bfloat16),
            }
            path = Path(folder) / f"data_{n}.ckpt"
            torch.save(row, path)
            written, tokens = written + path.stat().st_size, tokens + length
    return written / tokens


def converted(a: argparse.Namespace, encoding: str) -> Store:
    """The training store in this encoding."""
    if encoding == "bf16":
        return Store(a.store)
    folder = a.output / encoding
    if not (folder / "train").exists():
        eagle3("hidden-states", "convert", a.store, "--encoding", encoding, "--output-path", folder)
    return Store(folder / "train" if (folder / "train").exists() else folder)


def acceptance(a: argparse.Namespace, store: Store, seed: int) -> float:
    """Acceptance length of a draft that was trained on the store, on the held-out one."""
    given = ("--target-model-path", a.target, "--dtype", "float32")
    run = ("--output-dir", a.output / f"{store.meta.encoding}-{seed}", "--seed", str(seed))
    settings = ("--config", find_recipe("quickstart"), "--set", f"train.total_steps={a.steps}")
    eagle3("train", *settings, *given, *run, "--train-hidden-states-path", store.folder)
    draft = ("--draft-model-path", run[1], "--eval-hidden-states-path", a.eval_store)
    found = eagle3("eval", *given, *draft, "--depths", str(a.k))
    return float(found["acceptance_length"][str(a.k)])


def main() -> None:
    """Convert, train, measure."""
    a = arguments()
    a.output.mkdir(parents=True, exist_ok=True)
    specforge = specforge_bytes(Store(a.store))
    for encoding in a.encodings:
        store = converted(a, encoding)
        each = store.bytes / sum(store.lengths)
        sample = store.manifest.get("sample") or {}
        found = {
            "encoding": encoding,
            "bytes_per_token": round(each),
            "specforge_bytes_per_token": round(specforge),
            "smaller": round(specforge / each, 2),
            "relative_error": sample.get("error"),
            "acceptance_length": [acceptance(a, store, seed) for seed in a.seeds],
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
