"""Whether replies are the target's own: one pass of the target over them, and what it would have said there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from eagle3cli.backends.batches.online import OnlineSource
from eagle3cli.backends.capture.capture import with_compute_dtype
from eagle3cli.backends.target.auto import open_target
from eagle3cli.backends.target.head import fingerprint, read_target_tensors
from eagle3cli.backends.target.hf import pick_device, pick_dtype, read_target_config
from eagle3cli.backends.target.logits import make_head
from eagle3cli.backends.target.on_policy import OnPolicyMeter
from eagle3cli.data.hidden_states.store import Store
from eagle3cli.data.tokens.cache import open_or_build
from eagle3cli.data.tokens.rows import TokenRows
from eagle3cli.models.config import DraftConfig
from eagle3cli.runtime.devices import set_threads
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.stop import Stop
from eagle3cli.settings.models import TargetSettings
from eagle3cli.settings.tables import Settings

BATCH = 8
CONTEXT = 3
"""Tokens behind which a token that followed them before says nothing new: whoever wrote them, the target repeats it."""
FEWEST_NEW = 16
"""A reply that says little new is judged as if it said so much: one token alone condemns none."""


@dataclass(frozen=True)
class JudgedReply:
    """What the target says of a row's replies, the first token of each left out."""

    best_share: float
    """Share of the tokens that are its most likely ones: 1 for its own greedy reply, up to rounding."""
    mean_logprob: float
    """Mean log-probability of a token, in nats."""
    tokens: int
    own_share: float
    """1 less the share of tokens that neither are nor nearly are its most likely ones, of those that say something new:
    a text that goes round or copies its prompt agrees with the target, whoever began it."""


@torch.no_grad()
def judge_replies(
    settings: Settings, config: DraftConfig, report: Reporter, stop: Stop, store: Path | None = None
) -> dict[str, JudgedReply]:
    """Judge the rows of ``data.train_path``, by their ids; rows without a reply of two tokens are not there.

    The target computes in the type of ``hidden_states.dtype``: which token is best hardly depends on it. What is known
    is kept beside the rows in the cache, and what was stopped goes on from there. ``store`` has these rows' states:
    what their capture has not judged itself, as that of several processes, is judged from them.
    """
    set_threads(settings.target.threads)
    cached = open_or_build(settings, config.draft_vocab_size, config.vocab_size, report)
    rows = cached.train
    target = fingerprint(settings.target.model_path, revision=settings.target.revision)
    meter = OnPolicyMeter(len(rows), target, folder=cached.folder / "train")
    left = sorted((row for row in range(len(rows)) if meter.wants([row])), key=lambda row: rows.lengths[row])
    if left:
        options = with_compute_dtype(settings.target, settings.hidden_states.dtype)
        if store is not None:
            judge: Callable[[list[int]], object] = _from_states(Store(store), rows, meter, options)
        else:
            source = OnlineSource(open_target(options, report, config.aux_layers), rows)
            source.meter = meter
            judge = source.batch
        try:
            with report.task("judging replies", total=len(left)) as bar:
                for at in range(0, len(left), BATCH):
                    stop.check(f"{at:,} of {len(left):,} replies are judged")
                    batch = left[at : at + BATCH]
                    judge(batch)
                    bar.advance(len(batch))
        finally:
            meter.save()
    judged = {}
    for number, (tokens, best, logprob, _, ties) in enumerate(meter.totals().tolist()):
        if not tokens:
            continue
        row = rows[number]
        new = max(new_tokens(row.token_ids.tolist(), row.loss_mask.tolist()), min(FEWEST_NEW, int(tokens)))
        own_share = max(0.0, 1 - (tokens - best - ties) / new)
        judged[row.id] = JudgedReply(best / tokens, logprob / tokens, int(tokens), own_share)
    return judged


def _from_states(
    store: Store, rows: TokenRows, meter: OnPolicyMeter, target: TargetSettings
) -> Callable[[list[int]], None]:
    """Judges rows by their states on disk and the target's head alone; the best tokens are those of the capture, since
    some of a coarse encoding's are others."""
    raw = read_target_config(target)
    device = pick_device(target.device)
    place = (device, pick_dtype(target.dtype, device, raw))
    weights = read_target_tensors(target.model_path, revision=target.revision)
    head = make_head(raw, weights["head"], weights.get("head_bias")).to(*place)

    def judge(numbers: list[int]) -> None:
        for number in numbers:
            states = store[number]
            meter.top_tokens(head, number, rows[number], states.last_RH.to(*place), states.top_R)

    return judge


def new_tokens(token_ids: Sequence[int], loss_mask: Sequence[int]) -> int:
    """Judged tokens of a row that do not merely follow :data:`CONTEXT` tokens as they did before, prompt included.

    >>> new_tokens([7, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 5], [0] + [1] * 12)
    7
    """
    seen = set()
    count = 0
    for at in range(len(token_ids)):
        piece = tuple(token_ids[max(0, at - CONTEXT) : at + 1])
        if at and loss_mask[at] and loss_mask[at - 1] and piece not in seen:
            count += 1
        seen.add(piece)
    return count
