"""Tiny random targets that take images, of the real classes of models and processors, and rows with images for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.families import COMMON, FAMILIES, MROPE, QWEN_TOWER, ROUTED, TOWER
from tests.tiny import tiny_tokenizer

VOCAB = 336
QWEN_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}"
    "<|im_end|>\n{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}"
    "Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% endif %}"
)
"""Qwen2.5-VL's, without its branch of videos."""
GEMMA_TEMPLATE = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}"
    "{%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}"
    "{%- set loop_messages = messages[1:] -%}{%- else -%}{%- set first_user_prefix = '' -%}"
    "{%- set loop_messages = messages -%}{%- endif -%}{%- for message in loop_messages -%}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate') }}{%- endif -%}"
    "{%- if (message['role'] == 'assistant') -%}{%- set role = 'model' -%}{%- else -%}"
    "{%- set role = message['role'] -%}{%- endif -%}"
    "{{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else '') }}"
    "{%- if message['content'] is string -%}{{ message['content'] | trim }}"
    "{%- elif message['content'] is iterable -%}{%- for item in message['content'] -%}"
    "{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}{%- elif item['type'] == 'text' -%}"
    "{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}{%- else -%}"
    "{{ raise_exception('Invalid content type') }}{%- endif -%}{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
"""Gemma 3's."""
QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
GEMMA_TOKENS = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")
TURN_TOKENS = ("<start_of_turn>", "<end_of_turn>")
HEADER_TOKENS = ("<|header_start|>", "<|header_end|>", "<|eot|>")
LLAMA_TOKENS = (
    *("<|image|>", "<|image_start|>", "<|image_end|>", "<|patch|>", "<|tile_x_separator|>", "<|tile_y_separator|>"),
)
FAMILIES_WITH_IMAGES = ("qwen2.5-vl", "qwen3-vl", "qwen3-vl-moe", "gemma3", "llama4")


def image_target(folder: Path, name: str, seed: int = 0) -> Path:
    """Write a random target of a family with its processor to ``folder``; returns ``folder``. Skips the test where a
    package is missing."""
    pytest.importorskip("PIL", reason="needs pillow")
    pytest.importorskip("torchvision", reason="needs torchvision")
    import torch
    import transformers

    if not hasattr(transformers.ProcessorMixin, "get_text_with_replacements"):
        pytest.skip(f"transformers {transformers.__version__} does not say what images are replaced by")
    processor, config, model_class = _MAKERS[name]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config).float()
        for parameter in model.parameters():  # biases and norms that are zeros and ones would show nothing
            if parameter.ndim == 1:
                parameter.data.add_(torch.randn_like(parameter) * 0.2)
    model.generation_config.eos_token_id = [2]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_images(folder: Path) -> list[Path]:
    """Three images of unlike shapes, of noise."""
    pytest.importorskip("PIL", reason="needs pillow")
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    paths = []
    for number, (height, width) in enumerate(((60, 40), (30, 90), (56, 56))):
        paths.append(folder / f"{number}.png")
        Image.fromarray(generator.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(paths[-1])
    return paths


def image_rows(images: list[Path]) -> list[dict[str, Any]]:
    """Rows as people write them: OpenAI's parts, transformers' parts, a column with placeholders, and text alone."""
    reply = {"role": "assistant", "content": "You call sorted on the list."}
    text = {"type": "text", "text": "What do you see?"}
    url = {"type": "image_url", "image_url": {"url": images[0].as_uri()}}
    named = {"type": "image", "image": str(images[1])}
    return [
        {"id": "openai", "messages": [{"role": "user", "content": [url, text]}, reply]},
        {"id": "two", "messages": [{"role": "user", "content": [text, named, url]}, reply]},
        {
            "id": "later",
            "messages": [{"role": "user", "content": "Hello."}, reply, {"role": "user", "content": [named]}, reply],
        },
        {
            "id": "column",
            "image": f"{images[2].parent.name}/{images[2].name}",
            "conversations": [
                {"from": "human", "value": "<image>\nHow many hills?"},
                {"from": "gpt", "value": "Rain fell on the hills."},
            ],
        },
        {"id": "plain", "messages": [{"role": "user", "content": "How do I sort a list?"}, reply]},
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def in_parts(row: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The row as transformers' processors take it."""
    if "image" in row:
        question, answer = (message["value"] for message in row["conversations"])
        image = {"type": "image", "image": str(folder / row["image"])}
        asked = [image, {"type": "text", "text": question.removeprefix("<image>\n")}]
        return [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
    return [{"role": message["role"], "content": list(map(own_part, _listed(message)))} for message in row["messages"]]


def _listed(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def own_part(part: dict[str, Any]) -> dict[str, Any]:
    """A part as transformers names it."""
    if part["type"] != "image_url":
        return part
    return {"type": "image", "image": part["image_url"]["url"].removeprefix("file://")}


def _tokenizer(tokens: tuple[str, ...], template: str) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    tokenizer.chat_template = template
    return tokenizer


def _qwen(name: str) -> tuple[Any, Any, Any]:
    import transformers
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    third = name.startswith("Qwen3VL")
    tokenizer = _tokenizer(QWEN_TOKENS, QWEN_TEMPLATE)
    ids = tokenizer.convert_tokens_to_ids(list(QWEN_TOKENS))
    patch = 16 if third else 14
    size = {"shortest_edge": patch * patch * 4, "longest_edge": patch * patch * 24}
    images = Qwen2VLImageProcessor(patch_size=patch, size=size)
    videos = transformers.Qwen3VLVideoProcessor() if third else transformers.Qwen2VLVideoProcessor()
    tower = {**QWEN_TOWER, "patch_size": patch}
    own = {"deepstack_visual_indexes": [0, 1], "depth": 2} if third else {"fullatt_block_indexes": [0]}
    config = getattr(transformers, f"{name}Config")(
        text_config={**COMMON, **(ROUTED if "Moe" in name else {}), "vocab_size": VOCAB, "rope_parameters": MROPE},
        vision_config={**tower, **own},
        **dict(
            zip(("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id"), ids, strict=True)
        ),
    )
    processor = getattr(transformers, f"{name.removesuffix('Moe')}Processor")(
        images, tokenizer, videos, chat_template=tokenizer.chat_template
    )
    return processor, config, getattr(transformers, f"{name}ForConditionalGeneration")


def _gemma() -> tuple[Any, Any, Any]:
    import transformers

    tokenizer = _tokenizer(GEMMA_TOKENS + TURN_TOKENS, GEMMA_TEMPLATE)
    named = dict(zip(("boi_token", "eoi_token", "image_token"), GEMMA_TOKENS, strict=True))
    backend = tokenizer.backend_tokenizer
    template = tokenizer.chat_template
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<end_of_turn>",
        pad_token="<|endoftext|>",
        extra_special_tokens=named,
    )
    tokenizer.chat_template = template
    images = transformers.Gemma3ImageProcessor(size={"height": 28, "width": 28})
    processor = transformers.Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=4)
    config = transformers.Gemma3Config(
        text_config={**COMMON, **FAMILIES["gemma3"][1], "vocab_size": VOCAB},
        vision_config=TOWER,
        mm_tokens_per_image=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
    )
    return processor, config, transformers.Gemma3ForConditionalGeneration


def _llama() -> tuple[Any, Any, Any]:
    import transformers
    from transformers.models.llama4.image_processing_llama4 import Llama4ImageProcessor
    from transformers.models.llama4.processing_llama4 import chat_template

    tokenizer = _tokenizer(LLAMA_TOKENS + HEADER_TOKENS, chat_template)
    images = Llama4ImageProcessor(size={"height": 28, "width": 28}, max_patches=4)
    processor = transformers.Llama4Processor(images, tokenizer, patch_size=14, chat_template=tokenizer.chat_template)
    width = {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
    config = transformers.Llama4Config(
        text_config={**COMMON, **FAMILIES["llama4"][1], "vocab_size": VOCAB},
        vision_config={**TOWER, **width, "intermediate_size": 128},
        image_token_index=tokenizer.convert_tokens_to_ids("<|patch|>"),
    )
    return processor, config, transformers.Llama4ForConditionalGeneration


_MAKERS: dict[str, Any] = {
    "qwen2.5-vl": lambda: _qwen("Qwen2_5_VL"),
    "qwen3-vl": lambda: _qwen("Qwen3VL"),
    "qwen3-vl-moe": lambda: _qwen("Qwen3VLMoe"),
    "gemma3": _gemma,
    "llama4": _llama,
}
