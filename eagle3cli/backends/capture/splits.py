"""The stage ``hidden-states``: cached rows of the wanted splits, each to a store of its own."""

from __future__ import annotations

import torch

from eagle3cli.backends.capture.capture import CaptureResult, StoreOptions, capture, identify_target, with_compute_dtype
from eagle3cli.backends.capture.memory import explain_pass
from eagle3cli.backends.capture.passes import PassTooLarge
from eagle3cli.backends.target.auto import open_target, shown_images
from eagle3cli.backends.target.hf import pick_device, pick_dtype, read_target_config
from eagle3cli.backends.target.on_policy import OnPolicyMeter
from eagle3cli.backends.target.target import LiveTarget
from eagle3cli.data.hidden_states.writer import discard_store
from eagle3cli.data.tokens.cache import open_or_build
from eagle3cli.data.tokens.on_policy import lines, warning
from eagle3cli.errors import Eagle3Error, UsageError
from eagle3cli.models.config import read_draft_config
from eagle3cli.models.serve import check_served, report_unserved, with_options
from eagle3cli.runtime.distributed import Ranks
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.stop import Stop
from eagle3cli.settings.tables import Settings


def capture_splits(settings: Settings, report: Reporter, stop: Stop, ranks: Ranks) -> dict[str, CaptureResult]:
    """Capture what ``settings.hidden_states`` asks for, or what an earlier run left to do."""
    requested = settings.hidden_states
    draft = settings.draft
    if not requested.enable_aux_hidden_states:
        fix = "leave --enable-aux-hidden-states on"
        raise UsageError(
            "conflicting-options",
            "EAGLE-3 drafts read auxiliary states",
            where="hidden_states.enable_aux_hidden_states",
            fix=fix,
        )
    target = with_compute_dtype(settings.target, requested.dtype)
    if target.mem_fraction_static is None:
        target = target.model_copy(update={"mem_fraction_static": requested.mem_frac})
    raw = read_target_config(target)
    config = read_draft_config(draft.config, raw, draft_vocab_size=draft.vocab_size, aux_layers=draft.aux_layers)
    trained = with_options(config, draft)
    check_served(trained, raw, draft.serve_with, backend=target.backend)
    report_unserved(trained, raw, report, backend=target.backend)
    cached = open_or_build(settings, config.draft_vocab_size, config.vocab_size, report, ranks)
    splits = {name: rows for name, rows in (("train", cached.train), ("eval", cached.eval)) if rows is not None}
    if requested.split != "both" and requested.split not in splits:
        raise UsageError(
            "missing-data", "no held-out rows to capture", where="--split eval", fix="give --eval-data-path"
        )
    target = shown_images(target, splits.values())
    _limit_memory(requested.mem_frac, report)
    identity = identify_target(target, config)
    loaded: list[LiveTarget] = []

    def load() -> LiveTarget:
        loaded[:] = loaded or [open_target(target, report, config.aux_layers)]
        return loaded[0]

    if target.tp_size > 1 and ranks.world_size > 1:
        load()  # the targets of all groups are loaded by all processes at once, or not at all
    results = {}
    for name, rows in splits.items():
        if requested.split not in ("both", name):
            continue
        folder = requested.output_path / name
        if requested.overwrite and ranks.is_main:
            discard_store(folder)
        sample = (
            rows if requested.sample_size is None else [rows[i] for i in range(min(len(rows), requested.sample_size))]
        )
        # An evaluation on states that lost something would measure that loss too.
        encoding = "bf16" if name == "eval" else requested.encoding
        options = StoreOptions(encoding, requested.batch_tokens, requested.shard_mb, requested.batch_size)
        meter = OnPolicyMeter(len(rows), identity.target_hash, rows.sources, cached.folder / name)
        try:
            results[name] = capture(
                *(load, sample, folder, identity, cached.vocab, options),
                report=report,
                stop=stop,
                ranks=ranks,
                meter=meter if ranks.is_main else None,  # its share of the rows tells of the others
            )
        except PassTooLarge as error:
            element = pick_dtype(target.dtype, pick_device(target.device), raw).itemsize
            raise explain_pass(error, target, len(config.aux_layers), element) from None
        finally:
            _keep(meter, name, report)
    return results


def _keep(meter: OnPolicyMeter, split: str, report: Reporter) -> None:
    """Write down, and tell, how far the replies are the target's own; what cannot be written stops nothing."""
    summary = meter.summary()
    for line in lines(summary):
        report.info(f"{split}, {line.strip()}")
    if text := warning(summary, split):
        report.warn(text)
    try:
        meter.save()
    except Eagle3Error as error:
        report.warn(f"how far replies are the target's own was not kept: {error}")


def _limit_memory(share: float | None, report: Reporter) -> None:
    if share is None:
        return
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share)
    else:
        report.warn("--mem-frac: there is no GPU here, nothing is limited")
