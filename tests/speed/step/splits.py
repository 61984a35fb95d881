"""Which split of the GPUs a draft should be trained with: `train --target-gpus N` beside training on the same GPUs.

    python tests/speed/step/splits.py --target llama-3.1-8b --gpus 8
    python tests/speed/step/splits.py --target qwen3-235b-a22b --gpus 16 --tp-size 8

What `eagle3 plan` foretells for H100s (`eagle3cli/training/forecast/throughput.py`), over sequences of 2,048 tokens of
which the last half carries loss, 16,384 tokens a GPU and step. Memory is that of each GPU of a side. Nothing is run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch

from eagle3cli.backends.capture.memory import TargetShape
from eagle3cli.settings.tables import Settings
from eagle3cli.training.batches import Sampler
from eagle3cli.training.forecast.inputs import CUDA_CONTEXT, RowLengths, RunInputs
from eagle3cli.training.forecast.memory import forecast
from eagle3cli.training.forecast.speed import forecast_speed
from eagle3cli.training.forecast.target_rank import forecast_target_rank
from eagle3cli.training.forecast.workload import training_workload
from tests.speed.step.step_case import packaged

LENGTH = 2048
ROWS_A_GPU = 8
TARGETS = {
    "llama-3.1-8b": TargetShape(
        weights=8_030_261_248,
        layers=32,
        hidden=4096,
        intermediate=14336,
        key_value=1024,
        vocab=128256,
        tied=False,
    ),
    "qwen3-235b-a22b": TargetShape(
        weights=235_093_634_560,
        layers=94,
        hidden=4096,
        intermediate=8 * 1536,
        key_value=512,
        vocab=151936,
        tied=False,
    ),
}


def inputs_of(name: str, gpus: int) -> RunInputs:
    """The target, its draft and a data set of such rows."""
    rows = 50 * ROWS_A_GPU * gpus
    data = RowLengths([LENGTH] * rows, [LENGTH // 2] * rows, exact=True, where="made up")
    return RunInputs(
        draft=packaged(name),
        target=TARGETS[name],
        data=data,
        device="cuda",
        compute_dtype=torch.bfloat16,
        state_dtype=torch.bfloat16,
        process_bytes=CUDA_CONTEXT,
        available=None,
    )


def line(name: str, gpus: int, targets: int, tp_size: int) -> str:
    """A row of the table; ``targets`` is 0 where all GPUs do both."""
    batch = ROWS_A_GPU * gpus
    launch = {"target_gpus": targets} if targets else {}
    train = {"batch_size": batch, "max_tokens_per_gpu": 8 * LENGTH}
    settings = Settings.model_validate({"train": train, "launch": launch, "target": {"tp_size": tp_size}})
    inputs = inputs_of(name, gpus)
    work = training_workload(settings, inputs, gpus - targets, resumes=True)
    order = Sampler(len(inputs.data.lengths), batch, 0)
    speed = forecast_speed(settings, inputs, gpus - targets, order)
    memory = f"{forecast(work).peak_bytes / 1e9:.0f}"
    waits = " | "
    if speed.split is not None:
        memory = f"{forecast_target_rank(work).peak_bytes / 1e9:.0f}, {memory}"
        waits = f"{speed.split.target_waits:.0%} | {speed.split.draft_waits:.0%}"
    split = f"{targets}+{gpus - targets}" if targets else "all both"
    step = speed.step
    return f"| {split} | {1000 * step.total:,.0f} | {step.tokens_per_s:,.0f} | {waits} | {memory} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=tuple(TARGETS), default="llama-3.1-8b")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--tp-size", type=int, default=1)
    a = parser.parse_args()
    print("| target + draft | step, ms | tokens/s | target waits | draft waits | GB of a GPU: target, draft |")
    print("|---|---|---|---|---|---|")
    for targets in range(0, a.gpus, a.tp_size):
        print(line(a.target, a.gpus, targets, a.tp_size))


if __name__ == "__main__":
    main()
