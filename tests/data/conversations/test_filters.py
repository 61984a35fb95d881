from __future__ import annotations

import random

import pytest

from eagle3cli.data.conversations.conversation import to_conversation
from eagle3cli.data.conversations.filters import is_loop, is_refusal, unwanted_kinds, unwanted_reply

PROSE = (
    "The river rises in the hills behind the town and falls through three small gorges before it reaches the plain, "
    "where farmers have led it into ditches since anyone can remember. In a dry year they close them one by one, the "
    "highest first, and the millers sit in the inn and talk about their fathers. Nobody minds much: the wheat is in by "
    "then, and the mill stones want dressing anyway, a job that takes two men a week and leaves them white all over. "
)


@pytest.mark.parametrize(
    "unit",
    [
        "no ",
        "I am here. ",
        "1, 2, 3, 4, 5, ",
        "对不起，我再说一遍。",
        "\n- item\n- item two",
        "a" * 40 + "b" * 40,
        PROSE,
    ],
)
def test_a_reply_that_ends_in_a_loop(unit: str) -> None:
    assert is_loop(PROSE + unit * (12_000 // len(unit) + 8))
    assert is_loop(unit * (6_000 // len(unit) + 10))


TABLE = "\n".join(f"| {i} | {i * i} | item number {i} | {i % 7 * 31} |" for i in range(60))
CODE = "\n".join(f"def get_{name}(self):\n    return self._{name}\n" for name in PROSE.split()[:40])


@pytest.mark.parametrize("text", [PROSE, PROSE * 2, "ha " * 40, TABLE, CODE, "", "ok"])
def test_a_reply_that_repeats_itself_no_more_than_people_do(text: str) -> None:
    assert not is_loop(text)


def test_much_text_after_a_loop_ends_it() -> None:
    rng = random.Random(0)
    text = " ".join("".join(rng.choices("abcdefghij", k=rng.randrange(2, 9))) for _ in range(3000))
    assert not is_loop("no " * 3000 + text)
    assert is_loop(text + "no " * 3000)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that.",
        "I’m sorry, but I can’t help with that request.",
        "I cannot help you with that.",
        "Sorry, I am unable to provide medical advice.",
        "I apologize, but as an AI language model, I cannot browse the internet.",
        "As an AI language model, I am not able to open links.",
        "Unfortunately, I won't write that story.",
        "That request is against OpenAI's usage policies.",
        "抱歉，我无法提供这方面的帮助。",
        "申し訳ありませんが、その依頼にはお応えできません。",
        "죄송합니다, 그 요청은 도와드릴 수 없습니다.",
        "Es tut mir leid, aber ich kann dabei nicht helfen.",
        "Je suis désolé, mais je ne peux pas répondre à cette demande.",
        "Lo siento, pero no puedo ayudarte con eso.",
        "Desculpe, mas não posso ajudar com isso.",
        "Mi dispiace, ma non posso aiutarti.",
        "К сожалению, я не могу помочь с этим.",
    ],
)
def test_refusals(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry for the confusion. Here is the corrected code:",
        "Sorry about that! The last line was missing.",
        "As an AI language model, I do not have feelings, but I can describe them.",
        "You cannot help it: the function returns None.",
        "The constructor cannot be called with that argument.",
        "I can't believe how well this works! Here is your poem:",
        "Here is a letter of apology: Dear Sir, I am sorry that I missed the train.",
        "Unfortunately, the file does not exist, so the program stops.",
        "很抱歉给您带来困惑，这是更正后的代码。",
        PROSE + "I'm sorry, but I can't help with that.",
    ],
)
def test_no_refusals(text: str) -> None:
    assert not is_refusal(text)


def test_only_what_was_asked_for_is_dropped() -> None:
    def talk(*replies: str, finish: list[str] | None = None) -> str:
        messages = [
            message
            for reply in replies
            for message in ({"role": "user", "content": "q"}, {"role": "assistant", "content": reply})
        ]
        row = {"conversations": messages, **({"finish": finish} if finish else {})}
        return unwanted_reply(to_conversation(row), kinds)

    for kinds in ([], unwanted_kinds(True, True, True)):
        reasons = [
            talk("fine", "no " * 1000),
            talk("I'm sorry, but I can't help with that.", "fine"),
            talk("cut", "fine", finish=["length", "stop"]),
            talk("fine", finish=["stop"]),
        ]
        assert [bool(reason) for reason in reasons] == ([True, True, True, False] if kinds else [False] * 4)
