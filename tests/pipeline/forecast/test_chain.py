"""The forecast of a run before it starts: a table for every recipe, and ranges that hold what a real chain takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eagle3cli.settings.packaged import recipes
from tests.conftest import RunCli
from tests.pipeline.test_run import RECIPE, STAGES

TASK = "\n".join(json.dumps({"id": str(at), "prompt": f"{at}: Why?"}) for at in range(2))


def size_of(path: Path) -> int:
    """Bytes of a file, or of all below a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def holds(forecast: dict[str, Any], name: str, value: float) -> None:
    """The value lies in the range."""
    assert forecast[name]["low"] <= value <= forecast[name]["high"], (name, forecast[name], value)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_chain_takes_what_was_foretold(mode: str, run_cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    rows = [
        {"id": f"p{i}", "conversations": [{"role": "user", "content": f"{i}: How? " * (1 + i % 3)}]} for i in range(24)
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.jsonl").write_text(TASK)
    recipe = RECIPE.replace("mtbench-like:2", "task.jsonl:2").format(tiny=tiny, mode=mode)
    (tmp_path / "tiny.toml").write_text(recipe)
    planned = run_cli("plan", "tiny.toml", "--json").json
    forecast = {name: stage["forecast"] for name, stage in planned["stages"].items()}
    expected = [*STAGES[:5], "hidden-states", *STAGES[5:]] if mode == "offline" else STAGES
    assert list(forecast) == expected

    done = run_cli("run", "tiny.toml")
    assert done.code == 0, done.err
    folder = tmp_path / "runs" / "tiny"
    taken = {
        name: stage["result"] for name, stage in json.loads((folder / "stages.json").read_text())["stages"].items()
    }
    cached = taken["cache"]
    both = {key: cached["train"][key] + cached["eval"][key] for key in ("rows", "tokens")}
    holds(forecast["prepare"], "rows", taken["prepare"]["train_rows"])
    holds(forecast["regenerate"], "rows", taken["regenerate"]["rows"])
    holds(forecast["regenerate"], "tokens", taken["regenerate"]["tokens"])
    holds(forecast["merge"], "rows", taken["merge"]["train_rows"] + taken["merge"]["eval_rows"])
    for name in ("cache", *(["hidden-states"] if mode == "offline" else [])):
        holds(forecast[name], "rows", both["rows"])
        holds(forecast[name], "tokens", both["tokens"])
    holds(forecast["train"], "rows", cached["train"]["rows"])
    holds(forecast["eval"], "rows", min(4, cached["eval"]["rows"]))
    last = [json.loads(line) for line in (folder / "train" / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["step"] == 8
    holds(forecast["train"], "tokens", 8 * 4 * cached["train"]["tokens"] / cached["train"]["rows"])
    places = {
        "prepare": "prompts",
        "regenerate": "regenerated",
        "merge": "dataset",
        "cache": "cache",
        "train": "train",
        "export": "draft",
        "bench": "bench",
        **({"hidden-states": "hidden_states"} if mode == "offline" else {}),
    }
    for name, place in places.items():
        holds(forecast[name], "disk_bytes", size_of(folder / place))


@pytest.mark.slow
def test_a_run_that_has_begun_is_forecast_from_what_is_there(run_cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    rows = [{"id": f"p{i}", "conversations": [{"role": "user", "content": f"{i}: How?"}]} for i in range(24)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny.toml").write_text(RECIPE.format(tiny=tiny, mode="online"))
    assert run_cli("run", "tiny.toml", "--to", "cache").code == 0
    planned = run_cli("run", "tiny.toml", "--dry-run", "--json").json
    assert planned["stages_left"] == ["train", "eval", "export", "bench"]
    assert planned["stages"]["train"]["forecast"]["rows"] == {"low": 20, "high": 20}
    assert "rows and tokens: counted, they are cached" in planned["forecast"]["ranges_from"]


@pytest.mark.slow
@pytest.mark.parametrize("name", recipes())
def test_every_recipe_has_a_table(name: str, run_cli: RunCli) -> None:
    planned = run_cli("plan", name, "--json").json
    for stage, told in planned["stages"].items():
        ranges = [each for each in told["forecast"].values() if each is not None]
        assert ranges, stage
        assert all(0 <= each["low"] <= each["high"] for each in ranges), (stage, ranges)
    for stage in ("regenerate", "train", "eval", "bench"):
        assert None not in planned["stages"][stage]["forecast"].values(), stage
    assert planned["forecast"]["sizes_from"]
    assert len(planned["forecast"]["ranges_from"]) >= 5


def test_the_table_for_people(run_cli: RunCli) -> None:
    told = run_cli("plan", "llama-3.1-8b-online").out
    assert "more is known" not in told
    lines = told.splitlines()
    header = next(at for at, line in enumerate(lines) if line.startswith("stage "))
    assert lines[header].split() == ["stage", "rows", "tokens", "disk", "memory", "minutes"]
    names = [line.split()[0] for line in lines[header + 1 : header + 11]]
    assert names == [*STAGES, "together"]
    assert len({len(line) for line in lines[header : header + 11]}) == 1
    assert "packaged draft config llama-3.1-8b" in told
    assert "H100" in told
    assert "regenerate.max_tokens" in told


@pytest.mark.slow
def test_memory_that_is_not_there_is_told(run_cli: RunCli, tmp_path: Path) -> None:
    words = ("plan", "llama-3.1-8b-online", "--set", "target.device=cuda", "--json")
    assert not any("of memory" in warning for warning in run_cli(*words).json["warnings"])
    large = run_cli(*words, "--set", "draft.config=llama-3.1-70b", "--set", "launch.gpus=1").json
    assert any(warning.startswith("train: at least") for warning in large["warnings"])


def test_a_target_that_nobody_knows_leaves_out_what_depends_on_it(run_cli: RunCli) -> None:
    words = ("plan", "llama-3.1-8b-online", "--model-path", "someone/unheard-of", "--set", "draft.config=auto")
    planned = run_cli(*words, "--json").json
    told = planned["stages"]["train"]["forecast"]
    assert told["memory_bytes"] is told["minutes"] is None
    assert told["rows"]["high"] == 99000
    assert "no packaged draft config has its name" in planned["forecast"]["ranges_from"][2]


def test_prompts_that_leave_no_room_for_replies_are_told(run_cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    rows = [{"id": f"p{i}", "conversations": [{"role": "user", "content": f"{i}: " + "How? " * 60}]} for i in range(9)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny.toml").write_text(RECIPE.format(tiny=tiny, mode="online"))
    words = ("plan", "tiny.toml", "--json")
    assert run_cli(*words).json["warnings"] == []
    warnings = run_cli(*words, "--set", "data.max_length=64").json["warnings"]
    assert len(warnings) == 1
    assert "leave no room for replies in 64" in warnings[0]


def test_copies_and_rows_that_are_none_are_not_counted(run_cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    rows = [{"id": f"p{i}", "conversations": [{"role": "user", "content": f"{i % 7}: How?"}]} for i in range(20)]
    lines = [*map(json.dumps, rows), '{"bad": 1}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "tiny.toml").write_text(RECIPE.format(tiny=tiny, mode="online"))
    stages = run_cli("plan", "tiny.toml", "--json").json["stages"]
    assert stages["prepare"]["forecast"]["rows"] == {"low": 7, "high": 7}
    assert stages["cache"]["forecast"]["rows"]["high"] == 7
