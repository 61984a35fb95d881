"""The target's tokenizer: loading it, the prompts that a server feeds the target, and the tokens that end a turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eagle3cli.data.chat.format import learn_turn_end
from eagle3cli.data.chat.template import Chat
from eagle3cli.errors import ModelError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "spiece.model",
    "tekken.json",
    "tokenizer_config.json",
)


def load_tokenizer(model_path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder or hub id, without truncation or padding.

    Raises ModelError where there is none, where it cannot be read, or where it is not a fast one.
    """
    if not model_path:
        raise ModelError(
            "missing-target", "no target model given", where="target.model_path", fix="pass --target-model-path FOLDER"
        )
    folder = Path(model_path).expanduser()
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        fix = "download the tokenizer's files (tokenizer.json, tokenizer_config.json) into it"
        raise ModelError("no-tokenizer", "the folder has no tokenizer", where=str(folder), fix=fix)
    if not folder.is_dir() and (folder.is_absolute() or model_path.startswith(".") or model_path.count("/") != 1):
        raise ModelError("no-such-path", "no such model folder", where=model_path, fix="check --target-model-path")
    from transformers import AutoTokenizer

    source = str(folder) if folder.is_dir() else model_path
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        fix = "check --target-model-path; a hub model needs network access or an earlier download"
        raise ModelError("no-tokenizer", f"cannot load the tokenizer: {reason}", where=model_path, fix=fix) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            "no-tokenizer", "not a fast tokenizer; exact masks need one", where=model_path, fix="add its tokenizer.json"
        )
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def encode_rendered(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a rendered text (special tokens are in the text already)."""
    return list(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)


def eos_ids(tokenizer: Any, model_path: str) -> frozenset[int]:
    """Tokens at which the target stops: those of its configuration and the one with which its template ends a reply."""
    return configured_eos_ids(tokenizer, model_path) | turn_end_ids(tokenizer)


def configured_eos_ids(tokenizer: Any, model_path: str) -> frozenset[int]:
    """Tokens at which the target stops by generation_config.json, config.json and the tokenizer."""
    ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        value = _config_of(model_path, name).get("eos_token_id")
        ids.update([value] if isinstance(value, int) else [i for i in value or () if isinstance(i, int)])
    if tokenizer.eos_token_id is not None:
        ids.add(int(tokenizer.eos_token_id))
    return frozenset(ids)


def _config_of(model_path: str, name: str) -> dict[str, Any]:
    path: Path | str | None = Path(model_path).expanduser() / name
    if not Path(model_path).expanduser().is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(model_path, name)
        path = cached if isinstance(cached, str) else None
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def stop_texts(tokenizer: Any, ids: frozenset[int]) -> tuple[list[str], str]:
    """The texts of the tokens at which the target stops (``ids`` and the tokenizer's eos), and the one that stands for
    all where nothing tells which of them."""
    texts = [tokenizer.convert_ids_to_tokens(number) or "" for number in sorted(ids)]
    eos = tokenizer.eos_token or next(iter(texts), "")
    return list(dict.fromkeys([*texts, eos])), eos


def turn_end_ids(tokenizer: Any, chat_template: str = "auto") -> frozenset[int]:
    """The special token with which the chat template ends a reply, if it ends it with one that is not eos."""
    try:
        token = learn_turn_end(Chat(tokenizer, chat_template), [tokenizer.eos_token or ""])
    except ModelError:
        return frozenset()
    number = tokenizer.convert_tokens_to_ids(token) if token else None
    return frozenset([number] if isinstance(number, int) else [])


def leading_special_token(tokenizer: Any, text: str) -> frozenset[int]:
    """The longest special token with which ``text`` begins, white space apart; empty where it begins with none."""
    starts = [
        (len(token.content), number)
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special and text.lstrip().startswith(token.content)
    ]
    return frozenset([max(starts)[1]] if starts else [])
