"""Rows with images on the command line, from files as people have them to a trained draft."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle3cli.data.hidden_states.store import Store
from tests.conftest import RunCli
from tests.pictures import image_rows, image_target, write_images, write_rows

SETTINGS = """
[target]
model_path = "target"
threads = 1
[draft]
vocab_size = 200
[data]
train_path = "rows/train.jsonl"
max_length = 128
[train]
total_steps = 2
batch_size = 3
ttt_length = 2
log_interval = 1
"""


@pytest.mark.slow
def test_rows_with_images_go_the_whole_way(tmp_path: Path, run_cli: RunCli) -> None:
    image_target(tmp_path / "target", "qwen2.5-vl")
    rows = image_rows(write_images(tmp_path / "images"))
    (tmp_path / "images" / "bad.png").write_text("no picture")
    bad = [{**rows[3], "id": name, "image": image} for name, image in (("gone", "no.png"), ("bad", "images/bad.png"))]
    write_rows(tmp_path / "all.jsonl", [*rows, *bad])
    (tmp_path / "eagle3.toml").write_text(SETTINGS)

    prepared = run_cli("prepare", "all.jsonl", "--output-path", "rows", "--json", cwd=tmp_path)
    assert (prepared.json["read"], prepared.json["written"], prepared.json["rejected"]) == (7, 5, 2)
    entries = map(json.loads, (tmp_path / "rows" / "errors.jsonl").read_text().splitlines())
    reasons = {entry["id"]: entry["reason"] for entry in entries}
    assert reasons["gone"] == "no such image: no.png"
    assert reasons["bad"].startswith("not an image that can be read: ")

    shown = run_cli("view", "1", "2", "5", "--json", cwd=tmp_path).json["rows"]
    assert [len(row.get("images", ())) for row in shown] == [1, 2, 0]
    assert "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>What do you see?" in "".join(
        run["text"] for run in shown[0]["runs"]
    )

    ran = run_cli("hidden-states", "--json", cwd=tmp_path)
    assert ran.code == 0, ran.err
    store = Store(tmp_path / "cache" / "hidden_states" / "train")
    assert (len(store), bool(store.meta.images_hash)) == (5, True)
    for mode, more in (("offline", ()), ("online", ("--keep-states",))):
        ran = run_cli("train", "--mode", mode, "--output-dir", mode, *more, cwd=tmp_path)
        assert ran.code == 0, ran.err
    kept = json.loads((tmp_path / "online" / "hidden_states" / "manifest.json").read_text())["meta"]
    assert kept["images_hash"] == store.meta.images_hash
    sound = run_cli("hidden-states", "verify", cwd=tmp_path)
    assert sound.code == 0, sound.err
    assert "4 rows with images are not computed again" in sound.err

    asked = ("all.jsonl", "--max-tokens", "6", "--engine", "local", "--json")
    local = ("--config-list", "2,2,1,3", "--output", "bench.jsonl", "--speculative-draft-model-path", "offline")
    ran = run_cli("bench", "--benchmark-list", *asked, *local, cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "2 rows are no questions and are left out, the first at all.jsonl:6: no such image: no.png" in ran.err
    plain, chain = ran.json["configurations"]
    assert (plain["requests"], chain["compared"], chain["identical"]) == (5, 5, 5)
    assert chain["passes"] > 0
    for counts in ((5, 2, False), (5, 2, True)):
        written = run_cli("regenerate", "--input-path", *asked, "--output-dir", "replies", cwd=tmp_path).json
        assert (written["generated"], written["errors"], written["nothing_new"]) == counts
    answers = [json.loads(line) for line in (tmp_path / "bench.jsonl").read_text().splitlines()]
    first = {row["id"]: row["answer"] for row in answers if row["kind"] == "request" and row["config"] == "2,0,0,0"}
    shard = next((tmp_path / "replies").glob("shard*.jsonl"))
    rows = [json.loads(line) for line in shard.read_text().splitlines()]
    assert [row["conversations"][1]["content"] for row in rows] == [first[row["id"]] for row in rows]
    assert [len(row["conversations"][0].get("content_parts", ())) for row in rows] == [2, 3, 0, 2, 0]

    write_images(tmp_path / "more")[1].replace(tmp_path / "images" / "0.png")
    changed = run_cli("hidden-states", "--overwrite", cwd=tmp_path)
    assert changed.code == 1
    assert "0.png: the image has changed since its row was prepared" in changed.err
