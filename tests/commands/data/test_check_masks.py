"""Commands that build on masks stop at a wrong one: the row is shown, and nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eagle3cli.data.conversations.conversation import Conversation
from eagle3cli.data.tokens import mask_check
from eagle3cli.data.tokens.encode import Encoder
from eagle3cli.data.tokens.rows import TokenRow
from eagle3cli.errors import DataError
from tests.conftest import RunCli


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mask is one token late."""
    encode = Encoder.encode

    def late(self: Encoder, conversations: Sequence[Conversation]) -> list[TokenRow | DataError]:
        rows = encode(self, conversations)
        return [replace(row, loss_mask=np.roll(row.loss_mask, 1)) for row in rows if isinstance(row, TokenRow)]

    monkeypatch.setattr(Encoder, "encode", late)


@pytest.mark.parametrize("command", [("cache",), ("train",), ("hidden-states",)])
@pytest.mark.parametrize("plan", [(), ("--dry-run",)])
def test_a_wrong_mask_stops_with_the_row(
    run_cli: RunCli, place: Path, wrong: None, command: tuple[str, ...], plan: tuple[str, ...]
) -> None:
    ran = run_cli(*command, *plan)
    assert ran.code == 1
    assert ran.error == "mask-wrong"
    assert "train.jsonl:1" in ran.err
    assert "«" in ran.err
    assert "--no-check-masks" in ran.err
    assert not list(place.glob("cache/processed_dataset/*"))


def test_the_check_can_be_left_out_and_is_made_up_for(
    run_cli: RunCli, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_cli("cache", "--no-check-masks", "--json").json.get("judged") is None
    judged = run_cli("cache", "--json").json["judged"]
    assert judged == {"right": 18, "refused": 0, "unknown": 0}
    monkeypatch.setattr(mask_check, "check_masks", None)  # a cache that was judged is not judged again
    assert run_cli("cache", "--json").json["judged"] == judged
