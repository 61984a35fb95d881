"""Whether replies are the target's own: one pass of the target over them, and what it would have said there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eagle3cli.backends.batches.online import OnlineSource
from eagle3cli.backends.capture.capture import with_compute_dtype
from eagle3cli.backends.target.auto import open_target
from eagle3cli.backends.target.logits import ARGMAX_CHUNK, Head
from eagle3cli.data.tokens.cache import open_or_build
from eagle3cli.models.config import DraftConfig
from eagle3cli.runtime.devices import set_threads
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.stop import Stop
from eagle3cli.settings.tables import Settings

BATCH = 8


@dataclass(frozen=True)
class JudgedReply:
    """What the target says of a row's replies, the first token of each left out."""

    best_share: float
    """Share of the tokens that are its most likely ones: 1 for its own greedy reply, up to rounding."""
    mean_logprob: float
    """Mean log-probability of a token, in nats."""
    tokens: int


@torch.no_grad()
def judge_replies(settings: Settings, config: DraftConfig, report: Reporter, stop: Stop) -> dict[str, JudgedReply]:
    """Judge the rows of ``data.train_path``, by their ids; rows without a reply of two tokens are not there.

    The target computes in the type of ``hidden_states.dtype``: which token is best hardly depends on it.
    """
    set_threads(settings.target.threads)
    rows = open_or_build(settings, config.draft_vocab_size, config.vocab_size, report).train
    options = with_compute_dtype(settings.target, settings.hidden_states.dtype)
    target = open_target(options, report, config.aux_layers)
    source = OnlineSource(target, rows)
    judged: dict[str, JudgedReply] = {}
    by_length = sorted(range(len(rows)), key=lambda row: rows.lengths[row])
    with report.task("judging replies", total=len(rows)) as bar:
        for at in range(0, len(by_length), BATCH):
            stop.check("nothing is judged yet")
            batch = source.batch(by_length[at : at + BATCH])
            for row, first, end in zip(batch.rows, batch.cu_seqlens, batch.cu_seqlens[1:], strict=False):
                mask = batch.loss_mask_N[first:end]
                where = first + (mask[:-1] & mask[1:]).nonzero()[:, 0]
                if len(where):
                    where = where.to(batch.last_NH.device)
                    judged[rows[row].id] = _judged(target.head, batch.last_NH[where], batch.token_ids_N[where + 1])
            bar.advance(len(batch.rows))
    return judged


def _judged(head: Head, last_RH: Tensor, token_R: Tensor) -> JudgedReply:
    best = 0
    total = 0.0
    for states, tokens in zip(last_RH.split(ARGMAX_CHUNK), token_R.split(ARGMAX_CHUNK), strict=True):
        logits_RV = head(states).float()
        best += int((logits_RV.argmax(-1) == tokens).sum())
        total += float(logits_RV.log_softmax(-1).gather(-1, tokens[:, None]).sum())
    return JudgedReply(best / len(token_R), total / len(token_R), len(token_R))
