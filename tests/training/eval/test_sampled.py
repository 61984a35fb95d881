"""Expected acceptance at a temperature is what exact speculative sampling takes on average."""

from __future__ import annotations

from itertools import accumulate, product
from pathlib import Path

import pytest
import torch

from eagle3cli.backends.batches.batch import TargetBatch
from eagle3cli.models.sampling import Sampling, probabilities
from eagle3cli.serving.decode.decode import decode
from eagle3cli.training.eval.evaluate import draft_states
from eagle3cli.training.eval.sampled import SampledAcceptance, drawn_elsewhere
from eagle3cli.training.eval.simulate import reply_spans, simulate
from tests.serving.decode.test_decode import opened

SIZE = 3
LENGTH = 4
"""Tokens of a text behind its first one, which the prefill wrote."""
Text = tuple[int, ...]


class TinyWorld:
    """Three tokens, of which the draft knows two; every distribution depends on the last two tokens."""

    def __init__(self, seed: int, k: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.k = k
        self.target = torch.rand(SIZE, SIZE, SIZE, generator=generator).pow(2)
        self.target /= self.target.sum(-1, keepdim=True)
        self.draft = torch.rand(k, SIZE, SIZE, SIZE, generator=generator)
        self.draft[..., 1] = 0  # not in the draft's vocabulary
        self.draft /= self.draft.sum(-1, keepdim=True)

    def p(self, text: Text) -> list[float]:
        return list(map(float, self.target[(0, *text)[-2], text[-1]]))

    def q(self, depth: int, text: Text) -> list[float]:
        return list(map(float, self.draft[depth, (0, *text)[-2], text[-1]]))

    def expected(self, text: Text) -> tuple[float, list[float]]:
        """Passes, and accepted tokens by depth, until LENGTH tokens are known: every outcome of the algorithm, each
        draft token, acceptance and replacement with its chance."""
        if len(text) > LENGTH:
            return 0.0, [0.0] * self.k
        steps = 1.0
        accepted_at = [0.0] * self.k
        for chance, accepted, after in self._outcomes(text, 0):
            more, deeper = self.expected(after)
            steps += chance * more
            inside = min(accepted, LENGTH + 1 - len(text))
            accepted_at = [
                a + chance * (b + (d < inside)) for d, (a, b) in enumerate(zip(accepted_at, deeper, strict=True))
            ]
        return steps, accepted_at

    def _outcomes(self, text: Text, depth: int) -> list[tuple[float, int, Text]]:
        """Chance, accepted tokens and text of every way in which one pass goes on from this depth."""
        p = self.p(text)
        if depth == self.k:
            return [(p[v], depth, (*text, v)) for v in range(SIZE)]
        q = self.q(depth, text)
        outcomes = []
        residual = [max(0.0, p[v] - q[v]) for v in range(SIZE)]
        for v in range(SIZE):
            kept = min(1.0, p[v] / q[v]) if q[v] else 0.0
            outcomes += [(q[v] * kept * c, n, t) for c, n, t in self._outcomes((*text, v), depth + 1)]
            for other in range(SIZE):
                share = residual[other] / sum(residual) if sum(residual) else 0.0
                outcomes.append((q[v] * (1 - kept) * share, depth, (*text, other)))
        return [outcome for outcome in outcomes if outcome[0]]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_is_the_brute_force_of_a_tiny_vocabulary(k: int) -> None:
    """Over all texts, each with the target's chance of it, against every path that the algorithm can take."""
    for seed in range(3):
        world = TinyWorld(seed, k)
        steps, accepted_at = world.expected((0,))
        expected_steps, expected_accepted = 0.0, [0.0] * k
        for rest in product(range(SIZE), repeat=LENGTH):
            text = (0, *rest)
            chance = 1.0
            accept = [[0.0] * (LENGTH + 2) for _ in range(k)]
            for at in range(1, LENGTH + 1):
                p = world.p(text[:at])[text[at]]
                chance *= p
                for depth in range(min(k, at)):
                    # Position at - 2 - depth + 1 is where the row of simulate's table stands, one in front of the text.
                    accept[depth][at - 1 - depth] = min(1.0, world.q(depth, text[:at])[text[at]] / p)
            counts = simulate(accept, (1, LENGTH + 2), k)
            assert counts.tokens == pytest.approx(LENGTH)
            expected_steps += chance * counts.steps
            expected_accepted = [a + chance * b for a, b in zip(expected_accepted, counts.accepted_at, strict=True)]
        assert expected_steps == pytest.approx(steps, rel=1e-5)
        assert expected_accepted == pytest.approx(accepted_at, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.6, top_p=0.9, top_k=40)], ids=["plain", "cut"])
def test_is_what_the_local_sampler_takes(shared: Path, sampling: Sampling) -> None:
    """The passes of the decoder over its own sampled replies, with a draft vocabulary that lacks tokens."""
    folder = shared / "engines" / "tiny_eagle3"
    if not folder.is_dir():
        pytest.skip(f"no trained tiny draft at {folder}")
    target, draft = opened(folder, "draft")
    assert len(draft.draft_ids) < len(target.head)
    prompts = [[1, 3, 9, 12, 42 + i % 60, 4] for i in range(120)]
    k = 3
    replies = decode(
        target, draft, prompts, k=k, max_new_tokens=24, eos_ids=frozenset(), batch_size=40,
        temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k, seeds=range(120),
    )  # fmt: skip
    rows = [p + r.token_ids for p, r in zip(prompts, replies, strict=True)]
    states = target.capture(rows)
    ids = torch.tensor([t for row in rows for t in row])
    mask = torch.cat([torch.arange(len(row)) >= len(p) for row, p in zip(rows, prompts, strict=True)])
    cu_seqlens = tuple(accumulate((len(row) for row in rows), initial=0))
    aux, last = (torch.cat([state[i] for state in states]) for i in (0, 1))
    batch = TargetBatch(ids, mask, cu_seqlens, aux, last, ids, tuple(range(len(rows))))
    sampled = SampledAcceptance.empty(sampling, k)
    with torch.no_grad():
        normed, plan = draft_states(draft, batch, target.embedding_VH, k, every=True)
        accept = sampled.add_batch(batch, normed, plan, draft, target.head).tolist()
        self_overlap = probabilities(target.head(last[:4]), sampling).sum(-1)
    assert self_overlap.tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    for span in reply_spans(mask.tolist(), cu_seqlens):
        sampled.add_reply(accept, span)
    counts = sampled.by_k[-1]
    steps = sum(reply.steps for reply in replies)
    assert counts.tokens == pytest.approx(sum(len(reply.token_ids) - 1 for reply in replies))
    assert counts.steps == pytest.approx(steps, rel=0.03)
    assert counts.accepted_at[0] == pytest.approx(sum(reply.accepted_at[0] for reply in replies), rel=0.1)
    assert sampled.drawn_here
    assert drawn_elsewhere([sampled]) is None


def test_greedy_text_is_told_from_drawn_text() -> None:
    sampled = SampledAcceptance(Sampling(0.7), [], [], [], text=[100.0, 82.0, 61.0, 4.0])
    warning = drawn_elsewhere([sampled])
    assert warning is not None
    assert "not drawn at temperature 0.7" in warning
    assert "0.82" in warning
    assert "0.61" in warning
