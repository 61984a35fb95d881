"""Servers that the benchmark starts: one type for all, and a judge that has no draft."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from eagle3cli.backends.target.hf import read_target_config
from eagle3cli.models.checkpoint import save_draft
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.draft import Draft
from eagle3cli.models.speculators import Verifier
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.bench.bench import BenchRun, bench
from eagle3cli.serving.launch.commands import DRAWN_DRAFTS, SPECULATIVE, Speculation, launches, vllm_knows
from eagle3cli.settings.models import TargetSettings
from eagle3cli.settings.serving import ServerSettings
from eagle3cli.settings.tables import Settings
from tests.conftest import ROOT, RunCli
from tests.failing import fails

STUB = """#!{python}
import asyncio, json, sys
sys.path.insert(0, {root!r})
words = sys.argv[1:]
with open({log!r}, "a") as f:
    f.write(json.dumps(words) + "\\n")
from tests.serving.bench.bench_server import BenchFaults, BenchServer

async def main():
    has_draft = "--speculative-num-steps" in words
    faults = BenchFaults(speculation=(3, 1, 4), flips=2) if has_draft else BenchFaults(gap={gap})
    server = BenchServer(faults, int(words[words.index("--port") + 1]))
    await server.start()
    await asyncio.Event().wait()

asyncio.run(main())
"""
"""A Python whose SGLang is a fake; with a draft it answers otherwise than without."""


def write_draft(folder: Path, tiny: Path, **options: Any) -> Path:
    config = DraftConfig.from_target(read_target_config(TargetSettings(model_path=str(tiny))), draft_vocab_size=64)
    model = Draft(config)
    model.set_vocab(torch.zeros(64, dtype=torch.long), torch.arange(config.vocab_size) < 64)
    save_draft(folder, model.serving_state(), config, dtype=torch.bfloat16, **options)
    return folder


@pytest.fixture
def words(tiny: Path, tmp_path: Path) -> tuple[object, ...]:
    """The command with a draft in bfloat16 for a target in float32."""
    draft = write_draft(tmp_path / "draft", tiny)
    rows = [{"id": f"q{i}", "turns": [f"Question {'x' * i}?"]} for i in range(8)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (
        *("bench", "--engine", "sglang", "--server-python", tmp_path / "python", "--device", "cpu"),
        *("--model-path", tiny, "--speculative-draft-model-path", draft, "--benchmark-list", "questions.jsonl"),
        *("--config-list", "2,3,1,4", "--max-tokens", 9),
    )


def stub(folder: Path, gap: float) -> None:
    """Write the stub; without a draft it says that two tokens are ``gap`` apart."""
    path = folder / "python"
    path.write_text(STUB.format(python=sys.executable, root=str(ROOT), log=str(folder / "starts"), gap=gap))
    path.chmod(0o755)


def starts(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "starts").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(("gap", "code"), [(0.01, 0), (3.0, 1)])
def test_the_servers_run_one_type_and_the_baselines_judges(
    run_cli: RunCli, words: tuple[object, ...], tmp_path: Path, gap: float, code: int
) -> None:
    stub(tmp_path, gap)
    done = run_cli(*words, "--json")
    assert done.code == code, done.err
    began = starts(tmp_path)
    has_draft = ["--speculative-num-steps" in argv for argv in began]
    assert has_draft == [False, True, False]  # measured, measured, and once more to judge
    assert {argv[argv.index("--dtype") + 1] for argv in began} == {"bfloat16"}
    plain, chain = done.json["configurations"]
    assert 0 < chain["compared"] - chain["identical"] < 8
    assert (chain["differences_beyond_ties"] == 0) == (code == 0)
    assert ("are not the target's own answers" in done.err) == (code == 1)
    assert [row["environment"]["dtype"] for row in (plain, chain)] == ["bfloat16"] * 2
    assert plain["environment"]["machine"]["cores"] > 0
    again = run_cli(*words, "--json")
    assert again.code == code
    assert len(starts(tmp_path)) == 3  # nothing is measured or judged again


@pytest.mark.slow
def test_a_stopped_run_judges_what_is_left(
    run_cli: RunCli, words: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(tmp_path, 0.01)

    def stopped(self: BenchRun, cases: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(BenchRun, "judge", stopped)
    run_cli(*words)
    assert len(starts(tmp_path)) == 2
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    done = run_cli(*words, "--json")
    assert done.code == 0, done.err
    assert len(starts(tmp_path)) == 3
    assert done.json["configurations"][1]["differences_unjudged"] == 0


@pytest.mark.slow
def test_a_baseline_of_an_older_version_is_told(run_cli: RunCli, words: tuple[object, ...], tmp_path: Path) -> None:
    """It ran in a type of its own, and the results did not say which."""
    stub(tmp_path, 0.01)
    assert run_cli(*words, "--output", "r.jsonl").code == 0
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    kept = [row for row in rows if row.get("config", "2,0,0,0") == "2,0,0,0"]
    kept[-1].pop("environment")
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert "in a type that is not told, this is bfloat16" in run_cli(*words, "--output", "r.jsonl").err


def test_sglang_does_not_read_speculators(tiny: Path, tmp_path: Path) -> None:
    verifier = Verifier(str(tiny), ("LlamaForCausalLM",), 3)
    draft = write_draft(tmp_path / "draft", tiny, layout="speculators", verifier=verifier)
    tables = {"target": {"model_path": str(tiny)}, "draft": {"path": str(draft)}, "bench": {"engine": "sglang"}}
    with fails("draft-format"):
        bench(Settings.model_validate(tables), Silent())


def test_a_flag_is_looked_up_in_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "vllm" / "engine" / "arg_utils.py"
    source.parent.mkdir(parents=True)
    (tmp_path / "vllm" / "__init__.py").write_text("raise SystemExit('imported')")
    source.write_text('add("--new-flag")')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert vllm_knows("", "--new-flag")
    assert not vllm_knows("", "--newer-flag")
    assert not vllm_knows("", DRAWN_DRAFTS, SPECULATIVE)  # an older version, without the file
    (tmp_path / "vllm" / "config").mkdir()
    (tmp_path / "vllm" / SPECULATIVE).write_text('draft_sample_method: str = "greedy"')
    assert vllm_knows("", DRAWN_DRAFTS, SPECULATIVE)


@pytest.mark.parametrize("sampled", [False, True])
def test_drafts_are_drawn_where_that_is_asked(sampled: bool) -> None:
    target = TargetSettings(model_path="m", device="cpu")
    draft = Speculation("d", 3, 1, 4, sampled)
    argv = launches("vllm", ServerSettings(), target, [1234], draft)[0].argv
    config = json.loads(argv[argv.index("--speculative-config") + 1])
    assert config.get("draft_sample_method") == ("probabilistic" if sampled else None)
