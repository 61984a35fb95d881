"""A draft folder as a model that is ready to run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from eagle3cli.models.aux_layers import default_aux_layers, text_part
from eagle3cli.models.checkpoint import load_draft
from eagle3cli.models.draft import Draft
from eagle3cli.models.folders import check_made_for


def load_for_inference(
    folder: Path, target: Mapping[str, Any] | None, aux_layers: tuple[int, ...] | None = None
) -> Draft:
    """The draft in ``folder``: frozen, fp32, on the CPU, with its own embedding where it brings one.

    Where its config does not name the layers that feed it, ``aux_layers`` or the default ones of ``target`` (a target's
    config) stand in. Raises ModelError for a draft of another target.
    """
    if aux_layers is None and target is not None:
        aux_layers = default_aux_layers(int(text_part(target)["num_hidden_layers"]))
    config, state = load_draft(folder, aux_layers=aux_layers, target=target)
    if target is not None:
        check_made_for(folder, config.to_sglang(), target)
    draft = Draft(config)
    draft.load_state_dict(state)
    return draft.cast(torch.float32).eval().requires_grad_(False)
