"""Training that goes on from a draft folder: its config, its weights and its vocabulary, in a run of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eagle3cli.errors import UsageError
from eagle3cli.models.aux_layers import default_aux_layers, text_part
from eagle3cli.models.checkpoint import load_draft
from eagle3cli.models.config import DraftConfig, read_draft_config
from eagle3cli.models.draft import Draft
from eagle3cli.models.folders import check_made_for, find_draft
from eagle3cli.models.serve import with_window
from eagle3cli.settings.tables import Settings

NOT_COMPARED = {
    "vocab_size",
    "draft_vocab_size",
    "target_hidden_size",
    "aux_layers",
    "dtype",
    "max_position_embeddings",
}
NOT_COMPARED |= {"bos_token_id", "eos_token_id", "pad_token_id", "own_embedding"}
"""What a named config does not say of a draft, or says of its target and its files alone."""


def warm_start_config(settings: Settings, target: Mapping[str, Any]) -> DraftConfig:
    """The config of the draft in ``draft.path``; raises ModelError where it is one of another target, UsageError where
    the settings ask for another shape."""
    text = text_part(target)
    aux_layers = settings.draft.aux_layers or default_aux_layers(int(text["num_hidden_layers"]))
    folder = _folder(settings)
    config, _ = load_draft(folder, aux_layers=aux_layers, target=target)
    check_made_for(folder, config.to_sglang(), target)
    _refuse_another_shape(settings, config, target)
    return with_window(config, settings.draft)  # no weight depends on it


def _refuse_another_shape(settings: Settings, config: DraftConfig, target: Mapping[str, Any]) -> None:
    draft = settings.draft
    wanted: dict[str, Any] = {}
    if draft.config != "auto":
        named = read_draft_config(draft.config, dict(target), draft_vocab_size=None, aux_layers=config.aux_layers)
        wanted = {name: value for name, value in vars(named).items() if name not in NOT_COMPARED}
        wanted = {**wanted, "window": config.window, "sinks": config.sinks} if draft.window is not None else wanted
    wanted |= {name: value for name in ("fc_norm", "norm_output") if (value := getattr(draft, name)) is not None}
    if draft.vocab_size is not None:
        wanted["draft_vocab_size"] = min(draft.vocab_size, config.vocab_size)
    clashes = [
        f"{name} {getattr(config, name)}, not {value}"
        for name, value in wanted.items()
        if getattr(config, name) != value
    ]
    if clashes:
        keys = ("draft.config", "draft.vocab_size", "draft.fc_norm", "draft.norm_output")
        fix = f"leave what asks for it out ({', '.join(keys)} and their options), or train a new draft"
        raise UsageError("draft-config", f"the draft has {'; '.join(clashes)}", where=str(draft.path), fix=fix)


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
        raise UsageError(
            "missing-draft", "--draft-init draft without a draft", where="--draft-model-path", fix="give its folder"
        )
    return find_draft(Path(settings.draft.path))
