"""SpecForge's training step on a case of ours: its own model and loss, states in the layout that its collator makes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.speed.step.step_case import Case


class Missing(Exception):
    """SpecForge is not here; the message says how it comes here."""


def find() -> Path:
    """The folder of SpecForge's package in the environment that EAGLE3_SPECFORGE names."""
    named = os.environ.get("EAGLE3_SPECFORGE")
    found = sorted(Path(named).glob("lib/python3*/site-packages/specforge")) if named else []
    if not found:
        hint = "set EAGLE3_SPECFORGE to a virtual environment that holds it (setup_specforge.sh FOLDER makes one)"
        raise Missing(f"SpecForge is not here: {hint}")
    return found[0].parent


def load(folder: Path) -> Any:
    """Its model, draft and loss from a folder that holds the package; what is installed here comes first."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    try:
        from specforge.algorithms.eagle3 import model
        from specforge.core import loss
        from specforge.modeling.draft import flex_attention, llama3_eagle
    except ImportError as error:
        raise Missing(f"SpecForge in {folder} cannot be imported: {error}") from error
    return SimpleNamespace(model=model, loss=loss, flex_attention=flex_attention, draft=llama3_eagle)


def make_step(specforge: Any, case: Case, device: torch.device) -> tuple[Callable[[], None], torch.nn.Module]:
    """Forward and backward over a padded batch of random states (the target's logits, unroll, loss), and the draft."""
    from transformers import LlamaConfig

    config = case.draft
    target = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        num_hidden_layers=1,
        max_position_embeddings=config.max_position_embeddings,
        pad_token_id=0,
    )
    target.draft_vocab_size = config.draft_vocab_size
    with device:
        draft = specforge.draft.LlamaForCausalLMEagle3(target, attention_backend="flex_attention")
    draft = draft.to(device, torch.bfloat16)
    ids_W = case.draft_ids_W.to(device)
    draft.t2d.zero_()
    draft.t2d[ids_W] = True
    draft.d2t.copy_(ids_W - torch.arange(len(ids_W), device=device))
    draft.freeze_embedding()
    model = specforge.model.OnlineEagle3Model(draft, length=case.ttt, attention_backend="flex_attention")
    batch = _batch(case, device)
    head_VH = torch.randn(config.vocab_size, config.hidden_size, device=device, dtype=torch.bfloat16) * 0.02

    def step() -> None:
        last = batch["last"]
        losses = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            target=last @ head_VH.T,
            loss_mask=batch["loss_mask"],
            hidden_states=batch["aux"],
        )[0]
        sum(0.8**i * loss for i, loss in enumerate(losses)).backward()

    return step, draft


def _batch(case: Case, device: torch.device) -> dict[str, Tensor]:
    """Sequences padded to the longest."""
    rows = len(case.lengths)
    longest = max(case.lengths)
    config = case.draft
    loss_mask = torch.zeros(rows, longest, 1)
    attention_mask = torch.zeros(rows, longest)
    for row, n in enumerate(case.lengths):
        loss_mask[row, n - round(n * case.mask) : n] = 1
        attention_mask[row, :n] = 1
    states = {"aux": config.aux_width, "last": config.target_hidden_size}
    made = {name: torch.randn(rows, longest, size, device=device).bfloat16() for name, size in states.items()}
    return {
        "input_ids": torch.randint(config.vocab_size, (rows, longest)).to(device),
        "loss_mask": loss_mask.to(device),
        "attention_mask": attention_mask.to(device),
        **made,
    }
