"""Prompts with images in the local engine: replies are transformers' own, with and without a draft, in any batch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from eagle3cli.backends.target.hf import HfTarget, load_target
from eagle3cli.backends.target.positions import PositionCache
from eagle3cli.data.images.tokens import ImageTokens, followed_by
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.draft import Draft
from eagle3cli.models.sampling import Sampling
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.bench.questions import question_of
from eagle3cli.serving.bench.session import open_conversations
from eagle3cli.serving.chat_tokenizer import load_chat_tokenizer
from eagle3cli.serving.decode import batches, generate
from eagle3cli.serving.decode.batches import decoding
from eagle3cli.serving.decode.decode import decode
from eagle3cli.serving.decode.passes import Passes
from eagle3cli.settings.models import TargetSettings
from eagle3cli.settings.tables import Settings
from tests.failing import fails
from tests.pictures import image_rows, image_target, in_parts, write_images
from tests.serving.decode.test_decode import simulated_counts
from tests.tiny import tiny_target

NEW = 8
WORDS = 2
NO_END = frozenset[int]()
Prompts = list[Sequence[int]]


def prompts_of(folder: Path, rows: list[dict[str, Any]]) -> Prompts:
    """The prompts of the rows' first questions."""
    tokenizer = load_chat_tokenizer(
        Settings.model_validate({"target": {"model_path": str(folder / "target")}}), images=True
    )
    questions = [question_of(row, number, folder=folder) for number, row in enumerate(rows)]
    return [tokenizer.encode(one) for one in open_conversations(questions, None, multi_turn=False)]


def loaded(folder: Path) -> tuple[HfTarget, DraftConfig]:
    config = DraftConfig.from_target(
        json.loads((folder / "target" / "config.json").read_text()), draft_vocab_size=WORDS
    )
    return load_target(TargetSettings(model_path=str(folder / "target")), Silent(), config.aux_layers), config


def draft_of(config: DraftConfig, replies: list[list[int]]) -> Draft:
    """A random draft that knows two tokens alone, the replies' most common ones: some of what it guesses is right."""
    torch.manual_seed(0)
    draft = Draft(config)
    common = [token for token, _ in Counter(token for reply in replies for token in reply).most_common(WORDS)]
    ids = sorted({*common, *range(WORDS)})[-WORDS:]
    is_known = torch.zeros(config.vocab_size, dtype=torch.bool)
    is_known[ids] = True
    draft.set_vocab(torch.tensor(ids) - torch.arange(WORDS), is_known)
    return draft.float().eval()


@torch.no_grad()
def own_reply(model: Any, inputs: Any) -> list[int]:
    """Greedy tokens of transformers' whole model, which reads everything again for each."""
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].float()
    logits: list[torch.Tensor] = []
    handle = model.get_output_embeddings().register_forward_hook(lambda _module, _inputs, out: logits.append(out))
    ids = inputs["input_ids"]
    for _ in range(NEW):
        grown = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for name in {"mm_token_type_ids", "token_type_ids"} & inputs.keys():
            types = inputs[name]
            grown[name] = torch.cat((types, types.new_zeros(1, ids.shape[1] - types.shape[1])), 1)
        with suppress(AttributeError):  # Llama 4's own forward in transformers 5.24 breaks off behind its logits
            model(**{**inputs, **grown}, use_cache=False)
        ids = torch.cat((ids, logits[-1][:, -1:].argmax(-1)), 1)
    handle.remove()
    reply: list[int] = ids[0, -NEW:].tolist()
    return reply


def own_replies(folder: Path, rows: list[dict[str, Any]], prompts: Prompts) -> list[list[int]]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder / "target")
    model = AutoModelForImageTextToText.from_pretrained(folder / "target", dtype=torch.float32).eval()
    replies = []
    for row, prompt in zip(rows, prompts, strict=True):
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
        inputs = processor.apply_chat_template(in_parts(row, folder)[:1], **options)
        assert inputs["input_ids"][0].tolist() == list(prompt)
        replies.append(own_reply(model, dict(inputs)))
    return replies


@torch.no_grad()
def check_states(target: HfTarget, prompts: Prompts, replies: list[list[int]]) -> None:
    """What passes behind prompts of unlike lengths read is what the whole rows' states are, in any order of rows."""
    passes = Passes(target, None)
    order = torch.tensor([2, 0, 1]) if passes.most_rows is None else torch.tensor([0])
    expected = target.capture([followed_by(*pair) for pair in zip(prompts, replies, strict=True)])
    with passes.running() as run:
        part = prompts[: len(order)]
        cache = PositionCache(len(part), max(map(len, part)) + NEW)
        read = [states[order] for states in run.read_each(part, cache)]
        cache.keep(order)
        starts_B1 = torch.tensor([[len(prompts[row])] for row in order])
        behind = run(torch.tensor([replies[row] for row in order]), starts_B1 + torch.arange(NEW), cache)
    for at, row in enumerate(order.tolist()):
        for first_BQX, more_BQX, states_SX in zip(read, behind, expected[row], strict=True):
            states = torch.cat((first_BQX[at, : len(prompts[row])], more_BQX[at]))
            torch.testing.assert_close(states, states_SX, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2.5-vl", "qwen3-vl", "gemma3", "llama4"])
def test_replies_to_images_are_transformers_own(tmp_path: Path, name: str) -> None:
    image_target(tmp_path / "target", name)
    rows = [image_rows(write_images(tmp_path / "images"))[at] for at in (1, 3, 4)]
    prompts = prompts_of(tmp_path, rows)
    assert [isinstance(prompt, ImageTokens) for prompt in prompts] == [True, True, False]
    target, config = loaded(tmp_path)
    same: dict[str, Any] = {"max_new_tokens": NEW, "eos_ids": NO_END, "batch_size": 3}
    plain = [reply.token_ids for reply in decode(target, None, prompts, k=0, **same)]
    assert plain == own_replies(tmp_path, rows, prompts)
    check_states(target, prompts, plain)

    draft = draft_of(config, plain)
    chain = decode(target, draft, prompts, k=2, **same)
    assert [reply.token_ids for reply in chain] == plain
    accepted = [sum(reply.accepted_at[depth] for reply in chain) for depth in range(2)]
    assert accepted[0] > 0
    simulated = simulated_counts(target, draft, prompts, plain, 2)
    assert (simulated.steps, simulated.accepted_at) == (sum(reply.steps for reply in chain), accepted)
    for batch_size, sampling in ((1, Sampling()), (2, Sampling()), (1, Sampling(0.8)), (2, Sampling(0.8))):
        with decoding(target.model, batch_size, NO_END, sampling, target.reader) as decoder:
            for index, prompt in enumerate(prompts):
                decoder.add(index, prompt, NEW)
            done = {one.index: one.token_ids for _ in range(3 * NEW) for one in decoder.step()}
        if sampling.temperature == 0:
            assert [done[index] for index in range(3)] == plain
        elif batch_size == 1:
            alone = done
        else:
            assert done == alone


@pytest.mark.slow
@pytest.mark.parametrize("by_position", [True, False])
def test_an_image_that_vanishes_before_it_is_read_fails_its_row_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_position: bool
) -> None:
    image_target(tmp_path / "target", "gemma3")
    images = write_images(tmp_path / "images")
    rows = [image_rows(images)[at] for at in (1, 3, 4)]
    prompts = prompts_of(tmp_path, rows)
    assert isinstance(prompts[0], ImageTokens)
    gone = Path(prompts[0].images[0].source)
    assert not any(image.source == str(gone) for image in getattr(prompts[1], "images", ()))
    gone.unlink()
    target, _ = loaded(tmp_path)
    if not by_position:
        monkeypatch.setattr(batches, "serves_positions", lambda model: False)
    replies: list[generate.Sequence] = []
    with decoding(target.model, 2, NO_END, None, target.reader) as decoder:
        for index, prompt in enumerate(prompts):
            decoder.add(index, prompt, 3)
        while not decoder.is_finished:
            replies += decoder.step()
    ended = {reply.index: (reply.finish, reply.error, len(reply.token_ids)) for reply in replies}
    assert ended[0] == ("error", f"the image cannot be read: FileNotFoundError: {gone}", 0)
    assert ended[1] == ended[2] == ("length", "", 3)


def test_a_target_of_text_alone_is_not_shown_images(tmp_path: Path) -> None:
    target = load_target(TargetSettings(model_path=str(tiny_target(tmp_path / "target"))), Silent())
    prompt = ImageTokens.of([5, 6, 7], ())
    same: dict[str, Any] = {"k": 0, "max_new_tokens": 2, "eos_ids": NO_END, "batch_size": 1}
    with fails("images-unsupported"):
        decode(target, None, [prompt], **same)
    with decoding(target.model, 1, NO_END) as decoder:
        decoder.add(0, prompt, 2)
        with fails("images-unsupported"):
            decoder.step()
