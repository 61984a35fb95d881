"""A held-out reply as decoding with the draft makes it: accepted tokens, rejected ones, and the target's own in their
place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from eagle3cli.console.tokens import visible

if TYPE_CHECKING:
    from eagle3cli.training.eval.simulate import DecodedReply

Decode = Callable[[list[int]], str]
ACCEPTED, REJECTED, OWN = "accepted", "rejected", "own"
KINDS = (ACCEPTED, REJECTED, OWN)
LEGEND = {ACCEPTED: "proposed and accepted", REJECTED: "proposed and rejected", OWN: "the target's own token"}


def decoded_text(reply: DecodedReply, decode: Decode) -> dict[str, Any]:
    """What ``run.json`` keeps of it: the text before, and ``[kind, text]`` for every run of tokens of a kind."""
    runs = []
    tokens = 0
    for accepted, rejected, own in reply.passes:
        runs += [[ACCEPTED, decode(list(accepted))]] if accepted else []
        runs += [[kind, decode([one])] for kind, one in ((REJECTED, rejected), (OWN, own)) if one is not None]
        tokens += len(accepted) + (own is not None)
    return {"prompt": decode(list(reply.prompt)), "runs": runs, "passes": len(reply.passes), "tokens": tokens}


def html_decoded(decoded: Mapping[str, Any]) -> str:
    """The reply as HTML, every text escaped. Raises KeyError, TypeError or ValueError for what is no such reply."""
    legend = " ".join(f'<span class="{kind}">{words}</span>' for kind, words in LEGEND.items())
    parts = [f"<p>{legend}</p>", f'<pre class="sample"><span class="given">{_text(decoded["prompt"])}</span>']
    for kind, text in decoded["runs"]:
        if kind not in KINDS:
            raise ValueError(f"no kind of token: {kind}")
        parts.append(f'<span class="{kind}">{_text(text)}</span>')
    return "".join([*parts, "</pre>"])


def _text(text: object) -> str:
    return escape(visible(str(text)))
