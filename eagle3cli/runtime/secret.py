"""Keys of the environment, kept out of what is shown or written."""

from __future__ import annotations

import os
import re

NAMES = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
SHORTEST = 6
"""A shorter value is no secret, and may well be part of a common word."""
HIDDEN = "(hidden)"
LOGIN = re.compile(r"(?<=://)[^/\s@]+@")
"""Who and with which password, in an address."""


def hidden(text: str) -> str:
    """``text`` without the values of variables such as WANDB_API_KEY or HF_TOKEN, and without logins in addresses."""
    values = (value for name, value in os.environ.items() if NAMES.search(name) and len(value) >= SHORTEST)
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return LOGIN.sub(f"{HIDDEN}@", text)
