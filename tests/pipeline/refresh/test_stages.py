"""How a refresh trains: the target reads the rows once where its states find room, else in every pass."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eagle3cli.data.tokens.vocab import from_ids
from eagle3cli.models.checkpoint import load_draft, save_draft
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.draft import Draft
from eagle3cli.pipeline.refresh import stages
from eagle3cli.pipeline.refresh.stages import Work
from eagle3cli.pipeline.stages import StageOut
from eagle3cli.runtime.processes.job import check_roles
from eagle3cli.settings.tables import Settings
from eagle3cli.training.context import check_context
from tests.tiny import TEXT


def work_of(tiny: Path, folder: Path, **options: object) -> Work:
    settings = Settings().updated("target", model_path=str(tiny)).updated("data", max_length=64, num_proc=1)
    config = DraftConfig.from_target(json.loads((tiny / "config.json").read_text()), draft_vocab_size=200)
    out = StageOut(json_wanted=True)
    return Work(folder, settings.updated("refresh", **options), folder / "served", config, out)


def test_half_of_the_way_is_the_mean_of_all_weights(tiny: Path, tmp_path: Path) -> None:
    work = work_of(tiny, tmp_path)
    states = {}
    for seed, name in enumerate(("served", "trained")):
        torch.manual_seed(seed)
        draft = Draft(work.config)
        for weight in draft.parameters():
            torch.nn.init.normal_(weight)
        vocab = from_ids(range(200), work.config.vocab_size)
        states[name] = {**draft.state_dict(), "d2t": vocab.d2t, "t2d": vocab.t2d}
        save_draft(tmp_path / name, states[name], work.config, dtype=torch.float32)
    assert work.part_of_the_way(tmp_path / "trained", 1.0) == tmp_path / "trained"
    for share in (0.5, 0.25):
        _, state = load_draft(work.part_of_the_way(tmp_path / "trained", share))
        name = "fc.weight"
        expected = torch.lerp(states["served"][name], states["trained"][name], share)
        assert torch.allclose(state[name], expected, atol=1e-6)
        assert torch.equal(state["t2d"], states["served"]["t2d"])


@pytest.mark.parametrize(("free", "fits"), [(10**9, True), (60_000_000, False), (10_000, False)])
def test_states_wait_on_disk_where_they_find_room(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, fits: bool
) -> None:
    rows = tmp_path / "rows.jsonl"
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": text}] for text in TEXT]
    rows.write_text("".join(json.dumps({"id": str(i), "conversations": t}) + "\n" for i, t in enumerate(turns)))
    work = work_of(tiny, tmp_path)
    monkeypatch.setattr(stages, "free_bytes", lambda folder: free)
    assert work.states_fit(rows) is fits


def test_states_of_rows_that_are_cut_before_their_replies_are_not_asked_for(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [{"role": "user", "content": " ".join(TEXT) * 9}, {"role": "assistant", "content": TEXT[0]}]
    rows = tmp_path / "traffic.jsonl"
    rows.write_text(json.dumps({"id": "a", "conversations": turns}) + "\n")
    work = work_of(tiny, tmp_path)
    asked: list[str] = []
    monkeypatch.setattr(stages, "run_command", lambda name: lambda settings, out: asked.append(name))
    assert work.read_traffic() is None
    work.train(rows, rows)
    assert asked == ["train"]


def test_held_out_states_that_find_no_room_are_not_copied_either(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "a"}\n')
    work = work_of(tiny, tmp_path)
    asked: list[Settings] = []

    def evaluated(settings: Settings, out: StageOut) -> None:
        asked.append(settings)
        out.data = {"acceptance_length": {settings.run.k: 1.5}}

    monkeypatch.setattr(stages, "evaluate", evaluated)
    monkeypatch.setattr(Work, "_own_rows", lambda self: {"a": 0})
    monkeypatch.setattr(Work, "states_fit", lambda self, *_, **__: False)
    assert work.acceptance(tmp_path, rows, "traffic") == 1.5
    assert asked[0].data.eval_hidden_states_path is None


def test_time_ends_a_training_before_its_passes_do(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "a"}\n' * 5)
    old = tmp_path / "old.jsonl"
    old.write_text('{"id": "b"}')
    work = work_of(tiny, tmp_path, num_epochs=3)
    work = replace(work, settings=work.settings.updated("train", batch_size=4, total_steps=7, time_budget="9h"))
    asked: list[Settings] = []
    monkeypatch.setattr(stages, "run_command", lambda name: lambda settings, out: asked.append(settings))
    monkeypatch.setattr(Work, "states_fit", lambda self, rows: False)
    work.train(rows, old, lambda: 71.6)
    work.train(rows, old, lambda: 0.2)  # of a refresh of a second
    work.train(rows, old)
    assert [(s.train.num_epochs, s.train.total_steps, s.train.time_budget) for s in asked] == [
        (3, 6, "72s"),
        (3, 6, "1s"),
        (3, None, None),
    ]
    assert asked[0].data.train_path is not None
    assert asked[0].data.train_path.read_text() == '{"id": "a"}\n' * 5 + '{"id": "b"}\n'


@pytest.mark.parametrize("gpus", [None, "2"])
@pytest.mark.parametrize("room", [True, False])
def test_what_the_earlier_run_had_of_processes_and_echoes_does_not_stop_a_refresh(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: bool, gpus: str | None
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "a"}\n')
    work = work_of(tiny, tmp_path)
    settings = work.settings.updated("train", echo_factor=2, echo_buffer=8, context_parallel=2)
    settings = settings.updated("launch", gpus=gpus, target_gpus=3, transfer_encoding="int8")
    settings = settings.updated("target", device="cpu")
    work = replace(work, settings=settings)
    asked: dict[str, Settings] = {}
    monkeypatch.setattr(stages, "run_command", lambda name: lambda settings, out: asked.update({name: settings}))
    monkeypatch.setattr(Work, "states_fit", lambda self, rows: room)
    monkeypatch.setattr(Work, "_teach", lambda self, rows: True)
    work.train(rows, rows)
    settings = Settings.model_validate(asked["train"].model_dump(mode="json", exclude_unset=True))  # as ranks read it
    assert settings.train.mode == ("offline" if room else "online")
    assert settings.train.echo_factor == 1
    assert settings.train.learning_rate == pytest.approx(work.settings.train.learning_rate / 5)
    assert settings.train.context_parallel == (2 if room and gpus == "2" else 1)
    check_context(settings.train, int(gpus or 1))
    check_roles(settings, int(gpus or 1))
