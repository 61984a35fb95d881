"""The hub: offline or not, whether it answers, a token."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

from eagle3cli.runtime.doctor.finding import Finding

SECONDS = 3.0


def hub() -> Iterator[Finding]:
    """Whether models and data can be had from the hub; never longer than SECONDS."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        fix = "unset HF_HUB_OFFLINE to download; local folders work as they are"
        yield Finding("hub", "note", "offline by HF_HUB_OFFLINE", fix)
        return
    wrong = unreached(constants.ENDPOINT)
    if wrong is None:
        yield Finding("hub", "ok", f"{constants.ENDPOINT} answers")
    else:
        fix = "export HTTPS_PROXY=http://proxy:port, or HF_ENDPOINT=https://mirror, or give local folders"
        yield Finding("hub", "note", f"{constants.ENDPOINT} does not answer ({wrong})", fix)
    if get_token():
        source = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "the file that hf auth login wrote"
        yield Finding("hub login", "ok", f"a token is set, by {source}")
    else:
        yield Finding(
            "hub login",
            "note",
            "no token; gated models such as Llama need one",
            "hf auth login, or export HF_TOKEN=...",
        )


def unreached(endpoint: str) -> str | None:
    """Why the endpoint does not answer, None where it does. A name server may hang longer than any time-out of a
    connection, so another thread asks and is left behind."""
    answer: list[str | None] = []

    def ask() -> None:
        import httpx

        try:
            httpx.head(endpoint, timeout=SECONDS)
            answer.append(None)
        except Exception as error:  # a wrong proxy or endpoint raises more than httpx's own errors
            answer.append(type(error).__name__)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return answer[0] if answer else f"nothing within {SECONDS:g} s"
