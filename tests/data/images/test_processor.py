"""Which targets' processors are used; the others refuse rows with images, saying why."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from eagle3cli.data.images.processor import Expansion, ImageProcessor, has_processor
from tests.failing import fails
from tests.tiny import tiny_tokenizer


def test_places_in_a_text_whose_placeholders_have_grown() -> None:
    expansion = Expansion("a[xxxx]b[xx]c", (((1, 2), (1, 7)), ((3, 4), (8, 12))))  # it was a*b*c
    assert [expansion.place(at) for at in range(6)] == [0, 1, 7, 8, 12, 13]


def test_a_target_of_text_alone_refuses_images(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    assert not has_processor(str(tmp_path))
    with fails("images-unsupported"):
        ImageProcessor(str(tmp_path)).expand("x", ())


def test_what_the_hub_says_of_images_is_fetched_with_the_first_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def download(model: str, name: str, revision: str | None = None) -> str:
        asked.append((name, revision))
        if name == "processor_config.json":
            raise FileNotFoundError(name)
        (tmp_path / name).write_text('{"image_mean": [0.5]}')
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    assert not has_processor("someone/model", "v2")
    assert not asked
    for _ in range(2):
        assert has_processor("someone/model", "v2", fetch=True)
    assert asked == [("processor_config.json", "v2"), ("preprocessor_config.json", "v2")]


def write_llava(folder: Path) -> None:
    pytest.importorskip("torchvision", reason="needs torchvision")
    import transformers

    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    images = transformers.CLIPImageProcessor()
    processor = transformers.LlavaProcessor(images, tokenizer, patch_size=14, vision_feature_select_strategy="default")
    processor.save_pretrained(folder)


def test_a_processor_that_is_not_known_is_named(tmp_path: Path) -> None:
    write_llava(tmp_path)
    with fails("images-unsupported", "Qwen2.5-VL", "Qwen3-VL"):
        ImageProcessor(str(tmp_path)).expand("<image>", ())


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_llava(tmp_path)
    import transformers

    def broken(*_: Any, **__: Any) -> None:
        raise ImportError("no torchvision")

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchvision" else find(name))
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", broken)
    with fails("missing-package", "eagle3"):
        ImageProcessor(str(tmp_path)).expand("<image>", ())
