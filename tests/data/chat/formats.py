"""The formats of the named templates, written down a second time: what stands before a reply, what the target writes.

The oracle of the mask tests. Nothing here renders Jinja or looks for places in a text: a conversation is put together
turn by turn, each part known to be the target's or not, and then compared with the prompt of a server.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

Message = dict[str, Any]
Part = tuple[str, bool]
"""A text, and whether the target wrote it."""
Place = Literal["last", "chain", "past"]
"""The last reply, one before it that answers the same question (a tool call), or an earlier one."""
Turn = Callable[[Message, Place], list[Part]]


def reasoning_of(message: Message) -> tuple[str, str]:
    """Reasoning and answer, where the content may hold both."""
    content = message["content"]
    if "reasoning_content" in message:
        return message["reasoning_content"], content
    if "</think>" in content:
        before = content.split("</think>")[0].rstrip("\n").split("<think>")[-1].lstrip("\n")
        return before, content.split("</think>")[-1].lstrip("\n")
    return "", content


def begins_with_empty_block(message: Message) -> bool:
    """The target itself said that it had nothing to think about."""
    start = message["content"].lstrip()
    return "reasoning_content" not in message and (
        start.startswith("</think>")
        or (start.startswith("<think>") and start.removeprefix("<think>").lstrip().startswith("</think>"))
    )


def loses_reasoning(content: str) -> bool:
    """The content begins with reasoning that a template which splits it would drop."""
    thought, closed, _ = content.partition("</think>")
    return bool(closed and thought.rpartition("<think>")[2].strip())


def written_behind_think(message: Message, shown: str) -> str | None:
    """The reply to a prompt that ends with ``<think>\\n``; None where the message holds no reasoning.

    ``shown`` is the turn as the template writes it, which has lost the reasoning or never had its first mark.
    """
    content, reasoning = message["content"], message.get("reasoning_content", "")
    if shown.startswith("<think>\n"):
        return shown.removeprefix("<think>\n")
    calls = json.dumps([call["function"]["arguments"] for call in message.get("tool_calls") or ()], ensure_ascii=False)
    own = content.count("</think>") if reasoning else 0
    closes = shown.count("</think>") > calls.count("</think>") + own
    if closes and (reasoning or ends_reasoning(content)):
        return shown
    if reasoning and not closes:
        return reasoning.strip("\n") + "\n</think>\n\n" + shown.lstrip("\n")
    if message.get("tool_calls"):
        return None
    if content.lstrip().startswith("<think>"):
        return content.lstrip().removeprefix("<think>").removeprefix("\n")
    return content if ends_reasoning(content) else None


def ends_reasoning(content: str) -> bool:
    """The content ends a block of reasoning that was begun before it, or that is not empty."""
    thought, closed, _ = content.partition("</think>")
    return bool(closed and (not thought.strip() or thought.rpartition("<think>")[2].strip()))


def json_calls(message: Message) -> str:
    return "\n".join(
        '<tool_call>\n{"name": "' + call["function"]["name"] + '", "arguments": '
        + json.dumps(call["function"]["arguments"], ensure_ascii=False) + "}\n</tool_call>"
        for call in message["tool_calls"]
    )  # fmt: skip


@dataclass(frozen=True)
class Format:
    """One format. ``user`` has the text's place as {}; ``end`` ends a turn, ``gap`` is what follows it."""

    user: str
    header: str
    end: str
    turn: Turn
    """What follows the header, without the end."""
    gap: str = ""
    past_header: str | None = None
    """The header of a reply that others follow, where it is another."""
    results: Callable[[Sequence[Message]], str] | None = None
    """Neighbouring tool messages; None where the format has no tools."""
    header_after_results: str | None = None
    strips: bool = False
    """User texts are stripped."""

    def header_of(self, message: Message, place: Place) -> str:
        """The header of this reply, if no tool's results come before it."""
        if place == "last" or self.past_header is None:
            return self.header
        thinks = place == "chain" and self.header.endswith("<think>\n") and self.turn is QWEN3_THINKING
        return self.header if thinks and reasoning_of(message)[0] else self.past_header


def whole(message: Message, place: Place) -> list[Part]:
    """The content as it is."""
    return [(message["content"], True)]


def stripped(before: str) -> Turn:
    """The content without white space around it."""
    return lambda message, place: [(before + message["content"].strip(), True)]


def with_calls(plain: Turn, calls: Callable[[Message], str]) -> Turn:
    """Turns of tool calls are written by ``calls``, others by ``plain``."""
    return lambda message, place: [(calls(message), True)] if message.get("tool_calls") else plain(message, place)


def qwen_turn(message: Message, place: Place, thinks: bool = False) -> list[Part]:
    said = message["content"]
    if thinks and place != "last":
        said = said.split("</think>")[-1].lstrip("\n")
    if not message.get("tool_calls"):
        return [(said, True)]
    return [(said + "\n" * bool(message["content"]) + json_calls(message), True)]


def qwen3_turn(message: Message, place: Place, opening: str = "<think>\n", keeps_empty: bool = True) -> list[Part]:
    thought, said = reasoning_of(message)
    calls = json_calls(message) if message.get("tool_calls") else ""
    gap = "\n" if said and calls else ""
    if place == "past" or not thought and not (place == "last" and keeps_empty):
        return [(said + gap + calls, True)]
    own = bool(thought.strip("\n")) or begins_with_empty_block(message)
    block = opening + thought.strip("\n") + "\n</think>\n\n"
    return [(block, own), (said.lstrip("\n") + gap + calls, True)]


def QWEN3_THINKING(message: Message, place: Place) -> list[Part]:
    return qwen3_turn(message, place, opening="")


def deepseek_turn(message: Message, place: Place) -> list[Part]:
    said = message["content"]
    if message.get("tool_calls"):
        calls = [
            f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{call['function']['name']}\n```json\n{arguments_of(call)}"
            "\n```<｜tool▁call▁end｜>"
            for call in message["tool_calls"]
        ]
        return [(said + "<｜tool▁calls▁begin｜>" + "\n".join(calls) + "<｜tool▁calls▁end｜>", True)]
    return [(said.split("</think>")[-1], True)]


def deepseek31_turn(message: Message, place: Place) -> list[Part]:
    said = message["content"]
    if message.get("tool_calls"):
        calls = [
            f"<｜tool▁call▁begin｜>{call['function']['name']}<｜tool▁sep｜>{arguments_of(call)}<｜tool▁call▁end｜>"
            for call in message["tool_calls"]
        ]
        return [(said + "<｜tool▁calls▁begin｜>" + "".join(calls) + "<｜tool▁calls▁end｜>", True)]
    return [(said.split("</think>", 1)[-1], True)]


def arguments_of(call: Message) -> str:
    return json.dumps(call["function"]["arguments"], ensure_ascii=False)


def mistral_calls(gap: str) -> Callable[[Message], str]:
    def calls(message: Message) -> str:
        told = [{**call["function"], "id": call["id"]} for call in message["tool_calls"]]
        return f"[TOOL_CALLS]{gap}[" + ", ".join(json.dumps(call, ensure_ascii=False) for call in told) + "]"

    return calls


def llama_call(message: Message) -> str:
    call = message["tool_calls"][0]
    return '{"name": "' + call["function"]["name"] + '", "parameters": ' + arguments_of(call) + "}"


def llama4_calls(message: Message) -> str:
    calls = "".join(llama_call({"tool_calls": [call]}) for call in message["tool_calls"])
    return f"<|python_start|>{message['content']}<|python_end|>{calls}"


def glm_turn(message: Message, place: Place) -> list[Part]:
    thought, said = reasoning_of(message)
    thought = "" if place == "past" else thought.strip()
    own = bool(thought) or begins_with_empty_block(message)
    after = "\n" + said.strip() if said.strip() else ""
    for call in message.get("tool_calls", ()):
        after += "\n<tool_call>" + call["function"]["name"] + "\n"
        for key, value in call["function"]["arguments"].items():
            told = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            after += f"<arg_key>{key}</arg_key>\n<arg_value>{told}</arg_value>\n"
        after += "</tool_call>"
    # The line break behind an empty block that the server writes is the server's too.
    gap = "\n" if after and not own else ""
    return [(f"\n<think>{thought}</think>" + gap, own), (after.removeprefix(gap), True)]


def harmony_turn(message: Message, place: Place) -> list[Part]:
    thought, said = message.get("reasoning_content", ""), message["content"]
    if message.get("tool_calls"):
        thought = thought or said
        function = message["tool_calls"][0]["function"]
        told = f" to=functions.{function['name']}<|channel|>commentary json<|message|>"
        told += json.dumps(function["arguments"], ensure_ascii=False)
    else:
        told = f"<|channel|>final<|message|>{said}"
    if thought and place != "past":
        told = f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant{told}"
    return [(told, True)]


def results_in(
    around: str, each: str, *, quoted: bool = False, between: str = ""
) -> Callable[[Sequence[Message]], str]:
    """Tool messages written as ``each`` (its {} is the text) inside ``around``."""

    def results(messages: Sequence[Message]) -> str:
        texts = [json.dumps(m["content"], ensure_ascii=False) if quoted else m["content"] for m in messages]
        names = [m.get("tool_call_id", "") for m in messages]
        told = [each.replace("{}", text, 1).replace("{id}", name) for text, name in zip(texts, names, strict=True)]
        return around.replace("{}", "".join(told), 1)

    return results


def qwen(turn: Turn, opening: str = "") -> Format:
    return Format(
        "<|im_start|>user\n{}<|im_end|>\n",
        "<|im_start|>assistant\n" + opening,
        "<|im_end|>",
        turn,
        "\n",
        past_header="<|im_start|>assistant\n",
        results=results_in("<|im_start|>user{}<|im_end|>\n", "\n<tool_response>\n{}\n</tool_response>"),
    )


def deepseek(opening: str) -> Format:
    return Format(
        "<｜User｜>{}",
        "<｜Assistant｜>" + opening,
        "<｜end▁of▁sentence｜>",
        deepseek_turn,
        past_header="<｜Assistant｜>",
        results=results_in("<｜tool▁outputs▁begin｜>{}", "<｜tool▁output▁begin｜>{}<｜tool▁output▁end｜>"),
        header_after_results="<｜tool▁outputs▁end｜>",
    )


def llama(start: str, stop: str, end: str, turn: Turn, *, tools: bool, strips: bool) -> Format:
    results = results_in("{}", f"{start}ipython{stop}\n\n{{}}{end}", quoted=True) if tools else None
    user, header = f"{start}user{stop}\n\n{{}}{end}", f"{start}assistant{stop}\n\n"
    return Format(user, header, end, turn, results=results, strips=strips)


def mistral(gap: str, plain: Turn) -> Format:
    each = f'[TOOL_RESULTS]{gap}{{"content": {{}}, "call_id": "{{id}}"}}[/TOOL_RESULTS]'
    turn = with_calls(plain, mistral_calls(gap))
    return Format(f"[INST]{gap}{{}}[/INST]", "", "</s>", turn, results=results_in("{}", each))


FORMATS: dict[str, Format] = {
    "chatml": Format("<|im_start|>user\n{}<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>", whole, "\n"),
    "qwen": qwen(qwen_turn),
    "qwq": qwen(partial(qwen_turn, thinks=True), "<think>\n"),
    "qwen3": qwen(qwen3_turn),
    "qwen3-instruct": qwen(partial(qwen3_turn, keeps_empty=False)),
    "qwen3-thinking": qwen(QWEN3_THINKING, "<think>\n"),
    "llama3": llama("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", stripped(""), tools=False, strips=True),
    "llama3.1": llama(
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        with_calls(stripped(""), llama_call),
        tools=True,
        strips=True,
    ),
    "llama4": llama(
        "<|header_start|>", "<|header_end|>", "<|eot|>", with_calls(whole, llama4_calls), tools=True, strips=False
    ),
    "phi3": Format("<|user|>\n{}<|end|>\n", "<|assistant|>\n", "<|end|>", whole, "\n"),
    "phi4": Format("<|im_start|>user<|im_sep|>{}<|im_end|>", "<|im_start|>assistant<|im_sep|>", "<|im_end|>", whole),
    "phi4-mini": Format("<|user|>{}<|end|>", "<|assistant|>", "<|end|>", whole),
    "deepseek-v2": Format(
        "User: {}\n\n", "Assistant:", "<｜end▁of▁sentence｜>", lambda message, place: [(" " + message["content"], True)]
    ),
    "deepseek-v3": deepseek(""),
    "deepseek-r1": deepseek("<think>\n"),
    "deepseek-v3.1": Format(
        "<｜User｜>{}",
        "<｜Assistant｜></think>",
        "<｜end▁of▁sentence｜>",
        deepseek31_turn,
        results=results_in("{}", "<｜tool▁output▁begin｜>{}<｜tool▁output▁end｜>"),
        header_after_results="",
    ),
    "gpt-oss": Format(
        "<|start|>user<|message|>{}<|end|>",
        "<|start|>assistant",
        "<|return|>",
        harmony_turn,
        results=results_in(
            "{}", "<|start|>functions.look to=assistant<|channel|>commentary<|message|>{}<|end|>", quoted=True
        ),
    ),
    "gemma": Format(
        "<start_of_turn>user\n{}<end_of_turn>\n",
        "<start_of_turn>model\n",
        "<end_of_turn>",
        stripped(""),
        "\n",
        strips=True,
    ),
    "mistral": mistral(" ", stripped(" ")),
    "mistral-nemo": mistral("", whole),
    "glm": Format(
        "<|user|>\n{}",
        "<|assistant|>",
        "",
        glm_turn,
        results=results_in("<|observation|>{}", "\n<tool_response>\n{}\n</tool_response>"),
    ),
}
