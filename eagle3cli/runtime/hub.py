"""Whether the hub can be reached at all, asked once: its library would try again and again for half a minute."""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from eagle3cli.runtime.report import Reporter

ENDPOINT = "https://huggingface.co"
SECONDS = 5.0
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")


def go_offline_unless_reached(name: str) -> str | None:
    """Where ``name`` is a hub id and no server answers: use only what was downloaded before, and return why.

    Behind a proxy nobody but the library itself can tell, so nothing is asked.
    """
    is_id = HUB_ID.fullmatch(name) is not None and not Path(name).expanduser().exists()
    if not is_id or os.environ.get("HF_HUB_OFFLINE") or any(map(os.environ.get, _PROXIES)):
        return None
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or ENDPOINT)
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    try:
        socket.create_connection((endpoint.hostname or "", port), timeout=SECONDS).close()
    except OSError as error:
        go_offline()
        return f"{endpoint.hostname} does not answer ({error.strerror or error})"
    return None


def go_offline() -> None:
    """Have the hub's library use only what was downloaded before."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:  # it has read the variable already
        constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def warn_unless_reached(name: str, report: Reporter) -> None:
    """As :func:`go_offline_unless_reached`, saying so: else a library tries for half a minute in silence."""
    if why := go_offline_unless_reached(name):
        report.warn(f"{why}; only what was downloaded before is used")
