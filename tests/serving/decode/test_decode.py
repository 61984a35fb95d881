"""The local engine: lossless, and its counts equal simulated acceptance's and an independent implementation's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from eagle3cli.backends.batches.batch import TargetBatch
from eagle3cli.backends.target.hf import HfTarget, load_target
from eagle3cli.data.images.tokens import followed_by
from eagle3cli.models.checkpoint import load_draft
from eagle3cli.models.draft import Draft
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.decode.decode import decode
from eagle3cli.settings.models import TargetSettings
from eagle3cli.training.eval.evaluate import draft_states, proposals
from eagle3cli.training.eval.simulate import AcceptanceCounts, agreement_table, reply_spans, simulate
from tests.conftest import SharedTarget
from tests.failing import fails
from tests.independent_eagle3 import measure
from tests.tiny import tiny_target

EOS = frozenset({2})


@pytest.fixture(scope="module")
def counting(shared: Path) -> Path:
    folder = shared / "engines" / "tiny_eagle3"
    if not folder.is_dir():
        pytest.skip(f"no trained tiny draft at {folder}")
    return folder


def opened(folder: Path, name: str) -> tuple[HfTarget, Draft]:
    config, state = load_draft(folder / name, aux_layers=(1, 3, 4))
    draft = Draft(config)
    draft.load_state_dict(state)
    target = load_target(
        TargetSettings(model_path=str(folder / "target"), dtype="float32"), Silent(), config.aux_layers
    )
    return target, draft.float().eval()


def prompts() -> list[list[int]]:
    """``<s> <|user|> count from N <|assistant|>`` in the tiny model's words, of mixed length."""
    torch.manual_seed(0)
    counting = [[1, 3, 9, 12, 42 + n, 4] for n in (3, 17, 40, 71)]
    return [*counting, [1, 5, 20, 21, 22, *counting[0][1:]], [1, 3, 10, 12, 23, 14, 4]]


@pytest.mark.slow
def test_a_finished_row_does_not_outrun_its_slots(counting: Path) -> None:
    """The longest prompt is done in a few steps; its batch goes on for many more."""
    target, draft = opened(counting, "draft")
    fast, slow = [1, 5, 20, 21, 22, 3, 9, 12, 45, 4], [[1, 3, 10, 12, 23 + n, 14, 4] for n in range(7)]
    inputs = [fast, *slow]
    chain = decode(target, draft, inputs, k=3, max_new_tokens=60, eos_ids=frozenset(), batch_size=8)
    plain = decode(target, None, inputs, k=0, max_new_tokens=60, eos_ids=frozenset(), batch_size=8)
    assert [r.token_ids for r in chain] == [r.token_ids for r in plain]


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("draft_name", ["draft", "draft_random"])
def test_three_measurements_agree(counting: Path, draft_name: str, k: int) -> None:
    assert_three_agree(counting, draft_name, k)


@pytest.mark.slow
@pytest.mark.parametrize(("window", "sinks", "k"), [(4, 0, 3), (6, 2, 5), (2, 3, 4), (1, 0, 2)])
def test_three_measurements_of_a_window_agree(counting: Path, tmp_path: Path, window: int, sinks: int, k: int) -> None:
    """Past the window, of chains longer than it, too; what is seen past it matters to this draft."""
    shutil.copytree(counting, tmp_path / "windowed")
    path = tmp_path / "windowed" / "draft" / "config.json"
    own = {"layer_types": ["sliding_attention"], "sliding_window": window, "draft_sinks": sinks}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    steps = assert_three_agree(tmp_path / "windowed", "draft", k, fast=None)
    assert steps > assert_three_agree(counting, "draft", k)


def simulated_counts(
    target: HfTarget, draft: Draft, inputs: Sequence[Sequence[int]], replies: list[list[int]], k: int
) -> AcceptanceCounts:
    """What the draft's walk over the states of the whole rows comes to, as ``eval`` has it."""
    simulated = AcceptanceCounts(accepted_at=[0] * k)
    rows = [followed_by(prompt, reply) for prompt, reply in zip(inputs, replies, strict=True)]
    states = target.capture(rows)
    ids = torch.tensor([t for row in rows for t in row])
    mask = torch.cat([torch.arange(len(row)) >= len(p) for row, p in zip(rows, inputs, strict=True)])
    batch = TargetBatch(
        token_ids_N=ids,
        loss_mask_N=mask,
        cu_seqlens=tuple(accumulate((len(row) for row in rows), initial=0)),
        aux_NC=torch.cat([aux for aux, _ in states]),
        last_NH=torch.cat([last for _, last in states]),
        top_N=ids,
        rows=tuple(range(len(rows))),
    )
    with torch.no_grad():
        normed, plan = draft_states(draft, batch, target.embedding_VH, k)
        proposed, positions = proposals(draft, normed, plan)
        agrees = agreement_table(proposed, positions, batch.token_ids_N)
    for span in reply_spans(mask.tolist(), batch.cu_seqlens):
        simulated.add(simulate(agrees, span, k))
    return simulated


def assert_three_agree(counting: Path, draft_name: str, k: int, fast: float | None = 3.0) -> int:
    """The verification steps of the local engine, which are those of the two other ways to count them."""
    target, draft = opened(counting, draft_name)
    inputs = prompts()
    plain = decode(target, None, inputs, k=0, max_new_tokens=24, eos_ids=EOS, batch_size=4)
    chain = decode(target, draft, inputs, k=k, max_new_tokens=24, eos_ids=EOS, batch_size=4)
    assert [r.token_ids for r in chain] == [r.token_ids for r in plain]
    tokens = sum(len(r.token_ids) - 1 for r in chain)
    steps = sum(r.steps for r in chain)
    accepted = [sum(r.accepted_at[i] for r in chain) for i in range(k)]

    other = measure(
        counting / "target",
        counting / draft_name,
        inputs,
        k=k,
        max_new_tokens=24,
        eos_ids=EOS,
        default_layers=(1, 3, 4),
    )
    assert other.replies == [r.token_ids for r in plain]
    assert other.steps == [r.steps for r in chain]

    simulated = simulated_counts(target, draft, inputs, [r.token_ids for r in plain], k)
    assert (simulated.tokens, simulated.steps, simulated.accepted_at) == (tokens, steps, accepted)
    if draft_name == "draft" and k == 3 and fast is not None:
        assert tokens / steps > fast
    return steps


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_plain_decoding_is_the_models_own(tmp_path: Path, kind: str) -> None:
    """k = 0 gives what transformers' greedy generation gives, whatever is decoded beside it."""
    folder = tiny_target(tmp_path / kind, kind)
    target = load_target(TargetSettings(model_path=str(folder)), Silent())
    inputs = [[5, 9, 30], [7, 8, 9, 10, 11, 12, 13], [40, 41]]
    replies = decode(target, None, inputs, k=0, max_new_tokens=12, eos_ids=frozenset(), batch_size=3)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    for prompt, result in zip(inputs, replies, strict=True):
        want = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, min_new_tokens=12, do_sample=False, eos_token_id=None,
            pad_token_id=0, use_cache=True,
        )  # fmt: skip
        assert result.token_ids == want[0, len(prompt) :].tolist()
        assert result.finish == "length"
    assert target.model.config._attn_implementation != "eagle3_grouped"


def test_a_past_that_cannot_be_rolled_back_is_refused(shared_target: SharedTarget) -> None:
    """Linear attention keeps one state, and no keys by position that a rejected draft could be taken out of."""
    target = load_target(TargetSettings(model_path=str(shared_target("qwen3-next")), device="cpu"), Silent())
    with fails("unsupported-engine", target.path):
        decode(target, None, [[5, 6]], k=0, max_new_tokens=2, eos_ids=EOS, batch_size=1)
