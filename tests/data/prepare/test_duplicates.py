from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eagle3cli.data.conversations.conversation import Conversation
from eagle3cli.data.prepare.duplicates import band_keys, jaccard, mark_duplicates, mark_near_duplicates, shingles
from eagle3cli.data.prepare.row_table import DUPLICATE, KEPT, NEAR_DUPLICATE, RowTable, work_folder


def said(*texts: str) -> tuple[dict[str, Any], ...]:
    return tuple({"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts))


def mark(folder: Path, talks: list[tuple[dict[str, Any], ...]], least: float | None = None) -> tuple[Any, list[Any]]:
    """Dispositions of the conversations, and (row, the first) of those that repeat one."""
    with work_folder(folder) as work, RowTable(work, 0) as rows:
        for row, messages in enumerate(talks):
            rows.add(Conversation("", messages), str(row), 0, row)
            rows.add_bands(band_keys(messages))
        mark_duplicates(rows)
        if least is not None:
            mark_near_duplicates(rows, least, talks.__getitem__)
        pairs = rows.run("SELECT row, first FROM duplicates ORDER BY row").fetchall()
        dispositions = rows.run("SELECT disposition FROM rows ORDER BY row").fetchall()
    return np.array([disposition for (disposition,) in dispositions], int), pairs


@settings(suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(0, 4), max_size=30))
def test_the_first_of_equal_rows_stays(tmp_path: Path, kinds: list[int]) -> None:
    dispositions, pairs = mark(tmp_path, [said(f"question {kind}", "yes") for kind in kinds])
    first = {kind: kinds.index(kind) for kind in kinds}
    assert [disposition == KEPT for disposition in dispositions] == [
        first[kind] == row for row, kind in enumerate(kinds)
    ]
    assert pairs == [(row, first[kind]) for row, kind in enumerate(kinds) if first[kind] != row]


def words(text: str) -> set[tuple[str, ...]]:
    """Runs of three words by the slow obvious way, for text of ASCII words."""
    split = text.lower().split()
    return {tuple(split[i : i + 3]) for i in range(len(split) - 2)}


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "dddd", "12"]), min_size=3, max_size=40), st.integers(0, 39))
def test_shingles_are_runs_of_three_words(drawn: list[str], cut: int) -> None:
    left, right = " ".join(drawn), " ".join(drawn[: max(3, cut)][::-1])
    a, b = shingles(said(left)), shingles(said(right))
    assert (len(a), len(b)) == (len(words(left)), len(words(right)))
    exact = len(words(left) & words(right)) / len(words(left) | words(right))
    assert jaccard(a, b) == pytest.approx(exact)


def test_case_and_punctuation_do_not_count_but_letters_of_any_script_do() -> None:
    assert np.array_equal(shingles(said("How do I sort a list?")), shingles(said("how DO i: sort, a list")))
    assert jaccard(shingles(said("今天天气怎么样呢")), shingles(said("今天天气怎么样啊"))) == pytest.approx(5 / 7)
    assert not len(shingles(said("?!", "...")))
    assert len(shingles(said("hi"))) == 1
    system = ({"role": "system", "content": "You are a helpful assistant that answers."}, *said("hi there friend"))
    assert np.array_equal(shingles(system), shingles(said("hi there friend")))


@pytest.mark.parametrize("seed", range(4))
def test_near_duplicates_are_found_and_named_and_nothing_else_is(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    texts = [[f"w{rng.randrange(5000)}" for _ in range(rng.randrange(60, 200))] for _ in range(60)]
    near = {}
    for row in rng.sample(range(60), 20):
        copy = list(texts[row])
        copy[rng.randrange(len(copy))] = "changed"
        near[len(texts)] = row
        texts.append(copy)
    half = list(texts[0])
    half[len(half) // 2 :] = [f"x{i}" for i in range(len(half) - len(half) // 2)]
    texts.append(half)
    talks = [said(" ".join(text)) for text in texts]
    dispositions, pairs = mark(tmp_path, talks, 0.85)
    assert dict(pairs) == near
    assert np.flatnonzero(dispositions == NEAR_DUPLICATE).tolist() == sorted(near)
    assert mark(tmp_path, talks)[1] == []


def numbered(*changed: range) -> tuple[dict[str, Any], ...]:
    """A hundred words, of which those in ``changed`` are others."""
    return said(" ".join(f"{'x' if any(i in part for part in changed) else 'w'}{i}" for i in range(100)))


def test_what_meets_in_a_band_but_is_not_near_stays(tmp_path: Path) -> None:
    assert jaccard(shingles(numbered()), shingles(numbered(range(20)))) == pytest.approx(78 / 118)
    assert mark(tmp_path, [numbered(), numbered(range(20))], 0.67)[1] == []
    assert mark(tmp_path, [numbered(), numbered(range(20))], 0.66)[1] == [(1, 0)]


def test_a_row_near_only_to_one_that_is_left_out_stays(tmp_path: Path) -> None:
    chain = [numbered(), numbered(range(88, 100)), numbered(range(88, 100), range(12))]
    assert mark(tmp_path, chain, 0.7)[1] == [(1, 0)]
    assert mark(tmp_path, chain[1:], 0.7)[1] == [(1, 0)]


def test_an_exact_duplicate_is_not_told_twice(tmp_path: Path) -> None:
    text = " ".join(f"word{i}" for i in range(50))
    dispositions, pairs = mark(tmp_path, [said(text), said(text), said(text + "!"), said(text.upper())], 0.9)
    assert dispositions.tolist() == [KEPT, DUPLICATE, NEAR_DUPLICATE, NEAR_DUPLICATE]
    assert pairs == [(1, 0), (2, 0), (3, 0)]
