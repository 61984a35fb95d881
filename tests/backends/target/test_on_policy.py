"""Replies are judged token by token, each row once, in whatever batches they pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch.nn import functional as F

from eagle3cli.backends.target.logits import ARGMAX_CHUNK, Head
from eagle3cli.backends.target.on_policy import OnPolicyMeter, judged_slots
from eagle3cli.data.tokens.on_policy import FILE, POSITIONS, lines, load, summarize
from eagle3cli.data.tokens.rows import TokenRow


def test_judging_gives_the_best_tokens_and_log_probabilities() -> None:
    torch.manual_seed(0)
    rows = ARGMAX_CHUNK + 3
    head = Head(torch.randn(50, 8), torch.randn(50), softcap=20.0)
    last = 10 * torch.randn(rows, 8)
    answer = torch.randint(0, 50, (rows,))
    kept = last.clone()
    top, (logprob, best) = head.judge(last, answer)
    assert torch.equal(top, head.top_tokens(last))
    assert torch.allclose(logprob, head(last).log_softmax(-1).gather(1, answer[:, None])[:, 0], atol=1e-4)
    assert torch.allclose(best, head(last).softmax(-1).max(-1).values, atol=1e-5)
    assert torch.equal(last, kept)
    assert [part.shape[-1] for part in head.judge(last[:0], answer[:0])] == [0, 0]


def brute_force(mask: list[bool], cu_seqlens: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Teacher position, row and range of each judged token, found one after the other."""
    found = []
    for row, (begin, end) in enumerate(zip(cu_seqlens[:-1], cu_seqlens[1:], strict=True)):
        known = 0
        for t in range(begin, end):
            if mask[t] and known and t - 1 > begin:
                place = next(i for i, limit in enumerate(POSITIONS.values()) if known < limit)
                found.append((t - 1, row, place))
            known = known + 1 if mask[t] else 0
    return found


def test_slots_are_found_as_one_by_one() -> None:
    torch.manual_seed(1)
    for _ in range(30):
        lengths = torch.randint(0, 90, (4,)).tolist()
        cu_seqlens = tuple(np.cumsum([0, *lengths]).tolist())
        mask = torch.rand(cu_seqlens[-1]) < 0.9
        teacher, slot = judged_slots(mask, cu_seqlens)
        want = brute_force(mask.tolist(), cu_seqlens)
        assert list(zip(teacher.tolist(), slot.tolist(), strict=True)) == [(t, 4 * r + p) for t, r, p in want]


def test_each_row_counts_once_however_often_it_passes(tmp_path: Path) -> None:
    meter = OnPolicyMeter(3, "target", ["own", "own", "foreign"], tmp_path)
    ids = torch.arange(12)
    mask = torch.tensor([0, 0, 1, 1, 1, 1] * 2).bool()
    best = torch.full((12,), -1)
    best[[2, 3, 4]] = torch.tensor([3, 4, 9])  # two of the three tokens behind
    best[[8, 9, 10]] = torch.tensor([1, 1, 1])
    judged = torch.tensor([[-2.0], [0.5]]).expand(2, 12)
    assert meter.wants([1, 2])
    meter.add([1, 2], ids, mask, (0, 6, 12), best, judged)
    meter.add([2, 0], ids, mask, (0, 6, 12), best)  # row 2 again, row 0 without logits
    summary = meter.summary()
    probable = {"near_ties": 0.0, "logprob": -2.0, "share_at_1": 0.5, "own_from": 0.575}
    assert summary["by_source"] == {
        "foreign": {"tokens": 3, "share": 0.0, **probable},
        "own": {"tokens": 6, "share": pytest.approx(2 / 6, abs=1e-3), **probable},
    }
    assert list(summary["by_source"]) == ["foreign", "own"]
    assert list(summary["by_position"]) == ["1-15"]
    assert not meter.wants([0, 1, 2])
    meter.save()
    again = OnPolicyMeter(3, "target", ["own", "own", "foreign"], tmp_path)
    assert again.summary() == summary
    assert OnPolicyMeter(3, "another target", (), tmp_path).wants([1])
    known = load(tmp_path)
    assert known is not None
    assert summarize(known)["tokens"] == 9


def test_near_ties_are_counted_and_explained(tmp_path: Path) -> None:
    """Of twelve tokens nine are the best, two nearly, and one is another."""
    meter = OnPolicyMeter(1, "target", folder=tmp_path)
    ids = torch.arange(15)
    best = torch.arange(15) + 1
    best[[4, 6, 8]] = 0
    judged = torch.tensor([[-0.7], [0.5]]).repeat(1, 15)
    judged[0, 4] = -0.8
    judged[0, 8] = -2.0
    meter.add([0], ids, torch.arange(15) > 1, (0, 15), best, judged)
    assert (meter.summary()["share"], meter.summary()["near_ties"]) == (0.75, pytest.approx(2 / 12, abs=1e-4))
    told = lines(meter.summary())
    assert told[0].startswith("the target's own: 75.0% of 12 reply tokens are its best, 16.7% near ties, mean")
    assert "a near tie is less than" in told[-1]
    meter.save()
    file = tmp_path / FILE
    with safe_open(file, framework="np") as opened:  # as a version that counted no ties wrote it
        sums, metadata = opened.get_tensor("sums"), opened.metadata()
    save_file({"sums": np.ascontiguousarray(sums[..., :4])}, file, metadata)
    earlier = OnPolicyMeter(1, "target", folder=tmp_path).summary()
    assert (earlier["share"], earlier["near_ties"], earlier["logprob"]) == (0.75, None, meter.summary()["logprob"])
    assert len(lines(earlier)) == 1


def test_a_row_of_a_capture_is_judged_by_the_way() -> None:
    torch.manual_seed(2)
    head = Head(torch.randn(20, 4))
    row = TokenRow("r", np.arange(8, dtype=np.int32), np.array([0, 0, 1, 1, 1, 0, 1, 1], dtype=np.uint8))
    last = torch.randn(8, 4)
    meter = OnPolicyMeter(1, "target")
    teacher = torch.tensor([2, 3, 4, 5, 6, 7])
    top = meter.top_tokens(head, 0, row, last[teacher][[0, 1, 2, 3, 4, 5]])
    assert torch.equal(top, head.top_tokens(last[teacher]))
    summary = meter.summary()
    judged = [2, 3, 6]  # inside the two replies
    logprob = F.log_softmax(head(last[judged]), -1).gather(1, torch.tensor(judged)[:, None] + 1)
    assert summary["tokens"] == 3
    assert summary["logprob"] == pytest.approx(float(logprob.mean()), abs=1e-3)


def test_states_that_have_lost_something_are_judged_by_the_best_tokens_of_the_whole_ones() -> None:
    torch.manual_seed(2)
    row = TokenRow("a", np.arange(12, dtype=np.int32), np.array([0, 0] + [1] * 10, dtype=np.uint8))
    lost = torch.randn(10, 8)
    head = Head(5 * torch.randn(50, 8))
    for known, best in ((torch.arange(3, 13), 9), (None, 0)):
        meter = OnPolicyMeter(1, "target")
        meter.top_tokens(head, 0, row, lost, known)
        assert meter.totals()[0, :2].tolist() == [9, best]
