from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.data.sources.dataset_specs import resolve, split_weight
from eagle3cli.data.sources.mixture import SELF_ROWS, interleave, quotas, streamed_rows
from eagle3cli.data.sources.presets import ALIASES, PRESETS
from eagle3cli.settings.data import PrepareSettings
from tests.failing import fails

COUNTS = st.lists(st.tuples(st.integers(0, 500), st.floats(0.01, 10)), min_size=1, max_size=5)


@given(COUNTS, st.none() | st.integers(1, 1000))
def test_quotas_keep_the_weights(sources: list[tuple[int, float]], size: int | None) -> None:
    counts, weights = zip(*sources, strict=True)
    rows = quotas(counts, weights, size)
    total = sum(rows)
    assert all(0 <= each <= count for each, count in zip(rows, counts, strict=True))
    for each, weight in zip(rows, weights, strict=True):
        assert abs(each - total * weight / sum(weights)) <= len(rows)
    most = min(count * sum(weights) / weight for count, weight in sources)
    assert total <= most + 1e-6
    if size is not None and size <= most:
        assert total >= size - len(rows)


def test_quotas_by_hand() -> None:
    assert quotas([100, 100], [0.7, 0.3], 50) == [35, 15]
    assert quotas([100, 100], [7, 3], None) == [99, 43]
    assert quotas([70, 30], [0.7, 0.3], 1000) == [70, 30]
    assert quotas([1000, 1000, 1000], [1, 1, 1], 100) == [34, 33, 33]
    assert quotas([0, 10], [1, 1], 4) == [0, 0]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=4), st.integers(0, 5))
def test_interleaving_keeps_each_source_in_order(counts: list[int], seed: int) -> None:
    streams = [iter([(which, i) for i in range(count)]) for which, count in enumerate(counts)]
    mixed = list(interleave(streams, counts, seed))
    assert [[i for which, i in mixed if which == source] for source in range(len(counts))] == [
        list(range(count)) for count in counts
    ]


def test_a_mixture_is_mixed_from_its_beginning() -> None:
    mixed = list(interleave([iter("a" * 700), iter("b" * 300)], [700, 300], 0))
    assert 15 <= mixed[:100].count("b") <= 45


def test_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert split_weight("ultrachat:0.7") == ("ultrachat", 0.7)
    assert split_weight("a/b:2") == ("a/b", 2.0)
    assert split_weight("my.jsonl") == ("my.jsonl", None)
    assert split_weight(r"C:\data.jsonl") == (r"C:\data.jsonl", None)
    (tmp_path / "odd:3").write_text("{}")
    assert split_weight("odd:3") == ("odd:3", None)
    assert split_weight("odd:3:0.5") == ("odd:3", 0.5)
    for word in ("x:0", "x:-1"):
        with fails("invalid-value", "0"):
            split_weight(word)
    with fails("conflicting-options"):
        resolve(["gsm8k:0.5", "codealpaca"])


def test_what_a_word_names(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    hub, local, twice = resolve(["OWNER/NAME:1", f"{tmp_path}/a.jsonl:2", f"{tmp_path}/a.jsonl:1"], subset="main")
    assert [(source.name, source.split, source.subset) for source in hub.hub] == [("OWNER/NAME", "train", "main")]
    assert local.files == (tmp_path / "a.jsonl",)
    assert len({hub.name, local.name, twice.name}) == 3
    assert streamed_rows([hub, local, twice], 100) == [25, None, None]
    assert streamed_rows(resolve(["OWNER/NAME"]), 10) == [10]
    assert streamed_rows(resolve(["OWNER/NAME"]), None) == [None]
    assert streamed_rows(resolve(["self"]), None) == [SELF_ROWS]
    with fails("conflicting-options"):
        resolve(["gsm8k", "self"], data_path=tmp_path)
    with fails("missing-data"):
        resolve([])
    with fails("no-such-path"):
        resolve(["data/with/many/parts"])


def test_the_help_lists_the_presets() -> None:
    text = str(PrepareSettings.model_fields["source"].description).partition("Presets: ")[2].rstrip(".")
    assert [name.partition(" ")[0] for name in text.split(", ")] == list(PRESETS)


def test_every_preset_says_where_it_is_and_under_which_terms() -> None:
    for name, preset in PRESETS.items():
        assert preset.summary, name
        assert preset.licence, name
        assert all(hub.count("/") == 1 for hub in preset.hub), name
        assert preset.hub or preset.package or name == "self", name
        assert set(preset.mapping) <= {"id", "messages", "user", "assistant", "system"}, name
    assert set(ALIASES.values()) <= set(PRESETS)
    assert not set(ALIASES) & set(PRESETS)
    maths = resolve(["hendrycks_math"])[0]
    assert (maths.name, len(maths.hub)) == ("hendrycks-math", 7)
    assert [source.split for source in resolve(["nemotron"])[0].hub] == ["chat", "code", "math", "tool_calling"]
    assert [source.split for source in resolve(["nemotron"], split="chat")[0].hub] == ["chat"]


def test_a_folder_by_its_place_gives_the_result_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "talks" / "inner").mkdir(parents=True)
    (tmp_path / "talks" / "a.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path / "talks" / "inner")
    assert resolve([".."])[0].name == "talks", "not a way out of ./cache/dataset"
