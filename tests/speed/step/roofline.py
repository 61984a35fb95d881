"""A training step on an H100 that is not there: where its time and its memory go, from shapes alone.

    python tests/speed/step/roofline.py --target llama-3.1-8b --lengths 4096,4096,4096,4096 --mask 0.5
    python tests/speed/step/roofline.py --target qwen3-30b-a3b --lengths 32768 --mask 1.0 --recompute --json
    EAGLE3_SPECFORGE=VENV python tests/speed/step/roofline.py --peer specforge

The step is the product's own (``Trainer.train_step``) on the pretend GPU, with floating-point tensors that have no
numbers: ``tests/speed/step/cost.py`` says how it is counted and what the machine is taken to reach. ``floor_ms`` is the
time of its FLOP alone. ``peak_gb`` is the draft's memory (weights, masters, moments, the target's embedding and heads,
the batch and all that a step makes), without CUDA's own and without a live target. ``host_syncs`` are the places of one
step where the host waits for the GPU, ``graphs`` what Dynamo compiles of flex_attention over many lengths.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import flex_attention as torch_flex

from eagle3cli.models.draft import Draft
from eagle3cli.training.timers import Timers
from eagle3cli.training.trainer import Trainer
from eagle3cli.training.ttt import flex_attention, model
from tests.gpu_tensor import GpuTensor
from tests.pretend_gpu import pretend_gpu
from tests.speed.step.cost import CostMode, Costs
from tests.speed.step.kernel_models import modelled_kernels
from tests.speed.step.peer import count_peer
from tests.speed.step.specforge_model import Missing
from tests.speed.step.step_case import Case, make_trainer, packaged
from tests.training.ttt.test_flex_graphs import graphs_of_a_run, nothing_computed

TARGETS = ("llama-3.1-8b", "qwen3-30b-a3b", "gpt-oss-20b")
MIXED_STEPS = 40
"""Batches of random lengths over which graphs are counted."""


@dataclass
class PhaseTimers(Timers):
    """Names the phase of a step for what is counted in it."""

    costs: Costs = field(default_factory=Costs)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        with self.costs.in_phase(name):
            yield


def shape(fake: FakeTensorMode, *sizes: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor of the pretend GPU without numbers."""
    with fake:
        made = torch.empty(*sizes, dtype=dtype)
    return GpuTensor(made)


def make_draft(case: Case, fake: FakeTensorMode) -> Draft:
    """A bf16 draft whose weights have no numbers; the draft vocabulary is every so many tokens."""
    config = case.draft
    with fake:
        draft = Draft(config)
    draft.rotary = type(draft.rotary)(draft.rotary.config)
    for module in draft.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(shape(fake, *weight.shape))
    ids_W = case.draft_ids_W
    t2d = torch.zeros(config.vocab_size, dtype=torch.bool)
    t2d[ids_W] = True
    buffers = {"d2t": ids_W - torch.arange(len(ids_W)), "t2d": t2d, "aux_scale_C": torch.ones(config.aux_width)}
    for name, tensor in buffers.items():
        draft._buffers[name] = GpuTensor(tensor)
    for name, buffer in draft.rotary._buffers.items():
        draft.rotary._buffers[name] = GpuTensor(buffer)
    return draft


def standing_tensors(trainer: Trainer) -> list[Tensor]:
    """What stays from the first step to the last."""
    target = trainer.model.target
    heads = [head.weight_VH for head in (target.draft_head, target.whole_head) if head is not None]
    draft = trainer.draft
    states = trainer.optimizer.state().values()
    return [*draft.parameters(), *draft.buffers(), target.embedding_VH, *heads, *states]


def count_step(case: Case, *, explain: bool = False) -> tuple[Costs, Counter[str]]:
    """What one step costs, and how often the host waits in it."""
    costs = Costs(explain=explain)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    inner = model.fused_ttt_loss

    def loss(*given: Any, **named: Any) -> Any:
        with costs.in_phase("loss"):
            return inner(*given, **named)

    with ExitStack() as stack:
        gpu = stack.enter_context(pretend_gpu())
        stack.enter_context(modelled_kernels(costs))
        stack.enter_context(mock.patch.object(model, "fused_ttt_loss", loss))
        with costs.in_phase("standing"):
            draft = make_draft(case, fake)
            trainer = make_trainer(case, draft, partial(shape, fake), timers=PhaseTimers(costs=costs))
            for tensor in standing_tensors(trainer):
                costs.track(tensor, "standing")
        gpu.reset()
        with CostMode(costs, fake), costs.in_phase("planning"):
            trainer.train_step()
    return costs, gpu.syncs


def _accept(*_: Tensor) -> None:
    """Dynamo traces it, and no mock."""


def count_graphs() -> int:
    """Graphs that Dynamo makes of flex_attention over batches of many lengths; there is no kernel behind them."""
    higher_order = importlib.import_module("torch._higher_order_ops.flex_attention")
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch, "compile", partial(torch.compile, backend="eager")))
        stack.enter_context(mock.patch.object(torch_flex, "_validate_device", _accept))
        stack.enter_context(mock.patch.object(higher_order, "math_attention", nothing_computed))
        stack.callback(flex_attention._compiled.cache_clear)
        stack.callback(torch._dynamo.reset)
        torch._dynamo.reset()
        counters.clear()
        flex_attention._compiled.cache_clear()
        stack.enter_context(mock.patch.object(flex_attention, "_kernel_on", return_value=flex_attention._compiled()))
        return graphs_of_a_run(MIXED_STEPS)


def summary(name: str, case: Case, costs: Costs, syncs: Counter[str], graphs: int) -> dict[str, Any]:
    """The numbers of a case, as --json prints them."""
    total = costs.total()
    tokens = case.tokens
    return {
        "target": name,
        "lengths": list(case.lengths),
        "tokens": tokens,
        "mask": case.mask,
        "loss": case.loss,
        "ttt": case.ttt,
        "recompute": case.recompute,
        "step_ms": round(total.seconds * 1e3, 1),
        "floor_ms": round(total.floor * 1e3, 1),
        "tokens_per_s": round(tokens / total.seconds),
        "peak_gb": round(costs.peak / 1e9, 2),
        "launches": total.launches,
        "host_syncs": syncs.total(),
        "graphs": graphs,
        "phases": {
            phase: {
                "ms": round(costs.total(phase).seconds * 1e3, 1),
                "launches": costs.total(phase).launches,
                "peak_gb": round(costs.peaks.get(phase, 0) / 1e9, 2),
            }
            for phase in dict.fromkeys([*costs.phases(), *costs.peaks])
        },
    }


def peer_summary(case: Case) -> dict[str, Any]:
    """SpecForge's step on the same sequences, one at a time; why not, where it is not here."""
    try:
        costs = count_peer(case)
    except Missing as reason:
        return {"peer": "specforge", "left_out": str(reason)}
    step = costs.total("step") + costs.total("optimiser")
    return {
        "peer": "specforge",
        "tokens": case.tokens,
        "step_ms": round(step.seconds * 1e3, 1),
        "floor_ms": round(step.floor * 1e3, 1),
        "tokens_per_s": round(case.tokens / step.seconds),
        "peak_gb": round(max(costs.peaks["step"], costs.peaks["optimiser"]) / 1e9, 2),
        "launches": step.launches,
    }


def print_table(costs: Costs, syncs: Counter[str], found: dict[str, Any], operators: int) -> None:
    """The same for people: every phase with its slowest operators."""
    for phase in found["phases"]:
        total = costs.total(phase)
        print(
            f"{phase}: {total.seconds * 1e3:.1f} ms, {total.launches} launches, {total.bytes / 1e9:.1f} GB moved, "
            f"{total.flop / 1e12:.1f} TFLOP, peak {costs.peaks.get(phase, 0) / 1e9:.2f} GB"
        )
        for name, cost in costs.operators(phase)[:operators]:
            print(
                f"    {name:28s} {cost.launches:6d}x {cost.seconds * 1e3:8.2f} ms {cost.bytes / 1e9:8.2f} GB "
                f"{cost.flop / 1e12:7.2f} TFLOP"
            )
    print("the host waits:")
    for place, count in syncs.most_common(20):
        print(f"    {count:5d}  {place}")
    if costs.at_peak:
        print("alive at the peak:")
        for size, dims, dtype, made in costs.at_peak:
            print(f"    {size / 1e9:7.3f} GB {dims!s:24} {dtype.removeprefix('torch.'):9} {made}")
    print(json.dumps({key: value for key, value in found.items() if key != "phases"}))


def arguments() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=TARGETS, default=TARGETS[0])
    parser.add_argument("--lengths", default="4096,4096,4096,4096", help="tokens of every sequence")
    parser.add_argument("--mask", type=float, default=0.5, help="share of each sequence that carries loss: its end")
    parser.add_argument("--loss", choices=("kl", "tv", "lk", "mix"), default="kl")
    parser.add_argument("--ttt", type=int, default=7)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--chunk", type=int, help="--loss-chunk")
    parser.add_argument("--operators", type=int, default=8, help="operators of a phase that the table names")
    parser.add_argument("--memory", action="store_true", help="also name what is alive at the peak")
    parser.add_argument("--peer", choices=("specforge",), help="the step of another trainer in place of ours")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Count and print."""
    a = arguments()
    lengths = tuple(int(n) for n in a.lengths.split(","))
    case = Case(packaged(a.target), lengths, a.mask, a.loss, a.ttt, a.recompute, a.chunk)
    if a.peer:
        print(json.dumps(peer_summary(case)))
        return
    costs, syncs = count_step(case, explain=a.memory)
    found = summary(a.target, case, costs, syncs, count_graphs())
    if a.json:
        print(json.dumps(found))
    else:
        print_table(costs, syncs, found, a.operators)


if __name__ == "__main__":
    main()
