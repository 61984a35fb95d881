"""What a killed refresh has done is used for the same rows of the same target alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from eagle3cli.data.tokens.vocab import from_ids
from eagle3cli.models.checkpoint import save_draft
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.draft import Draft
from eagle3cli.pipeline.refresh.refresh import NEW, _Refresh
from eagle3cli.pipeline.refresh.stages import Work
from eagle3cli.pipeline.refresh.versions import Versions
from eagle3cli.pipeline.stages import StageOut
from eagle3cli.runtime.stop import Stop
from eagle3cli.settings.tables import Settings


@pytest.fixture
def new_refresh(tiny: Path, tmp_path: Path) -> Callable[[str], _Refresh]:
    """A refresh of a served draft, whose log has this reply."""
    shutil.copytree(tiny, tmp_path / "target")
    raw = json.loads((tiny / "config.json").read_text())
    config = DraftConfig.from_target(raw, draft_vocab_size=200)
    vocab = from_ids(range(200), config.vocab_size)
    state = {**Draft(config).state_dict(), "d2t": vocab.d2t, "t2d": vocab.t2d}
    save_draft(tmp_path / "draft", state, config, dtype=torch.float32)
    settings = Settings().updated("target", model_path=str(tmp_path / "target"))
    folder = tmp_path / "draft.versions" / "work"
    folder.mkdir(parents=True)

    def make(reply: str) -> _Refresh:
        (folder / NEW).write_text(json.dumps({"id": "a", "reply": reply}) + "\n")
        return _Refresh(Versions(tmp_path / "draft"), settings, 0, StageOut(json_wanted=True), Stop())

    return make


def test_other_replies_and_another_target_begin_anew(new_refresh: Callable[[str], _Refresh], tmp_path: Path) -> None:
    folder = tmp_path / "draft.versions" / "work"

    def is_used(reply: str) -> bool:
        new_refresh(reply)._work()
        used = (folder / "states").exists()
        (folder / "states").touch()
        return used

    assert [is_used("yes"), is_used("yes"), is_used("no"), is_used("no")] == [False, True, False, True]
    raw = json.loads((tmp_path / "target" / "config.json").read_text())
    (tmp_path / "target" / "config.json").write_text(json.dumps({**raw, "rms_norm_eps": 1e-3}))
    assert [is_used("no"), is_used("no")] == [False, True]


def test_how_fast_the_target_reads_is_known_after_a_kill(
    new_refresh: Callable[[str], _Refresh], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Work, "read_traffic", lambda self: None)
    monkeypatch.setattr("eagle3cli.training.eval.own_replies.judge_replies", lambda *_: {})
    paces = []
    for _ in range(2):
        refresh = new_refresh("yes")
        refresh._judge(refresh._work())
        paces.append(refresh.budget.pace)
    assert paces[0]
    assert paces[0] == paces[1]
