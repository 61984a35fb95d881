"""Which recorded replies are a target's own, told without fetching it where a run is only planned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from eagle3cli.pipeline.own_replies import why_own
from eagle3cli.settings.tables import Settings


def test_a_plan_fetches_nothing_of_a_target_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(*_: Any, **__: Any) -> str:
        raise AssertionError("a plan fetches weights")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetched)
    recorded = tmp_path / "replies.jsonl"
    recorded.write_text(json.dumps({"target": "small"}) + "\n")
    settings = Settings().updated("regenerate", recorded=str(recorded), temperature=0.0)
    other = settings.updated("target", model_path="someone/large")
    assert any("target 'small' instead of 'large'" in reason for reason in why_own(other, planned=True))
    same = settings.updated("target", model_path="someone/small")
    assert not any("target" in reason for reason in why_own(same, planned=True))
