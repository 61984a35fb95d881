"""A tiny target, its own greedy replies, and a draft that partly follows them: what a real engine is compared with.

A draft at random is accepted never and a perfect one always, whatever an engine computes. This one is in between, and
its acceptance changes when a norm, a layer or a position is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from eagle3cli.backends.target.hf import HfTarget, load_target
from eagle3cli.models.checkpoint import save_draft
from eagle3cli.models.config import read_draft_config
from eagle3cli.models.draft import Draft
from eagle3cli.models.inference import load_for_inference
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.decode.decode import decode
from eagle3cli.settings.models import TargetSettings
from eagle3cli.training.ttt.unroll import plan_positions, unroll
from tests.families import COMMON, FAMILIES, LONGROPE, WRAPPERS, YARN
from tests.tiny import tiny_tokenizer

STEPS, REPLY = 3, 32
"""Draft steps, and new tokens of a reply."""
ASKED, SEEN = 6, 12
"""Prompts that are compared, and prompts that the draft is trained on (the first of them)."""


@dataclass(frozen=True)
class Expected:
    """What our own decoder says of a draft; an engine must say the same."""

    prompts: list[list[int]]
    replies: list[list[int]]
    steps: list[int]
    accepted_at: list[int]

    @property
    def acceptance_length(self) -> float:
        """Tokens per verification, the first token of a reply apart."""
        return sum(len(reply) - 1 for reply in self.replies) / sum(self.steps)


WIDE = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 192}
"""vLLM's attention on a CPU knows heads of 32 and more."""
OWN: dict[str, dict[str, Any]] = {
    "deepseek-v2": {
        **{"hidden_size": 128, "intermediate_size": 192, "qk_nope_head_dim": 48, "qk_rope_head_dim": 16},
        **{"head_dim": 16, "v_head_dim": 32, "kv_lora_rank": 64, "n_group": 1, "topk_group": 1},
        "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},  # SGLang's CPU path knows no other
    },
    "deepseek-v3": {
        **{"hidden_size": 128, "intermediate_size": 192, "qk_nope_head_dim": 48, "qk_rope_head_dim": 16},
        **{"head_dim": 16, "v_head_dim": 32, "kv_lora_rank": 64, "n_group": 2, "topk_group": 1},
        "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
    # Phi-4 and today's Mistral have no window; the engines do not treat one as transformers does (see LEFT_OUT).
    **{family: {**WIDE, "sliding_window": None} for family in ("phi3", "mistral", "mixtral")},
    "glm4": {**WIDE, "partial_rotary_factor": 0.5},
    **{family: {**WIDE, "sliding_window": 512} for family in ("gemma3", "gemma3-vision")},
    # vLLM wants whole blocks in a chunk; SGLang norms queries and keys (Scout's) in bfloat16 alone.
    "llama4-vision": {**WIDE, "attention_chunk_size": 128, "use_qk_norm": False},
    "phi4-mini": {**WIDE, "rope_parameters": {**LONGROPE, "short_factor": [1.0] * 12, "long_factor": [2.0] * 12}},
}


def make_target(folder: Path, family: str, **changed: Any) -> dict[str, Any]:
    """Write a random target of a family's real class, wide enough for an engine; returns its config.json.

    ``changed`` are keys of its config, of its text model's where it is multi-modal.
    """
    torch.manual_seed(0)
    if family in WRAPPERS:
        class_name, model_name, own, outer = WRAPPERS[family]
        text = {**COMMON, **own, **OWN.get(family, WIDE), **changed}
        config = getattr(transformers, class_name)(text_config=text, **outer)
        model = getattr(transformers, model_name)(config).float()
    else:
        class_name, own = FAMILIES[family]
        config = getattr(transformers, class_name)(**{**COMMON, **own, **OWN.get(family, WIDE), **changed})
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms, biases and sinks would show nothing as ones and zeros
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
    model.generation_config.eos_token_id = [2]
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    raw: dict[str, Any] = json.loads((folder / "config.json").read_text())
    if family == "phi4-mini":  # as on the hub; transformers 5 writes keys that SGLang does not look for
        rope = raw.pop("rope_parameters")
        raw |= {key: rope.pop(key) for key in ("rope_theta", "partial_rotary_factor")}
        raw["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
        raw["rope_scaling"] = {"type": "longrope", **{k: rope[k] for k in ("short_factor", "long_factor")}}
        (folder / "config.json").write_text(json.dumps(raw, indent=1))
    if family == "deepseek-v3":  # what the hub's config says besides, and transformers takes for granted
        raw |= {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
        (folder / "config.json").write_text(json.dumps(raw, indent=1))
    return raw


def prompts(vocab: int, count: int) -> list[list[int]]:
    """Random prompts of 6 to 17 tokens; the same every time."""
    random = torch.Generator().manual_seed(1)
    return [torch.randint(3, vocab, (6 + i % 12,), generator=random).tolist() for i in range(count)]


def clear_prompts(target: HfTarget, count: int, *, among: int = 192) -> list[list[int]]:
    """The prompts, of some, on whose way no two tokens are nearly alike to the target: by their closest choice."""
    asked = prompts(target.head.weight_VH.shape[0], among)
    margins = []
    for prompt, reply in zip(asked, replies_of(target, None, asked).replies, strict=True):
        logits = target.model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
        best = logits.topk(2).values
        margins.append(float((best[:, 0] - best[:, 1]).min()))
    widest = sorted(range(among), key=lambda index: -margins[index])[:count]
    return [asked[index] for index in widest]


def replies_of(target: HfTarget, draft: Draft | None, asked: list[list[int]]) -> Expected:
    """Greedy replies of exactly REPLY tokens, with the draft's acceptance."""
    k = STEPS if draft else 0
    found = decode(target, draft, asked, k=k, max_new_tokens=REPLY, eos_ids=frozenset(), batch_size=len(asked))
    at = [sum(each.accepted_at[i] for each in found) for i in range(k)]
    return Expected(asked, [each.token_ids for each in found], [each.steps for each in found], at)


def make_draft(
    folder: Path,
    target_folder: Path,
    raw: dict[str, Any],
    *,
    updates: int = 14,
    adapt: Callable[[HfTarget], HfTarget] = lambda target: target,
    clear: bool = False,
    **wanted: Any,
) -> Expected:
    """Train a small draft for the target of ``raw`` (its config) on its own replies, write it, and decode with it.

    ``adapt`` changes what the target hands on; ``clear`` asks prompts whose replies an engine that rounds more gives
    as well; ``wanted`` are keys of the draft's JSON, laid over ``auto``.
    """
    torch.manual_seed(0)
    overlay = folder.with_suffix(".json")
    overlay.parent.mkdir(parents=True, exist_ok=True)
    overlay.write_text(json.dumps(wanted))
    config = read_draft_config(str(overlay), raw, draft_vocab_size=None, aux_layers=None)
    settings = TargetSettings(model_path=str(target_folder), device="cpu")
    target = adapt(load_target(settings, Silent(), config.aux_layers))
    asked = clear_prompts(target, SEEN) if clear else prompts(config.vocab_size, SEEN)
    plain = replies_of(target, None, asked)
    ids = torch.tensor(sorted({token for reply in plain.replies for token in reply} | set(range(0, 320, 2))))
    # Some tokens of the replies are left out of the draft's vocabulary, as in real drafts.
    ids = ids[: -(len(ids) // 12)] if config.draft_vocab_size == config.vocab_size else ids[: config.draft_vocab_size]
    draft = Draft(replace(config, draft_vocab_size=len(ids)))
    t2d = torch.zeros(config.vocab_size, dtype=torch.bool)
    t2d[ids] = True
    draft.set_vocab(ids - torch.arange(len(ids)), t2d)
    if draft.embed_tokens is not None:
        draft.embed_tokens.weight.data.copy_(target.embedding_VH * 1.1)
    train(draft, target, [p + r for p, r in zip(asked, plain.replies, strict=True)], updates)
    save_draft(folder, draft.serving_state(), draft.config, dtype=torch.float32)
    found = replies_of(target, load_for_inference(folder, raw), asked[:ASKED])
    assert found.replies == plain.replies[:ASKED]
    return found


def train(draft: Draft, target: HfTarget, rows: list[list[int]], updates: int) -> None:
    """A few steps of AdamW on the unrolled cross-entropy with the target's own next tokens."""
    captured = target.capture(rows)
    bounds = [0]
    for row in rows:
        bounds.append(bounds[-1] + len(row))
    tokens = torch.tensor([token for row in rows for token in row])
    aux = torch.cat([each for each, _ in captured])
    draft.set_aux_scale(draft.fc_input(aux).pow(2).mean(0).sqrt().clamp(min=1e-3).detach())
    if draft.fc_norm is not None:
        for i, norm in enumerate(draft.fc_norm):
            norm.weight.data.mul_(0.5 + 0.5 * i)  # a server that leaves them out must show
    best = target.head.top_tokens(torch.cat([last for _, last in captured]))
    column = torch.full((draft.config.vocab_size,), -1)
    column[draft.draft_ids] = torch.arange(len(draft.draft_ids))
    plan = plan_positions(torch.ones(len(tokens), dtype=torch.bool), tuple(bounds), column[best] >= 0, STEPS, "serving")
    optimizer = torch.optim.AdamW(draft.parameters(), lr=3e-3)
    for _ in range(updates):
        hidden = unroll(draft, tokens, aux, target.embedding_VH, plan)
        losses: list[Tensor] = []
        for states, depth in zip(hidden, plan.steps, strict=True):
            losses.append(F.cross_entropy(draft.lm_head(states), column[best[depth.teacher_L]]))
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
