"""What can go wrong with a request to a server, sorted by what should happen next."""

from __future__ import annotations

from collections.abc import Iterable

from eagle3cli.errors import Eagle3Error


class RequestFailed(Exception):
    """A request that brought no answer; ``kind`` is a word to count by, e.g. ``reset`` or ``500``."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind
        self.detail = detail


class Refused(RequestFailed):
    """The server will never answer this request: it is wrong. Trying again changes nothing."""


class TooLong(Refused):
    """The prompt, or the prompt with the wanted reply, does not fit the context; lengths in tokens where told."""

    def __init__(self, detail: str, context: int | None = None, prompt: int | None = None) -> None:
        super().__init__("too long", detail)
        self.context = context
        self.prompt = prompt

    @property
    def room(self) -> int | None:
        """Tokens that are left for a reply (0 or less: none); None where the server did not tell."""
        return None if self.context is None or self.prompt is None else self.context - self.prompt


class Lost(RequestFailed):
    """The request may have been worked on, but no whole answer came. A reply has no side effects: try again."""


class Unreachable(Lost):
    """No connection: the request never left. Another server can have it at once."""


class Busy(Lost):
    """The server asks for less (429, 503); ``retry_after`` is in seconds where it says."""

    def __init__(self, kind: str, detail: str = "", retry_after: float | None = None) -> None:
        super().__init__(kind, detail)
        self.retry_after = retry_after


def no_server_answers(problems: Iterable[str]) -> Eagle3Error:
    """The error where none of the given servers answers, with what became of each."""
    fix = "start the servers first, or leave the flag out and this command starts SGLang itself"
    return Eagle3Error(
        "no-server", f"no server answers ({'; '.join(problems)})", where="--server-address-port", fix=fix
    )
