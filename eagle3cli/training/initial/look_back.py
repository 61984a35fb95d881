"""Heads of a draft that start as induction heads: they find where the newest token stood before and read what followed.

Row j of a draft holds the target's states at ``x_j`` and the token ``x_{j+1}``. So one layer is enough: a query of the
newest token ``x_{p+1}``, keys of the token that the states at j came from, values of the token that followed it.
Repetition is a large part of what is predictable in replies: of SmolLM2-135M's greedy tokens 44% follow two tokens that
stood together before, and 76% of those are what followed them then. Training alone does not find such heads in the
steps of a short run.

The keys need to know ``x_j``, which ``fc`` has to hand on: a random projection of its embedding, regressed from the
auxiliary states, takes the place of those directions of the hidden state that the head of the draft reads least. It
lies in channels that RoPE hardly turns within a sequence, since what is looked for may be anywhere.

Knows nothing about files or settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from eagle3cli.models.draft import Draft
from eagle3cli.models.layers.latent import LatentAttention
from eagle3cli.models.layers.parts import Attention, rotate
from eagle3cli.models.window import Window
from eagle3cli.training.initial.latent import code_channels, latent_looks_back
from eagle3cli.training.initial.sample import Sample
from eagle3cli.training.initial.solve import Equations, Whitening
from eagle3cli.training.ttt.attention import QUERY_BLOCK

SCORE = 18.0
"""Attention score of a key of the token that is looked for; other keys score near zero."""
SCORES_BY_HEAD = (1.0, 0.7, 1.4)
"""Factors of it, in turn: heads that start alike stay alike."""
SHRINK = 1.0
"""Whitening of the embeddings, towards none: all tokens are to be told apart, rare ones not more than others."""
CODE_SIZE = 1.0
"""Size of the code within the hidden state, as a share of what it would have as a channel like others: the head reads
even these directions."""
TURN = 1.0
"""RoPE turns a usable channel by no more than this over the longest sequence, in radians."""
FEWEST_CHANNELS = 16
"""With fewer channels too many tokens look alike."""


@dataclass(frozen=True)
class LookBack:
    """What the last key/value group's heads will be."""

    channels_D: Tensor
    """The channels of a head that are used; of latent attention's those that do not turn."""
    code_DH: Tensor
    """From a normed embedding to the code of its token."""
    known_DC: Tensor
    """From what ``fc`` reads to the code of the token that the states came from."""
    found_RH: Tensor
    """The normed embeddings that the heads find, by row."""

    def put(self, draft: Draft, found_HH: Tensor, hidden_rms: float) -> None:
        """Set the heads' weights, and make ``fc``, which is solved already, hand on the codes.

        ``found_HH`` is what to add to the hidden state for what they find, ``hidden_rms`` how large ``fc``'s output is.
        """
        attention = draft.midlayer.self_attn
        hidden = draft.config.hidden_size
        spare_HD = _least_read(draft, len(self.channels_D))
        free_HH = torch.eye(hidden, device=spare_HD.device) - spare_HD @ spare_HD.T
        draft.fc.weight.copy_(free_HH @ draft.fc.weight + CODE_SIZE * hidden_rms * spare_HD @ self.known_DC)
        known_DH = spare_HD.T / CODE_SIZE
        if isinstance(attention, LatentAttention):
            scores = tuple(SCORE * factor for factor in SCORES_BY_HEAD)
            parts = {"known_DH": known_DH, "code_DH": self.code_DH, "found_HH": found_HH, "found_RH": self.found_RH}
            latent_looks_back(attention, **parts, scores=scores)
        else:
            self._put_last_group(attention, known_DH, found_HH)

    def _put_last_group(self, attention: Attention, known_DH: Tensor, found_HH: Tensor) -> None:
        """The heads of the usual attention's last key/value group."""
        dim = attention.head_dim
        hidden = known_DH.shape[1]
        value_RX, output_HR = Whitening.of(self.found_RH).low_rank(found_HH, min(dim, hidden))
        group = attention.k_proj.out_features // dim - 1
        share = attention.q_proj.out_features // attention.k_proj.out_features
        keys = group * dim + self.channels_D
        size = (SCORE * dim**0.5 / len(self.channels_D)) ** 0.5
        attention.k_proj.weight[keys, hidden:] = size * known_DH
        rows = slice(group * dim, group * dim + len(value_RX))
        attention.v_proj.weight[rows, :hidden] = value_RX.to(attention.v_proj.weight.dtype)
        for n in range(share):
            head = group * share + n
            factor = SCORES_BY_HEAD[n % len(SCORES_BY_HEAD)]
            attention.q_proj.weight[head * dim + self.channels_D, :hidden] = size * factor * self.code_DH
            columns = slice(head * dim, head * dim + len(value_RX))
            attention.o_proj.weight[:, columns] = (output_HR / share).to(attention.o_proj.weight.dtype)


def look_back(draft: Draft, sample: Sample, token_NH: Tensor) -> LookBack | None:
    """Looking heads for this draft, and what they find in the sample; None where it has no group of heads to spare.

    ``token_NH`` are the normed embeddings of the sample's tokens; the draft's auxiliary scale is set.
    """
    channels_D = _usable_channels(draft, sample)
    if draft.config.num_key_value_heads < 2 or len(channels_D) < FEWEST_CHANNELS:
        return None
    generator = torch.Generator().manual_seed(1)
    random = torch.randn(draft.config.hidden_size, len(channels_D), generator=generator, dtype=torch.double)
    basis_HD = torch.linalg.qr(random.to(token_NH.device))[0]
    code_DH = (basis_HD.T @ Whitening.of(token_NH, shrink=SHRINK).inverse_root_HH).to(token_NH.dtype)
    code_DH = code_DH / (token_NH @ code_DH.T).pow(2).mean().sqrt()
    code_ND = token_NH @ code_DH.T
    known = Equations()
    for begin, end in pairwise(sample.cu_seqlens):
        known.add(_read(draft, sample, begin, end), code_ND[begin:end])
    known_DC = known.solve()
    found_NH = torch.zeros_like(token_NH)
    for begin, end in pairwise(sample.cu_seqlens):
        key_SD = _read(draft, sample, begin, end - 1) @ known_DC.T
        following = slice(begin + 1, end)
        found_NH[begin : end - 1] = _found(draft, channels_D, code_ND[following], key_SD, token_NH[following])
    return LookBack(channels_D, code_DH, known_DC, found_NH[sample.position_R])


def _read(draft: Draft, sample: Sample, begin: int, end: int) -> Tensor:
    """What ``fc`` reads at some positions, fp32."""
    read_SC: Tensor = draft.fc_input(sample.aux_NC[begin:end].float()) / draft.aux_scale_C
    return read_SC


def _usable_channels(draft: Draft, sample: Sample) -> Tensor:
    """Channels of a head that do not turn, or that RoPE hardly turns within a sequence: both of each pair."""
    attention = draft.midlayer.self_attn
    if isinstance(attention, LatentAttention):
        return torch.arange(code_channels(attention), device=draft.fc.weight.device)
    length = max(end - begin for begin, end in pairwise(sample.cu_seqlens))
    still = (draft.rotary.inv_freq * length <= TURN).nonzero()[:, 0]
    return torch.cat((still, still + draft.config.head_dim // 2))


def _found(draft: Draft, channels_D: Tensor, query_SD: Tensor, key_SD: Tensor, value_SH: Tensor) -> Tensor:
    """What every position finds at those up to it, or at its window of them, ``[S, H]``."""
    position_S = torch.arange(len(query_SD), device=query_SD.device)
    rope = draft.rope(position_S, query_SD.dtype)
    head = query_SD.new_zeros(2, len(query_SD), 1, draft.config.head_dim)
    head[0, :, 0, channels_D] = query_SD
    head[1, :, 0, channels_D] = key_SD
    turns = draft.config.latent is None
    query, key = ((rotate(states, *rope) if turns else states)[:, 0] for states in head)
    window = draft.config.sliding or Window(len(query_SD))
    attended = []
    # Some queries at a time: the scores of a long sequence are more than its states by far.
    for query_QD, position_Q in zip(query.split(QUERY_BLOCK), position_S.split(QUERY_BLOCK), strict=True):
        score_QS = query_QD @ key.T * (SCORE / len(channels_D))
        seen_QS = window.shows(position_Q[:, None], position_S)
        attended.append(score_QS.masked_fill(~seen_QS, float("-inf")).softmax(-1) @ value_SH)
    return torch.cat(attended)


def _least_read(draft: Draft, count: int) -> Tensor:
    """Directions of the hidden state that move the head's logits least, ``[H, count]``, orthonormal."""
    read_WH = draft.lm_head.weight.float() * draft.norm.weight.float()
    directions_HH: Tensor = torch.linalg.eigh((read_WH.T @ read_WH).double())[1]
    return directions_HH[:, :count].float()
