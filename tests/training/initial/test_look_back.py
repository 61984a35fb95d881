"""Heads that look back: what they find, and a draft that copies before any training."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from eagle3cli.backends.target.logits import Head
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.draft import Draft
from eagle3cli.models.layers.sizes import Latent
from eagle3cli.training.initial.initialise import initialise
from eagle3cli.training.initial.look_back import look_back
from eagle3cli.training.initial.sample import Sample
from eagle3cli.training.ttt.attention import QUERY_BLOCK

HIDDEN = 64
TOKENS = 48


def config_of(**changed: Any) -> DraftConfig:
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"head_dim": 64, "vocab_size": TOKENS, "draft_vocab_size": TOKENS, "target_hidden_size": HIDDEN}
    return DraftConfig(**{**sizes, **changed}, aux_layers=(0, 1))  # type: ignore[arg-type]


def repeating_sample(embedding_VH: torch.Tensor, sequences: int = 60) -> Sample:
    """Sequences of two equal halves in an order of their own: only what came before tells what comes next.

    The states at a position know its token, and noise; the last state is the embedding of the token that follows.
    """
    generator = torch.Generator().manual_seed(5)
    halves = [torch.randperm(TOKENS, generator=generator)[:20] for _ in range(sequences)]
    token_N = torch.cat([half.repeat(2) for half in halves])
    size = len(token_N)
    noise_NH = torch.randn(size, HIDDEN, generator=generator)
    aux_NC = torch.cat((embedding_VH[token_N] + 0.3 * noise_NH, noise_NH), 1)
    position_R = torch.cat([torch.arange(21, 38) + 40 * n for n in range(sequences)])
    return Sample(token_N, aux_NC, tuple(range(0, size + 1, 40)), position_R, embedding_VH[token_N[position_R + 2]])


def test_the_heads_find_what_followed_the_newest_token() -> None:
    torch.manual_seed(0)
    embedding_VH = torch.randn(TOKENS, HIDDEN)
    draft = Draft(config_of())
    sample = repeating_sample(embedding_VH)
    token_NH = draft.midlayer.input_layernorm(embedding_VH[sample.token_N])
    with torch.no_grad():
        looking = look_back(draft, sample, token_NH)
    assert looking is not None
    found_RV = torch.nn.functional.normalize(looking.found_RH, dim=1) @ embedding_VH.T
    followed = found_RV.argmax(1) == sample.token_N[sample.position_R + 2]
    assert followed.float().mean() > 0.9


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that some operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = out if isinstance(out, tuple | list) else [out]
        self.elements = max([self.elements, *(x.numel() for x in tensors if isinstance(x, torch.Tensor))])
        return out


@pytest.mark.parametrize("window", [None, 700])
def test_no_scores_of_a_long_sequence_exist_at_once(monkeypatch: pytest.MonkeyPatch, window: int | None) -> None:
    """And in blocks they are what they are in one."""
    torch.manual_seed(0)
    embedding_VH = torch.randn(TOKENS, HIDDEN)
    size = 2048
    token_N = torch.randint(TOKENS, (size,))
    position_R = torch.arange(size - 2)
    aux_NC = torch.cat((embedding_VH[token_N], torch.randn(size, HIDDEN)), 1)
    sample = Sample(token_N, aux_NC, (0, size), position_R, embedding_VH[token_N[2:]])
    weights = []
    for block in (QUERY_BLOCK, size):
        monkeypatch.setattr("eagle3cli.training.initial.look_back.QUERY_BLOCK", block)
        monkeypatch.setattr("eagle3cli.training.ttt.attention.QUERY_BLOCK", block)
        draft = Draft(replace(config_of(), window=window))
        draft.rotary.inv_freq.mul_(0.01)  # channels that hardly turn over so many tokens
        with LargestTensor() as largest:
            initialise(
                draft, sample, embedding_VH=embedding_VH, head=Head(embedding_VH), final_norm_H=torch.ones(HIDDEN),
                last_layer_mlp={},
            )  # fmt: skip
        assert (largest.elements < size**2 / 2) == (block == QUERY_BLOCK)
        weights.append(draft.fc.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)


def test_a_new_draft_copies_before_any_training() -> None:
    torch.manual_seed(0)
    embedding_VH = torch.randn(TOKENS, HIDDEN)
    sample = repeating_sample(embedding_VH)
    right = {}
    latent = config_of(num_key_value_heads=4, head_dim=40, latent=Latent(96, 88, 32, 8, 48))
    for groups, config in {2: config_of(), 1: config_of(num_key_value_heads=1), "latent": latent}.items():
        draft = Draft(config)  # one group has no heads to spare
        initialise(
            draft, sample, embedding_VH=embedding_VH, head=Head(embedding_VH), final_norm_H=torch.ones(HIDDEN),
            last_layer_mlp={},
        )  # fmt: skip
        unseen = repeating_sample(embedding_VH, 70)
        begin, end = list(pairwise(unseen.cu_seqlens))[-1]
        with torch.no_grad():
            hidden_SH = draft.first_hidden(unseen.aux_NC[begin:end])
            logits_SW, _ = draft(
                torch.cat((unseen.token_N[begin + 1 : end], unseen.token_N[:1])), hidden_SH, embedding_VH
            )
        right[groups] = float((logits_SW.argmax(1)[20:38] == unseen.token_N[begin + 22 : end]).float().mean())
    assert right[2] > 0.7
    assert right["latent"] > 0.7
    assert right[1] < 0.3


def test_drafts_without_heads_or_channels_to_spare_do_not_look_back() -> None:
    torch.manual_seed(0)
    embedding_VH = torch.randn(TOKENS, HIDDEN)
    sample = repeating_sample(embedding_VH, 4)
    for config in (config_of(num_key_value_heads=1), config_of(head_dim=8)):
        assert look_back(Draft(config), sample, embedding_VH[sample.token_N]) is None
