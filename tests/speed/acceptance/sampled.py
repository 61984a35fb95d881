"""Acceptance at a temperature, foretold and measured on the same prompts. Prints one JSON line a temperature.

    PYTHONPATH=. python tests/speed/acceptance/sampled.py --target TARGET --draft runs/quickstart/draft \
        --rows runs/quickstart/dataset/eval.jsonl --temperature 0.7 1

The local engine draws a reply to each prompt with the draft's help and counts its passes. The replies that it drew are
then what ``eval --temperature`` reads: one pass of the target over them says how many passes such a reply takes on
average.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import accumulate
from pathlib import Path

import torch
from transformers import AutoTokenizer

from eagle3cli.backends.batches.batch import TargetBatch
from eagle3cli.backends.target.hf import HfTarget, load_target, read_target_config
from eagle3cli.models.draft import Draft
from eagle3cli.models.folders import find_draft
from eagle3cli.models.inference import load_for_inference
from eagle3cli.models.sampling import Sampling
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.decode.decode import decode
from eagle3cli.settings.models import TargetSettings
from eagle3cli.training.eval.evaluate import draft_states
from eagle3cli.training.eval.sampled import SampledAcceptance
from eagle3cli.training.eval.simulate import reply_spans

PASS_ROWS = 8


def arguments() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.7, 1.0])
    parser.add_argument("--dtype", default="float32")
    return parser.parse_args()


def read_prompts(path: Path, target: str, count: int) -> list[list[int]]:
    """The first messages of a file of rows, as tokens."""
    tokenizer = AutoTokenizer.from_pretrained(target)
    rows = [json.loads(line)["conversations"][:1] for line in path.open()][:count]
    chat = {"add_generation_prompt": True, "return_dict": True}
    return [tokenizer.apply_chat_template(row, **chat)["input_ids"] for row in rows]


@torch.no_grad()
def foretell(
    target: HfTarget, draft: Draft, prompts: list[list[int]], replies: list[list[int]], sampling: Sampling, k: int
) -> SampledAcceptance:
    """What is expected of replies that were drawn so."""
    sampled = SampledAcceptance.empty(sampling, k)
    for at in range(0, len(prompts), PASS_ROWS):
        asked = prompts[at : at + PASS_ROWS]
        rows = [prompt + reply for prompt, reply in zip(asked, replies[at : at + PASS_ROWS], strict=True)]
        aux, last = (torch.cat(states) for states in zip(*target.capture(rows), strict=True))
        ids = torch.tensor([token for row in rows for token in row])
        mask = torch.cat([torch.arange(len(row)) >= len(prompt) for row, prompt in zip(rows, asked, strict=True)])
        ends = tuple(accumulate(map(len, rows), initial=0))
        batch = TargetBatch(ids, mask, ends, aux, last, ids, tuple(range(len(rows))))
        normed, plan = draft_states(draft, batch, draft.embedding(target.embedding_VH), k, every=True)
        accept = sampled.add_batch(batch, normed, plan, draft, target.head).tolist()
        for span in reply_spans(mask.tolist(), ends):
            sampled.add_reply(accept, span)
    return sampled


def main() -> None:
    """Measure and print."""
    a = arguments()
    torch.set_num_threads(1)
    settings = TargetSettings(model_path=a.target, dtype=a.dtype, device="cpu")
    draft = load_for_inference(find_draft(a.draft), read_target_config(settings))
    target = load_target(settings, Silent(), draft.config.aux_layers)
    draft = draft.cast(target.embedding_VH.dtype)
    prompts = read_prompts(a.rows, a.target, a.prompts)
    eos = target.model.generation_config.eos_token_id
    eos_ids = frozenset([eos] if isinstance(eos, int) else eos or [])
    for temperature in a.temperature:
        began = time.process_time()
        replies = decode(
            target, draft, prompts, k=a.k, max_new_tokens=a.tokens, eos_ids=eos_ids, batch_size=16,
            temperature=temperature, seeds=range(len(prompts)),
        )  # fmt: skip
        drawn = [reply.token_ids for reply in replies]
        tokens = sum(len(reply) - 1 for reply in drawn)
        measured = tokens / sum(reply.steps for reply in replies)
        foretold = foretell(target, draft, prompts, drawn, Sampling(temperature), a.k).by_k[-1].acceptance_length
        numbers = {"temperature": temperature, "foretold": foretold, "measured": measured, "tokens": tokens}
        numbers |= {"apart": abs(foretold / measured - 1), "cpu_s": time.process_time() - began}
        print(json.dumps({name: round(value, 4) for name, value in numbers.items()}), flush=True)


if __name__ == "__main__":
    main()
