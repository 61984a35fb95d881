"""Rows with images: tokens, positions and states are those of transformers' own processors and models."""

from __future__ import annotations

import json
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eagle3cli.backends.target.hf import HfTarget, load_target
from eagle3cli.backends.target.prompt import last_states
from eagle3cli.backends.target.structure import decoder_of
from eagle3cli.backends.target.target import ImageTokens, refuse_images, tokens_of
from eagle3cli.data.tokens.blocks import EncodedBlock, EncoderConfig, blocks_of, encode_items
from eagle3cli.models.aux_layers import chosen_aux_layers
from eagle3cli.models.config import DraftConfig
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.models import TargetSettings
from tests.failing import fails
from tests.pictures import FAMILIES_WITH_IMAGES, image_rows, image_target, in_parts, write_images, write_rows


def encoded(folder: Path, rows: list[dict[str, Any]], max_length: int = 256) -> EncodedBlock:
    path = write_rows(folder / "rows.jsonl", rows)
    encoder = EncoderConfig(str(folder / "target"), None, False, "auto", max_length, False, False).encoder()
    items = [item for block in blocks_of(path) for item in block]
    return encode_items(encoder, items, str(path), preformatted=False)


def load(folder: Path) -> HfTarget:
    config = json.loads((folder / "target" / "config.json").read_text())
    return load_target(TargetSettings(model_path=str(folder / "target")), Silent(), chosen_aux_layers(config))


@torch.no_grad()
def own_states(model: Any, inputs: Any, aux_layers: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of the layers and logits of transformers' whole model."""
    pixels = {name: value.float() for name, value in inputs.items() if value.is_floating_point()}
    _, layers = decoder_of(model)
    outputs: dict[Any, torch.Tensor] = {}
    with ExitStack() as stack:
        for part in (*(layers[n] for n in aux_layers), model.get_output_embeddings()):
            hook = part.register_forward_hook(lambda module, _, out: outputs.update({module: out}))
            stack.callback(hook.remove)
        with suppress(AttributeError):  # Llama 4's own forward in transformers 5.24 breaks off behind its logits
            model(**{**inputs, **pixels})
    states = [outputs[layers[n]] for n in aux_layers]
    return torch.cat(states, -1)[0], outputs[model.get_output_embeddings()][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES_WITH_IMAGES)
def test_states_are_transformers_own(tmp_path: Path, name: str) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    image_target(tmp_path / "target", name)
    rows = image_rows(write_images(tmp_path / "images"))[1:]
    block = encoded(tmp_path, rows)
    assert not block.rejected
    target = load(tmp_path)
    with last_states(target.decoder) as passes:
        states = target.capture([tokens_of(row) for row in block.rows])
    assert len(passes) < len(rows)  # rows of unlike lengths share one
    processor = AutoProcessor.from_pretrained(tmp_path / "target")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "target", dtype=torch.float32).eval()
    for raw, row, (aux_SC, last_SH) in zip(rows, block.rows, states, strict=True):
        inputs = processor.apply_chat_template(
            in_parts(raw, tmp_path), tokenize=True, return_dict=True, return_tensors="pt"
        )
        assert inputs["input_ids"][0].tolist() == row.token_ids.tolist()
        expected_SC, logits_SV = own_states(model, inputs, target.aux_layers)
        torch.testing.assert_close(aux_SC, expected_SC, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(target.head(last_SH), logits_SV, rtol=1e-5, atol=1e-5)
        assert len(row.images) == json.dumps(raw).count(".png")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen")
    image_target(folder / "target", "qwen3-vl")
    write_images(folder / "images")
    return folder


@pytest.fixture(scope="module")
def target(qwen: Path) -> HfTarget:
    return load(qwen)


def test_the_mask_is_that_of_the_same_row_without_its_images(qwen: Path) -> None:
    images = sorted((qwen / "images").iterdir())
    rows = image_rows(images)[:3]
    block = encoded(qwen, rows)
    text = [
        {
            **row,
            "messages": [
                {**m, "content": "What do you see?"} if isinstance(m["content"], list) else m for m in row["messages"]
            ],
        }
        for row in rows
    ]
    alone = encoded(qwen, text)
    for row, plain in zip(block.rows, alone.rows, strict=True):
        assert row.token_ids[row.loss_mask == 1].tolist() == plain.token_ids[plain.loss_mask == 1].tolist()
        assert [role for _, role in row.turns] == [role for _, role in plain.turns]


def test_a_row_is_cut_before_an_image_never_inside(qwen: Path, target: HfTarget) -> None:
    rows = image_rows(sorted((qwen / "images").iterdir()))[1:2]
    whole = encoded(qwen, rows).rows[0]
    image = whole.token_ids.tolist().index(max(whole.token_ids[whole.loss_mask == 0].tolist()))
    first_end = image + int((whole.token_ids == whole.token_ids[image]).sum())
    lengths = (image - 1, image + 1, image + 3, first_end + 2, first_end + 3)
    cut = [encoded(qwen, rows, length).rows[0] for length in lengths]
    for length, row in zip(lengths, cut, strict=True):
        assert len(row) <= length
        assert row.token_ids.tolist() == whole.token_ids[: len(row)].tolist()
        aux_SC, _ = target.capture([tokens_of(row)])[0]  # the target itself counts tokens and features
        assert len(aux_SC) == len(row)
    assert {len(row.images) for row in cut} == {0, 1, 2}


def test_the_text_may_not_hold_what_stands_for_an_image(qwen: Path) -> None:
    image = {"type": "image", "image": str(qwen / "images" / "0.png")}
    answer = {"role": "assistant", "content": "A hill."}
    said = ["an <|image_pad|>", "a <|video_pad|>"]
    rows = [
        {"messages": [{"role": "user", "content": [image, {"type": "text", "text": text}]}, answer]} for text in said
    ]
    reasons = [reason for _, _, reason in encoded(qwen, rows).rejected]
    assert reasons[0] == "the text has 2 of <|image_pad|> for 1 images"
    assert reasons[1].startswith("the target's processor refuses the images: Found 1 <|video_pad|>")


def test_layers_that_get_images_later_are_avoided_or_read_behind_them(qwen: Path, target: HfTarget) -> None:
    """Qwen3-VL adds images to the outputs of its first layers: what servers read there is the next layer's input."""
    config = json.loads((qwen / "target" / "config.json").read_text())
    assert DraftConfig.from_target(config).aux_layers == chosen_aux_layers(config) == (2, 3, 4)
    row = encoded(qwen, image_rows(sorted((qwen / "images").iterdir()))[:1]).rows[0]
    inputs: list[torch.Tensor] = []
    with ExitStack() as stack:
        for layer in target.layers[1:4]:
            hook = layer.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
            stack.callback(hook.remove)
        aux_SC, _ = replace(target, aux_layers=(0, 1, 2)).capture([tokens_of(row)])[0]
    torch.testing.assert_close(aux_SC, torch.cat(inputs, -1)[0], rtol=0, atol=0)


def test_an_image_that_changed_stops_the_pass(qwen: Path, target: HfTarget, tmp_path: Path) -> None:
    image = write_images(tmp_path / "images")[0]
    row = encoded(qwen, image_rows([image] * 3)[:1]).rows[0]
    (tmp_path / "images" / "1.png").replace(image)
    with fails("row-images"):
        target.capture([tokens_of(row)])


def test_what_does_not_show_images_refuses_them() -> None:
    refuse_images([[1, 2]], "x")
    with fails("images-unsupported"):
        refuse_images([[1, 2], ImageTokens.of([1, 2], ())], "SGLang")
