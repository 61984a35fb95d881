from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eagle3cli.data.tokens import workers
from eagle3cli.data.tokens.cache import TokenCache, open_or_build
from eagle3cli.data.tokens.rows import TokenRows
from eagle3cli.runtime.distributed import Ranks
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.data import CacheSettings, DataSettings
from eagle3cli.settings.models import TargetSettings
from eagle3cli.settings.tables import Settings
from tests.failing import fails
from tests.tiny import VOCAB, tiny_config, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    tiny_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 2}))
    return folder


def talk(number: int) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": f"question {number}"},
        {"role": "assistant", "content": f"answer {number} 😀"},
    ]
    return {"id": f"row{number}", "conversations": messages}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def build(tmp_path: Path, target: Path, report: Silent | None = None, **data: Any) -> TokenCache:
    cache = data.pop("cache", CacheSettings())
    size = data.pop("size", 100)
    known = {"train_path": tmp_path / "train.jsonl", "cache_dir": tmp_path / "cache", **data}
    settings = Settings(target=TargetSettings(model_path=str(target)), data=DataSettings(**known), cache=cache)
    return open_or_build(settings, size, VOCAB, report or Silent())


def test_rows_masks_and_files(tmp_path: Path, target: Path) -> None:
    write(tmp_path / "train.jsonl", [talk(i) for i in range(20)])
    eval_path = write(tmp_path / "eval.jsonl", [talk(i) for i in range(30, 33)])
    cached = build(tmp_path, target, eval_path=eval_path)
    assert (len(cached.train), len(cached.eval or [])) == (20, 3)
    tokenizer = tiny_tokenizer()
    row = cached.train[7]
    assert (row.id, row.line) == ("row7", 8)
    assert tokenizer.decode(row.token_ids[row.loss_mask == 1].tolist()) == "answer 7 😀<|im_end|>"
    assert [role for _, role in row.turns] == ["user", "assistant"]
    assert cached.train.lengths[7] == len(row.token_ids)
    assert cached.vocab.size == 100
    assert cached.vocab.t2d[2]
    assert (tmp_path / "cache" / "processed_dataset").is_dir()
    assert Path(cached.summary["vocab"]["file"]).is_file()
    counts = cached.summary["train"]
    assert counts["tokens"] == sum(cached.train.lengths)
    assert counts["loss_tokens"] == cached.train.loss_tokens


def test_datasets_reads_the_rows(tmp_path: Path, target: Path) -> None:
    import datasets

    write(tmp_path / "train.jsonl", [talk(i) for i in range(5)])
    cached = build(tmp_path, target)
    rows = datasets.load_from_disk(str(cached.folder / "train"))
    assert rows[3]["input_ids"] == cached.train[3].token_ids.tolist()
    assert rows[3]["loss_mask"] == cached.train[3].loss_mask.tolist()


@pytest.mark.parametrize("template", ["auto", "chatml", "own.jinja"])
def test_the_second_call_builds_nothing(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    write(tmp_path / "train.jsonl", [talk(i) for i in range(5)])
    if template.endswith(".jinja"):
        template = str((target / "chat_template.jinja").rename(tmp_path / template))
    assert build(tmp_path, target, chat_template=template).summary["built"]
    for module in ("blocks", "cache"):
        monkeypatch.setattr(f"eagle3cli.data.tokens.{module}.load_tokenizer", None)
    assert not build(tmp_path, target, chat_template=template).summary["built"]


def test_what_the_first_rank_has_built_anew_the_others_do_not(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would at once, in the same place, while the first one reads it."""
    monkeypatch.setattr(Ranks, "barrier", lambda self: None)
    write(tmp_path / "train.jsonl", [talk(number) for number in range(5)])
    data = DataSettings(train_path=tmp_path / "train.jsonl", cache_dir=tmp_path / "cache")
    model = TargetSettings(model_path=str(target))
    settings = Settings(target=model, data=data, cache=CacheSettings(overwrite=True))
    made = [open_or_build(settings, 100, VOCAB, Silent(), Ranks(rank, 3)) for rank in range(3)]
    assert [cached.summary["built"] for cached in made] == [True, False, False]


@pytest.mark.slow
def test_finding_a_cache_imports_neither_torch_nor_transformers(tmp_path: Path, target: Path) -> None:
    write(tmp_path / "train.jsonl", [talk(i) for i in range(5)])
    tiny_config("llama").save_pretrained(target)
    words = ["cache", "--model-path", "target", "--train-data-path", "train.jsonl", "--draft-vocab-size", "100"]
    heavy = "sorted({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    script = f"import sys; from eagle3cli.cli.main import main; code = main({words!r})"
    script += f"; print(code, {heavy}, file=sys.stderr)"
    for found in (["torch", "transformers"], []):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.stderr.endswith(f"0 {found}\n"), done.stderr


def test_the_key_follows_the_content(tmp_path: Path, target: Path) -> None:
    train = write(tmp_path / "train.jsonl", [talk(i) for i in range(5)])
    first = build(tmp_path, target)
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(train.read_bytes())
    assert build(tmp_path, target, train_path=moved).folder == first.folder
    assert build(tmp_path, target, max_length=10).folder != first.folder
    assert build(tmp_path, target, chat_template="chatml").folder != first.folder
    stat = train.stat()
    write(train, [talk(i) for i in (0, 1, 2, 3, 9)])
    os.utime(train, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size and time, other content
    changed = build(tmp_path, target)
    assert changed.folder != first.folder
    assert changed.train[4].id == "row9"
    (target / "chat_template.jinja").write_text((target / "chat_template.jinja").read_text() + "{# changed #}")
    assert build(tmp_path, target).folder != changed.folder


def test_the_vocabulary_follows_its_own_options(tmp_path: Path, target: Path) -> None:
    write(tmp_path / "train.jsonl", [talk(i) for i in range(5)])
    first = build(tmp_path, target)
    small = build(tmp_path, target, size=50)
    replies = build(tmp_path, target, cache=CacheSettings(prompt_weight=0))
    assert first.folder == small.folder == replies.folder
    assert small.vocab.size == 50
    assert not small.summary["built"]
    assert len({cached.summary["vocab"]["file"] for cached in (first, small, replies)}) == 3
    assert build(tmp_path, target, size=10_000).vocab.size == VOCAB


def test_rows_that_need_a_look(tmp_path: Path, target: Path) -> None:
    said = talk(2)["conversations"]
    rows = [
        talk(1),
        {"id": "bad"},
        {"id": "p", "conversations": said[:1]},
        {"id": "l", "conversations": said[1:] + said},
    ]
    write(tmp_path / "train.jsonl", [*rows, {"id": "bad too"}])
    report = Silent()
    cached = build(tmp_path, target, report)
    counts = cached.summary["train"]
    assert [counts[name] for name in ("read", "rows", "rejected", "no_span")] == [5, 3, 2, 1]
    assert "No assistant response spans found in the conversation text." in report.warnings[0]
    assert f"2 of 5 rows of train were rejected; each with its place and reason: {cached.folder}" in report.warnings[1]
    errors = [json.loads(line) for line in (cached.folder / "errors.jsonl").read_text().splitlines()]
    told = [(e["place"].rpartition(":")[2], e["id"], e["kind"]) for e in errors]
    assert told[:2] == [("2", "bad", "rejected"), ("3", "p", "warning")]
    assert told[2:] == [("4", "l", "repaired"), ("5", "bad too", "rejected")]
    assert list(counts["warnings"].values()) == [1]
    assert sum(counts["reasons"].values()) == counts["rejected"]
    assert not cached.train[1].loss_mask.any()


def test_truncated_rows_are_counted(tmp_path: Path, target: Path) -> None:
    write(tmp_path / "train.jsonl", [talk(1)])
    cached = build(tmp_path, target, max_length=8)
    assert cached.summary["train"]["truncated"] == 1
    assert cached.train.lengths == [8]


def test_preformatted_text(tmp_path: Path, target: Path) -> None:
    text = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
    write(tmp_path / "train.jsonl", [{"id": "t", "text": text}, talk(1)])
    cached = build(tmp_path, target, is_preformatted=True)
    row = cached.train[0]
    assert tiny_tokenizer().decode(row.token_ids[row.loss_mask == 1].tolist()) == "a<|im_end|>"
    assert cached.summary["train"]["rejected"] == 1


@pytest.mark.slow
def test_several_processes_give_the_same_rows(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "train.jsonl", [talk(i) if i % 7 else {"id": "bad"} for i in range(600)])
    one = build(tmp_path, target, num_proc=1)
    monkeypatch.setattr(workers, "BYTES_PER_PROCESS", 1)
    two = build(tmp_path, target, num_proc=2, cache=CacheSettings(overwrite=True))
    assert [row.id for row in two.train] == [row.id for row in one.train]
    assert all(np.array_equal(a.token_ids, b.token_ids) for a, b in zip(one.train, two.train, strict=True))
    assert one.summary["train"] == two.summary["train"]


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_half_used(tmp_path: Path, target: Path) -> None:
    write(tmp_path / "train.jsonl", [talk(i) for i in range(50)])
    script = f"""
import os
from pathlib import Path
from eagle3cli.data.tokens import cache
from eagle3cli.data.tokens import build as cache_build
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.data import DataSettings
from eagle3cli.settings.models import TargetSettings
from eagle3cli.settings.tables import Settings
cache.TokenRows.open = None
cache.write_json = lambda path, value: None
cache_build.write_json = lambda path, value: os.kill(os.getpid(), 9)
data = DataSettings(train_path=Path({str(tmp_path / "train.jsonl")!r}), cache_dir=Path({str(tmp_path / "cache")!r}))
cache.open_or_build(Settings(target=TargetSettings(model_path={str(target)!r}), data=data), 100, {VOCAB}, Silent())
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    assert list((tmp_path / "cache" / "processed_dataset").glob(".*"))
    built = build(tmp_path, target)
    assert len(built.train) == 50
    assert not list((tmp_path / "cache" / "processed_dataset").glob(".*"))
    killed_later = built.folder.with_name(f".{built.folder.name}.tmp-999999999")
    killed_later.mkdir()
    assert not build(tmp_path, target).summary["built"]
    assert not killed_later.exists(), "what a killed --overwrite left goes, too"


def test_coverage_is_judged_by_rows_that_did_not_choose(tmp_path: Path, target: Path) -> None:
    """Without an evaluation file by each 20th row: what it alone says is not covered."""

    def said(number: int) -> dict[str, Any]:
        row = talk(number)
        row["conversations"][1]["content"] = "~~~~" if number % 20 == 0 else "a"
        return row

    write(tmp_path / "train.jsonl", [said(i) for i in range(41)])
    told = build(tmp_path, target, size=60).summary["vocab"]
    per_row = len(tiny_tokenizer()("~~~~")["input_ids"])
    assert told["coverage_of"] == "train_aside"
    assert told["coverage"] == pytest.approx(1 / (per_row + 1))  # the end token
    assert told["coverage_of_train"] == 1.0
    assert told["suggested_size"] == VOCAB
    eval_path = write(tmp_path / "eval.jsonl", [said(1)])
    told = build(tmp_path, target, size=60, eval_path=eval_path).summary["vocab"]
    assert (told["coverage_of"], told["coverage"]) == ("eval", 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train/data-00000-of-00001.arrow", "counts.safetensors"])
def test_a_damaged_cache_is_built_anew(tmp_path: Path, target: Path, name: str) -> None:
    write(tmp_path / "train.jsonl", [talk(i) for i in range(600)])
    whole = build(tmp_path, target)
    file = whole.folder / name
    for size in (file.stat().st_size // 2, None):  # a stream cut at a block's end reads as a shorter one
        file.unlink() if size is None else os.truncate(file, size)
        report = Silent()
        again = build(tmp_path, target, report)
        assert again.summary["built"]
        assert f"the cache is damaged ({name} " in report.warnings[0]
        assert len(again.train) == 600
    assert not build(tmp_path, target).summary["built"]


def test_a_vocabulary_that_is_not_what_the_counts_say_is_written_anew(tmp_path: Path, target: Path) -> None:
    write(tmp_path / "train.jsonl", [talk(i) for i in range(5)])
    first = build(tmp_path, target)
    right = first.vocab_file.read_bytes()
    for wrong in (b"damaged", build(tmp_path, target, size=99).vocab_file.read_bytes()):
        first.vocab_file.write_bytes(wrong)
        assert build(tmp_path, target).vocab_file.read_bytes() == right


def test_special_tokens_are_always_in_and_a_size_is_suggested(tmp_path: Path, target: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|never_used|>"]})
    tokenizer.save_pretrained(target)
    write(tmp_path / "train.jsonl", [talk(i) for i in range(5)])
    settings = Settings(
        target=TargetSettings(model_path=str(target)),
        data=DataSettings(train_path=tmp_path / "train.jsonl", cache_dir=tmp_path / "cache"),
    )
    cached = open_or_build(settings, 8, len(tokenizer), Silent())
    assert set(tokenizer.all_special_ids) <= set(cached.vocab.draft_ids.tolist())
    told = cached.summary["vocab"]
    assert told["always_in"] == len({*tokenizer.all_special_ids, 0, 1, 2})
    assert told["suggested_size"] == len(tokenizer)
    assert told["coverage_by_size"][8] == told["coverage"] < told["coverage_by_size"][len(tokenizer)] == 1.0
    assert told["coverage_of_train"] < 1.0
    with fails("invalid-value", "4"):
        open_or_build(settings, 3, len(tokenizer), Silent())


def test_errors(tmp_path: Path, target: Path) -> None:
    with fails("missing-data"):
        build(tmp_path, target, train_path=None)
    with fails("no-such-path"):
        build(tmp_path, target)
    write(tmp_path / "train.jsonl", [{"id": "bad"}])
    with fails("no-rows"):
        build(tmp_path, target)
    with fails("no-such-path"):
        build(tmp_path, tmp_path / "nowhere")
    with fails("no-tokenizer"):
        build(tmp_path, tmp_path)
    with fails("damaged-file"):
        TokenRows.open(tmp_path)
