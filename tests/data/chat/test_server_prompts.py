"""Templates whose history is not what a server shows and the target writes: encoder and oracle, each by itself, in
small grammars. Where nobody can know, the row is refused and the oracle says so."""

from __future__ import annotations

import pytest

from eagle3cli.data.chat.oracle import truth_of
from eagle3cli.data.chat.stand_ins import Unknown
from eagle3cli.data.conversations.conversation import Conversation
from eagle3cli.data.tokens.encode import Encoder
from eagle3cli.data.tokens.judge import compare
from eagle3cli.data.tokens.mask_check import Judge
from eagle3cli.errors import DataError
from tests.data.chat.formats import Message
from tests.data.chat.grammars import CHAIN, ONE, QUESTION, THOUGHT, TOOLS, TWO, by_role, encoded, encoder, shown

MARKERS = ("<|turn|>", "<|turn_end|>", "<|bot|>", "<|bot_end|>", "<|sys_end|>", "<|think_on|>", "<|result|>")
USER = "<|turn|>CONTENT<|turn_end|>"
REPLY = "<|bot|>CONTENT<|bot_end|>"
INLINE: list[Message] = [*QUESTION, {"role": "assistant", "content": "<think>\nr1\n</think>\n\na1"}]
IN_A_ROW: list[Message] = [*ONE, {"role": "assistant", "content": "a2"}]
BLOCKS = "{% generation %}" + REPLY + "{% endgeneration %}"
WITHOUT = BLOCKS.replace("CONTENT", "{{ m.content.split('</think>')[-1] }}")


def coder_of(template: str, eos: str = "<|bot_end|>") -> Encoder:
    return encoder(template, *MARKERS, eos=eos)


def agreed(coder: Encoder, messages: list[Message], *tools: Message) -> str:
    """The row as text, on which the oracle agrees."""
    judge = Judge(coder, coder.end_ids)
    truth = truth_of(judge.chat, messages, judge.stops, tools=tools)
    assert compare(coder.tokenizer, encoded(coder, messages, tools), truth) is None
    return shown(coder, messages, *tools)


def refused(coder: Encoder, messages: list[Message], *tools: Message) -> str:
    """Why a row is refused of which the oracle cannot tell what it must be."""
    judge = Judge(coder, coder.end_ids)
    with pytest.raises(Unknown):
        truth_of(judge.chat, messages, judge.stops, tools=tools)
    row = coder.encode([Conversation("row", tuple(messages), tools=tools)])[0]
    assert isinstance(row, DataError)
    return row.what


def test_history_closes_the_block_that_a_prompt_opens() -> None:
    """The target wrote the reasoning that history leaves out behind the prompt, in the template's white space."""
    template = by_role("<|bot|><think>", user=USER, assistant="<|bot|><think></think>CONTENT<|bot_end|>")
    assert agreed(coder_of(template), THOUGHT).endswith("<|bot|><think>«r1</think>a1<|bot_end|>»")


@pytest.mark.parametrize(("messages", "reply"), [(THOUGHT, BLOCKS), (INLINE, WITHOUT)])
def test_generation_blocks_that_leave_the_reasoning_out(messages: list[Message], reply: str) -> None:
    template = by_role("<|bot|><think>\n", user=USER, assistant=reply)
    text = agreed(coder_of(template), [*TWO, *messages])
    assert text.endswith("<|bot|><think>\n«r1\n</think>\n\na1<|bot_end|>»")
    assert "<|bot|>«a1<|bot_end|>»" in text


def test_a_header_behind_a_tool_result_that_a_prompt_lacks() -> None:
    """The target goes on in its own turn there, or opens another: its history and its prompt contradict each other."""
    prompt = "{% if messages[-1].role == 'tool' %}<|sys_end|>{% else %}<|bot|>{% endif %}"
    calls = "{% if messages[loop.index0 - 1].role == 'tool' %}<|sys_end|>{% endif %}<|bot|>"
    calls += "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% else %}CONTENT{% endif %}<|bot_end|>"
    coder = coder_of(by_role(prompt, user=USER, tool="<|result|>CONTENT", assistant=calls))
    assert "a header that a server's prompt does not" in refused(coder, CHAIN, *TOOLS)
    fake: list[Message] = [*QUESTION, {"role": "assistant", "content": "<|bot|>a1"}]
    assert agreed(coder, fake).endswith("<|bot|>«<|bot|>a1<|bot_end|>»")


def test_white_space_at_the_end_of_a_prompt_has_the_tokens_of_the_prompt() -> None:
    """Tokenizers split a run of it before a word, which a prompt does not have behind it."""
    coder = coder_of(by_role("<|bot|>\n\n\n", user=USER, assistant="<|bot|>\n\n\nCONTENT<|bot_end|>"))
    agreed(coder, TWO)
    prompt = coder.tokenizer.apply_chat_template(TWO[:-1], add_generation_prompt=True, tokenize=False)
    ids = coder.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    row = encoded(coder, TWO)
    assert row.token_ids[: len(ids)].tolist() == ids
    assert row.loss_mask[len(ids) - 1 : len(ids) + 1].tolist() == [0, 1]


def test_two_replies_in_a_row_where_a_prompt_asks_for_no_second() -> None:
    """The header that history has between them is nobody's."""
    prompt = "{% if messages[-1].role == 'user' %}<|bot|>{% endif %}"
    text = agreed(coder_of(by_role(prompt, user=USER, assistant=REPLY)), IN_A_ROW)
    assert text == "<|turn|>q1<|turn_end|><|bot|>«a1<|bot_end|>»<|bot|>«a2<|bot_end|>»"
    last = "<|bot|>CONTENT{% if loop.last %} {% endif %}<|bot_end|>"
    assert "no second reply" in refused(coder_of(by_role(prompt, user=USER, assistant=last)), IN_A_ROW)


def test_an_end_that_stands_only_between_a_reply_and_a_question() -> None:
    """It ends like the token before a question: ``_end|>``."""
    template = by_role(
        "<|bot|>",
        before="Be kind.<|sys_end|>",
        user=USER,
        assistant="<|bot|>CONTENT{% if not loop.last %}<|bot_end|>{% endif %}",
    )
    assert agreed(coder_of(template), TWO).endswith("<|bot|>«a2<|bot_end|>»")


def test_a_block_that_prompt_and_content_both_open() -> None:
    template = by_role("<|bot|><think>\n", user=USER, assistant="<|bot|><think>\nCONTENT<|bot_end|>")
    assert agreed(coder_of(template), INLINE).endswith("<|bot|><think>\n«r1\n</think>\n\na1<|bot_end|>»")


def test_a_content_that_reasons_in_another_formats_words() -> None:
    """A prompt that opens reasoning with another token asks for other words: these are the reply's own."""
    template = by_role("<|bot|><|START_THINKING|>", user=USER, assistant=REPLY)
    assert agreed(coder_of(template), INLINE).endswith("<|bot|>«<think>\nr1\n</think>\n\na1<|bot_end|>»")


@pytest.mark.parametrize("end", ["", "<|bot_end|>"])
def test_two_replies_in_a_row_behind_a_call_in_a_template_that_drops_past_reasoning(end: str) -> None:
    """Each has an empty block of the template's, which is not the target's."""
    thought = "{% if m.reasoning_content and loop.index0 > ns.last %}<think>REASONING</think>{% endif %}"
    block = "{% if not m.reasoning_content or loop.index0 <= ns.last %}<think></think>{% endif %}"
    calls = "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% else %}CONTENT{% endif %}"
    before = "{% set ns = namespace(last=-1) %}{% for m in messages if m.role == 'user' %}"
    before += "{% set ns.last = messages.index(m) %}{% endfor %}"
    reply = "<|bot|>\n" + thought + block + calls + end
    template = by_role("<|bot|>\n", before=before, user=USER, tool="<|result|>CONTENT", assistant=reply)
    second: Message = {"role": "assistant", "content": "a4", "reasoning_content": "r4"}
    coder = encoder(template, *MARKERS, eos="<|bot_end|>", stops=() if end else ("<|turn|>",))
    text = agreed(coder, [*CHAIN, second, *TWO[2:]], *TOOLS)
    assert f"<think></think>«a3{end}»<|bot|>\n<think></think>«a4" in text
