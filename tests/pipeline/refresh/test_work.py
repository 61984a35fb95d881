"""What a killed refresh has done is used for the same rows of the same target alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from eagle3cli.data.tokens.vocab import from_ids
from eagle3cli.models.checkpoint import save_draft
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.draft import Draft
from eagle3cli.pipeline.refresh.refresh import NEW, _Refresh
from eagle3cli.pipeline.refresh.versions import Versions
from eagle3cli.pipeline.stages import StageOut
from eagle3cli.runtime.stop import Stop
from eagle3cli.settings.tables import Settings


def test_other_replies_and_another_target_begin_anew(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "target")
    raw = json.loads((tiny / "config.json").read_text())
    config = DraftConfig.from_target(raw, draft_vocab_size=200)
    vocab = from_ids(range(200), config.vocab_size)
    state = {**Draft(config).state_dict(), "d2t": vocab.d2t, "t2d": vocab.t2d}
    save_draft(tmp_path / "draft", state, config, dtype=torch.float32)
    settings = Settings().updated("target", model_path=str(tmp_path / "target"))
    folder = tmp_path / "draft.versions" / "work"
    folder.mkdir(parents=True)

    def is_used(reply: str) -> bool:
        (folder / NEW).write_text(json.dumps({"id": "a", "reply": reply}))
        _Refresh(Versions(tmp_path / "draft"), settings, 0, StageOut(json_wanted=True), Stop())._work()
        used = (folder / "states").exists()
        (folder / "states").touch()
        return used

    assert [is_used("yes"), is_used("yes"), is_used("no"), is_used("no")] == [False, True, False, True]
    (tmp_path / "target" / "config.json").write_text(json.dumps({**raw, "rms_norm_eps": 1e-3}))
    assert [is_used("no"), is_used("no")] == [False, True]
