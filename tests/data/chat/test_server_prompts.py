"""Templates whose history is not what a server shows and the target writes: encoder and oracle, each by itself, in
small grammars. Where nobody can know, the row is refused and the oracle says so."""

from __future__ import annotations

import pytest

from eagle3cli.data.chat.oracle import truth_of
from eagle3cli.data.chat.stand_ins import Unknown
from eagle3cli.data.conversations.conversation import Conversation
from eagle3cli.data.tokens.encode import Encoder
from eagle3cli.data.tokens.mask_check import Judge
from eagle3cli.errors import DataError
from tests.data.chat.formats import Message
from tests.data.chat.grammars import (
    CHAIN,
    MARKERS,
    ONE,
    QUESTION,
    REPLY,
    THOUGHT,
    TOOLS,
    TWO,
    USER,
    agreed,
    by_role,
    call,
    coder_of,
    encoded,
    encoder,
)

INLINE: list[Message] = [*QUESTION, {"role": "assistant", "content": "<think>\nr1\n</think>\n\na1"}]
IN_A_ROW: list[Message] = [*ONE, {"role": "assistant", "content": "a2"}]
BLOCKS = "{% generation %}" + REPLY + "{% endgeneration %}"
WITHOUT = BLOCKS.replace("CONTENT", "{{ m.content.split('</think>')[-1] }}")


def refused(coder: Encoder, messages: list[Message], *tools: Message) -> str:
    """Why a row is refused of which the oracle cannot tell what it must be."""
    judge = Judge(coder, coder.end_ids)
    with pytest.raises(Unknown):
        truth_of(judge.chat, messages, judge.stops, tools=tools)
    row = coder.encode([Conversation("row", tuple(messages), tools=tools)])[0]
    assert isinstance(row, DataError)
    return row.message


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


OPENS = by_role("<|bot|><think>\n", user=USER, assistant=REPLY)
CALLS = "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"


@pytest.mark.parametrize(
    ("content", "row"), [("<think>", ""), ("<think>r1", "r1"), ("<think></think>a1", "</think>a1")]
)
def test_a_content_that_opens_the_block_which_the_prompt_has_opened(content: str, row: str) -> None:
    """The opening is the prompt's, also where the content never closes it or says nothing in it."""
    messages = [*QUESTION, {"role": "assistant", "content": content}]
    assert agreed(coder_of(OPENS), messages).endswith(f"<|bot|><think>\n«{row}<|bot_end|>»")


def test_an_empty_block_of_the_content_that_history_leaves_out() -> None:
    """The prompt opens it, and the target closed it at once."""
    said = "{{ m.content.split('</think>')[-1].lstrip('\\n') }}"
    template = by_role("<|bot|><think>\n", user=USER, assistant="<|bot|>" + said + "<|bot_end|>")
    messages = [*QUESTION, {"role": "assistant", "content": "<think>\n\n</think>\n\na1"}]
    assert agreed(coder_of(template), messages).endswith("<|bot|><think>\n«\n</think>\n\na1<|bot_end|>»")


def test_an_empty_block_within_a_content_is_no_reasoning() -> None:
    messages = [*QUESTION, {"role": "assistant", "content": "a1<think></think>"}]
    assert agreed(coder_of(OPENS), messages).endswith("<|bot|>«a1<think></think><|bot_end|>»")


def test_the_end_of_reasoning_in_the_arguments_of_a_call() -> None:
    template = by_role(
        "<|bot|><think>\n", user=USER, assistant="<|bot|><think></think>\n" + CALLS + "CONTENT<|bot_end|>"
    )
    looks = call(1)
    looks["tool_calls"][0]["function"]["arguments"] = {"what": "</think>"}
    assert "<|bot|><think></think>\n«{" in agreed(coder_of(template), [*QUESTION, looks], *TOOLS)


def test_generation_blocks_that_drop_a_calls_reasoning_once_an_answer_follows() -> None:
    """A server's prompt for the answer still has it."""
    thought = "{% if m.reasoning_content and loop.last %}<think>REASONING</think>{% endif %}"
    reply = "<|bot|>{% generation %}" + thought + CALLS + "CONTENT<|bot_end|>{% endgeneration %}"
    messages = [*QUESTION, {**call(1), "reasoning_content": "r1"}, {"role": "assistant", "content": "a2"}]
    text = agreed(coder_of(by_role("<|bot|>", user=USER, assistant=reply)), messages, *TOOLS)
    assert "<|bot|>«<think>r1</think>{" in text
    assert text.endswith("<|bot_end|>»<|bot|>«a2<|bot_end|>»")


def test_an_empty_block_that_the_content_has_itself() -> None:
    """The template takes it off and writes it anew; the target wrote it, as the prompt does not."""
    block = "<think>\n\n</think>\n\n"
    said = "{{ m.content.split('</think>')[-1].lstrip('\n') }}"
    template = by_role("<|bot|>", user=USER, assistant="<|bot|>" + block + said + "<|bot_end|>")
    messages = [*QUESTION, {"role": "assistant", "content": block}]
    assert agreed(coder_of(template), messages).endswith(f"<|bot|>«{block}<|bot_end|>»")


def test_a_content_that_ends_reasoning_beside_the_field_for_it() -> None:
    """History has neither, and an empty block of the template's."""
    past = "{% if m.reasoning_content %}{% set c = '<think>' + m.reasoning_content + '</think>\n' + m.content %}"
    past += "{% else %}{% set c = '</think>' + m.content %}{% endif %}<|bot|><think></think>"
    past += "{{ c.split('</think>')[-1] }}<|bot_end|>"
    message = {"role": "assistant", "content": "r2</think>a1", "reasoning_content": "r1"}
    text = agreed(coder_of(by_role("<|bot|><think>\n", user=USER, assistant=past)), [*QUESTION, message, *TWO[2:]])
    assert "<|bot|><think></think>«a1<|bot_end|>»" in text


@pytest.mark.parametrize("content", ["<think>\n\n</think>\n\n", "<think>\n\n</think>\n\na1", "<think></think>a1"])
def test_an_empty_block_of_a_past_content_that_the_template_writes_anew(content: str) -> None:
    """The prompt opened it with white space; history has another, whatever the content says: the template's."""
    said = "{{ m.content.split('</think>')[-1].lstrip('\n') }}"
    template = by_role("<|bot|><think>\n", user=USER, assistant="<|bot|><think></think>" + said + "<|bot_end|>")
    messages = [*QUESTION, {"role": "assistant", "content": content}, *TWO[2:]]
    assert f"<|bot|><think></think>«{content[-2:] if 'a1' in content else ''}<|bot_end|>»" in agreed(
        coder_of(template), messages
    )


@pytest.mark.parametrize("before", [[], [{"role": "assistant", "content": "a0"}]])
def test_an_empty_block_of_a_past_content_beside_the_field_for_reasoning(before: list[Message]) -> None:
    """It stands where the prompt had opened one: what goes on from there is the target's, behind a reply, too."""
    template = by_role("<|bot|><think>\n", user=USER, assistant="<|bot|>" + CALLS + "CONTENT<|bot_end|>")
    message = {"role": "assistant", "content": "<think>\n\n</think>", "reasoning_content": "r1"}
    text = agreed(coder_of(template), [*QUESTION, *before, message, *QUESTION, call(1)], *TOOLS)
    assert "<|bot|><think>\n«\n</think><|bot_end|>»" in text


def test_white_space_behind_a_block_of_the_templates_between_two_replies() -> None:
    """It is the second reply's, but for what the template writes behind each block."""
    template = by_role("<|bot|>", user=USER, assistant="<|bot|><think></think>\n" + CALLS + "CONTENT<|bot_end|>")
    replies = [{"role": "assistant", "content": content} for content in ("", "\t")]
    text = agreed(coder_of(template), [*QUESTION, *replies, call(1)], *TOOLS)
    assert "<|bot|><think></think>\n«<|bot_end|>»<|bot|><think></think>\n«\t<|bot_end|>»" in text


SPLIT = "{{ m.content.split('</think>')[-1] }}"
BLOCK = "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("history", "content"),
    [
        (SPLIT, "</think>a1"),  # the target closed the block at once
        (BLOCK + SPLIT, "r1</think>a1"),  # its reasoning began in the prompt, so the content has no start of it
        (BLOCK + SPLIT, "r1</think>a0</think>a1"),
    ],
)
def test_a_content_that_goes_on_where_the_prompt_opened_a_block(history: str, content: str) -> None:
    template = by_role("<|bot|><think>\n", user=USER, assistant=f"<|bot|>{history}<|bot_end|>")
    text = agreed(coder_of(template), [*QUESTION, {"role": "assistant", "content": content}])
    assert text.endswith(f"<|bot|><think>\n«{content}<|bot_end|>»")


@pytest.mark.parametrize("calls", [False, True])
@pytest.mark.parametrize("said", ["r1</think>a1", "<think>\nr1</think>a1"])
def test_a_content_that_ends_reasoning_behind_an_empty_block_of_the_templates(said: str, calls: bool) -> None:
    """The prompt began it, and the template takes the content for one without."""
    template = by_role("<|bot|><think>\n", user=USER, assistant=f"<|bot|>{BLOCK}CONTENT{CALLS}<|bot_end|>")
    last = call(1, said) if calls else {"role": "assistant", "content": said}
    text = agreed(coder_of(template), [*QUESTION, last], *TOOLS)
    assert "<|bot|><think>\n«r1</think>a1" in text


def test_an_empty_block_behind_other_text_that_history_leaves_out() -> None:
    """It is no reasoning, so the row is as the template shows it."""
    template = by_role("<|bot|><think>\n", user=USER, assistant=f"<|bot|>{BLOCK}{SPLIT}<|bot_end|>")
    messages = [*QUESTION, {"role": "assistant", "content": "a0<think></think>a1"}]
    assert agreed(coder_of(template), messages).endswith(f"<|bot|>{BLOCK}«a1<|bot_end|>»")


def test_reasoning_in_a_content_with_two_ends_that_history_splits() -> None:
    messages = [*QUESTION, {"role": "assistant", "content": "d</think>a0</think>a1"}]
    text = agreed(coder_of(by_role("<|bot|>", user=USER, assistant=f"<|bot|>{SPLIT}<|bot_end|>")), messages)
    assert text.endswith("<|bot|>«d</think>a0</think>a1<|bot_end|>»")


def test_a_content_beside_a_call_that_the_template_leaves_out() -> None:
    """With all that stands in it, as it would leave out any other."""
    said = "{% if not m.tool_calls %}CONTENT{% endif %}"
    template = by_role("<|bot|>", user=USER, assistant="<|bot|>" + CALLS + said + "<|bot_end|>")
    assert "<|bot|>«{" in agreed(coder_of(template), [*QUESTION, call(1, "r1</think>a1")], *TOOLS)


def test_a_call_that_broke_off() -> None:
    """A server has read it, so the target wrote as much as makes a call, and perhaps no more."""
    calls = CALLS.replace("{% endfor %}", "</call>{% endfor %}")
    coder = coder_of(by_role("<|bot|>", user=USER, assistant="<|bot|>CONTENT" + calls + "<|bot_end|>"))
    judgement = Judge(coder, coder.end_ids).judge(
        Conversation("row", (*QUESTION, call(1)), finish=("length",), tools=tuple(TOOLS))
    )
    assert judgement.verdict == "right", judgement
    assert judgement.shown.endswith("</call>»<|bot_end|>")


def test_a_second_reply_that_history_writes_into_the_turn_of_the_first() -> None:
    """A server's prompt has a header for it, as for any reply."""
    header = "{% if messages[loop.index0 - 1].role != 'assistant' %}<|bot|>model\n{% endif %}"
    coder = coder_of(by_role("<|bot|>model\n", user=USER, assistant=header + "CONTENT<|bot_end|>\n"))
    assert agreed(coder, IN_A_ROW).endswith("<|bot|>model\n«a1<|bot_end|>»\n<|bot|>model\n«a2<|bot_end|>»")


def test_an_end_of_reasoning_in_another_formats_words() -> None:
    """The prompt's block is not the one that it ends: the row is as the template shows it."""
    template = by_role("<|bot|><think>\n", user=USER, assistant="<|bot|><think></think>CONTENT<|bot_end|>")
    messages = [*QUESTION, {"role": "assistant", "content": "[/THINK]a1"}]
    assert agreed(coder_of(template), messages).endswith("<|bot|><think></think>«[/THINK]a1<|bot_end|>»")


def test_generation_blocks_where_a_content_changes_what_stands_before_it() -> None:
    """A server's prompt has the block whatever the reply will be."""
    block = "{% if '<think>' not in m.content %}<think></think>{% endif %}"
    reply = "<|bot|>" + block + "{% generation %}CONTENT<|bot_end|>{% endgeneration %}"
    coder = coder_of(by_role("<|bot|><think></think>", user=USER, assistant=reply))
    messages = [*QUESTION, {"role": "assistant", "content": "a1<think>"}]
    assert agreed(coder, messages).endswith("<|bot|><think></think>«a1<think><|bot_end|>»")


def test_reasoning_behind_a_prompt_that_asks_for_none_with_generation_blocks() -> None:
    """The start of the block, which stands before the template's own mark, is no server's there."""
    thought = "<think>{% generation %}REASONING</think>CONTENT<|bot_end|>{% endgeneration %}"
    plain = "<think></think>{% generation %}CONTENT<|bot_end|>{% endgeneration %}"
    reply = "<|bot|>{% if m.reasoning_content %}" + thought + "{% else %}" + plain + "{% endif %}"
    coder = coder_of(by_role("<|bot|><think></think>", user=USER, assistant=reply))
    assert agreed(coder, THOUGHT).endswith("<|bot|><think></think>«<think>r1</think>a1<|bot_end|>»")


def test_a_call_that_a_template_writes_into_the_call_before_it() -> None:
    """Nobody knows what the target would have written in its own turn."""
    first = "{% if messages[loop.index0 - 1].role != 'assistant' %}<|bot|>{% else %}<next>{% endif %}"
    reply = "{% if m.tool_calls %}" + first + CALLS + "{% else %}<|bot|>{% endif %}CONTENT<|bot_end|>"
    coder = coder_of(by_role("<|bot|><think>\n", user=USER, assistant=reply))
    assert "another header" in refused(coder, [*QUESTION, call(1), call(2)], *TOOLS)


def test_a_header_behind_a_tool_result_where_a_prompt_has_another_end() -> None:
    """In history it is context; the last reply stands behind what the prompt has."""
    prompt = "{% if messages[-1].role == 'tool' %}<|sys_end|>{% else %}<|bot|>{% endif %}"
    reply = "<|bot|>CONTENT" + CALLS + "<|bot_end|>"
    coder = coder_of(by_role(prompt, user=USER, tool="<|result|>CONTENT", assistant=reply))
    text = agreed(coder, [*CHAIN[:3], *CHAIN[3:5], call(3)], *TOOLS)
    assert "<|result|>t1<|bot|>«{" in text
    assert "<|result|>t2<|sys_end|>«{" in text


def test_history_that_lacks_the_empty_block_of_a_prompt() -> None:
    """It leaves the block out with the reasoning."""
    block = "{% if not m.reasoning_content %}<think></think>{% endif %}"
    coder = coder_of(
        by_role("<|bot|><think></think>", user=USER, assistant="<|bot|>" + block + CALLS + "CONTENT<|bot_end|>")
    )
    last = {**call(1), "reasoning_content": "r2"}
    second = {"role": "assistant", "content": "a2", "reasoning_content": "r2"}
    text = agreed(coder, [*THOUGHT, second, *QUESTION, last], *TOOLS)
    assert "<|bot|>«a1<|bot_end|>»<|bot|>«a2<|bot_end|>»" in text
    assert "<|bot|><think></think>«{" in text


def test_an_earlier_reply_of_the_turn_that_a_prompt_shows_with_a_block() -> None:
    """The prompt for a second one has it, history does not; neither says that the second has another header."""
    block = "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}"
    template = by_role("<|bot|><think>\n\n", user=USER, assistant="<|bot|>" + block + "CONTENT<|bot_end|>")
    assert agreed(coder_of(template), IN_A_ROW).endswith(
        "<|bot|>«a1<|bot_end|>»<|bot|><think>\n\n</think>\n\n«a2<|bot_end|>»"
    )
