"""What is proposed where memory does not suffice: nothing that the run would refuse."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from eagle3cli.settings.tables import Settings
from eagle3cli.training.forecast import proposals


@pytest.mark.parametrize("keep", [False, True])
def test_sequences_are_not_dealt_where_states_are_kept(monkeypatch: pytest.MonkeyPatch, keep: bool) -> None:
    sizes = count(1000, -1)
    monkeypatch.setattr(proposals, "training_workload", lambda *_, **__: None)
    monkeypatch.setattr(proposals, "forecast", lambda _: SimpleNamespace(peak_bytes=next(sizes)))
    monkeypatch.setattr(proposals, "draft_weights", lambda _: 0)
    settings = Settings().updated("train", mode="online", keep_states=keep)
    inputs: Any = SimpleNamespace(device="cpu", draft=None)
    flags = " ".join(proposal.flags for proposal in proposals.proposals(settings, inputs, 2, 0))
    assert ("--context-parallel 2" in flags) is not keep
    assert "--tp-size 2" in flags
