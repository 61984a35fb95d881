"""What a row of tokens must be: the conversation as the formats say, checked against the prompt of a server.

That is the server's own way, token by token: the prompt of the last reply, tokenized, and behind it the tokens of the
reply and of its end. Earlier replies stand in that prompt as `tests.data.chat.formats` writes them.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from tests.data.chat.formats import FORMATS, Message, Part, Place, arguments_of, loses_reasoning, written_behind_think

QUESTION = "q"


def expected_row(
    name: str, tokenizer: Any, template: str, messages: list[Message], tools: list[Message]
) -> tuple[list[int], list[int]]:
    """Token ids and mask of the conversation, whose last message is a reply."""

    def render(shown: list[Message], opened: bool) -> str:
        return str(
            tokenizer.apply_chat_template(
                readable(name, shown),
                tools=tools or None,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=opened,
            )
        )

    def tokens(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    parts = parts_of(name, messages, tools, head_of(name, render, messages))
    text = "".join(text for text, _ in parts)
    prompt, whole = render(messages[:-1], True), render(messages, False)
    if text.startswith(prompt):
        written = "".join(text for text, _ in last_run(parts))
        assert text.endswith(written)
        server_wrote = text[len(prompt) : len(text) - len(written)]
        assert server_wrote.strip() in ("", "<think>\n\n</think>", "</think>", "<think></think>")
    else:  # the prompt opens a block of reasoning, and the message has none
        assert FORMATS[name].header.endswith("<think>\n")
        assert whole.startswith(text)
    rest = whole[len(text) :] if whole.startswith(text) else ""
    written = last_run(parts)
    ids, mask = context_tokens(tokenizer, parts[: len(parts) - len(written)])
    for text, trained in (("".join(text for text, _ in written), True), (rest, False)):
        new = tokens(text)
        ids += new
        mask += [int(trained)] * len(new)
    return ids, mask


def context_tokens(tokenizer: Any, parts: list[Part]) -> tuple[list[int], list[int]]:
    """Everything before the last reply, tokenized as a whole as a server does; a token is trained that lies within
    what the target wrote."""
    text = "".join(text for text, _ in parts)
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    places = list(accumulate((len(text) for text, _ in parts), initial=0))
    runs = [(places[i], places[i + 1]) for i, (_, trained) in enumerate(parts) if trained]
    joined: list[tuple[int, int]] = []
    for start, end in runs:
        joined = [*joined[:-1], (joined[-1][0], end)] if joined and joined[-1][1] == start else [*joined, (start, end)]
    inside = [any(a <= start and end <= b for a, b in joined) for start, end in encoding["offset_mapping"]]
    return list(encoding["input_ids"]), [int(trained) for trained in inside]


def last_run(parts: list[Part]) -> list[Part]:
    """The trained parts at the end."""
    run: list[Part] = []
    for text, trained in reversed(parts):
        if not trained:
            break
        run.insert(0, (text, trained))
    return run


def readable(name: str, messages: list[Message]) -> list[Message]:
    """The messages as this template reads tool calls."""
    if not name.startswith("deepseek"):
        return messages
    changed = []
    for message in messages:
        calls = [
            {**call, "function": {**call["function"], "arguments": arguments_of(call)}}
            for call in message.get("tool_calls", ())
        ]
        changed.append({**message, "tool_calls": calls} if calls else message)
    return changed


def head_of(name: str, render: Any, messages: list[Message]) -> str:
    """Everything before the text of the first question: system prompt, tools, header."""
    system = [m for m in messages[:1] if m["role"] == "system"]
    start = render([*system, {"role": "user", "content": QUESTION}], True)
    form = FORMATS[name]
    tail = QUESTION + form.user.partition("{}")[2] + form.header
    assert start.endswith(tail)
    return str(start[: -len(tail)])


def parts_of(name: str, messages: list[Message], tools: list[Message], head: str) -> list[Part]:
    """The conversation in parts, up to and including the end of its last reply."""
    form = FORMATS[name]
    talk = [m for m in messages if m["role"] != "system"]
    last_question = max(i for i, m in enumerate(talk) if m["role"] == "user")
    mistral = name.startswith("mistral")
    parts: list[Part] = [("<s>", False) if mistral else (head, False)]
    for i, message in enumerate(talk):
        if message["role"] == "user":
            strips = form.strips or (name == "llama4" and tools and i == 0)
            text = message["content"].strip() if strips else message["content"]
            shown = form.user.replace("{}", text, 1)
            if mistral and i == last_question:
                shown = _last_mistral_question(name, head, text, last=i == len(talk) - 2)
            elif i == 0 and not mistral:
                shown = text + form.user.partition("{}")[2]
            parts.append((shown, False))
        elif message["role"] == "tool":
            if talk[i - 1]["role"] != "tool":
                follow = next((j for j in range(i, len(talk)) if talk[j]["role"] != "tool"), len(talk))
                run = talk[i:follow]
                assert form.results is not None
                parts.append((form.results(run), False))
        else:
            place: Place = "last" if i == len(talk) - 1 else "chain" if i > last_question else "past"
            after_results = talk[i - 1]["role"] == "tool" and form.header_after_results is not None
            parts += _reply(name, message, place, after_results)
            if name == "glm" and (place != "last" or not message.get("tool_calls")):
                # The next header's token is the one at which the target stops.
                token = "<|user|>" if place == "last" or talk[i + 1]["role"] == "user" else "<|observation|>"
                parts.append((token, True))
    if name == "glm":
        parts = _without_doubled_tokens(parts)
    return [part for part in parts if part[0]]


def _last_mistral_question(name: str, head: str, text: str, *, last: bool) -> str:
    """Tools and system prompt stand before the last question; the system prompt only if nothing follows."""
    before = head.removeprefix("<s>")
    if not last:
        before = before.partition("[INST]")[0] + FORMATS[name].user.partition("{}")[0]
    return before + text + "[/INST]"


def _reply(name: str, message: Message, place: Place, after_results: bool) -> list[Part]:
    form = FORMATS[name]
    header, parts = form.header_of(message, place), form.turn(message, place)
    if after_results:
        header = form.header_after_results or ""
        if name.startswith("deepseek"):
            parts = parts if message.get("tool_calls") else [(message["content"], True)]
    elif place == "last":
        if form.header.endswith("<think>\n") and name in ("qwq", "deepseek-r1"):
            written = written_behind_think(message, "".join(text for text, _ in parts))
            header, parts = (header, [(written, True)]) if written is not None else (form.past_header or "", parts)
        elif name == "deepseek-v3" and not message.get("tool_calls") and loses_reasoning(message["content"]):
            parts = [(message["content"], True)]
    end = "<|call|>" if name == "gpt-oss" and message.get("tool_calls") else form.end
    if name == "gpt-oss" and place != "last" and not message.get("tool_calls"):
        end = "<|end|>"
    return [(header, False), *parts, (end, True), (form.gap if place != "last" else "", False)]


def _without_doubled_tokens(parts: list[Part]) -> list[Part]:
    """A header token that was counted to the reply before it is left out of the text behind."""
    kept: list[Part] = []
    for text, trained in parts:
        if kept and kept[-1] in (("<|user|>", True), ("<|observation|>", True)) and not trained:
            text = text.removeprefix(kept[-1][0])
        kept.append((text, trained))
    return kept
