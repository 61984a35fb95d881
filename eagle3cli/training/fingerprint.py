"""Whether a run may go on: everything that decides its numbers, hashed, and what has changed where it may not."""

from __future__ import annotations

import tomllib
from pathlib import Path

from eagle3cli.backends.target.head import fingerprint
from eagle3cli.runtime.provenance import changes, digest_json
from eagle3cli.settings.tables import Settings
from eagle3cli.settings.toml import to_toml
from eagle3cli.training.inputs import Inputs
from eagle3cli.training.warm_start import warm_start_digest

SESSION_FIELDS = (
    "output_dir",
    "save_interval",
    "eval_interval",
    "log_interval",
    "keep_checkpoints",
    "early_stop",
    "max_skipped_steps",
    "resume",
    "overwrite",
    "micro_batch_size",
    "max_tokens_per_gpu",
    "activation_checkpointing",
    "loss_chunk",
    "sharding",
    "report_to",
    "tracker_project",
    "tracker_name",
)
"""Settings that may change between the sessions of one run."""


def run_fingerprint(settings: Settings, inputs: Inputs) -> str:
    """Everything that decides the run's numbers, hashed."""
    kept = {k: v for k, v in settings.train.model_dump(mode="json").items() if k not in SESSION_FIELDS}
    target = fingerprint(settings.target.model_path, revision=settings.target.revision)
    started = warm_start_digest(settings) or settings.draft.init
    return digest_json([kept, started, inputs.config.to_sglang(), inputs.data_key, target], sort_keys=False)


def changed_settings(run: Path, settings: Settings) -> list[str]:
    """What differs from the ``settings.toml`` of an earlier session of a run, as ``table.key was A, is B``."""
    path = run / "settings.toml"
    if not path.is_file():
        return []
    was, now = (tomllib.loads(text) for text in (path.read_text(encoding="utf-8"), to_toml(settings)))
    changed: list[str] = []
    for table in ("target", "draft", "data", "train"):
        old = was.get(table, {})
        new = now.get(table, {})
        keys = sorted((old.keys() | new.keys()) - set(SESSION_FIELDS))
        changed += changes(old, new, keys=keys, absent="not set", text=f"{table}.{{key}} was {{was}}, is {{now}}")
    return changed
