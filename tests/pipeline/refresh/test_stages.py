"""How a refresh trains: the target reads the rows once where its states find room, else in every pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle3cli.models.config import DraftConfig
from eagle3cli.pipeline.refresh.stages import Work
from eagle3cli.pipeline.stages import StageOut
from eagle3cli.runtime import files
from eagle3cli.settings.tables import Settings
from tests.tiny import TEXT


@pytest.mark.parametrize(
    ("free", "options", "fits"),
    [
        (10**9, {}, True),
        (10**9, {"num_epochs": 1, "time_budget": "5m"}, True),
        (10**9, {"num_epochs": 1}, False),
        (10_000, {}, False),
    ],
    ids=["several passes", "as many as there is time for", "one pass", "no room"],
)
def test_states_wait_on_disk_where_they_save_passes_and_find_room(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, options: dict[str, object], fits: bool
) -> None:
    rows = tmp_path / "rows.jsonl"
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": text}] for text in TEXT]
    rows.write_text("".join(json.dumps({"id": str(i), "conversations": t}) + "\n" for i, t in enumerate(turns)))
    settings = Settings().updated("target", model_path=str(tiny)).updated("data", max_length=64, num_proc=1)
    config = DraftConfig.from_target(json.loads((tiny / "config.json").read_text()), draft_vocab_size=200)
    work = Work(tmp_path, settings.updated("refresh", **options), tmp_path, config, StageOut(json_wanted=True))
    monkeypatch.setattr(files, "free_bytes", lambda folder: free)
    assert work.states_fit(work.rows_settings(rows)) is fits
