"""Training that goes on from a draft folder: its config, its weights and its vocabulary, in a run of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eagle3cli.errors import UsageError
from eagle3cli.models.aux_layers import default_aux_layers, text_part
from eagle3cli.models.checkpoint import load_draft
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.draft import Draft
from eagle3cli.models.folders import check_made_for, find_draft
from eagle3cli.models.serve import with_window
from eagle3cli.settings.tables import Settings

NEW_DRAFT = {"config": "auto", "vocab_size": None, "fc_norm": None, "norm_output": None}
"""Settings of a new draft, with their defaults: a draft that exists has them already."""


def warm_start_config(settings: Settings, target: Mapping[str, Any]) -> DraftConfig:
    """The config of the draft in ``draft.path``; raises ModelError where it is one of another target,
    UsageError where settings of a new draft are given, too."""
    refused = [key for key, default in NEW_DRAFT.items() if getattr(settings.draft, key) != default]
    if refused:
        message = f"the draft has its own {', '.join(refused)}"
        raise UsageError(message, where="--draft-model-path", fix="leave these settings out, or train a new draft")
    text = text_part(target)
    aux_layers = settings.draft.aux_layers or default_aux_layers(int(text["num_hidden_layers"]))
    folder = _folder(settings)
    config, _ = load_draft(folder, aux_layers=aux_layers, target=target)
    check_made_for(folder, config.to_sglang(), target)
    return with_window(config, settings.draft)  # no weight depends on it


def load_warm_start(draft: Draft, settings: Settings) -> None:
    """Give ``draft`` the weights and the vocabulary of the folder."""
    _, state = load_draft(_folder(settings), aux_layers=draft.config.aux_layers)
    draft.load_state_dict(state)


def warm_start_digest(settings: Settings) -> str | None:
    """Tells one start from another; None for a new draft."""
    if settings.draft.init != "draft":
        return None
    digest = hashlib.sha256()
    for path in sorted(p for p in _folder(settings).iterdir() if p.suffix in (".safetensors", ".bin")):
        with path.open("rb") as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()


def _folder(settings: Settings) -> Path:
    if settings.draft.path is None:
        raise UsageError("--draft-init draft without a draft", where="--draft-model-path", fix="give its folder")
    return find_draft(Path(settings.draft.path))
