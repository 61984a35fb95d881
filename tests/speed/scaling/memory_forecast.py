"""The forecast of a training run's memory beside what the run takes: real `eagle3 train` processes on the CPU.

    PYTHONPATH=. python tests/speed/scaling/memory_forecast.py                 # all settings, some three CPU minutes
    PYTHONPATH=. python tests/speed/scaling/memory_forecast.py --only offline  # those whose name begins so

Every line is one run: what `eagle3 train --dry-run` foretells before it, and the highest resident memory of the process
that then trains (one step, then a checkpoint).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
COLOURS = ("red", "blue", "green", "small", "large", "round", "square", "old", "new", "warm", "list", "numbers")


@dataclass(frozen=True)
class Model:
    """A random target; the tokens that it prefers are those that its tokenizer has."""

    hidden: int
    layers: int
    heads: int
    groups: int
    intermediate: int
    vocab: int

    def write(self, folder: Path) -> None:
        """Write it, with its tokenizer."""
        import torch
        from transformers import AutoModelForCausalLM, LlamaConfig

        from tests.tiny import tiny_tokenizer

        tokenizer = tiny_tokenizer()
        config = LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.groups,
            head_dim=self.hidden // self.heads,
            max_position_embeddings=131_072,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.get_input_embeddings().weight.data[len(tokenizer) :] *= 0.1
        model.generation_config.eos_token_id = [2]
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


MODELS = {
    "small": Model(256, 8, 4, 2, 704, 4096),
    "mid": Model(512, 12, 8, 4, 1408, 32_000),
    "wide": Model(384, 6, 6, 3, 1024, 128_256),
}
DATA = {"short": (32, 70, 0.7), "long": (6, 800, 0.8)}
"""Rows, words of each and the reply's share of them."""
CASES = {
    "small vocabulary, 7 depths": "small long --draft-vocab-size 2048 --draft-init random",
    "32k vocabulary, 5 depths": "mid long --draft-vocab-size 16000 --draft-init random --ttt-length 5",
    "the same, checkpointing": "mid long --draft-vocab-size 16000 --draft-init random --ttt-length 5 "
    "--activation-checkpointing",
    "the same, batch of 2": "mid long --draft-vocab-size 16000 --draft-init random --ttt-length 5 --batch-size 2",
    "the same, micro batch of 1": "mid long --draft-vocab-size 16000 --draft-init random --ttt-length 5 --batch-size 2 "
    "--draft-micro-batch-size 1",
    "bfloat16 draft": "mid long --draft-vocab-size 16000 --draft-init random --ttt-length 3 --draft-dtype bfloat16",
    "128k vocabulary, 2 depths, short rows": "wide short --draft-vocab-size 64000 --draft-init random --ttt-length 2 "
    "--batch-size 4",
    "loss over the whole vocabulary": "wide short --draft-vocab-size 32000 --draft-init random --ttt-length 2 "
    "--batch-size 4 --loss mix",
    "initial weights from the target": "mid short --draft-vocab-size 8000 --ttt-length 2 --batch-size 4",
    "offline, 32k vocabulary, 5 depths": "mid long --mode offline --draft-vocab-size 16000 --draft-init random "
    "--ttt-length 5",
    "offline, 128k vocabulary": "wide short --mode offline --draft-vocab-size 64000 --draft-init random --ttt-length 3 "
    "--batch-size 8",
}


def write_rows(path: Path, count: int, words: int, share: float) -> None:
    """Conversations of one turn."""
    drawn = random.Random(0)
    with path.open("w") as f:
        for number in range(count):
            asked, said = (
                " ".join(drawn.choice(COLOURS) for _ in range(round(words * part))) for part in (1 - share, share)
            )
            turns = [{"role": "user", "content": f"{asked} {number}"}, {"role": "assistant", "content": said}]
            f.write(json.dumps({"id": f"row-{number}", "conversations": turns}) + "\n")


def eagle3(folder: Path, *words: str) -> tuple[Any, float]:
    """Result and highest resident megabytes of one command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "eagle3cli", *words, "--json"]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)} failed:\n{out.decode()}")
    return json.loads(out), usage.ru_maxrss * 1024 / 1e6


def measure(folder: Path, case: str) -> tuple[Any, float]:
    """The plan of a case and the megabytes that its run took; the targets are in ``folder`` already."""
    model, data, *words = case.split()
    named = ["--target-model-path", model]
    tokens = [*named, "--train-data-path", f"{data}.jsonl"]
    size = words[words.index("--draft-vocab-size") + 1]
    if "offline" in words:
        store = f"states-{model}-{data}"
        eagle3(folder, "hidden-states", *tokens, "--draft-vocab-size", size, "--output-path", store)
        tokens = [*named, "--train-hidden-states-path", f"{store}/train"]
    else:
        eagle3(folder, "cache", *tokens, "--draft-vocab-size", size)
    once = ["--total-steps", "1"] if "--batch-size" in words else ["--total-steps", "1", "--batch-size", "1"]
    asked = ["train", *tokens, *words, *once, "--threads", "1", "--output-dir", "run", "--overwrite"]
    return eagle3(folder, *asked, "--dry-run")[0], eagle3(folder, *asked)[1]


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="begins of the names of the settings to measure")
    wanted = tuple(parser.parse_args().only)
    cases = {name: case for name, case in CASES.items() if name.startswith(wanted)}
    worst = 1.0
    print("| setting | forecast MB | measured MB | ratio | most at |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in {case.split()[0] for case in cases.values()}:
            MODELS[model].write(folder / model)
        for data, shape in DATA.items():
            write_rows(folder / f"{data}.jsonl", *shape)
        for title, case in cases.items():
            plan, measured = measure(folder, case)
            foretold = plan["memory"]["peak_bytes"] / 1e6
            ratio = foretold / measured
            worst = max(worst, ratio, 1 / ratio)
            at = plan["memory"]["peak_at"]
            print(f"| {title} | {foretold:,.0f} | {measured:,.0f} | {ratio:.2f} | {at} |", flush=True)
    return int(worst > 1.15)


if __name__ == "__main__":
    sys.exit(main())
