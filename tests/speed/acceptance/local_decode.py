"""What the local engine adds to the bare passes of target and draft, by k: CPU seconds, in interleaved rounds.

    PYTHONPATH=. python tests/speed/acceptance/local_decode.py --target FOLDER [--draft FOLDER] --dtype bfloat16

Without a draft one of random weights stands in, which costs the same and accepts nothing. Bare passes are those of the
transformers model with its own cache and attention (1 + k tokens behind the text), and plain ones of the draft without
a cache (k - 1 of one row, one of 1 + k); ``weights`` are the engine's products with the target's weights alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from eagle3cli.backends.target.hf import HfTarget, load_target, read_target_config
from eagle3cli.backends.target.positions import cached
from eagle3cli.models.config import read_draft_config
from eagle3cli.models.draft import Draft
from eagle3cli.models.inference import load_for_inference
from eagle3cli.runtime.devices import set_threads
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.decode.decode import decode
from eagle3cli.serving.decode.passes import Passes
from eagle3cli.settings.models import TargetSettings

PROMPT = list(range(100, 164))


def random_draft(config: dict[str, Any], vocab_size: int) -> Draft:
    """A draft of the usual shape."""
    torch.manual_seed(0)
    draft = Draft(read_draft_config("auto", config, draft_vocab_size=vocab_size, aux_layers=None))
    for weight in draft.parameters():
        weight.data.normal_(0, 0.02) if weight.ndim > 1 else weight.data.fill_(1)
    ids = torch.arange(vocab_size)
    draft.set_vocab(ids - ids, torch.arange(draft.config.vocab_size) < vocab_size)
    return draft.eval().requires_grad_(False)


def timed(act: Callable[[], Any]) -> tuple[float, float, Any]:
    """CPU seconds, seconds, and what came out."""
    wall = time.perf_counter()
    cpu = time.process_time()
    value = act()
    return time.process_time() - cpu, time.perf_counter() - wall, value


def target_passes(target: HfTarget, tokens: int, count: int) -> float:
    """CPU seconds of a pass of ``tokens`` behind a text, by transformers alone."""
    cache = DynamicCache(config=target.model.config)
    ids = torch.tensor([PROMPT])
    options: dict[str, Any] = {"use_cache": True, **cached(target.model, cache)}
    target.model(ids, **options)

    def act() -> None:
        for _ in range(count):
            target.model(ids[:, :tokens], **options)
            if tokens > 1:
                cache.crop(-(tokens - 1))

    return timed(act)[0] / count


def draft_passes(draft: Draft, embedding_VH: torch.Tensor, k: int, count: int) -> float:
    """CPU seconds of the draft's plain forward passes for one verification: k - 1 of a row, one of 1 + k rows."""
    several = [*[1] * (k - 1), 1 + k]
    hidden = torch.zeros(1 + k, embedding_VH.shape[1], dtype=embedding_VH.dtype)
    aux = torch.zeros(1 + k, draft.fc.weight.shape[1], dtype=embedding_VH.dtype)
    ids = torch.arange(1 + k)

    def act() -> None:
        for _ in range(count):
            draft.first_hidden(aux)
            for rows in several:
                draft(ids[:rows], hidden[:rows], embedding_VH)

    return timed(act)[0] / count


def weight_products(target: HfTarget, passes: Passes, tokens: int) -> float:
    """CPU seconds of the target's products alone, as the engine makes them."""
    assert passes.quick is not None, "the engine runs this target as transformers does"
    x: dict[int, torch.Tensor] = {}

    def rows(width: int) -> torch.Tensor:
        return x.setdefault(width, torch.zeros(tokens, width, dtype=target.dtype))

    hidden = target.hidden_size
    width = int(target.model.config.get_text_config().intermediate_size)
    layers = passes.quick.layers

    def act() -> None:
        for layer in layers:
            layer.qkv(rows(hidden))
            layer.out(rows(layer.heads * layer.head_dim))
            layer.gate_up(rows(hidden))
            layer.down(rows(width))
        passes.head(rows(hidden))

    act()
    return timed(act)[0]


@torch.inference_mode()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All numbers, in milliseconds of CPU time for one verification."""
    threads = set_threads(options.threads)
    config = read_target_config(TargetSettings(model_path=options.target))
    if options.draft:
        draft = load_for_inference(Path(options.draft), config)
    else:
        draft = random_draft(config, options.draft_vocab_size)
    settings = TargetSettings(model_path=options.target, dtype=options.dtype)
    target = load_target(settings, Silent(), draft.config.aux_layers)
    draft = draft.cast(target.dtype)
    passes = Passes(target, draft)
    embedding_VH = draft.embedding(target.embedding_VH)
    found: dict[int, dict[str, list[float]]] = {k: {} for k in options.k}

    def note(k: int, name: str, seconds: float) -> None:
        found[k].setdefault(name, []).append(1000 * seconds)

    for number in range(options.rounds + 1):
        for k in options.k if number % 2 else reversed(options.k):

            def act(k: int = k) -> Any:
                ends: frozenset[int] = frozenset()
                several = {"k": k, "max_new_tokens": options.tokens, "eos_ids": ends, "batch_size": 1}
                return decode(target, draft if k else None, [PROMPT], passes=passes, **several)[0]

            cpu, wall, reply = timed(act)
            if not number:
                continue  # the first round chooses kernels
            prefill = timed(lambda: decode(target, None, [PROMPT], passes=passes, k=0, max_new_tokens=1,
                                           eos_ids=frozenset(), batch_size=1))[0]  # fmt: skip
            note(k, "engine", (cpu - prefill) / max(1, reply.steps))
            note(k, "engine_wall", wall / max(1, reply.steps))
            note(k, "tokens_per_step", (len(reply.token_ids) - 1) / max(1, reply.steps) / 1000)
            note(k, "target", target_passes(target, 1 + k, options.passes))
            note(k, "draft", draft_passes(draft, embedding_VH, k, options.passes) if k else 0.0)
            if passes.quick is not None:
                note(k, "weights", weight_products(target, passes, 1 + k))
    table = {
        k: {
            name: {"median": round(statistics.median(v), 3), "min": round(min(v), 3), "max": round(max(v), 3)}
            for name, v in values.items()
        }
        for k, values in found.items()
    }
    return {"dtype": str(target.dtype), "threads": threads, "quick": passes.quick is not None, "by_k": table}


def main() -> None:
    """Print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft")
    parser.add_argument("--draft-vocab-size", type=int, default=8192)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--k", type=int, nargs="+", default=[0, 1, 2, 3, 5])
    parser.add_argument("--tokens", type=int, default=33)
    parser.add_argument("--passes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    result = measure(options)
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{result['dtype']}, {result['threads']} threads, milliseconds of CPU time for one verification")
    print("k  engine (range)          bare target + draft  added  weights alone  tokens a step")
    for k, row in result["by_k"].items():
        engine = row["engine"]
        bare = row["target"]["median"] + row["draft"]["median"]
        weights = row["weights"]["median"] if "weights" in row else float("nan")
        spread = f"{engine['median']:6.2f} ({engine['min']:.2f} to {engine['max']:.2f})"
        parts = f"{row['target']['median']:6.2f} + {row['draft']['median']:.2f}"
        added = f"{engine['median'] / bare - 1:+.0%}"
        print(f"{k}  {spread}  {parts}  {added}  {weights:6.2f}  {row['tokens_per_step']['median']:.2f}")


if __name__ == "__main__":
    main()
