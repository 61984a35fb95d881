"""Whether replies are the target's own: one pass of the target over them, and what it would have said there."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from eagle3cli.backends.batches.online import OnlineSource
from eagle3cli.backends.capture.capture import with_compute_dtype
from eagle3cli.backends.target.auto import open_target
from eagle3cli.backends.target.head import fingerprint
from eagle3cli.backends.target.on_policy import OnPolicyMeter
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

    The target computes in the type of ``hidden_states.dtype``: which token is best hardly depends on it. What is known
    is kept beside the rows in the cache, and what was stopped goes on from there.
    """
    set_threads(settings.target.threads)
    cached = open_or_build(settings, config.draft_vocab_size, config.vocab_size, report)
    rows = cached.train
    target = fingerprint(settings.target.model_path, revision=settings.target.revision)
    meter = OnPolicyMeter(len(rows), target, folder=cached.folder / "train")
    left = sorted((row for row in range(len(rows)) if meter.wants([row])), key=lambda row: rows.lengths[row])
    if left:
        options = with_compute_dtype(settings.target, settings.hidden_states.dtype)
        source = OnlineSource(open_target(options, report, config.aux_layers), rows)
        source.meter = meter
        try:
            with report.task("judging replies", total=len(left)) as bar:
                for at in range(0, len(left), BATCH):
                    stop.check(f"{at:,} of {len(left):,} replies are judged")
                    bar.advance(len(source.batch(left[at : at + BATCH]).rows))
        finally:
            meter.save()
    return {
        rows[row].id: JudgedReply(best / tokens, logprob / tokens, int(tokens))
        for row, (tokens, best, logprob, *_) in enumerate(meter.totals().tolist())
        if tokens
    }
