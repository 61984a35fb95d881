"""Training on one process and on two: tokens a second, efficiency, and where a step's time goes.

Run it as: python tests/speed/scaling/scale.py [--processes 1 2] [--steps 12] [--hidden 256] [--sharding replicate]

A random target of the given width and made-up conversations; the hidden states are captured once, then `eagle3 train
--mode offline --gpus N` runs with one thread a process, and its metrics.jsonl says what it took. The first quarter of
the steps is left out. Beside it stands what ``eagle3cli/training/forecast/throughput.py`` foretells from the run of
one process and a timed all-reduce. Cores that the processes share with each other or with other programs make wall
times worse than those of a machine with a core for each; CPU seconds suffer less, so both are foretold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from eagle3cli.runtime.cpus import available_cpus
from eagle3cli.training.forecast.throughput import OPTIMISER_BYTES, Cluster, Link, Step, step_time

ROOT = Path(__file__).resolve().parents[3]
WORDS = ("red", "blue", "green", "small", "large", "round", "square", "old", "new", "warm", "and", "then", "the")
PARTS = ("reading", "forward", "backward", "optimiser", "waiting", "communication", "other")
SETTINGS = """
[target]
model_path = "target"
threads = 1
[draft]
init = "random"
vocab_size = 2048
[data]
train_path = "train.jsonl"
max_length = 512
[hidden_states]
output_path = "states"
[train]
mode = "offline"
batch_size = 8
learning_rate = 1e-4
ttt_length = 5
num_epochs = 9999
eval_interval = 9999
save_interval = 9999
log_interval = 1
"""
ALL_REDUCE = """
import sys, time, torch, torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo")
for size in map(int, sys.argv[1:]):
    values, times = torch.zeros(size), []
    for _ in range(12):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(values)
        times.append(time.perf_counter() - began)
    if dist.get_rank() == 0:
        print(sorted(times)[len(times) // 2])
dist.destroy_process_group()
"""


def make_place(folder: Path, hidden: int) -> None:
    """A target, conversations, settings, hidden states."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    sys.path.insert(0, str(ROOT))
    from tests.tiny import tiny_tokenizer

    torch.manual_seed(0)
    shape = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_attention_heads": hidden // 32}
    config = LlamaConfig(**shape, num_hidden_layers=8, vocab_size=8192, eos_token_id=2, pad_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "target")
    tiny_tokenizer().save_pretrained(folder / "target")
    rng = random.Random(0)
    with (folder / "train.jsonl").open("w") as f:
        for n in range(64):
            reply = " ".join(rng.choices(WORDS, k=rng.randint(20, 80)))
            turns = [{"role": "user", "content": f"Row {n}, please."}, {"role": "assistant", "content": reply}]
            f.write(json.dumps({"id": str(n), "conversations": turns}) + "\n")
    (folder / "eagle3.toml").write_text(SETTINGS)
    run(folder, "-m", "eagle3cli", "hidden-states")


def run(folder: Path, *words: str) -> str:
    """A Python command with one thread; what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return done.stdout


def measure(folder: Path, processes: int, steps: int, sharding: str) -> dict[str, Any]:
    """What steps of a run take: seconds by part, tokens, CPU seconds, means over the steps."""
    name = f"run{processes}"
    words = ("--gpus", str(processes), "--total-steps", str(steps), "--draft-sharding", sharding, "--output-dir", name)
    run(folder, "-m", "eagle3cli", "train", *words)
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    events = [line for line in lines if line["event"] == "step"]
    kept, skipped = events[steps // 4 :], events[steps // 4 - 1]
    tokens, seconds = sum(e["tokens"] for e in kept), kept[-1]["seconds"] - skipped["seconds"]
    parts = {part: sum(e["time"].get(part, 0.0) * e["tokens"] / e["tokens_per_s"] for e in kept) for part in PARTS}
    cpu = sum(e["processor_seconds"] for e in kept)
    return {"steps": len(kept), "tokens": tokens, "seconds": seconds, "cpu": cpu, **parts}


def link_of(folder: Path, processes: int) -> Link:
    """Bandwidth and latency of a ring of these processes, from the time of a small and of a large all-reduce."""
    script, sizes = folder / "all_reduce.py", (16, 8_000_000)
    script.write_text(ALL_REDUCE)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    small, large = map(float, run(folder, *torchrun, str(script), *map(str, sizes)).split())
    rounds = 2 * (processes - 1)
    return Link(rounds / processes * 4 * sizes[1] / max(1e-9, large - small), small / rounds)


def foretold(alone: dict[str, Any], weights: int, processes: int, link: Link, sharding: str, unit: str) -> float:
    """Seconds of a step on several processes, from those of one; ``unit``: ``seconds``, or ``cpu`` for CPU seconds."""
    per_step = alone[unit] / alone["seconds"] / alone["steps"]
    compute = per_step * sum(alone[part] for part in ("reading", "forward", "backward", "other"))
    tokens = alone["tokens"] / alone["steps"]
    memory = OPTIMISER_BYTES * weights / (per_step * alone["optimiser"])
    step = Step(round(tokens), weights, compute / tokens, sharded=sharding == "fsdp", weight_bytes=4)
    return step_time(step, Cluster(processes, flops=1.0, memory_bandwidth=memory, link=link)).total


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--sharding", default="replicate", choices=["replicate", "fsdp"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_place(folder, args.hidden)
        found = {count: measure(folder, count, args.steps, args.sharding) for count in sorted({1, *args.processes})}
        draft = json.loads((folder / "run1" / "best" / "config.json").read_text())
        weights = weights_of(folder / "run1" / "best")
        cores, width = len(available_cpus()), draft["hidden_size"]
        print(f"{cores} cores, draft of {weights / 1e6:.2f}M weights, hidden {width}")
        print("processes | tokens/s | efficiency | of CPU seconds | " + " | ".join(PARTS), end="")
        print(" | step s, foretold | CPU s of a process, foretold")
        alone = found[1]
        for count, m in found.items():
            rate, step = m["tokens"] / m["seconds"], m["seconds"] / m["steps"]
            efficiency = rate / count / (alone["tokens"] / alone["seconds"])
            by_cpu = (alone["cpu"] / alone["tokens"]) / (m["cpu"] / m["tokens"])
            link = link_of(folder, count) if count > 1 else Link(1.0, 0.0)
            told, told_cpu = (foretold(alone, weights, count, link, args.sharding, unit) for unit in ("seconds", "cpu"))
            cpu = m["cpu"] / m["steps"] / count
            shares = " | ".join(f"{m[part] / sum(m[p] for p in PARTS):.1%}" for part in PARTS)
            print(f"{count} | {rate:,.0f} | {efficiency:.2f} | {by_cpu:.2f} | {shares}", end="")
            print(f" | {step:.3f}, {told:.3f} | {cpu:.3f}, {told_cpu:.3f}")


def weights_of(folder: Path) -> int:
    """Trained weights of a draft's folder."""
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    return sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point())


if __name__ == "__main__":
    main()
