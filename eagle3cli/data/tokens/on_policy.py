"""How far replies are those that a target would write, row by row: what a pass over the rows saw beside its work.

A draft learns to say what its target says. Where the replies are somebody else's, it learns from states in which the
target never is, and acceptance stays low. What tells is the share of reply tokens that are the target's most likely
ones, beside its mean probability for those: replies drawn at temperature 1 have that share, colder ones a higher one,
greedy ones 1 (but for near ties, and for what tokenizing their text anew changes). A text of others has about the
share of temperature 1 or a lower one, since a good model is as sure of it as it is right. So replies of others and
those that the target drew near temperature 1 cannot be told apart, and all others can. A reply's first token is left
out: no state that training reads predicts it.

    CACHE_DIR/processed_dataset/KEY/SPLIT/on_policy.safetensors

The file lies beside the rows and goes with them; it holds which target was asked. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from eagle3cli.runtime.files import writing

FILE = "on_policy.safetensors"
SUMS = 5
"""Of each row and place, see :class:`OnPolicy`."""
POSITIONS = {"1-15": 16.0, "16-63": 64.0, "64-255": 256.0, "256-": float("inf")}
"""Known tokens of a reply before the one that is judged, as ranges."""
OWN_MARGIN = 0.15
"""Own replies are taken to be this share of the way, at least, from those drawn at temperature 1 to greedy ones.

Measured on SmolLM2-135M, 64 rows each, as share and mean probability of the best: its own greedy replies 1.00 and .65,
drawn at .7 .72 and .57 (.34 of the way), at 1 .41 and .41; ShareGPT's .59 and .60 (below 0)."""
NEAR_TIE = 0.5
"""Logits apart below which another type, kernel or batch may put another token first: in bfloat16 logits of 16 to 32
stand .125 apart, and .375 was seen."""
OWN_SHARE = 0.66
"""The same where no probabilities are known: between .72 and .59."""
FEWEST_TOKENS = 500
"""Reply tokens from which on a source is judged."""
SHORT = 8
"""Judged tokens below which a row is not ranked."""
MOST_SOURCES = 12
Floats = npt.NDArray[np.float64]


@dataclass
class OnPolicy:
    """What is known of each row, by place in the reply: ``sums_NP5`` are judged tokens, those equal to the target's
    best, the sums of their log-probabilities and of the best tokens' probabilities (nan where no pass made logits), and
    those that nearly are the best (nan, too, where an earlier version looked)."""

    target: str
    """Fingerprint of the target that was asked."""
    sums_NP5: npt.NDArray[np.float32]

    @classmethod
    def empty(cls, rows: int, target: str) -> OnPolicy:
        """Nothing is known."""
        return cls(target, np.zeros((rows, len(POSITIONS), SUMS), dtype=np.float32))

    @property
    def totals_N5(self) -> npt.NDArray[np.float32]:
        """The sums by row."""
        totals: npt.NDArray[np.float32] = self.sums_NP5.sum(1)
        return totals

    def known(self, rows: Sequence[int]) -> bool:
        """Whether all of these rows have been judged."""
        return bool(self.sums_NP5[list(rows), :, 0].any(1).all())

    def worst(self, count: int) -> list[int]:
        """The rows (from 0) with the smallest share of the target's best tokens, the worst first; among equals the less
        probable. Rows with few judged tokens are left out."""
        tokens_N, best_N, logprob_N, *_ = self.totals_N5.T
        long_M = np.flatnonzero(tokens_N >= SHORT)
        share_M = best_N[long_M] / tokens_N[long_M]
        mean_M = np.nan_to_num(logprob_N[long_M] / tokens_N[long_M])
        return [int(row) for row in long_M[np.lexsort((mean_M, share_M))][:count]]

    def of_row(self, row: int) -> dict[str, Any] | None:
        """The numbers of a row (from 0); None where it has not been judged."""
        sums_7 = _with_known(self.sums_NP5[row : row + 1])[0].sum(0)
        return _numbers(sums_7) if sums_7[0] else None

    def save(self, folder: Path) -> None:
        """Write the file of a split's folder; raises Eagle3Error where that cannot be written."""
        blob = save({"sums": self.sums_NP5}, metadata={"target": self.target})
        with writing(folder / FILE, "wb") as file:
            file.write(blob)


def load(folder: Path) -> OnPolicy | None:
    """What is known of a split's rows; None where nothing is, or the file is damaged."""
    try:
        with safe_open(folder / FILE, framework="np") as file:
            sums_NP5 = file.get_tensor("sums")
            target = (file.metadata() or {})["target"]
    except (OSError, SafetensorError, KeyError):
        return None
    if sums_NP5.ndim != 3 or sums_NP5.shape[1] != len(POSITIONS) or sums_NP5.dtype != np.float32:
        return None
    if sums_NP5.shape[2] == SUMS - 1:  # of a version that counted no near ties
        sums_NP5 = np.pad(sums_NP5, ((0, 0), (0, 0), (0, 1)), constant_values=np.nan)
    return OnPolicy(target, sums_NP5) if sums_NP5.shape[2] == SUMS else None


def load_or_empty(folder: Path | None, rows: int, target: str) -> OnPolicy:
    """What is known of the rows in ``folder`` with this target, to go on from."""
    known = load(folder) if folder is not None else None
    if known is not None and known.target == target and len(known.sums_NP5) == rows:
        return known
    return OnPolicy.empty(rows, target)


def summarize(known: OnPolicy, sources: Sequence[str] = ()) -> dict[str, Any]:
    """Shares and mean log-probabilities over all rows, by place in the reply and, where rows name theirs, by source."""
    sums_NP7 = _with_known(known.sums_NP5)
    totals_N7 = sums_NP7.sum(1)
    judged_N = totals_N7[:, 0] > 0
    summary: dict[str, Any] = {
        "rows": len(totals_N7),
        "rows_judged": int(judged_N.sum()),
        **_numbers(totals_N7.sum(0)),
        "by_position": {
            name: _numbers(sums_7) for name, sums_7 in zip(POSITIONS, sums_NP7.sum(0), strict=True) if sums_7[0]
        },
    }
    names, index_N = np.unique(np.array(sources, dtype=object).astype(str), return_inverse=True)
    if len(sources) == len(totals_N7) and len(names) > 1:
        by_source = {}
        for at, name in enumerate(names.tolist()):
            by_source[name or "no source named"] = _numbers(totals_N7[index_N == at].sum(0))
        summary["by_source"] = dict(sorted(by_source.items(), key=lambda item: item[1]["share"] or 0.0))
    return summary


def _with_known(sums_NP5: npt.NDArray[np.float32]) -> Floats:
    """The sums with two more: tokens whose log-probability is known, and those of which it is known whether they are
    near ties; the others add nothing to the sums of what is not known of them."""
    sums_NP5 = sums_NP5.astype(np.float64)
    known_NP2 = np.where(np.isfinite(sums_NP5[..., [2, 4]]), sums_NP5[..., :1], 0.0)
    return np.concatenate((np.nan_to_num(sums_NP5), known_NP2), -1)


def _numbers(sums_7: Floats) -> dict[str, Any]:
    tokens, best, logprob, probability, ties, known, compared = (float(value) for value in sums_7)
    at_one = probability / known if known else None
    own_from = OWN_SHARE if at_one is None else at_one + OWN_MARGIN * (1 - at_one)
    return {
        "tokens": int(tokens),
        "share": round(best / tokens, 4) if tokens else None,
        "near_ties": round(ties / compared, 4) if compared else None,
        "logprob": round(logprob / known, 4) if known else None,
        "share_at_1": None if at_one is None else round(at_one, 4),
        "own_from": round(own_from, 4),
    }


def foreign(part: dict[str, Any]) -> bool:
    """Whether the replies behind these numbers are taken for somebody else's."""
    return bool(part["tokens"] >= FEWEST_TOKENS and part["share"] < part["own_from"])


def lines(summary: dict[str, Any]) -> list[str]:
    """For people: one line about all rows, and one for each source."""
    if not summary["tokens"]:
        return []
    of = "" if summary["rows_judged"] == summary["rows"] else f" (of {summary['rows_judged']:,} rows)"
    shown = [f"the target's own: {_text(summary)}{of}"]
    sources = list(summary.get("by_source", {}).items())
    shown += [f"  {name}: {_text(part)}" for name, part in sources[:MOST_SOURCES] if part["tokens"]]
    shown += [f"  and {len(sources) - MOST_SOURCES} more sources, all of them better"] if sources[MOST_SOURCES:] else []
    if any(part.get("near_ties") and not foreign(part) for part in summary.get("by_source", {"all": summary}).values()):
        shown.append(
            f"  a near tie is less than {NEAR_TIE:g} below the best logit: another type, kernel or batch than that "
            "which wrote the reply puts another token first there"
        )
    return shown


def _text(part: dict[str, Any]) -> str:
    text = f"{part['share']:.1%} of {part['tokens']:,} reply tokens are its best"
    text += f", {part['near_ties']:.1%} near ties" if part.get("near_ties") else ""
    return text if part["logprob"] is None else f"{text}, mean log-probability {part['logprob']:.2f}"


def warning(summary: dict[str, Any], split: str) -> str | None:
    """What people are told where replies are not the target's own, by source where rows name theirs."""
    parts = summary.get("by_source") or {f"the {split} rows": summary}
    strange = {name: part for name, part in parts.items() if foreign(part)}
    if not strange:
        return None
    named = "; ".join(
        f"{name}: {_text(part)}, where its own have {part['own_from']:.0%} and more"
        for name, part in list(strange.items())[:MOST_SOURCES]
    )
    return (
        f"replies that are not the target's own ({named}), unless it drew them near temperature 1: acceptance stays "
        "low; have the target write them (eagle3 regenerate); the worst are shown by eagle3 view --worst 3"
    )


def describe(folder: Path, sources: Sequence[str]) -> dict[str, Any] | None:
    """The summary of a split whose rows some pass has judged; None where none has."""
    known = load(folder)
    summary = None if known is None else summarize(known, sources)
    return summary if summary is not None and summary["tokens"] else None
