"""Formats that people publish models with, described by their grammar; from it come a template and the truth.

A reply reads ``header¦before{}end§gap``: a prompt ends at ``¦``, ``{}`` is the text, the target stops at ``§``.
A format with nothing between text and ``§`` has no end, and the target writes eos.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from hypothesis import strategies as st

from eagle3cli.data.chat.oracle import Truth, Written
from eagle3cli.data.tokens.encode import Encoder
from tests.data.chat.formats import Message
from tests.data.chat.grammars import TOOLS
from tests.data.chat.templates import REASONING, SAID, TEXTS
from tests.tiny import tiny_tokenizer

SPECIAL = re.compile(
    r"<\|[^|<>\s]+\|>|<｜[^｜]+｜>|\[\|\w+\|\]|\[/?INST\]|</?s>|<(?:用户|AI|_\w+|\w+_of_turn|reserved_\d+|eos|bos)>"
)


@dataclass(frozen=True)
class PublicFormat:
    """One format. ``thinking`` is ``keep`` (written in every turn), ``drop`` (only behind the last question) or
    ``open`` (as ``drop``, and a server's prompt begins it); ``stops`` are configured besides ``eos``."""

    user: str
    reply: str
    eos: str = "</s>"
    system: str | None = None
    bos: str = ""
    strips: bool = False
    thinking: str = ""
    call: str = ""
    tool: str = ""
    stops: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, str, str, str]:
        """Header, what the target writes before its text and behind it, and the gap."""
        header, _, rest = self.reply.partition("¦")
        written, _, gap = rest.partition("§")
        before, _, end = written.partition("{}")
        return header, before, end, gap


def _chatml(**more: Any) -> PublicFormat:
    """What most models of today have, with what one of them adds."""
    base = PublicFormat(
        "<|im_start|>user\n{}<|im_end|>\n",
        "<|im_start|>assistant\n¦{}<|im_end|>§\n",
        "<|im_end|>",
        "<|im_start|>system\n{}<|im_end|>\n",
        call="<tool_call>\n{}\n</tool_call>",
        tool="<|im_start|>user\n<tool_response>\n{}\n</tool_response><|im_end|>\n",
    )
    return replace(base, **more)


def _said(user: str, reply: str, **more: Any) -> PublicFormat:
    return PublicFormat(user, reply, **more)


_L3 = "<|start_header_id|>{}<|end_header_id|>\n\n"
_L3_TEXT = "{}<|eot_id|>"
_COHERE = "<|START_OF_TURN_TOKEN|><|{}_TOKEN|>"
_COHERE_END = "<|END_OF_TURN_TOKEN|>"
_CLOSE = "<|close|>{}<|sep|>"


def _llama3(**more: Any) -> PublicFormat:
    return PublicFormat(
        _L3.format("user") + _L3_TEXT,
        _L3.format("assistant") + "¦{}<|eot_id|>§",
        "<|eot_id|>",
        _L3.format("system") + _L3_TEXT,
        **{"bos": "<|begin_of_text|>", "strips": True, **more},
    )


PUBLIC: dict[str, PublicFormat] = {
    "airoboros": _said("USER: {}\n", "ASSISTANT:¦ {}</s>§\n", system="{}\n"),
    "alpaca": _said("### Instruction:\n{}\n\n", "### Response:\n¦{}§\n\n", system="{}\n\n", strips=True),
    "amberchat": _said("### Human: {}\n", "### Assistant:¦ {}§\n", system="{}\n"),
    "apertus": _said(
        "<|user_start|>{}<|user_end|>", "<|assistant_start|>¦{}<|assistant_end|>§", eos="<|assistant_end|>"
    ),
    "baichuan2": _said("<reserved_106>{}", "<reserved_107>¦{}§", system="{}"),
    "bielik": _chatml(bos="<s>"),
    "blossom": _said("|Human|: {}\n", "|Bot|:¦ {}</s>§\n"),
    "chatglm2": _said("[Round]\n\n问：{}\n\n", "答：¦{}§\n\n", strips=True),
    "chatglm3": _said("<|user|>\n {}", "<|assistant|>\n¦ {}§", system="<|system|>\n {}", stops=("<|user|>",)),
    "chatml": _chatml(),
    "chatqa": _said("User: {}\n\n", "Assistant:¦ {}§\n\n", system="System: {}\n\n", strips=True),
    "command-r": _said(
        _COHERE.format("USER") + "{}" + _COHERE_END,
        _COHERE.format("CHATBOT") + "¦{}" + _COHERE_END + "§",
        eos=_COHERE_END,
        system=_COHERE.format("SYSTEM") + "{}" + _COHERE_END,
        strips=True,
    ),
    "command-r7b": _said(
        _COHERE.format("USER") + "{}" + _COHERE_END,
        _COHERE.format("CHATBOT") + "¦<|START_RESPONSE|>{}<|END_RESPONSE|>" + _COHERE_END + "§",
        eos=_COHERE_END,
        system=_COHERE.format("SYSTEM") + "{}" + _COHERE_END,
    ),
    "deepseek-coder": _said("### Instruction:\n{}\n", "### Response:\n¦{}\n<|EOT|>§\n", eos="<|EOT|>", system="{}"),
    "deepseek-llm": _said("User: {}\n\n", "Assistant:¦ {}<｜eos｜>§", eos="<｜eos｜>", system="{}\n\n"),
    "deepseek-v2.5": _said(
        "<｜User｜>{}", "<｜Assistant｜>¦{}<｜eos｜>§", eos="<｜eos｜>", system="{}", bos="<｜bos｜>"
    ),
    "deepseek-r1": _said(
        "<｜User｜>{}", "<｜Assistant｜>¦{}<｜eos｜>§", eos="<｜eos｜>", system="{}", bos="<｜bos｜>", thinking="open"
    ),
    "dolphin": _chatml(tool="", call=""),
    "exaone": _said(
        "[|user|]{}\n", "[|assistant|]¦{}[|endofturn|]§\n", eos="[|endofturn|]", system="[|system|]{}[|endofturn|]\n"
    ),
    "falcon": _said("User: {}\n", "Assistant:¦ {}§\n", eos="<|endoftext|>", system="{}\n", strips=True),
    "falcon3": _said(
        "<|user|>\n{}\n", "<|assistant|>\n¦{}<|endoftext|>§\n", eos="<|endoftext|>", system="<|system|>\n{}\n"
    ),
    "gemma": _said(
        "<start_of_turn>user\n{}<end_of_turn>\n",
        "<start_of_turn>model\n¦{}<end_of_turn>§\n",
        eos="<eos>",
        bos="<bos>",
        strips=True,
        stops=("<end_of_turn>",),
    ),
    "glm4": _said(
        "<|user|>\n{}",
        "<|assistant|>\n¦{}§",
        eos="<|endoftext|>",
        system="<|system|>\n{}",
        bos="<sop>",
        stops=("<|user|>", "<|observation|>"),
        call="<tool_call>{}</tool_call>",
        tool="<|observation|>\n{}",
    ),
    "granite3": _said(
        "<|start_of_role|>user<|end_of_role|>{}<|end_of_text|>\n",
        "<|start_of_role|>assistant<|end_of_role|>¦{}<|end_of_text|>§\n",
        eos="<|end_of_text|>",
        system="<|start_of_role|>system<|end_of_role|>{}<|end_of_text|>\n",
    ),
    "hermes-3": _chatml(bos="<|begin_of_text|>"),
    "hunyuan": _said("<|startoftext|>{}<|extra_0|>", "¦{}<|eos|>§", eos="<|eos|>", system="{}<|extra_4|>"),
    "hymba": _said("<extra_id_1>User\n{}\n", "<extra_id_1>Assistant\n¦{}</s>§\n", system="<extra_id_0>System\n{}\n"),
    "inkbot": _said("<|user|>{}", "<|model|>¦{}§", system="<|system|>{}", strips=True),
    "internlm1": _said("<|User|>:{}\n", "<|Bot|>:¦{}<eoa>§\n", eos="<eoa>"),
    "internlm2": _chatml(bos="<s>", eos="</s>", stops=("<|im_end|>",)),
    "jais": _said(
        "### Input: [|Human|] {}\n",
        "### Response :¦ {}<|endoftext|>§\n",
        eos="<|endoftext|>",
        system="### Instruction: {}\n",
    ),
    "kimi-k2": _said(
        "<|im_user|>user<|im_middle|>{}<|im_end|>",
        "<|im_assistant|>assistant<|im_middle|>¦{}<|im_end|>§",
        eos="<|im_end|>",
        system="<|im_system|>system<|im_middle|>{}<|im_end|>",
    ),
    "kimi-k3": _said(
        "<|open|>user<|sep|>{}" + _CLOSE.format("message") + "<|end_of_msg|>",
        "<|open|>assistant<|sep|>¦{}" + _CLOSE.format("response") + _CLOSE.format("message") + "<|end_of_msg|>§",
        eos="<|end_of_msg|>",
    ),
    "koala": _said("USER: {} ", "GPT:¦{}</s>§", system="{} "),
    "laguna": _said(
        "<user>\n{}\n</user>\n",
        "<assistant>\n¦{}\n</assistant>§\n",
        eos="</assistant>",
        system="<system>\n{}\n</system>\n",
    ),
    "llama2": _said("<s>[INST] {} [/INST]", "¦ {} </s>§", strips=True),
    "llama3": _llama3(),
    "llama4": _said(
        "<|header_start|>user<|header_end|>\n\n{}<|eot|>",
        "<|header_start|>assistant<|header_end|>\n\n¦{}<|eot|>§",
        eos="<|eot|>",
        system="<|header_start|>system<|header_end|>\n\n{}<|eot|>",
        bos="<|begin_of_text|>",
    ),
    "metharme": _said("<|user|>{}", "<|model|>¦{}§", system="<|system|>{}", bos="<s>", strips=True),
    "minicpm": _said("<用户>{}", "<AI>¦{}§", strips=True),
    "minimax": _said(
        "]~b]user\n{}[e~[\n", "]~b]ai\n¦{}[e~[§\n", eos="[e~[", system="]~b]system\n{}[e~[\n", thinking="open"
    ),
    "mistral-v1": _said("[INST] {} [/INST]", "¦ {}</s>§", bos="<s>"),
    "mistral-v7": _said("[INST] {}[/INST]", "¦ {}</s>§", bos="<s>", system="[SYSTEM_PROMPT] {}[/SYSTEM_PROMPT]"),
    "olmo": _said("<|user|>\n{}\n", "<|assistant|>\n¦{}<|endoftext|>§\n", eos="<|endoftext|>", bos="<|endoftext|>"),
    "oasst": _said(
        "<|prompter|>{}<|endoftext|>",
        "<|assistant|>¦{}<|endoftext|>§",
        eos="<|endoftext|>",
        system="<|system|>{}<|endoftext|>",
    ),
    "openchat": _said(
        "GPT4 Correct User: {}<|end_of_turn|>",
        "GPT4 Correct Assistant:¦ {}<|end_of_turn|>§",
        eos="<|end_of_turn|>",
        bos="<s>",
    ),
    "orca-mini": _said("### User:\n{}\n\n", "### Assistant:\n¦{}§\n\n", system="### System:\n{}\n\n"),
    "orion": _said("Human: {}\n\n", "Assistant: </s>¦{}</s>§", bos="<s>"),
    "phi2": _said("Instruct: {}\n", "Output:¦ {}§\n", eos="<|endoftext|>"),
    "phi3": _said(
        "<|user|>\n{}<|end|>\n",
        "<|assistant|>\n¦{}<|end|>§\n",
        eos="<|endoftext|>",
        system="<|system|>\n{}<|end|>\n",
        stops=("<|end|>",),
    ),
    "phi4": _said(
        "<|im_start|>user<|im_sep|>{}<|im_end|>",
        "<|im_start|>assistant<|im_sep|>¦{}<|im_end|>§",
        eos="<|im_end|>",
        system="<|im_start|>system<|im_sep|>{}<|im_end|>",
    ),
    "qwen3": _chatml(thinking="drop"),
    "qwen3-kept": _chatml(thinking="keep"),
    "qwq": _chatml(thinking="open"),
    "redpajama": _said("<human>: {}\n", "<bot>:¦ {}§\n", eos="<|endoftext|>"),
    "rwkv": _said("User: {}\n\n", "Assistant:¦ {}§\n\n", eos="<|endoftext|>", strips=True),
    "saiga": _said("<s>user\n{}</s>\n", "<s>bot\n¦{}</s>§\n", system="<s>system\n{}</s>\n"),
    "seed-oss": _said("<s>user\n{}</s>", "<s>assistant\n¦{}</s>§", system="<s>system\n{}</s>"),
    "solar": _said("### User:\n{}\n\n", "### Assistant:\n¦{}§\n\n", system="### System:\n{}\n\n", strips=True),
    "solar-open": _said(
        "<|begin|>user<|content|>{}<|end|>",
        "<|begin|>assistant¦<|content|>{}<|end|>§",
        eos="<|end|>",
        system="<|begin|>system<|content|>{}<|end|>",
    ),
    "stablelm-zephyr": _said(
        "<|user|>\n{}<|endoftext|>\n", "<|assistant|>\n¦{}<|endoftext|>§\n", eos="<|endoftext|>", strips=True
    ),
    "starchat": _said(
        "<|user|>\n{}<|end|>\n",
        "<|assistant|>\n¦{}<|end|>§\n",
        eos="<|endoftext|>",
        system="<|system|>\n{}<|end|>\n",
        stops=("<|end|>",),
    ),
    "telechat": _said("<_user>{}", "<_bot>¦{}<_end>§", eos="<_end>", system="<_system>{}\n"),
    "teleflm": _said("<_user>{}", "<_bot>¦{}§", eos="</s>"),
    "tulu": _said("<|user|>\n{}\n", "<|assistant|>\n¦{}</s>§\n", system="<|system|>\n{}\n"),
    "vicuna": _said("USER: {} ", "ASSISTANT:¦ {}</s>§", system="{} "),
    "wizardlm": _said("{}\n\n", "### Response:¦ {}</s>§"),
    "xverse": _said("Human: {}\n\n", "Assistant:¦ {}<|endoftext|>§", eos="<|endoftext|>"),
    "yi": _chatml(eos="<|endoftext|>", stops=("<|im_end|>",), tool="", call=""),
    "zephyr": _said("<|user|>\n{}</s>\n", "<|assistant|>\n¦{}</s>§\n", system="<|system|>\n{}</s>\n"),
}


BLOCK = "<think>\n{}\n</think>\n\n"


def template_of(form: PublicFormat) -> str:
    """The format as a chat template."""
    header, before, end, gap = form.parts
    text = "m.content | trim" if form.strips else "m.content"
    shown = "true" if form.thinking == "keep" else "loop.index0 > seen.last"
    block = f"{{% if m.reasoning_content and {shown} %}}{_filled(BLOCK, 'm.reasoning_content')}{{% endif %}}"
    block = block if form.thinking else ""
    call = _filled(form.call, "{'name': c.function.name, 'arguments': c.function.arguments} | tojson")
    calls = f"{{% for c in m.tool_calls or [] %}}{call}{{% endfor %}}" if form.call else ""
    last = "{% set seen = namespace(last=-1) %}"
    last += "{% for m in messages %}{% if m.role == 'user' %}{% set seen.last = loop.index0 %}{% endif %}{% endfor %}"
    return (
        f"{last}{_literal(form.bos)}{{% for m in messages %}}{{% if m.role == 'user' %}}{_filled(form.user, text)}"
        f"{{% elif m.role == 'system' %}}{_filled(form.system or '', text)}"
        f"{{% elif m.role == 'tool' %}}{_filled(form.tool, text)}"
        f"{{% else %}}{_literal(header + before)}{block}{{{{ {text} }}}}{calls}{_literal(end + gap)}{{% endif %}}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{_literal(_header(form))}{{% endif %}}"
    )


def _header(form: PublicFormat) -> str:
    return form.parts[0] + ("<think>\n" if form.thinking == "open" else "")


def _filled(text: str, expression: str) -> str:
    before, found, after = text.partition("{}")
    return _literal(before) + (f"{{{{ {expression} }}}}" if found else "") + _literal(after)


def _literal(text: str) -> str:
    return f"{{{{ {json.dumps(text)} }}}}" if text else ""


def truth_of_format(form: PublicFormat, messages: list[Message], *, cut: bool = False) -> Truth:
    """What the row must be, put together turn by turn; ``cut``: the last reply broke off at a length limit."""
    header, before, end, gap = form.parts
    asked = max(i for i, message in enumerate(messages) if message["role"] == "user")
    last = len(messages) - 1
    text = form.bos
    replies = []
    prompt = 0
    for index, message in enumerate(messages):
        content = message["content"].strip() if form.strips else message["content"]
        if message["role"] != "assistant":
            shape = {"user": form.user, "system": form.system or "", "tool": form.tool}[message["role"]]
            text += shape.replace("{}", content, 1)
            continue
        opened = form.thinking == "open" and index > asked
        text += _header(form) if opened else header
        start = prompt = len(text)
        shown = form.thinking == "keep" or index > asked
        block = BLOCK.format(message.get("reasoning_content")) if form.thinking and shown else ""
        block = block if message.get("reasoning_content") else ""
        written = before + (block.removeprefix("<think>\n") if opened else block) + content
        text += written + "".join(form.call.replace("{}", _json(call), 1) for call in message.get("tool_calls", ()))
        stop = "" if cut and index == last else end or _next_stop(form, messages, index)
        replies.append(Written(index, start, (len(text + stop),), start))
        text += stop if index == last else end + gap
    calls = messages[last].get("tool_calls")
    optional = ""
    if calls and not end:  # a template that ends a call with nothing: a stop is as good as none
        optional = _next_stop(form, messages, last)
        text = text.removesuffix(optional)
        replies[-1] = replace(replies[-1], ends=(len(text), len(text + optional)))
    rest = "" if not end else end + gap if cut else gap
    return Truth(text, tuple(replies), prompt, rest, optional)


def _next_stop(form: PublicFormat, messages: list[Message], index: int) -> str:
    """What ends a reply in a format without ends: the next turn's opening, if the target stops at it, else eos at the
    end of the conversation."""
    last = index == len(messages) - 1
    role = ("tool" if messages[index].get("tool_calls") else "user") if last else messages[index + 1]["role"]
    opening = {"user": form.user, "tool": form.tool, "assistant": form.parts[0]}[role]
    stop = next((stop for stop in form.stops if opening.startswith(stop)), "")
    return stop or (form.eos if last else "")


def _json(call: Message) -> str:
    function = call["function"]
    return json.dumps({"name": function["name"], "arguments": function["arguments"]}, ensure_ascii=False)


@cache
def public_encoder(name: str) -> Encoder:
    """The format's encoder, with a tokenizer that knows its tokens."""
    form = PUBLIC[name]
    tokenizer = tiny_tokenizer()
    known = SPECIAL.findall("".join((form.user, form.reply, form.system or "", form.bos, form.call, form.tool)))
    tokenizer.add_special_tokens({"additional_special_tokens": sorted({*known, form.eos, *form.stops})})
    tokenizer.eos_token = form.eos
    tokenizer.chat_template = template_of(form)
    ends = frozenset(tokenizer.convert_tokens_to_ids([form.eos, *form.stops]))
    return Encoder(tokenizer, ends, max_length=1 << 20)


@st.composite
def public_conversations(draw: st.DrawFn, form: PublicFormat) -> tuple[list[Message], list[Message]]:
    """Messages that end with a reply, and tools: system prompts, chains of calls, reasoning, empty replies, two in a
    row, markers of all formats inside contents."""
    texts = TEXTS.filter(lambda text: "think>" not in text) if form.thinking else TEXTS
    has_tools = bool(form.tool) and draw(st.booleans())
    messages: list[Message] = []
    if form.system and draw(st.booleans()):
        messages.append({"role": "system", "content": draw(SAID)})
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(SAID)})
        for number in range(draw(st.integers(0, 2)) if has_tools else 0):
            messages += [
                _call(draw, form, number),
                {"role": "tool", "content": draw(texts), "tool_call_id": "call00000"},
            ]
        count = draw(st.sampled_from([1, 1, 1, 2]))
        messages += [_reply(draw, form, texts) for _ in range(count)]
    if has_tools and draw(st.booleans()):
        messages += [{"role": "user", "content": draw(SAID)}, _call(draw, form, 0)]
    return messages, TOOLS if has_tools else []


def _reply(draw: st.DrawFn, form: PublicFormat, texts: st.SearchStrategy[str]) -> Message:
    reply: Message = {"role": "assistant", "content": draw(texts)}
    return {**reply, "reasoning_content": draw(REASONING)} if _thinks(draw, form) else reply


def _call(draw: st.DrawFn, form: PublicFormat, number: int) -> Message:
    function = {"name": "look", "arguments": {"what": draw(TEXTS), "n": number}}
    calls = [{"id": "call00000", "type": "function", "function": function}]
    message: Message = {"role": "assistant", "content": draw(st.sampled_from(["", "I look."])), "tool_calls": calls}
    return {**message, "reasoning_content": draw(REASONING)} if _thinks(draw, form) else message


def _thinks(draw: st.DrawFn, form: PublicFormat) -> bool:
    return form.thinking == "open" or draw(st.booleans())
