"""What must not be learned from a log: keys and passwords, and addresses of people.

A row with a secret is dropped: whatever stands around a key belongs to it. An e-mail address is replaced by
:data:`EMAIL`, everywhere in the row; the reply then follows other words than it was written after, so it counts as
edited.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from eagle3cli.data.conversations.conversation import Conversation

EMAIL = "user@example.com"
ADDRESS = re.compile(
    r"(?<![\w.+-])[\w.+-]{1,64}(?:@|%40)(?!example\.(?:com|org|net)\b)(?:[\w-]{1,63}\.)+[^\W\d_]{2,24}(?![\w-])"
)
_BEFORE = r"(?:(?<![A-Za-z])|(?<=[a-z])(?=[A-Z]))"
"""Where a name begins, or a word of one: of ``DB_PASSWORD`` and of ``dbPassword`` the last one counts."""
_DIGIT_IN = r"(?=[^\s\"'<>(){}\[\],;&\d]{0,99}\d)"
"""What is looked for ahead has an end: a long word that repeats a name would be read once for each of them."""
SECRETS: dict[str, str] = {
    "a private key": r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----",
    "an API key (sk-)": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a Stripe key": r"\b[rs]k_(?:live|test)_[0-9A-Za-z]{16,}",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})",
    "a GitLab token": r"\bglpat-[\w-]{20,}",
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a Google key": r"\bAIza[0-9A-Za-z_-]{35}",
    "a Slack token": r"\bxox[abeprs]-[0-9A-Za-z-]{10,}",
    "a package registry's token": r"\b(?:npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,})",
    "a JSON Web Token": r"\beyJ[\w-]{8,2000}\.eyJ[\w-]{8,9000}\.[\w-]{8,}",
    "a bearer token": r"(?i:\bbearer\s+)(?=[A-Za-z_.~+/-]{0,99}\d)[\w.~+/-]{20,}",
    "a login in an address": r"\b[a-z][a-z0-9+.-]{1,20}://[^/\s:@]{0,64}:[^/\s@]{3,}@",
    "a login in a header": r"(?i:\bauthorization[\"']?\s*[:=]\s*[\"']?basic\s+)[A-Za-z0-9+/]{6,}",
    "a key of some service": (
        r"\bSG\.[\w-]{16,}\.[\w-]{16,}|hooks\.slack\.com/services/T\w+/B\w+/\w{16,}|\b\d{8,10}:AA[\w-]{30,}"
        r"|\b(?:GOCSPX-|ya29\.|dop_v1_|gsk_|xai-|nvapi-|pplx-|shpat_|dckr_pat_|hvs\.|AGE-SECRET-KEY-1)[\w-]{20,}"
    ),
    "a key in an address": (
        r"[?&#](?i:key|token|sig|signature|auth|code|secret|x-amz-(?:signature|credential|security-token))="
        r"(?=[A-Za-z_%.~+/-]{0,99}\d)[\w%.~+/-]{16,}"
    ),
    "a key in a variable": (
        r"\b[A-Z][A-Z0-9_]*_(?:TOKEN|KEY|SECRET|PASS|PWD|CREDENTIALS?)\b[\"']?\s*[=:]\s*[\"']?"
        + _DIGIT_IN
        + r"[^\s\"'<>(){}\[\],;]{8,}"
    ),
    "a password": (
        _BEFORE + r"(?i:pass(?:word|wd|phrase|code)?|pwd|(?:client[_ -]?)?secret(?:[_ -]?(?:access[_ -]?)?key)?"
        r"|(?:api|private|account|shared[_ -]?access|encryption)[_ -]?key|(?:access|auth|refresh)[_ -]?(?:token|key)"
        r"|session[_-]?id)\b[\"']?\s*(?:=|:|\bis\b)\s*[\"']?" + _DIGIT_IN + r"[^\s\"'<>(){}\[\],;]{6,}"
    ),
}
"""Secrets by what they are called. A password is a word of six letters or more, with a digit, behind its name."""
_SECRET = re.compile("|".join(f"(?P<n{i}>{pattern})" for i, pattern in enumerate(SECRETS.values())))
_CARD = re.compile(r"(?<![\d.])[3-6]\d{3}(?:[ -]?\d){11,12}(?![\d.])")


def secret_in(conversation: Conversation) -> str | None:
    """What a conversation should not hold, by its name in :data:`SECRETS`; None where it holds nothing such."""
    text = _all_text(conversation)
    match = _SECRET.search(text)
    if match is not None:
        return list(SECRETS)[int((match.lastgroup or "n0")[1:])]
    return "a card's number" if any(map(_is_card, _CARD.findall(text))) else None


def without_addresses(conversation: Conversation) -> tuple[Conversation, int]:
    """The conversation with :data:`EMAIL` for every e-mail address, and how many there were."""
    text = _all_text(conversation)
    count = len(ADDRESS.findall(text)) if "@" in text or "%40" in text else 0
    if not count:
        return conversation, 0
    messages, tools = _replaced([list(conversation.messages), list(conversation.tools)])
    return replace(conversation, messages=tuple(messages), tools=tuple(tools)), count


def _all_text(conversation: Conversation) -> str:
    """Every text of the messages and tools, one a line: patterns see line ends and quotes as they were written."""
    return "\n".join(_texts([list(conversation.messages), list(conversation.tools)]))


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        texts = []
        for key, item in value.items():  # a value stands behind its key, as in {"password": "..."}
            texts += [f"{key}: {item}"] if isinstance(item, str) else _texts(item)
        return texts
    return [text for item in value for text in _texts(item)] if isinstance(value, list | tuple) else []


def _replaced(value: Any) -> Any:
    if isinstance(value, str):
        return ADDRESS.sub(EMAIL, value)
    if isinstance(value, dict):
        return {key: _replaced(item) for key, item in value.items()}
    return [_replaced(item) for item in value] if isinstance(value, list | tuple) else value


def _is_card(text: str) -> bool:
    """Whether digits are a card's number: its last one is the checksum of the others (Luhn)."""
    digits = [int(digit) for digit in text if digit.isdigit()]
    doubled = [digit if place % 2 == 0 else digit * 2 - 9 * (digit > 4) for place, digit in enumerate(reversed(digits))]
    return len(set(digits)) > 1 and sum(doubled) % 10 == 0
