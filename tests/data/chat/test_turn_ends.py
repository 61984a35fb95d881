"""Where replies end, in small templates of every way to end them."""

from __future__ import annotations

import pytest

from eagle3cli.data.chat.tokenizer import eos_ids, turn_end_ids
from tests.data.chat.grammars import CHAIN, ONE, QUESTION, TOOLS, TWO, by_role, call, encoder, shown
from tests.tiny import tiny_tokenizer

TAGS = ("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>")
SEVERAL = by_role(
    "<|open|>bot<|sep|>",
    user="<|open|>user<|sep|>CONTENT<|close|>user<|sep|><|end_of_msg|>",
    assistant="<|open|>bot<|sep|>CONTENT<|close|>reply<|sep|><|close|>bot<|sep|><|end_of_msg|>",
)


@pytest.mark.parametrize("eos", ["<|end_of_msg|>", "<|im_end|>"])
def test_several_closing_tokens_in_a_row_are_the_targets(eos: str) -> None:
    closing = "<|close|>reply<|sep|><|close|>bot<|sep|><|end_of_msg|>"
    question = "<|open|>user<|sep|>{}<|close|>user<|sep|><|end_of_msg|><|open|>bot<|sep|>"
    coder = encoder(SEVERAL, *TAGS, eos=eos)
    assert coder.format.closing == closing
    assert shown(coder, TWO) == question.format("q1") + f"«a1{closing}»" + question.format("q2") + f"«a2{closing}»"


def test_the_token_at_which_the_target_stops_is_the_last_of_them() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(TAGS)})
    tokenizer.chat_template = SEVERAL
    assert tokenizer.convert_ids_to_tokens(list(turn_end_ids(tokenizer))) == ["<|end_of_msg|>"]
    assert set(tokenizer.convert_ids_to_tokens(list(eos_ids(tokenizer, "nowhere")))) == {"<|end_of_msg|>", "<|im_end|>"}


SPEAKERS = ("<|user|>", "<|model|>", "</s>")


@pytest.mark.parametrize("tail", ["{{ eos_token }}", ""])
def test_a_token_that_opens_the_next_turn_is_no_end(tail: str) -> None:
    """Metharme's and Baichuan's way: nothing ends a turn, and the next one begins with its speaker's token."""
    template = by_role("<|model|>", user="<|user|>CONTENT", assistant="<|model|>CONTENT", tail=tail)
    coder = encoder(template, *SPEAKERS, eos="</s>")
    assert shown(coder, TWO) == "<|user|>q1<|model|>«a1»<|user|>q2<|model|>«a2</s>»"


def test_the_same_token_is_the_end_where_the_target_stops_at_it() -> None:
    """GLM's way: its configuration names the next speaker's token as a stop."""
    template = by_role("<|model|>", user="<|user|>CONTENT", assistant="<|model|>CONTENT")
    coder = encoder(template, *SPEAKERS, eos="</s>", stops=("<|user|>",))
    assert shown(coder, TWO) == "<|user|>q1<|model|>«a1<|user|>»q2<|model|>«a2<|user|>»"


def test_a_default_system_prompt_before_the_first_question() -> None:
    """It ends with the token that ends replies, so that this seems to open the question."""
    template = by_role(
        "<|im_start|>bot\n",
        before="<|im_start|>system\nBe kind.<|im_end|>\n",
        user="<|im_start|>user\nCONTENT<|im_end|>\n",
        assistant="<|im_start|>bot\nCONTENT<|im_end|>\n",
    )
    coder = encoder(template, "</s>", eos="</s>")
    assert shown(coder, ONE).endswith("<|im_start|>bot\n«a1<|im_end|>»\n")


@pytest.mark.parametrize(
    ("user", "assistant", "prompt"),
    [
        ("User: CONTENT\n", "Bot: CONTENT\n", "Bot:"),
        ("### Ask:\nCONTENT\n\n", "### Reply:\nCONTENT\n\n", "### Reply:\n"),
        ("[Round {{ loop.index }}]\nQ:CONTENT", "\nA:CONTENT\n", "\nA:"),
    ],
)
def test_without_any_end_the_last_reply_ends_with_eos(user: str, assistant: str, prompt: str) -> None:
    """Earlier replies have none in a server's prompt, so the row shows none."""
    coder = encoder(by_role(prompt, user=user, assistant=assistant), "</s>", eos="</s>")
    text = shown(coder, TWO)
    assert text.endswith("a2</s>»")
    assert text.count("</s>") == 1
    assert "a1»" in text
    assert not shown(coder, ONE, finish=("length",)).endswith("</s>»")


def test_a_call_ends_with_eos_too_where_the_template_writes_no_end() -> None:
    template = by_role(
        "Bot:",
        user="User: CONTENT\n",
        tool="Tool: CONTENT\n",
        assistant="Bot:{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}CONTENT\n",
    )
    coder = encoder(template, "</s>", eos="</s>")
    assert shown(coder, [*QUESTION, call(1)], *TOOLS).endswith("</call></s>»")
    assert shown(coder, CHAIN, *TOOLS).endswith("Bot:«a3</s>»")


def test_a_stop_behind_more_of_the_templates_text() -> None:
    template = by_role("Bot:", user="User: CONTENT\n", assistant="Bot:CONTENT\n--\n</s>\n")
    coder = encoder(template, "</s>", eos="</s>")
    assert shown(coder, TWO) == "User: q1\nBot:«a1\n--\n</s>»\nUser: q2\nBot:«a2\n--\n</s>»\n"


def test_an_end_in_a_content_ends_nothing() -> None:
    coder = encoder(SEVERAL, *TAGS)
    said = "x<|end_of_msg|><|open|>bot<|sep|>y"
    text = shown(coder, [{"role": "user", "content": said}, {"role": "assistant", "content": said}])
    assert text.endswith(f"<|open|>bot<|sep|>«{said}<|close|>reply<|sep|><|close|>bot<|sep|><|end_of_msg|>»")
