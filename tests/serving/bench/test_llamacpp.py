"""bench and regenerate with llama.cpp: what a llama-server is started with, and how its answers are counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest

from eagle3cli.models.checkpoint import load_draft, save_draft
from eagle3cli.serving.client.protocol import acceptance_of_timings
from tests.commands.export.test_export_gguf import pairs, write
from tests.conftest import RunCli
from tests.serving import llamacpp_server


@pytest.fixture
def words(tiny: Path, tmp_path: Path) -> tuple[object, ...]:
    write(tmp_path / "draft", tiny)
    rows = [{"id": f"q{i}", "turns": [f"Question {'x' * i}?"]} for i in range(8)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    program = llamacpp_server.write(tmp_path)
    return (
        *("bench", "--engine", "llama.cpp", "--llama-server", program, "--device", "cpu", "--threads", 1),
        *("--model-path", tiny, "--benchmark-list", "questions.jsonl", "--config-list", "2,3,1,4", "--max-tokens", 9),
    )


def with_word(words: tuple[object, ...], old: object, new: object) -> tuple[object, ...]:
    """The words with another one in the place of ``old``."""
    return tuple(new if word == old else word for word in words)


def starts(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "argv.jsonl").read_text().splitlines()]


def architecture(path: str) -> str:
    return str(gguf.GGUFReader(path).fields["general.architecture"].contents())


@pytest.mark.slow
def test_folders_are_written_for_it_and_its_answers_counted(
    run_cli: RunCli, words: tuple[object, ...], tiny: Path, tmp_path: Path
) -> None:
    ran = run_cli(*words, "--speculative-draft-model-path", "draft", "--json")
    assert ran.code == 0, ran.err
    baseline, draft = starts(tmp_path)
    first, second = llamacpp_server.options(baseline), llamacpp_server.options(draft)
    for flags in (first, second):
        assert (flags["--host"], flags["--parallel"], flags["--ctx-size"]) == ("127.0.0.1", "2", "8192")
        assert (flags["--device"], flags["--threads"]) == ("none", "1")
        assert (architecture(flags["--model"]), Path(flags["--model"]).parts[-4:-2]) == ("llama", ("cache", "models"))
    assert baseline.count("--parallel") == 1
    assert "--model-draft" not in first
    assert (second["--spec-type"], second["--spec-draft-n-max"]) == ("draft-eagle3", "3")
    assert architecture(second["--model-draft"]) == "eagle3"
    row = ran.json["configurations"][1]
    requests = [json.loads(line) for line in (tmp_path / "runs/bench/results.jsonl").read_text().splitlines()]
    answers = [answer for answer in requests if answer.get("config") == "2,3,1,4" and "question" in answer]
    ended = [answer for answer in answers if answer["finish"] == "stop"]
    assert 0 < len(ended) < len(answers)
    # Nine tokens in four passes, or seven in three: the last of these accepted drafts behind the end.
    assert row["passes"] == 3 * len(ended) + 4 * (len(answers) - len(ended))
    assert (row["identical"], row["compared"], row["counters_fit"]) == (8, 8, True)
    environment = row["environment"]
    assert (environment["engine"], environment["engine_version"]) == ("llama.cpp", "b7-abc")
    assert (environment["dtype"], environment["device"]) == ("bfloat16", "cpu")
    again = run_cli(*words, "--speculative-draft-model-path", "draft", "--overwrite")
    assert (again.code, "(once)" in again.err) == (0, False), again.err
    assert len(starts(tmp_path)) == 4


@pytest.mark.slow
def test_the_target_as_a_file(run_cli: RunCli, words: tuple[object, ...], tiny: Path, tmp_path: Path) -> None:
    """Name by name what llama.cpp's own converter writes of a Llama; then such a file is taken as it is."""
    assert run_cli(*with_word(words, "2,3,1,4", "1,0,0,0"), "--dtype", "float32").code == 0
    path = Path(llamacpp_server.options(starts(tmp_path)[0])["--model"])
    reader = gguf.GGUFReader(str(path))
    values = {name: field.contents() for name, field in reader.fields.items()}
    assert (values["llama.block_count"], values["llama.embedding_length"], values["llama.vocab_size"]) == (8, 64, 320)
    assert (values["llama.attention.head_count_kv"], values["tokenizer.ggml.pre"]) == (2, "gpt-2")
    from safetensors.torch import load_file

    weights = load_file(tiny / "model.safetensors")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert "output.weight" not in tensors  # tied to the embedding
    assert len(tensors) == len(weights) - ("lm_head.weight" in weights)
    key = weights["model.layers.3.self_attn.k_proj.weight"].numpy()
    assert (tensors["blk.3.attn_k.weight"] == pairs(key, 2)).all()
    assert (tensors["blk.3.ffn_down.weight"] == weights["model.layers.3.mlp.down_proj.weight"].numpy()).all()
    file = tmp_path / "mine.gguf"
    path.rename(file)
    changed = with_word(with_word(words, "2,3,1,4", "1,0,0,0"), tiny, file)
    ran = run_cli(*changed, "--output", "other.jsonl")
    assert ran.code == 0, ran.err
    assert llamacpp_server.options(starts(tmp_path)[-1])["--model"] == str(file)


@pytest.mark.slow
def test_a_draft_that_is_a_file_already(run_cli: RunCli, words: tuple[object, ...], tiny: Path, tmp_path: Path) -> None:
    source = ("--draft-model-path", "draft", "--target-model-path", tiny)
    exported = run_cli("export", "--layout", "gguf", *source, "--output-path", "out")
    assert exported.code == 0, exported.err
    assert "next: eagle3 bench --engine llama.cpp --draft-model-path out" in exported.out
    for place in ("out", "out/draft-BF16.gguf"):
        ran = run_cli(*words, "--speculative-draft-model-path", place, "--overwrite")
        assert ran.code == 0, ran.err
        given = llamacpp_server.options(starts(tmp_path)[-1])["--model-draft"]
        assert given == str(tmp_path / "out" / "draft-BF16.gguf")
    other = run_cli(*with_word(words, "llama.cpp", "local"), "--draft-model-path", "out")
    assert other.code != 0
    assert other.error == "draft-format"
    assert "--engine" in other.err


@pytest.mark.slow
def test_what_it_cannot_run_is_told_before_it_starts(
    run_cli: RunCli, words: tuple[object, ...], tiny: Path, tmp_path: Path
) -> None:
    config, state = load_draft(tmp_path / "draft")
    save_draft(tmp_path / "normed", state, replace(config, norm_output=True))
    refused = run_cli(*words, "--speculative-draft-model-path", "normed")
    assert "llama.cpp hands the state before the norm" in refused.err
    trees = run_cli(*with_word(words, "2,3,1,4", "1,3,2,6"), "--speculative-draft-model-path", "draft")
    assert (trees.code, "llama.cpp" in trees.err) == (2, True), trees.err
    nowhere = run_cli(*words, "--llama-server", "nowhere/llama-server", "--speculative-draft-model-path", "draft")
    assert (nowhere.code, nowhere.error == "missing-engine") == (2, True), nowhere.err
    llamacpp_server.write(tmp_path, help_text="--spec-type none")
    older = run_cli(*words, "--speculative-draft-model-path", "draft", process=True)
    assert (older.code, older.error == "package-too-old" and "EAGLE-3" in older.err) == (2, True), older.err


def test_a_target_that_is_not_written_here(
    run_cli: RunCli, words: tuple[object, ...], tiny: Path, tmp_path: Path
) -> None:
    raw = json.loads((tiny / "config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    for file in tiny.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    for changed, reason in (
        ({"architectures": ["Phi3ForCausalLM"]}, "it is a Phi3ForCausalLM"),
        ({"sliding_window": 128}, "its attention has a sliding window"),
        ({"quantization_config": {"bits": 4}}, "its weights are quantised"),
    ):
        (other / "config.json").write_text(json.dumps({**raw, **changed}))
        ran = run_cli(*with_word(with_word(words, "2,3,1,4", "1,0,0,0"), tiny, other), "--overwrite")
        assert (reason in ran.err, "convert_hf_to_gguf.py" in ran.err) == (True, True), ran.err
    assert not (tmp_path / "argv.jsonl").exists()


def test_regenerate_asks_a_server_of_its_own(
    run_cli: RunCli, words: tuple[object, ...], tiny: Path, tmp_path: Path
) -> None:
    user = {"role": "user", "content": "Hello."}
    row = {"id": "a", "conversations": [user, {"role": "assistant", "content": "?"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    options: tuple[Any, ...] = ("--input-path", "rows.jsonl", "--output-dir", "new")
    ran = run_cli("regenerate", *words[1:7], "--model-path", tiny, *options)
    assert ran.code == 0, ran.err
    assert "which --model-path" not in ran.err
    (written,) = [path for path in (tmp_path / "new").glob("*.jsonl") if not path.name.startswith("error")]
    assert json.loads(written.read_text())["conversations"][1]["content"] == "I heard 1 messages."


def test_passes_that_its_answers_do_not_tell() -> None:
    counters = {"predicted_n": 9, "draft_n": 12, "draft_n_accepted": 4}
    assert acceptance_of_timings(counters).passes == 4
    assert acceptance_of_timings(counters, 3).passes == 4
    behind_the_end = {"predicted_n": 7, "draft_n": 9, "draft_n_accepted": 5}
    assert acceptance_of_timings(behind_the_end, 3).passes == 3
    near_the_limit = {"predicted_n": 9, "draft_n": 18, "draft_n_accepted": 1}  # the last proposals were fewer
    assert acceptance_of_timings(near_the_limit, 3).passes == 7
    assert acceptance_of_timings({"predicted_n": 1}).length == 1.0
