"""A target's own processor: how many placeholder tokens an image has in a prompt, and what the target reads of it.

It is loaded when the first image comes: rows of text alone never wait for it.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from eagle3cli.data.images.reference import INSTALL, ImageRef
from eagle3cli.errors import DataError, ModelError

KNOWN = {
    "Qwen2_5_VLProcessor": "Qwen2.5-VL",
    "Qwen3VLProcessor": "Qwen3-VL",
    "Gemma3Processor": "Gemma 3",
    "Llama4Processor": "Llama 4",
}
"""Processors whose targets' states are compared with transformers' own, and the models that they are of."""
FILES = ("processor_config.json", "preprocessor_config.json")
TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")
"""Names under which a target is told which tokens are an image's."""
PACKAGES = {"pillow": "PIL", "torchvision": "torchvision"}
"""By the names to install them by: the modules that processors import."""
OF_TEXT = ("input_ids", "attention_mask", *TOKEN_TYPES)


@dataclass(frozen=True)
class Expansion:
    """A text whose images have all their tokens; ``spans`` say of each image where its placeholder stood, and where
    what stands for it now is."""

    text: str
    spans: tuple[tuple[tuple[int, int], tuple[int, int]], ...]

    def place(self, position: int) -> int:
        """Where a character of the text before is now; one inside a placeholder is where that begins."""
        shift = 0
        for (start, end), (new_start, new_end) in self.spans:
            if position <= start:
                break
            if position < end:
                return new_start
            shift = new_end - end
        return position + shift


@dataclass(frozen=True)
class ImageProcessor:
    """The processor of a target. Raises DataError, which refuses a row, where the target takes no images, takes them in
    a way that is not known, or a package is missing that it needs."""

    model_path: str
    revision: str | None = None
    trust_remote_code: bool = False

    def expand(self, text: str, images: Sequence[ImageRef]) -> Expansion:
        """The text of a prompt, with a placeholder for each image, as the target reads it."""
        processor = self._processor
        placeholder = processor.image_token
        if (count := text.count(placeholder)) != len(images):
            raise DataError("row-images", f"the text has {count} of {placeholder} for {len(images)} images")
        try:
            out = processor(
                text=[text],
                images=[image.open() for image in images],
                add_special_tokens=False,
                return_text_replacement_offsets=True,
            )
        except (ValueError, TypeError, RuntimeError, StopIteration, IndexError) as error:
            raise DataError("bad-image", f"the target's processor refuses the images: {_line(error)}") from error
        replaced = out["text_replacement_offsets"][0]
        spans = tuple((tuple(one["span"]), tuple(one["new_span"])) for one in replaced if one["type"] == "image")
        places = [(0, 0), *(old for old, _ in spans), (len(text), len(text))]
        parts = [text[end:start] for (_, end), (start, _) in pairwise(places)]
        self._check_text(parts, [one["replacement"] for one in replaced])
        whole = "".join(a + b for a, b in zip(parts, [*(one["replacement"] for one in replaced), ""], strict=True))
        return Expansion(whole, spans)

    def _check_text(self, parts: Sequence[str], replacements: Sequence[str]) -> None:
        """Raise DataError where the text itself holds a token that stands for an image."""
        tokens = [token.content for token in self._processor.tokenizer.added_tokens_decoder.values() if token.special]
        inside = {token for token in tokens if any(token in text for text in replacements)}
        said = next((token for token in sorted(inside) if any(token in part for part in parts)), None)
        if said is not None:
            raise DataError("row-images", f"the text holds {said}, which stands for an image")

    def model_inputs(self, token_ids: Sequence[int], images: Sequence[ImageRef]) -> dict[str, Any]:
        """What the target reads beside the tokens of one row, as tensors for a batch of one; raises DataError for an
        image that is not what it was."""
        processor = self._processor
        out = processor(
            text=["".join([processor.image_token] * len(images))],
            images=[image.open() for image in images],
            return_tensors="pt",
            return_mm_token_type_ids=True,
        )
        inputs = {name: value for name, value in out.items() if name not in OF_TEXT}
        name = next((name for name in TOKEN_TYPES if name in out), None)
        if name is not None:
            import torch

            inputs[name] = torch.tensor(processor.create_mm_token_type_ids([list(token_ids)]))
        return inputs

    @property
    def image_token_ids(self) -> frozenset[int]:
        """Tokens that an image's features take the place of, as far as the processor tells."""
        return frozenset(int(i) for i in self._processor.image_token_ids if i is not None)

    @cached_property
    def _processor(self) -> Any:
        if not has_processor(self.model_path, self.revision, fetch=True):
            raise DataError("images-unsupported", "the row has images, and the target takes text alone")
        processor = _load(self.model_path, self.revision, self.trust_remote_code)
        name = type(processor).__name__
        if name not in KNOWN:
            known = ", ".join(KNOWN.values())
            raise DataError(
                "images-unsupported", f"the row has images, and how {name} shows them is not known (known: {known})"
            )
        if not hasattr(processor, "get_text_with_replacements"):
            import transformers

            raise DataError(
                "package-too-old",
                f"rows with images need a newer transformers; {transformers.__version__} is installed",
            )
        return processor


def has_processor(model_path: str, revision: str | None = None, *, fetch: bool = False) -> bool:
    """Whether a model folder, or what was downloaded of a model of the hub, says how images are prepared; with
    ``fetch`` what says so is downloaded."""
    folder = Path(model_path).expanduser()
    if folder.is_dir():
        return any(_names_images(folder / name) for name in FILES)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = [try_to_load_from_cache(model_path, name, revision=revision) for name in FILES]
    except HFValidationError:  # a folder that is not there: who loads the tokenizer says so
        return False
    files = [file for file in found if isinstance(file, str)]
    if fetch and not files:
        files = _fetched(model_path, revision)
    return any(_names_images(Path(file)) for file in files)


@lru_cache(maxsize=1)
def _fetched(model_path: str, revision: str | None) -> list[str]:
    """Those of the files that the hub has; it is asked once, whatever it says."""
    from huggingface_hub import hf_hub_download

    files: list[str] = []
    for name in FILES:
        with suppress(OSError, ValueError):  # no such file, no such model, or no network
            files.append(hf_hub_download(model_path, name, revision=revision))
    return files


def _names_images(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and any("image" in key for key in content)


def _load(model_path: str, revision: str | None, trust_remote_code: bool) -> Any:
    missing = [name for name, module in PACKAGES.items() if importlib.util.find_spec(module) is None]
    try:
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(model_path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        if missing:
            raise DataError("missing-package", f"rows with images need {' and '.join(missing)} ({INSTALL})") from error
        raise ModelError(
            "unloadable-target", f"cannot load the processor of images: {_line(error)}", where=model_path
        ) from error


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
