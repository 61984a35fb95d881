"""The target's tokenizer as llama.cpp keeps it inside a GGUF file: copied from its file, or made of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from eagle3cli.backends.target.gguf.folder import find_gguf
from eagle3cli.data.chat.tokenizer import configured_eos_ids, load_tokenizer
from eagle3cli.errors import ModelError
from eagle3cli.models.gguf.file import Field, fields_of

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's kinds of tokens."""
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
WORDS = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
PATTERNS = {
    rf"{WORDS}|\p{{N}}{{1,3}}|{SIGNS}|{SPACES}": "llama-bpe",
    rf"{WORDS}|\p{{N}}|{SIGNS}|{SPACES}": "qwen2",
    rf"{UPPER}*{LOWER}+|{UPPER}+{LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}": "tekken",
}
"""llama.cpp's name for how a text is split before BPE, by the pattern in ``tokenizer.json``."""


def read_vocabulary(
    target: str, vocab_size: int, *, revision: str | None = None, trust_remote_code: bool = False
) -> list[Field]:
    """The ``tokenizer.*`` values of a target (a .gguf file, a folder or a hub id) with ``vocab_size`` tokens.

    Raises ModelError for a tokenizer of a kind that llama.cpp does not have.
    """
    path = find_gguf(target)
    if path is not None:
        return fields_of(path, "tokenizer.")
    tokenizer = load_tokenizer(target, revision=revision, trust_remote_code=trust_remote_code)
    raw = json.loads(tokenizer.backend_tokenizer.to_str())
    if raw["model"].get("type") != "BPE":
        what = f"its tokenizer is of the kind {raw['model'].get('type')}, which cannot be written for llama.cpp here"
        fix = "give the target as a .gguf file: its tokenizer is copied"
        raise ModelError("no-gguf", what, where=target, fix=fix)
    bytewise = "ByteLevel" in json.dumps(raw.get("pre_tokenizer") or {})
    texts, kinds = _tokens(tokenizer, raw, vocab_size, bytewise=bytewise)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in raw["model"]["merges"]]
    fields = [
        Field("tokenizer.ggml.model", "gpt2" if bytewise else "llama", "STRING"),
        Field("tokenizer.ggml.pre", (pre_tokenizer(raw) or "default") if bytewise else "default", "STRING"),
        Field("tokenizer.ggml.tokens", texts, "ARRAY", "STRING"),
        Field("tokenizer.ggml.token_type", kinds, "ARRAY", "INT32"),
    ]
    if bytewise:
        fields.append(Field("tokenizer.ggml.merges", merges, "ARRAY", "STRING"))
    else:
        fields.append(Field("tokenizer.ggml.scores", _scores(texts, merges), "ARRAY", "FLOAT32"))
    return [*fields, *_special(tokenizer, target)]


def pre_tokenizer(raw: Mapping[str, Any]) -> str | None:
    """llama.cpp's name for how a byte-level tokenizer (the object in ``tokenizer.json``) splits a text before BPE; None
    where it has none that is known here."""
    steps = raw.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers") or [steps]
    kinds = [step.get("type") for step in steps]
    if kinds == ["Split", "ByteLevel"]:
        return PATTERNS.get(str((steps[0].get("pattern") or {}).get("Regex")))
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and steps[1].get("use_regex"):
        return "smollm"
    return "gpt-2" if kinds == ["ByteLevel"] and steps[0].get("use_regex") else None


def _tokens(tokenizer: Any, raw: Mapping[str, Any], vocab_size: int, *, bytewise: bool) -> tuple[list[str], list[int]]:
    """Text and kind of every token; ids that no token has are unused."""
    added = {int(token["id"]): token for token in raw["added_tokens"]}
    texts = [f"[PAD{number}]" for number in range(vocab_size)]
    kinds = [UNUSED] * vocab_size
    unknown = raw["model"].get("unk_token")
    for text, number in tokenizer.get_vocab().items():
        if number >= vocab_size:
            continue
        token = added.get(number)
        texts[number] = text
        if token is not None:
            kinds[number] = CONTROL if token["special"] else USER_DEFINED
        elif not bytewise and text == unknown:
            kinds[number] = UNKNOWN
        elif not bytewise and len(text) == 6 and text.startswith("<0x"):
            kinds[number] = BYTE
        else:
            kinds[number] = NORMAL
    return texts, kinds


def _scores(texts: list[str], merges: list[str]) -> list[float]:
    """What SentencePiece merges by: the earlier a merge, the better; the order of the merges says the same."""
    rank: dict[str, int] = {}
    for place, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", ""), place)
    return [-float(rank.get(text, len(merges))) for text in texts]


def _special(tokenizer: Any, target: str) -> list[Field]:
    """The tokens with a meaning, and the chat template."""
    ids = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    ends = sorted(configured_eos_ids(tokenizer, target) - {tokenizer.eos_token_id})
    ids |= dict(zip(("eot", "eom"), ends, strict=False))
    fields = [
        Field(f"tokenizer.ggml.{name}_token_id", int(number), "UINT32")
        for name, number in ids.items()
        if number is not None
    ]
    bos = tokenizer.bos_token_id
    starts = bos is not None and tokenizer("a").input_ids[:1] == [bos]
    fields.append(Field("tokenizer.ggml.add_bos_token", starts, "BOOL"))
    if isinstance(tokenizer.chat_template, str):
        fields.append(Field("tokenizer.chat_template", tokenizer.chat_template, "STRING"))
    return fields
