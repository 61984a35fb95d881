"""The frozen target through transformers: any Llama- or Qwen-like causal LM, its auxiliary and last hidden states.

Only the decoder runs here; the head is applied by whoever needs logits, and only on the rows it needs.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from eagle3cli.backends.logits import Head, make_head
from eagle3cli.backends.positions import cached
from eagle3cli.errors import ModelError, UsageError
from eagle3cli.models.config import default_aux_layers
from eagle3cli.runtime.report import Reporter
from eagle3cli.settings.tables import Target

MIN_SHARED = 8
"""Tokens from which on a common beginning is worth its own pass."""
ARGMAX_CHUNK = 512
"""Rows of full-vocabulary logits that exist at once."""


@dataclass(frozen=True)
class HfTarget:
    """A loaded target; ``decoder`` ends with the final norm, ``head`` maps its output to logits."""

    model: PreTrainedModel
    head: Head
    aux_layers: tuple[int, ...]
    path: str

    @property
    def decoder(self) -> nn.Module:
        """The model without its head."""
        found = self.model.base_model
        assert isinstance(found, nn.Module)
        return found

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's layers."""
        found = self.decoder.layers
        assert isinstance(found, nn.ModuleList)
        return found

    @property
    def embedding_VH(self) -> Tensor:
        """Weight of the input embedding, ``[V, H]``."""
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, Tensor)
        return weight.detach()

    @property
    def final_norm_H(self) -> Tensor:
        """Weight of the norm before the head, ``[H]``."""
        norm = self.decoder.norm
        assert isinstance(norm, nn.Module)
        assert isinstance(norm.weight, Tensor)
        return norm.weight.detach()

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return self.embedding_VH.shape[1]

    @property
    def vocab_size(self) -> int:
        """Rows of the head."""
        return len(self.head)

    @property
    def device(self) -> torch.device:
        """Where the target is."""
        return self.embedding_VH.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.embedding_VH.dtype

    @contextmanager
    def tapping(self) -> Iterator[dict[int, Tensor]]:
        """Within the block every forward pass leaves the outputs of the auxiliary layers in the dict."""
        taps: dict[int, Tensor] = {}

        def keep(layer: int) -> Any:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                taps[layer] = output[0] if isinstance(output, tuple) else output

            return hook

        with ExitStack() as stack:
            for layer in self.aux_layers:
                handle = self.layers[layer].register_forward_hook(keep(layer))
                stack.callback(handle.remove)
            yield taps

    @torch.no_grad()
    def capture(self, sequences: Sequence[Sequence[int] | npt.NDArray[np.int32]]) -> list[tuple[Tensor, Tensor]]:
        """Auxiliary states ``[S, A*H]`` and last hidden states ``[S, H]`` of each sequence.

        The sequences are padded on the right to the longest one; give sequences of similar length.
        """
        ids = [torch.tensor(s, dtype=torch.long, device=self.device) for s in sequences]
        shared = shared_prefix(sequences)
        with self.tapping() as taps:
            if shared < MIN_SHARED:
                last_BSH = self.decoder(
                    input_ids=pad_sequence(ids, batch_first=True), use_cache=False
                ).last_hidden_state
                aux_BSC = self._tapped(taps)
            else:
                # A system prompt that all rows begin with is run once.
                cache = DynamicCache(config=self.model.config)
                first = self.decoder(input_ids=ids[0][None, :shared], use_cache=True, **cached(self.decoder, cache))
                first_aux = self._tapped(taps)
                cache.batch_repeat_interleave(len(ids))
                rest = pad_sequence([s[shared:] for s in ids], batch_first=True)
                out = self.decoder(input_ids=rest, use_cache=True, **cached(self.decoder, cache))
                last_BSH = _after(first.last_hidden_state, out.last_hidden_state)
                aux_BSC = _after(first_aux, self._tapped(taps))
        return [(aux_BSC[b, : len(s)], last_BSH[b, : len(s)]) for b, s in enumerate(ids)]

    def _tapped(self, taps: dict[int, Tensor]) -> Tensor:
        return torch.cat([taps[layer] for layer in self.aux_layers], dim=-1)

    @torch.no_grad()
    def top_tokens(self, last_RH: Tensor) -> Tensor:
        """The most likely next token over the whole vocabulary, ``[R]``, in chunks of rows."""
        found = [self.head(part).argmax(-1) for part in last_RH.split(ARGMAX_CHUNK)]
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.long, device=last_RH.device)


def shared_prefix(sequences: Sequence[Sequence[int] | npt.NDArray[np.int32]]) -> int:
    """How many tokens all sequences begin with, at least one short of the shortest; 0 for a single one."""
    if len(sequences) < 2:
        return 0
    limit = min(len(s) for s in sequences) - 1
    first = sequences[0]
    return next((at for at in range(limit) if any(s[at] != first[at] for s in sequences)), limit)


def _after(prefix_1PX: Tensor, rest_BSX: Tensor) -> Tensor:
    return torch.cat((prefix_1PX.expand(len(rest_BSX), -1, -1), rest_BSX), 1)


def read_target_config(target: Target) -> dict[str, Any]:
    """The target's ``config.json`` as a dict; raises a ModelError that says what is wrong with the folder."""
    if not target.model_path:
        raise UsageError("no target model", where="--target-model-path", fix="give a folder or a hub id")
    try:
        config = AutoConfig.from_pretrained(
            target.model_path, revision=target.revision, trust_remote_code=target.trust_remote_code
        )
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise model_error(target.model_path, error) from error
    found: dict[str, Any] = config.to_dict()
    return found


def model_error(path: str, error: Exception) -> ModelError:
    """Turn what transformers says about a model that it cannot load into one short message."""
    folder = Path(path)
    if folder.exists() and not (folder / "config.json").exists():
        return ModelError(
            "this folder holds no model: no config.json", where=path, fix="give a transformers model folder"
        )
    if not folder.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        return ModelError("no such folder", where=path, fix="check --target-model-path")
    said = str(error).strip().splitlines()
    reason = said[0] if said else type(error).__name__
    if not folder.exists():
        fix = "check the name; without network, give a local folder or put the model into the hub cache first"
        return ModelError(f"cannot be found on the hub or in its cache ({reason})", where=path, fix=fix)
    return ModelError(f"transformers cannot load it: {reason}", where=path)


def load_target(target: Target, report: Reporter, aux_layers: tuple[int, ...] | None = None) -> HfTarget:
    """Load the frozen target; ``aux_layers`` defaults to EAGLE-3's choice for its depth."""
    config = read_target_config(target)
    device = pick_device(target.device)
    dtype = _dtype(target.dtype, device, config)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            target.model_path,
            revision=target.revision,
            trust_remote_code=target.trust_remote_code,
            dtype=dtype,
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise model_error(target.model_path, error) from error
    model = model.eval().requires_grad_(False)
    torch.nn.Module.to(model, device)
    gc.collect()
    depth = len(model.base_model.layers)
    layers = aux_layers or default_aux_layers(depth)
    if max(layers) >= depth:
        raise UsageError(f"the target has layers 0 to {depth - 1}, not {max(layers)}", where="--aux-layers")
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    shape = f"{millions:.0f}M parameters, {dtype}, {device}, aux layers {list(layers)}"
    report.info(f"target {target.model_path}, backend hf ({target.backend}): {shape}")
    return HfTarget(model=model, head=_head(model), aux_layers=layers, path=target.model_path)


def _head(model: PreTrainedModel) -> Head:
    """The model's head, as its family applies it."""
    linear = model.get_output_embeddings()
    bias = getattr(linear, "bias", None)
    return make_head(model.config.to_dict(), linear.weight.detach(), None if bias is None else bias.detach())


def pick_device(name: str) -> torch.device:
    """The device that a setting names; auto takes a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"no such device: {name}", where="--device", fix="use cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("torch sees no CUDA device", where="--device", fix="use --device cpu, or see eagle3 doctor")
    return device


def _dtype(name: str, device: torch.device, config: dict[str, Any]) -> torch.dtype:
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if device.type == "cpu":
        return torch.float32
    said = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    return getattr(torch, said, torch.bfloat16)
