"""The sections of ``gpu_bench.py``: each returns what it found, as JSON has it."""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eagle3cli.models.config import DraftConfig
from eagle3cli.models.draft import Draft
from eagle3cli.training.forecast.memory import forecast
from eagle3cli.training.trainer import Trainer
from eagle3cli.training.ttt.attention import QueryPositions, attend
from eagle3cli.training.ttt.flex_attention import attend_flex
from tests import gpu_tensor
from tests.speed.step.step_case import Case, make_trainer, packaged

ROOT = Path(__file__).resolve().parents[3]
TINY = DraftConfig(
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=400,
    draft_vocab_size=128,
    target_hidden_size=64,
    aux_layers=(1, 2, 3),
    norm_output=True,
)
EXACT = replace(TINY, hidden_size=256, target_hidden_size=256, head_dim=64, intermediate_size=384, vocab_size=2000)
"""Of the comparison with a CPU, which computes it in a second."""


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    small: bool = False
    specforge: Path | None = None
    """A folder that holds SpecForge's package."""

    @property
    def real(self) -> bool:
        """A GPU that is there, not a pretend one."""
        return torch.version.cuda is not None and torch.cuda.is_available()

    @property
    def long(self) -> int:
        """Tokens of a long sequence."""
        return 48 if self.small else 4096

    @property
    def ttt(self) -> int:
        """Steps of the unroll."""
        return 2 if self.small else 7

    def draft(self, name: str) -> DraftConfig:
        """A packaged config, or a tiny one."""
        return TINY if self.small else packaged(name)


def trainer_of(case: Case, *, device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> Trainer:
    """A trainer on random states, which stay on the device: what is timed is the step."""
    torch.manual_seed(0)
    with torch.device(device):
        draft = Draft(case.draft).to(device)
    ids_W = case.draft_ids_W
    t2d_V = torch.zeros(case.draft.vocab_size, dtype=torch.bool)
    t2d_V[ids_W] = True
    draft.set_vocab((ids_W - torch.arange(len(ids_W))).to(device), t2d_V.to(device))

    def make(*sizes: int) -> Tensor:
        return torch.randn(*sizes, device=device, dtype=dtype).mul_(sizes[-1] ** -0.5)

    trainer = make_trainer(case, draft.cast(dtype), make)
    source = trainer.batches.source
    batch = source.batch(range(len(case.lengths)))
    source.batch = lambda rows: batch  # type: ignore[method-assign]
    return trainer


def timed(scale: Scale, trainer: Trainer) -> dict[str, Any]:
    """Median and least time of a step, its tokens a second and its memory."""
    for _ in range(0 if scale.small else 2):
        trainer.train_step()
    torch.cuda.synchronize()
    if scale.real:
        torch.cuda.reset_peak_memory_stats()
    spent = []
    for _ in range(1 if scale.small else 5):
        began = time.perf_counter()
        trainer.train_step()
        torch.cuda.synchronize()
        spent.append(time.perf_counter() - began)
    middle = statistics.median(spent)
    return {
        "ms": round(middle * 1e3, 1),
        "min_ms": round(min(spent) * 1e3, 1),
        "tokens_per_s": round(sum(trainer.batches.source.lengths) / middle),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
    }


def environment(scale: Scale) -> dict[str, Any]:
    """Versions, and what the device reaches in a product and in a copy."""
    size = 256 if scale.small else 8192
    x = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    source = torch.empty(1 << (20 if scale.small else 30), device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)

    def seconds(work: Callable[[], object]) -> float:
        work()
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(10):
            work()
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / 10

    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name(),
        "bf16_tflops": round(2 * size**3 / seconds(lambda: x @ x) / 1e12, 1),
        "copy_tb_s": round(2 * len(source) / seconds(lambda: target.copy_(source)) / 1e12, 3),
    }


ATTENTION_CASES = (
    (torch.arange(5, 3000, 3), (0, 1000, 3001)),
    (torch.arange(20, 60), (0, 64)),
    (torch.tensor([4]), (0, 6)),
    (torch.arange(0, 4096), (0, 4096)),
)
"""Packed positions of the queries, and the sequences' bounds."""


def attention_numbers(scale: Scale) -> dict[str, float]:
    """Relative error of the compiled attention in bf16 against the portable one in fp32: output and gradients."""
    heads, kv_heads, size = (4, 2, 16) if scale.small else (32, 8, 128)
    found = {}
    for position_R, bounds in ATTENTION_CASES[1:3] if scale.small else ATTENTION_CASES:
        for steps in (0, 3):
            results = []
            for dtype, kernel in ((torch.bfloat16, attend_flex), (torch.float32, attend)):
                drawn = torch.Generator().manual_seed(0)

                def make(n: int, heads: int, drawn: Any = drawn, dtype: torch.dtype = dtype) -> Tensor:
                    made = torch.randn(n, heads, size, generator=drawn).bfloat16()
                    return made.to("cuda").to(dtype).detach().requires_grad_()

                query = make(len(position_R), heads)
                states = [make(bounds[-1], kv_heads) for _ in range(2)]
                own = [(make(len(position_R), kv_heads), make(len(position_R), kv_heads)) for _ in range(steps)]
                out = kernel(query, *states, own, QueryPositions(position_R.to("cuda"), bounds, position_R))
                weight = torch.linspace(-1, 1, out.numel(), device="cuda").view_as(out)
                (out.float() * weight).sum().backward()
                inputs = [query, *states, *(x for pair in own for x in pair)]
                results.append([x.detach().float() for x in (out, *(x.grad for x in inputs))])
            errors = [float((x - y).norm() / y.norm().clamp(min=1e-9)) for x, y in zip(*results, strict=True)]
            found[f"{len(position_R)} queries, {steps} own keys"] = round(max(errors), 5)
    assert max(found.values()) < 2e-2, found
    return found


def step_numbers(scale: Scale) -> dict[str, Any]:
    """Gradient norm and loss of a step in fp32, here and on a CPU."""
    found = {}
    for loss in ("kl", "mix") if scale.small else ("kl", "tv", "lk", "mix"):
        case = Case(EXACT, (60, 40) if scale.small else (160, 300), loss=loss, ttt=scale.ttt)
        there = trainer_of(case, device="cpu", dtype=torch.float32)
        here = trainer_of(case, device="cuda", dtype=torch.float32)
        copy_numbers(there, here)
        for trainer in (here, there):
            trainer.train_step()
        pair = [(float(t.grad_norm), float(t.metrics.losses[0])) for t in (here, there)]
        found[loss] = {"norm": [pair[0][0], pair[1][0]], "loss": [pair[0][1], pair[1][1]]}
        assert all(abs(a / b - 1) < 1e-3 for a, b in zip(*pair, strict=True)), found
    return found


@torch.no_grad()
def copy_numbers(source: Trainer, to: Trainer) -> None:
    """Give one trainer the weights, masters and batch of another."""
    for mine, its in zip(to.draft.parameters(), source.draft.parameters(), strict=True):
        mine.copy_(its)
    to.optimizer.sync_weights()
    pairs = [(to.model.target.embedding_VH, source.model.target.embedding_VH)]
    for mine, its in zip(heads_of(to), heads_of(source), strict=True):
        pairs.append((mine, its))
    batch, other = (t.batches.source.batch([0, 1]) for t in (to, source))
    pairs += [(batch.aux_NC, other.aux_NC), (batch.last_NH, other.last_NH)]
    for mine, its in pairs:
        mine.copy_(its)


def heads_of(trainer: Trainer) -> list[Tensor]:
    """The target's heads."""
    target = trainer.model.target
    return [head.weight_VH for head in (target.draft_head, target.whole_head) if head is not None]


def syncs(scale: Scale) -> dict[str, int]:
    """Where the host waits for the device in a step, and how often."""
    trainer = trainer_of(Case(scale.draft("llama-3.1-8b"), (scale.long,) * 4, ttt=scale.ttt))
    trainer.train_step()
    if not scale.real:
        gpu_tensor.ACTIVE.reset()
        trainer.train_step()
        return dict(gpu_tensor.ACTIVE.syncs)
    seen: Counter[str] = Counter()
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda _m, _c, file, line, *_: seen.update([f"{Path(file).name}:{line}"])  # type: ignore[assignment]
        trainer.train_step()
    torch.cuda.set_sync_debug_mode("default")
    return dict(seen.most_common())


def steps(scale: Scale) -> dict[str, Any]:
    """Time and memory of a step by shape, beside the forecast of memory; with the kernels that take most time."""
    long = scale.long
    four = (long,) * 4
    mixed = (long // 2, long // 8, long, long // 4, long // 16, long // 3)
    cases = {
        "llama-3.1-8b kl": Case(scale.draft("llama-3.1-8b"), four),
        "llama-3.1-8b tv": Case(scale.draft("llama-3.1-8b"), four, loss="tv"),
        "llama-3.1-8b lk": Case(scale.draft("llama-3.1-8b"), four, loss="lk"),
        "llama-3.1-8b one long, recompute": Case(scale.draft("llama-3.1-8b"), (8 * long,), 1.0, recompute=True),
        "llama-3.1-8b mixed": Case(scale.draft("llama-3.1-8b"), mixed, 0.7),
        "qwen3-30b-a3b kl": Case(scale.draft("qwen3-30b-a3b"), four),
        "gpt-oss-20b kl": Case(scale.draft("gpt-oss-20b"), four),
    }
    found = {}
    for name, case in list(cases.items())[:: 3 if scale.small else 1]:
        trainer = trainer_of(replace(case, ttt=scale.ttt))
        numbers = timed(scale, trainer)
        said = forecast(case.workload(round(case.tokens * case.mask))).peak_bytes / 1e9
        numbers["forecast_gb"] = round(said, 2)
        if name.endswith("kl"):
            numbers["kernels"] = kernels(scale, trainer)
        found[name] = numbers
        del trainer
        if scale.real:
            torch.cuda.empty_cache()
    return found


def kernels(scale: Scale, trainer: Trainer) -> list[tuple[str, int, float]]:
    """The kernels of a step that take most time: name, launches, milliseconds."""
    if not scale.real:
        return []
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        trainer.train_step()
        torch.cuda.synchronize()
    events = sorted(seen.key_averages(), key=lambda event: -event.self_device_time_total)
    return [(e.key[:70], e.count, round(e.self_device_time_total / 1e3, 2)) for e in events[:20]]


def graphs(scale: Scale) -> dict[str, Any]:
    """What Dynamo compiles over batches of many lengths, and how long each step took with it."""
    from torch._dynamo.utils import counters

    counters.clear()
    drawn = random.Random(0)
    config = replace(TINY, hidden_size=512, target_hidden_size=512, head_dim=128, vocab_size=2000)
    spent = []
    for _ in range(1 if scale.small else 25):
        count = drawn.choice((1, 2, 4))
        lengths = tuple(max(4, min(scale.long, int(drawn.lognormvariate(5, 1.3)))) for _ in range(count))
        trainer = trainer_of(Case(TINY if scale.small else config, lengths))
        began = time.perf_counter()
        trainer.train_step()
        torch.cuda.synchronize()
        spent.append(round(time.perf_counter() - began, 2))
    limit = torch._dynamo.config.recompile_limit
    return {"graphs": counters["stats"]["unique_graphs"], "limit": limit, "seconds": spent}


def target_pass(scale: Scale) -> dict[str, Any]:
    """The live target's pass: a random Llama-3.1-8B, sequences of one length and of several."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from eagle3cli.backends.target.hf import HfTarget
    from eagle3cli.backends.target.logits import Head
    from eagle3cli.backends.target.structure import decoder_of

    draft = scale.draft("llama-3.1-8b")
    layers = 4 if scale.small else 32
    config = LlamaConfig(
        vocab_size=draft.vocab_size,
        hidden_size=draft.hidden_size,
        intermediate_size=draft.intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=draft.num_attention_heads,
        num_key_value_heads=draft.num_key_value_heads,
        max_position_embeddings=131_072,
    )
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)
    decoder, structure = decoder_of(model)
    head = Head(model.lm_head.weight.detach())
    embedding = model.get_input_embeddings().weight.detach()
    target = HfTarget(model, decoder, structure, embedding, head, (1, layers // 2 - 1, layers - 2), "random")
    found = {}
    for name, lengths in (("equal", [scale.long] * 4), ("mixed", [scale.long // n for n in (1, 4, 8, 2)])):
        rows = [torch.randint(draft.vocab_size, (n,)).tolist() for n in lengths]
        target.capture(rows)
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(3):
            target.capture(rows)
        torch.cuda.synchronize()
        seconds = (time.perf_counter() - began) / 3
        found[name] = {"ms": round(seconds * 1e3, 1), "tokens_per_s": round(sum(lengths) / seconds)}
    return found


def specforge(scale: Scale) -> Any:
    """SpecForge's own step (loss and flex attention, no optimiser) on one sequence, beside ours."""
    if scale.specforge is None or not scale.real:
        return "left out: needs a GPU and --specforge FOLDER, which holds SpecForge's package"
    from tests.speed.step.specforge_model import load, make_step

    case = Case(scale.draft("llama-3.1-8b"), (scale.long,))
    step, draft = make_step(load(scale.specforge), case, torch.device("cuda"))
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for _ in range(4):
        step()
        draft.zero_grad()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / 4
    peak = torch.cuda.max_memory_allocated() / 1e9
    return {"ms": round(seconds * 1e3, 1), "peak_gb": round(peak, 2), "ours": timed(scale, trainer_of(case))}


def gpu_tests(scale: Scale) -> Any:
    """All tests marked gpu."""
    if not scale.real:
        return "left out: needs a GPU"
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--tb=short", "-p", "no:cacheprovider"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ})
    return {"exit": done.returncode, "end": done.stdout[-4000:]}


SECTIONS: dict[str, Callable[[Scale], Any]] = {
    "environment": environment,
    "attention against fp32": attention_numbers,
    "a step against the CPU": step_numbers,
    "host syncs of a step": syncs,
    "steps by shape": steps,
    "graphs over many lengths": graphs,
    "tests marked gpu": gpu_tests,
    "the target's pass": target_pass,
    "SpecForge's step": specforge,
}
"""In the order of their worth."""
