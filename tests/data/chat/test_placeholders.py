from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.data.chat.placeholders import CONTENT, REPLY, Placeholders, align, renderings_of, unused_placeholders

LETTERS = st.text("ab \n", max_size=4)


@given(st.lists(st.tuples(LETTERS, st.lists(LETTERS, min_size=1, max_size=3)), max_size=4), LETTERS, st.data())
def test_align_finds_what_was_put_together(parts: list[tuple[str, list[str]]], tail: str, data: st.DataObject) -> None:
    chosen = [data.draw(st.sampled_from(forms)) for _, forms in parts]
    pieces, forms = [*(lead for lead, _ in parts), tail], [forms for _, forms in parts]
    text = "".join(lead + content for (lead, _), content in zip(parts, chosen, strict=True)) + tail
    spans = align(text, pieces, forms)
    assert spans is not None
    found = [text[start:end] for start, end in spans]
    assert all(content in allowed for content, allowed in zip(found, forms, strict=True))
    assert "".join(a + b for a, b in zip(pieces, found, strict=False)) + tail == text


@given(st.lists(st.lists(LETTERS, min_size=1, max_size=3), max_size=3), st.text("ab \n", max_size=12))
def test_align_says_no_only_where_nothing_fits(forms: list[list[str]], text: str) -> None:
    pieces = ["a", *["b"] * len(forms)]
    fits = any("a" + "".join(content + "b" for content in chosen) == text for chosen in product(*forms))
    assert (align(text, pieces, forms) is not None) is fits


def test_forms_of_a_content() -> None:
    assert renderings_of("plain") == ["plain"]
    assert renderings_of(" a\n") == [" a\n", "a", " a", "a\n"]
    assert renderings_of('"é', quoted=True) == ['"é', '\\"é', '\\"\\u00e9']


def test_placeholders_that_a_text_does_not_hold() -> None:
    first = unused_placeholders("plain")
    assert first is not None
    other = unused_placeholders(first.open)
    assert other not in (None, first)
    assert unused_placeholders("\ue000\uf8f0\U000f0000") is None


def test_a_text_is_split_at_its_placeholders() -> None:
    placeholders = Placeholders("<", ">")
    text = f"a{placeholders.name(0, CONTENT)}b{placeholders.name(12, REPLY)}c"
    assert placeholders.split(text, CONTENT + REPLY).names == ((0, CONTENT), (12, REPLY))
    assert placeholders.split(text, CONTENT).texts == ("a", f"b{placeholders.name(12, REPLY)}c")
