"""A LoRA adapter of a run's target, and drafts for it: from the run's draft, and from nothing. Prints JSON lines.

    PYTHONPATH=. python tests/speed/acceptance/adapter.py --run runs/quickstart --output runs/adapter \
        --train draft:40:1e-4 target:40:1e-3

The adapter is made here, in plain torch, in peft's format, unless ``--adapter`` names one: every sentence of a reply
on a line of its own, behind "In short:". The target with the adapter then writes the replies to prompts of the run
and to its held-out ones. ``--train INIT:STEPS:RATE`` trains with that ``--draft-init`` and peak learning rate, on the
same rows; CPU seconds are those of the whole command.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

RANK, ALPHA, RATE, BATCH, TOKENS = 8, 16, 2e-3, 4, 128
MODULES = ("q_proj", "v_proj", "o_proj", "down_proj")
RECIPE = """
    --dtype fastest --draft-dtype fastest --batch-size 8 --optimizer muon --head-lr-scale 0 --ttt-length 3
    --warmup-ratio 0.015 --min-lr-ratio 0.02 --num-epochs 1000
"""
"""The quickstart's own, but for the epochs."""


class Lora(nn.Module):
    """A linear layer and what the adapter adds to it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.A = nn.Parameter(torch.randn(RANK, base.in_features) / base.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(base.out_features, RANK))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output with the adapter's."""
        low = F.linear(x, self.A.to(x.dtype))
        out: torch.Tensor = self.base(x) + ALPHA / RANK * F.linear(low, self.B.to(x.dtype))
        return out


def styled(reply: str) -> str:
    """The reply as the adapter is to write it."""
    sentences = [s.lstrip("-*0123456789. ") for s in re.split(r"(?<=[.!?:])\s+|\n+", reply)]
    return "In short:\n" + "\n".join(f"* {s}" for s in sentences if s)


def examples(rows: list[dict[str, Any]], tokenizer: Any, count: int) -> list[tuple[list[int], list[int]]]:
    """Tokens of prompt and styled reply, of rows that are short enough."""
    found = []
    for row in rows:
        asked = tokenizer.apply_chat_template(row["conversations"][:1], tokenize=False, add_generation_prompt=True)
        reply = styled(row["conversations"][1]["content"]) + tokenizer.eos_token
        prompt, answer = (tokenizer.encode(text, add_special_tokens=False) for text in (asked, reply))
        if row["finish"][0] == "stop" and len(prompt) + len(answer) <= TOKENS:
            found.append((prompt, answer))
    return found[:count]


def make_adapter(target: Path, rows: list[dict[str, Any]], folder: Path, steps: int) -> None:
    """Train the adapter and write it as ``save_pretrained`` of peft does."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(target)
    found = examples(rows, tokenizer, steps * BATCH)
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16).requires_grad_(False)
    layers = {name: Lora(m) for name, m in model.named_modules() if name.endswith(MODULES)}
    for name, layer in layers.items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = RATE * min(1, (step + 1) / 3) * (1 - step / steps)
        batch = [found[(step * BATCH + i) % len(found)] for i in range(BATCH)]
        width = max(len(prompt) + len(reply) for prompt, reply in batch)
        ids = torch.full((BATCH, width), tokenizer.pad_token_id)
        labels = torch.full((BATCH, width), -100)
        for i, (prompt, reply) in enumerate(batch):
            end = len(prompt) + len(reply)
            ids[i, :end] = torch.tensor(prompt + reply)
            labels[i, len(prompt) : end] = torch.tensor(reply)
        logits = model(input_ids=ids).logits[:, :-1].float()
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        print(f"adapter, step {step + 1}: loss {loss.item():.3f}", file=sys.stderr)
    folder.mkdir()
    tensors = {
        f"base_model.model.{name}.lora_{part}.weight": getattr(layer, part).detach()
        for name, layer in layers.items()
        for part in "AB"
    }
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "bias": "none"}
    config |= {"target_modules": MODULES, "base_model_name_or_path": target.name}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def eagle3(*words: object) -> tuple[dict[str, Any], float]:
    """A command's result and its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    argv = [sys.executable, "-m", "eagle3cli", *map(str, words), "--json"]
    out = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return json.loads(out), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Make what is not there yet, train, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--adapter-steps", type=int, default=30)
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--train", nargs="+", default=["draft:40:1e-4", "target:40:1e-3"])
    a = parser.parse_args()
    a.output.mkdir(parents=True, exist_ok=True)
    target = next((a.run / "target").iterdir())
    rows = [json.loads(line) for line in (a.run / "dataset" / "train.jsonl").open()]
    adapter = a.adapter or a.output / "in-short"
    if not adapter.is_dir():
        make_adapter(target, rows[1000:], adapter, a.adapter_steps)
    where = ("--target-model-path", target, "--target-adapter", adapter, "--cache-dir", a.output / "cache")
    held_out = [json.loads(line) for line in (a.run / "dataset" / "eval.jsonl").open()]
    data = {}
    for name, some in (("train", rows[-a.rows :]), ("eval", held_out)):
        asked = a.output / f"{name}.jsonl"
        asked.write_text("".join(json.dumps(row) + "\n" for row in some))
        written = ("--input-path", asked, "--output-dir", a.output / name, "--engine", "local", "--max-tokens", 96)
        eagle3("regenerate", *where, *written, "--dtype", "fastest")
        data[name] = next((a.output / name).glob("shard_*.jsonl"))
    drafts = {"base draft": (a.run / "draft", 0.0)}
    for what in a.train:
        init, steps, rate = what.split(":")
        folder = a.output / what.replace(":", "-")
        begin = ("--draft-model-path", a.run / "draft") if init == "draft" else ("--draft-vocab-size", 8192)
        words = (*where, "--train-data-path", data["train"], "--draft-init", init, *begin, "--output-dir", folder)
        _, cpu = eagle3("train", *words, *RECIPE.split(), "--total-steps", steps, "--learning-rate", rate)
        drafts[what] = (folder / "best", cpu)
    for what, (folder, cpu) in drafts.items():
        words = (*where, "--draft-model-path", folder, "--eval-data-path", data["eval"], "--dtype", "fastest")
        result, _ = eagle3("eval", *words)
        print(json.dumps({"draft": what, "cpu_s": round(cpu), "acceptance": result["acceptance_length"]}), flush=True)


if __name__ == "__main__":
    main()
