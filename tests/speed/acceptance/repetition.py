"""What is there to be had from a draft vocabulary and from copying, without any draft. Prints JSON lines.

    PYTHONPATH=. python tests/speed/acceptance/repetition.py --store runs/q/hidden_states/train \
        --eval-store runs/q/hidden_states/eval

For draft vocabularies of the most frequent tokens: their coverage of held-out replies, and the acceptance length
(k = 5) of a draft that is right wherever the vocabulary lets it be. For the next token of held-out replies: how often
the best of a bigram and a trigram of the training replies is right, and what followed the same one or two tokens last
time in the same conversation.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch

from eagle3cli.data.hidden_states.store import Store
from eagle3cli.training.eval.simulate import AcceptanceCounts, reply_spans, simulate

STEPS = 5
Row = tuple[list[int], list[bool]]


def arguments() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="hidden states of training rows")
    parser.add_argument("--eval-store", type=Path, required=True, help="hidden states of held-out rows")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 4096, 8192, 16384])
    return parser.parse_args()


def rows_of(store: Store) -> Iterator[Row]:
    """Token ids and loss mask of every row."""
    for number in range(len(store)):
        row = store[number]
        yield row.token_ids_S.tolist(), row.loss_mask_S.tolist()


def perfect(rows: list[Row], known: set[int]) -> dict[str, float]:
    """Coverage of a vocabulary, and the acceptance length of a draft that is right on all that it has."""
    counts = AcceptanceCounts()
    covered = written = 0
    for ids, mask in rows:
        has = [token in known for token in ids] + [False] * (STEPS + 2)
        agrees_TN = [[has[at + 2 + step] for at in range(len(ids))] for step in range(STEPS)]
        for span in reply_spans(mask, (0, len(ids))):
            counts.add(simulate(agrees_TN, span, STEPS))
        covered += sum(own and inside for own, inside in zip(mask, has, strict=False))
        written += sum(mask)
    return {"coverage": round(covered / written, 4), "acceptance": round(counts.acceptance_length, 3)}


def learned(train: list[Row], rows: list[Row], order: int) -> float:
    """Share of held-out tokens that are the likeliest after the ``order`` tokens before them in training replies."""
    following = defaultdict[tuple[int, ...], Counter[int]](Counter)
    for ids, mask in train:
        for at in range(order, len(ids)):
            if mask[at]:
                following[tuple(ids[at - order : at])][ids[at]] += 1
    best = {context: counter.most_common(1)[0][0] for context, counter in following.items()}
    asked = [(tuple(ids[at - order : at]), ids[at]) for ids, mask in rows for at in range(order, len(ids)) if mask[at]]
    return sum(best.get(context) == token for context, token in asked) / len(asked)


def copied(rows: list[Row], order: int) -> dict[str, float]:
    """Share of tokens whose context stood before in the conversation, and of those what followed it last time."""
    asked = found = right = 0
    for ids, mask in rows:
        last: dict[tuple[int, ...], int] = {}
        for at in range(order, len(ids)):
            context = tuple(ids[at - order : at])
            asked += mask[at]
            if mask[at] and context in last:
                found += 1
                right += last[context] == ids[at]
            last[context] = ids[at]
    return {"found": round(found / asked, 3), "right_of_those": round(right / max(1, found), 3)}


def main() -> None:
    """Read both stores, count."""
    a = arguments()
    train = list(rows_of(Store(a.store)))
    rows = list(rows_of(Store(a.eval_store)))
    counts = Counter(token for ids, mask in train for token, own in zip(ids, mask, strict=True) if own)
    for size in a.sizes:
        known = {token for token, _ in counts.most_common(size)}
        print(json.dumps({"vocabulary": size, **perfect(rows, known)}), flush=True)
    for order in (1, 2):
        print(json.dumps({"tokens": order, "learned": round(learned(train, rows, order), 3), **copied(rows, order)}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
