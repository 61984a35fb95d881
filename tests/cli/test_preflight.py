"""Wrong inputs are told at once, with what, where and how to fix it, and before torch is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from eagle3cli.backends.target.gguf.folder import source_of
from eagle3cli.cli.preflight.draft import check_draft
from eagle3cli.cli.preflight.paths import check_output, similar_path
from eagle3cli.models.folders import other_target
from eagle3cli.runtime import gpus
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.tables import Settings
from tests.cli.wrong_inputs import MORE, TEN, WrongInput, draft_config, make_inputs, web_server
from tests.conftest import ROOT, RunCli
from tests.failing import fails
from tests.pseudo_terminal import on_terminal, screen

ALL = {case.name: case for case in (*TEN, *MORE)}
IN_ONE_PROCESS = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from eagle3cli.cli.main import main
for words in json.loads(sys.argv[1]):
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        main(words)
    assert "torch" not in sys.modules, words
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    folder = tmp_path_factory.mktemp("wrong")
    make_inputs(folder, tiny)
    return folder


@pytest.fixture(scope="module")
def served() -> Iterator[dict[str, str]]:
    with web_server() as names:
        yield names


def words_of(case: WrongInput, served: dict[str, str]) -> list[str]:
    return [word.format(**served) for word in case.words]


@pytest.mark.parametrize("name", ALL)
def test_each_is_told_with_its_place_and_the_way_out(
    name: str, run_cli: RunCli, place: Path, served: dict[str, str]
) -> None:
    case = ALL[name]
    before = sorted(place.iterdir())
    ran = run_cli(*words_of(case, served), cwd=place)
    assert ran.code == case.code, ran.err
    for said in case.said:
        assert said.format(**served) in ran.err
    assert "fix: " in ran.err or case.name == "a negative number"
    assert sorted(place.iterdir()) == before  # nothing is left of a command that is refused


@pytest.mark.slow
def test_none_of_them_imports_torch(place: Path, served: dict[str, str]) -> None:
    lines = json.dumps([words_of(case, served) for case in ALL.values()])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", IN_ONE_PROCESS, lines]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_terminal_hears_at_once_that_torch_is_loaded(place: Path) -> None:
    words = ("train", "--target-model-path", "target", "--train-data-path", "rows.jsonl", "--total-steps", "0")
    seen: list[str] = []
    on_terminal(("eval", "--target-model-path", "target", "--draft-model-path", "other-draft"), place, seen.append)
    assert "loading" not in seen[-1]  # what is wrong is said in its place
    code, text = on_terminal((*words[:-1], "1", "--mode", "offline"), place)
    assert code != 0
    assert screen(text)[0] == "loading PyTorch ..."


def test_a_draft_of_another_target_is_told_by_its_sizes() -> None:
    target = {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 8}
    assert other_target(draft_config(64), target) is None
    assert "its hidden_size is 96 but the target has 64" in str(other_target(draft_config(96), target))
    assert "it reads layers 1, 3, 4 but the target has 4 layers" in str(
        other_target(draft_config(64), {**target, "num_hidden_layers": 4})
    )
    assert other_target({"hidden_size": "wide"}, target) is None  # its reader says what is wrong with it
    assert other_target(draft_config(64), {"text_config": target}) is None


def test_a_path_is_corrected_part_by_part(tmp_path: Path) -> None:
    (tmp_path / "models" / "llama-8b").mkdir(parents=True)
    assert similar_path(tmp_path / "model" / "lama-8b") == tmp_path / "models" / "llama-8b"
    assert similar_path(tmp_path / "models" / "qwen") is None


def test_a_disk_that_is_read_only_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with fails("cannot-write") as caught:
        check_output(tmp_path / "runs" / "x", "--output-dir", folder=True)
    assert "choose another place with --output-dir" in str(caught.value)
    check_output(tmp_path, "--output-dir", folder=True)  # it is there, and ours


@pytest.mark.parametrize(
    ("installed", "named", "seen"),
    [(8, None, 8), (8, "0,1", 2), (8, "", 0), (8, "0,-1,2", 1), (1, "0,1", 1), (0, "0", 0), (None, "0", None)],
)
def test_gpus_are_counted_without_torch(
    installed: int | None, named: str | None, seen: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(gpus, "_installed_gpus", lambda: installed)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert gpus.visible_gpus() == seen


def test_processes_are_held_against_gpus_or_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "available_cpus", lambda: set(range(16)))
    for asked, count in (("auto", 0), ("16", 0), ("8", 8)):
        gpus.check_processes(asked, count)
    for asked, count in (("17", 0), ("9", 8)):
        with fails("process-count", asked, count or 16):
            gpus.check_processes(asked, count)


def test_a_gguf_file_and_the_folder_made_of_it_are_one_target(tmp_path: Path) -> None:
    """Wherever the folder stands: that of ``eagle3 run`` is below the run's folder."""
    (tmp_path / "A.gguf").write_bytes(b"GGUF of a model")
    for name in ("made", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "made" / "source.json").write_text(json.dumps(source_of(str(tmp_path / "A.gguf"))))
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(draft_config(64)))
    save_file({"norm.weight": np.ones(64, np.float32)}, run / "model.safetensors")
    (run / "settings.toml").write_text(f"[target]\nmodel_path = {json.dumps(str(tmp_path / 'A.gguf'))}\n")
    warned = {}
    for name in ("made", "other"):
        tables = Settings.model_validate({"target": {"model_path": str(tmp_path / name)}, "draft": {"path": str(run)}})
        report = Silent()
        check_draft(tables, {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 8}, report)
        warned[name] = len(report.warnings)
    assert warned == {"made": 0, "other": 1}


def test_a_draft_of_the_merged_target_is_one_of_the_target_with_its_adapter(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(draft_config(64)))
    (tmp_path / "settings.toml").write_text('[target]\nmodel_path = "cache/models/llama+mine-0a1b2c3d"\n')
    warned = []
    for adapter in ("at/mine", "at/other", None):
        report = Silent()
        target = {"model_path": "org/llama", "adapter": adapter}
        check_draft(Settings.model_validate({"target": target, "draft": {"path": str(tmp_path)}}), {}, report)
        warned.append(len(report.warnings))
    assert warned == [0, 1, 1]
