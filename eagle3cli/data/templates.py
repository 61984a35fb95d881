"""Named chat templates, for tokenizers that come without one or when a person asks for one by name.

Written for this project from the models' documented formats. They know plain turns (system, user, assistant) and, where
the format has it, reasoning; other roles are refused, so such a row is rejected with the reason.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from eagle3cli.errors import ModelError, UsageError

_REFUSE = "{{ raise_exception('this named template has no role ' ~ m.role) }}"

_CHATML_TURNS = (
    "{% for m in messages %}"
    "{% if m.role not in ['system', 'user', 'assistant'] %}" + _REFUSE + "{% endif %}"
    "{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_QWEN3 = (
    "{% set seen = namespace(last_user=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set seen.last_user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}"
    "{% if m.role not in ['system', 'user', 'assistant'] %}" + _REFUSE + "{% endif %}"
    "{% if m.role != 'assistant' %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}"
    "{% else %}"
    "{% set reasoning = m.reasoning_content or '' %}{% set content = m.content %}"
    "{% if not reasoning and '</think>' in content %}"
    "{% set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}"
    "{% endif %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% if loop.index0 > seen.last_user and (loop.last or reasoning) %}"
    "{{ '<think>\n' ~ reasoning.strip('\n') ~ '\n</think>\n\n' ~ content.lstrip('\n') }}"
    "{% else %}{{ content }}{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)

_LLAMA3 = (
    "{{ '<|begin_of_text|>' }}"
    "{% for m in messages %}"
    "{% if m.role not in ['system', 'user', 'assistant'] %}" + _REFUSE + "{% endif %}"
    "{{ '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\n\n' ~ m.content.strip() ~ '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

_PHI3 = (
    "{% for m in messages %}"
    "{% if m.role not in ['system', 'user', 'assistant'] %}" + _REFUSE + "{% endif %}"
    "{{ '<|' ~ m.role ~ '|>\n' ~ m.content ~ '<|end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ '<|endoftext|>' }}{% endif %}"
)

_GEMMA = (
    "{{ '<bos>' }}{% set before = namespace(text='') %}"
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{% set before.text = before.text ~ m.content ~ '\n\n' %}"
    "{% elif m.role in ['user', 'assistant'] %}"
    "{{ '<start_of_turn>' ~ ('model' if m.role == 'assistant' else 'user') ~ '\n' }}"
    "{% if m.role == 'user' %}{{ before.text }}{% set before.text = '' %}{% endif %}"
    "{{ m.content.strip() ~ '<end_of_turn>\n' }}"
    "{% else %}" + _REFUSE + "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

_MISTRAL = (
    "{{ '<s>' }}{% set found = namespace(system='', last_user=-1) %}"
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{% set found.system = m.content ~ '\n\n' %}"
    "{% elif m.role == 'user' %}{% set found.last_user = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% for m in messages %}"
    "{% if m.role == 'user' %}"
    "{{ '[INST] ' ~ (found.system if loop.index0 == found.last_user else '') ~ m.content ~ '[/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' ~ m.content.strip() ~ '</s>' }}"
    "{% elif m.role != 'system' %}" + _REFUSE + "{% endif %}"
    "{% endfor %}"
)


def _default_system(prompt: str) -> str:
    return (
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\n"
        + prompt
        + "<|im_end|>\n' }}{% endif %}"
        + _CHATML_TURNS
    )


TEMPLATES: dict[str, str] = {
    "chatml": _CHATML_TURNS,
    "qwen": _default_system("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "qwen3": _QWEN3,
    "llama3": _LLAMA3,
    "phi3": _PHI3,
    "gemma": _GEMMA,
    "mistral": _MISTRAL,
}
"""Jinja text by name."""

MARKERS: dict[str, tuple[str, ...]] = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "qwen": ("<|im_start|>", "<|im_end|>"),
    "qwen3": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "phi3": ("<|assistant|>", "<|end|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "mistral": ("</s>",),
}
"""The tokens of a named template, each of which the tokenizer must know as one token."""


def template_text(name: str, tokenizer: Any) -> str | None:
    """Jinja text of ``name``: None for ``auto`` (the tokenizer's own), else a named template or a ``.jinja`` file.

    Raises UsageError for an unknown name or unreadable file, ModelError where the tokenizer does not fit.
    """
    if name == "auto":
        if not tokenizer.chat_template:
            fix = f"pass --chat-template NAME ({', '.join(TEMPLATES)}) or a .jinja file"
            raise ModelError("the tokenizer has no chat template of its own", where="data.chat_template", fix=fix)
        return None
    if name in TEMPLATES:
        known = tokenizer.get_vocab()
        missing = [marker for marker in MARKERS[name] if marker not in known]
        if missing:
            what = f"the tokenizer does not know {missing[0]}, which the template {name!r} writes"
            raise ModelError(what, where="data.chat_template", fix="use the tokenizer's own: --chat-template auto")
        return TEMPLATES[name]
    if name.endswith((".jinja", ".jinja2")):
        try:
            return Path(name).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the template file: {error}", where="data.chat_template") from error
    near = get_close_matches(name, ["auto", *TEMPLATES], n=1)
    fix = f"did you mean {near[0]!r}? " if near else ""
    fix += f"known: auto, {', '.join(TEMPLATES)}, or a .jinja file"
    raise UsageError(f"unknown chat template {name!r}", where="data.chat_template", fix=fix)
