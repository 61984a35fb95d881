"""NamedTemplate chat templates, for tokenizers that come without one or when a person asks for one by name.

Written for this project from the models' documented formats; ``eagle3 view --check-template`` compares them with a
tokenizer's own. What a format has no place for (another role, a tool call) is refused, so that such a row is rejected
with the reason.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from eagle3cli.errors import ModelError, UsageError

SUFFIXES = (".jinja", ".jinja2")
_BEGIN = "<｜begin▁of▁sentence｜>"
_END = "<｜end▁of▁sentence｜>"
_USER = "<｜User｜>"
_ASSISTANT = "<｜Assistant｜>"


@dataclass(frozen=True)
class NamedTemplate:
    """A named template: one of the package's Jinja files and the values it is filled with."""

    models: str
    """Whose format it is."""
    tokens: tuple[str, ...]
    """Tokens it writes, each of which the tokenizer must know as one token; the last one ends a turn."""
    file: str
    values: dict[str, Any] = field(default_factory=dict)


def _plain(
    before: str, between: str, after: str, *, first: str = "", final: str = "", trims: bool = False
) -> dict[str, Any]:
    return {"first": first, "before": before, "between": between, "after": after, "final": final, "trims": trims}


_CHATML = ("<|im_start|>", "<|im_end|>")
_QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
_QWEN3 = {"opening": "", "empty_block": True, "switches": True}
_LLAMA3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_LLAMA4 = ("<|begin_of_text|>", "<|header_start|>", "<|header_end|>", "<|eot|>")
_PHI = ("<|user|>", "<|assistant|>", "<|end|>")
_HARMONY = ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|call|>", "<|return|>")
_GEMMA = ("<bos>", "<start_of_turn>", "<end_of_turn>")

NAMED: dict[str, NamedTemplate] = {
    "chatml": NamedTemplate("ChatML", _CHATML, "plain", _plain("<|im_start|>", "\n", "<|im_end|>\n")),
    "qwen": NamedTemplate("Qwen 2.5", _CHATML, "qwen", {"default_system": _QWEN, "thinks": False, "opening": ""}),
    "qwq": NamedTemplate("QwQ", _CHATML, "qwen", {"default_system": "", "thinks": True, "opening": "<think>\n"}),
    "qwen3": NamedTemplate("Qwen 3", _CHATML, "qwen3", _QWEN3),
    "qwen3-instruct": NamedTemplate(
        "Qwen 3 Instruct 2507", _CHATML, "qwen3", {"opening": "", "empty_block": False, "switches": False}
    ),
    "qwen3-thinking": NamedTemplate(
        "Qwen 3 Thinking 2507", _CHATML, "qwen3", {"opening": "<think>\n", "empty_block": True, "switches": False}
    ),
    "llama3": NamedTemplate(
        "Llama 3",
        _LLAMA3,
        "plain",
        _plain("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>", first="<|begin_of_text|>", trims=True),
    ),
    "llama3.1": NamedTemplate("Llama 3.1 and 3.3", _LLAMA3, "llama3.1"),
    "llama4": NamedTemplate("Llama 4", _LLAMA4, "llama4"),
    "phi3": NamedTemplate("Phi 3", _PHI, "plain", _plain("<|", "|>\n", "<|end|>\n", final="<|endoftext|>")),
    "phi4": NamedTemplate(
        "Phi 4",
        ("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
        "plain",
        _plain("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    ),
    "phi4-mini": NamedTemplate("Phi 4 mini", _PHI, "plain", _plain("<|", "|>", "<|end|>", final="<|endoftext|>")),
    "deepseek-v2": NamedTemplate("DeepSeek LLM, V2 and V2 Lite", (_BEGIN, _END), "deepseek-v2"),
    "deepseek-v3": NamedTemplate("DeepSeek V3 0324", (_BEGIN, _USER, _ASSISTANT, _END), "deepseek-v3", {"opening": ""}),
    "deepseek-r1": NamedTemplate(
        "DeepSeek R1", (_BEGIN, _USER, _ASSISTANT, _END), "deepseek-v3", {"opening": "<think>\n"}
    ),
    "deepseek-v3.1": NamedTemplate("DeepSeek V3.1", (_BEGIN, _USER, _ASSISTANT, _END), "deepseek-v3.1"),
    "gpt-oss": NamedTemplate("GPT-OSS (harmony)", _HARMONY, "gpt-oss"),
    "gemma": NamedTemplate("Gemma 3", _GEMMA, "gemma"),
    "mistral": NamedTemplate("Mistral 7B v0.3", ("[INST]", "[/INST]", "</s>"), "mistral", {"gap": " "}),
    "mistral-nemo": NamedTemplate("Mistral Nemo", ("[INST]", "[/INST]", "</s>"), "mistral", {"gap": ""}),
    "glm": NamedTemplate("GLM 4.5 and 4.6", ("[gMASK]", "<sop>", "<|assistant|>", "<|user|>"), "glm"),
}


@cache
def named_template(name: str) -> str:
    """Jinja text of the named template ``name``."""
    named = NAMED[name]
    values = "".join(
        f"{{%- set {key} = {json.dumps(value, ensure_ascii=False)} -%}}" for key, value in named.values.items()
    )
    folder = resources.files("eagle3cli.data") / "chat_templates"
    return values + (folder / f"{named.file}.jinja").read_text(encoding="utf-8")


def template_text(name: str, tokenizer: Any) -> str | None:
    """Jinja text of ``name``: None for ``auto`` (the tokenizer's own), else a named template or a ``.jinja`` file.

    Raises UsageError for an unknown name or unreadable file, ModelError where the tokenizer does not fit.
    """
    if name == "auto":
        if not tokenizer.chat_template:
            fix = f"pass --chat-template NAME ({', '.join(NAMED)}) or a .jinja file; "
            fix += "for pre-formatted rows --assistant-header will do"
            raise ModelError(
                "unknown-template", "the tokenizer has no chat template of its own", where="data.chat_template", fix=fix
            )
        return None
    if name in NAMED:
        token_to_id = tokenizer.backend_tokenizer.token_to_id
        missing = [token for token in NAMED[name].tokens if token_to_id(token) is None]
        if missing:
            what = f"the tokenizer does not know {missing[0]}, which the template {name!r} writes"
            raise ModelError(
                "unknown-template",
                what,
                where="data.chat_template",
                fix="use the tokenizer's own: --chat-template auto",
            )
        return named_template(name)
    if name.endswith(SUFFIXES):
        try:
            return Path(name).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                "unreadable-file", f"cannot read the template file: {error}", where="data.chat_template"
            ) from error
    raise _unknown(name)


def check_template_name(name: str) -> None:
    """Raise UsageError for what is neither a named template nor a file that is there."""
    if name == "auto" or name in NAMED:
        return
    if not name.endswith(SUFFIXES):
        raise _unknown(name)
    if not Path(name).expanduser().is_file():
        fix = f"check the path, or name one of: auto, {', '.join(NAMED)}"
        raise UsageError(
            "no-such-path", f"cannot read the template file: no such file {name}", where="data.chat_template", fix=fix
        )


def _unknown(name: str) -> UsageError:
    matches = get_close_matches(name, ["auto", *NAMED], n=1)
    fix = f"did you mean {matches[0]!r}? " if matches else ""
    fix += f"known: auto, {', '.join(NAMED)}, or a .jinja file"
    return UsageError("unknown-template", f"unknown chat template {name!r}", where="data.chat_template", fix=fix)
