"""The frozen target through transformers: any causal LM, its auxiliary and last hidden states.

Only the decoder runs here; the head is applied by whoever needs logits, and only on the rows it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, DynamicCache, PreTrainedModel

from eagle3cli.backends.target.hf_load import embedding_and_head, load_model, placement
from eagle3cli.backends.target.llama4_tower import Llama4Tower
from eagle3cli.backends.target.logits import Head
from eagle3cli.backends.target.packed import packed_inputs, packed_kernels
from eagle3cli.backends.target.padding import CPU_PASS_TOKENS, PASS_TOKENS, similar_lengths
from eagle3cli.backends.target.positions import NoCache, cached, keeps_positions, with_attention
from eagle3cli.backends.target.prompt import PromptReader, last_states, side_by_side
from eagle3cli.backends.target.structure import decoder_of
from eagle3cli.backends.target.target import States, Tokens
from eagle3cli.data.images.processor import ImageProcessor
from eagle3cli.data.images.tokens import ImageTokens
from eagle3cli.errors import ModelError, UsageError
from eagle3cli.models.aux_layers import deepstack_layers, default_aux_layers
from eagle3cli.runtime.devices import to_device
from eagle3cli.runtime.report import Reporter
from eagle3cli.settings.models import TargetSettings

MIN_SHARED = 8
"""Tokens from which on a common beginning is worth its own pass."""
LONGEST_SHARED = 8192
"""Tokens of a sequence up to which it is: the pass behind it needs a mask of its tokens by all of theirs, and keys and
values of all layers are kept for it."""
WORTH_SHARING = 8
"""On a GPU a common beginning is worth its own pass where it saves at least one token of this many."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PROBE = (3, 17, 5, 40)
BESIDE = (40, 3, 17, 5, 17, 3)
"""A row beside it."""
TOLERANCE = 0.05
"""Of the largest logit, for a target in bfloat16; a factor or a cap that is missed changes far more."""

NEEDS_TRANSFORMERS_5 = ("falcon_h1",)
"""Model types whose states are those of the model only with a transformers newer than the oldest that is allowed."""


@dataclass(frozen=True)
class HfTarget:
    """A loaded target; ``decoder`` ends with the final norm, ``head`` maps its output to logits."""

    model: PreTrainedModel
    decoder: nn.Module
    """The text model without its head."""
    layers: nn.ModuleList
    embedding_VH: Tensor
    head: Head
    aux_layers: tuple[int, ...]
    path: str
    packed: str | None = None
    """The attention implementation that runs rows of unlike length without padding; None: they are padded."""
    deepstack: int = 0
    """The first layers to whose outputs a multi-modal model adds features of images."""
    image_processor: ImageProcessor | None = None
    """What makes inputs of images; None for a target of text alone."""
    tower: Llama4Tower | None = None
    """What makes features of images, where ``model`` is the text model alone."""

    @property
    def reader(self) -> PromptReader:
        """What ``model`` reads of a row, with or without images."""
        return PromptReader(self.model, self.device, self.dtype, self.image_processor, self.tower, self.path)

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
        """Where the target takes tokens and leaves states."""
        return self.embedding_VH.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.embedding_VH.dtype

    @contextmanager
    def recording(self) -> Iterator[dict[int, Tensor]]:
        """Within the block every forward pass leaves the outputs of the auxiliary layers in the dict."""
        outputs: dict[int, Tensor] = {}

        def hook_of(layer: int) -> Any:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                outputs[layer] = mean_stream(output[0] if isinstance(output, tuple) else output)

            return hook

        def input_hook_of(layer: int) -> Any:
            """What images add behind a layer is in the next one's input: there servers read it, too."""

            def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
                outputs[layer] = args[0] if args else kwargs["hidden_states"]

            return hook

        with ExitStack() as stack:
            for layer in self.aux_layers:
                if layer < self.deepstack and layer + 1 < len(self.layers):
                    handle = self.layers[layer + 1].register_forward_pre_hook(input_hook_of(layer), with_kwargs=True)
                else:
                    handle = self.layers[layer].register_forward_hook(hook_of(layer))
                stack.callback(handle.remove)
            yield outputs

    @torch.no_grad()
    def capture(self, sequences: Sequence[Tokens]) -> States:
        """Auxiliary states ``[S, C]`` and last hidden states ``[S, H]`` of each sequence.

        They run without padding where the model can, else as several passes over sequences of similar length.
        """
        pictured = [at for at, tokens in enumerate(sequences) if isinstance(tokens, ImageTokens)]
        if pictured:
            return self._capture_mixed(sequences, frozenset(pictured))
        on_cpu = self.device.type == "cpu"
        if self.packed is not None and (on_cpu or not self._shared(sequences)):
            return self.capture_packed(sequences, self.packed)
        return self._by_length(sequences, self.capture_padded)

    def _capture_mixed(self, sequences: Sequence[Tokens], pictured: frozenset[int]) -> States:
        """The same, of which those that are ``pictured`` have images; the others run as they would among themselves."""
        plain = [tokens for at, tokens in enumerate(sequences) if at not in pictured]
        states = iter(self.capture(plain) if plain else [])
        shown = iter(self._by_length([sequences[at] for at in sorted(pictured)], self.capture_with_images))
        return [next(shown) if at in pictured else next(states) for at in range(len(sequences))]

    def _by_length(self, sequences: Sequence[Tokens], run: Callable[[Sequence[Tokens]], States]) -> States:
        """The states by several passes, each over sequences of similar length."""
        padding = CPU_PASS_TOKENS if self.device.type == "cpu" else PASS_TOKENS
        states = dict[int, tuple[Tensor, Tensor]]()
        for group in similar_lengths([len(ids) for ids in sequences], max_padding=padding):
            states |= zip(group, run([sequences[at] for at in group]), strict=True)
        return [states[at] for at in range(len(sequences))]

    @torch.no_grad()
    def capture_with_images(self, sequences: Sequence[Tokens]) -> States:
        """The same of rows with images by one pass of the whole model, with its tower and positions of its own, padded
        on the right. Raises DataError for an image that is not what it was."""
        arguments = side_by_side([self.reader.read(tokens).arguments for tokens in sequences])
        with self.recording() as outputs, last_states(self.decoder) as last:
            self.model(use_cache=False, logits_to_keep=1, **arguments)
        aux_BSC = torch.cat([outputs[n].to(self.device) for n in self.aux_layers], dim=-1)
        last_BSH = last[0].to(self.device)
        return [(aux_BSC[b, : len(tokens)], last_BSH[b, : len(tokens)]) for b, tokens in enumerate(sequences)]

    @torch.no_grad()
    def capture_padded(self, sequences: Sequence[Tokens]) -> States:
        """The same by one pass, padded on the right to the longest sequence."""
        ids = [torch.tensor(s, dtype=torch.long) for s in sequences]
        shared = self._shared(sequences)
        begin_1P = to_device(ids[0][None, :shared], self.device)
        ids_BS = to_device(pad_sequence([s[shared:] for s in ids], batch_first=True), self.device)
        with self.recording() as outputs:
            if not shared:
                aux_BSC, last_BSH = self._forward(outputs, ids_BS, use_cache=False, **self._unwatched())
            else:
                # A system prompt that all rows begin with is run once.
                cache = DynamicCache(config=self.model.config)
                past = {"use_cache": True, **cached(self.decoder, cache)}
                first = self._forward(outputs, begin_1P, **past)
                cache.batch_repeat_interleave(len(ids))
                rest = self._forward(outputs, ids_BS, **past)
                aux_BSC, last_BSH = (_concat(prefix, end) for prefix, end in zip(first, rest, strict=True))
        return [(aux_BSC[b, : len(s)], last_BSH[b, : len(s)]) for b, s in enumerate(ids)]

    @torch.no_grad()
    def capture_packed(self, sequences: Sequence[Tokens], implementation: str) -> States:
        """The same by one pass without padding; raises what an ``implementation`` raises that cannot.

        On a CPU what all begin with is run once.
        """
        shared = self._shared(sequences) if self.device.type == "cpu" else 0
        inputs = packed_inputs(sequences, self.device, shared)
        with self.recording() as outputs, with_attention(self.model, implementation):
            aux_1NC, last_1NH = self._forward(outputs, inputs.pop("input_ids"), **inputs)
        lengths = [len(ids) - shared for ids in sequences]
        parts_of = (states_1NX[0].split([shared, *lengths]) for states_1NX in (aux_1NC, last_1NH))
        states = ([torch.cat((first, own)) for own in rest] if shared else list(rest) for first, *rest in parts_of)
        return list(zip(*states, strict=True))

    def _unwatched(self) -> dict[str, Any]:
        """What keeps transformers from reading values back in a pass without a cache; a CPU has them anyway."""
        quick = self.device.type == "cuda" and keeps_positions(self.model)
        return cached(self.decoder, NoCache()) if quick else {}

    def _shared(self, sequences: Sequence[Tokens]) -> int:
        """Tokens of a common beginning that is worth its own pass, else 0."""
        shared = shared_prefix(sequences) if keeps_positions(self.model) else 0
        if self.device.type == "cpu":
            return shared if shared >= MIN_SHARED else 0
        least = max(PASS_TOKENS, sum(map(len, sequences)) // WORTH_SHARING)
        return shared if (len(sequences) - 1) * shared >= least else 0

    def _forward(self, outputs: dict[int, Tensor], ids_BS: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """Auxiliary and last hidden states of one forward pass."""
        last: Tensor = self.decoder(input_ids=ids_BS, **options).last_hidden_state
        # Layers may be spread over devices.
        return torch.cat([outputs[n].to(self.device) for n in self.aux_layers], dim=-1), last.to(self.device)


def mean_stream(states: Tensor) -> Tensor:
    """A layer's output ``[B, S, H]``: of streams side by side ``[B, S, streams, H]`` (hyper-connections, DeepSeek-V4)
    the mean, which is what vLLM hands a draft."""
    return states.mean(2) if states.ndim == 4 else states


def shared_prefix(sequences: Sequence[Tokens]) -> int:
    """How many tokens all sequences begin with, at least one short of the shortest; 0 for a single one, and where one
    is longer than LONGEST_SHARED."""
    if len(sequences) < 2 or max(map(len, sequences)) > LONGEST_SHARED:
        return 0
    limit = min(len(s) for s in sequences) - 1
    first = sequences[0]
    return next((at for at in range(limit) if any(s[at] != first[at] for s in sequences)), limit)


def _concat(prefix_1PX: Tensor, rest_BSX: Tensor) -> Tensor:
    return torch.cat((prefix_1PX.expand(len(rest_BSX), -1, -1), rest_BSX), 1)


def read_target_config(target: TargetSettings) -> dict[str, Any]:
    """The target's ``config.json`` as a dict; raises a ModelError that says what is wrong with the folder."""
    config: dict[str, Any] = read_auto_config(target).to_dict()
    return config


def read_auto_config(target: TargetSettings) -> Any:
    """The target's config as transformers reads it."""
    if not target.model_path:
        raise UsageError(
            "missing-target", "no target model", where="--target-model-path", fix="give a folder or a hub id"
        )
    try:
        return AutoConfig.from_pretrained(
            target.model_path, revision=target.revision, trust_remote_code=target.trust_remote_code
        )
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise model_error(target.model_path, error) from error


def model_error(path: str, error: Exception) -> ModelError:
    """Turn what transformers says about a model that it cannot load into one short message."""
    folder = Path(path)
    if folder.exists() and not (folder / "config.json").exists():
        what = "this folder holds no model: no config.json"
        return ModelError("not-a-model", what, where=path, fix="give a transformers model folder")
    if not folder.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        return ModelError("no-such-path", "no such folder", where=path, fix="check --target-model-path")
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if not folder.exists():
        fix = "check the name; without network, give a local folder or put the model into the hub cache first"
        what = f"cannot be found on the hub or in its cache ({reason})"
        return ModelError("hub-unreachable", what, where=path, fix=fix)
    return ModelError("unloadable-target", f"transformers cannot load it: {reason}", where=path)


def load_target(target: TargetSettings, report: Reporter, aux_layers: tuple[int, ...] | None = None) -> HfTarget:
    """Load the frozen target; ``aux_layers`` defaults to EAGLE-3's choice for its depth.

    Raises ModelError where the head's logits would not be the model's own.
    """
    config = read_auto_config(target)
    _refuse_old_transformers(config)
    device = pick_device(target.device)
    dtype = pick_dtype(target.dtype, device, config.to_dict())
    try:
        model = load_model(target, config, device, dtype, report)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise model_error(target.model_path, error) from error
    decoder, layers = decoder_of(model)
    aux_layers = aux_layers or default_aux_layers(len(layers))
    if max(aux_layers) >= len(layers):
        raise UsageError(
            "aux-layers", f"the target has layers 0 to {len(layers) - 1}, not {max(aux_layers)}", where="--aux-layers"
        )
    embedding_VH, head = embedding_and_head(model, target, dtype)
    loaded = HfTarget(
        model,
        decoder,
        layers,
        embedding_VH,
        head,
        aux_layers,
        target.model_path,
        deepstack=deepstack_layers(config.to_dict()),
        image_processor=ImageProcessor(target.model_path, target.revision, target.trust_remote_code),
        tower=Llama4Tower(target.model_path, config, target.revision) if config.model_type == "llama4" else None,
    )
    check_logits(loaded)
    if device.type in ("cpu", "cuda") and not target.spreads:
        loaded = replace(loaded, packed=packed_kernel(loaded, device.type))
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    shape = f"{millions:.0f}M parameters, {dtype}, {placement(model, device)}, aux layers {list(aux_layers)}"
    if loaded.packed is not None:
        shape += f", rows packed by {loaded.packed}"
    report.info(f"target {target.model_path}, backend hf: {shape}")
    return loaded


def _refuse_old_transformers(config: Any) -> None:
    """Raise ModelError for a model that transformers 4 runs in a way that is not known here."""
    if transformers.__version__.startswith("4.") and config.model_type in NEEDS_TRANSFORMERS_5:
        what = f"{config.model_type} needs transformers 5; {transformers.__version__} is installed"
        raise ModelError("package-too-old", what, where="target.model_path", fix="pip install 'transformers>=5'")


@torch.no_grad()
def check_logits(target: HfTarget) -> None:
    """One short pass: our head on the last hidden states must give the logits that the model itself gives."""
    ids = [n % len(target.head) for n in PROBE]
    with target.recording() as outputs:
        expected = target.model(input_ids=torch.tensor([ids], device=target.device), use_cache=False).logits[0].float()
    _, last_SH = target.capture([ids])[0]
    name = type(target.model).__name__
    shape = (1, len(ids), last_SH.shape[1])
    if any(tuple(output.shape) != shape for output in outputs.values()):
        raise ModelError(
            "unloadable-target", f"the layers of {name} put out something else than hidden states", where=target.path
        )
    logits = target.head(last_SH).float().to(expected.device)
    if (logits - expected).abs().max() > TOLERANCE * expected.abs().max():
        what = f"{name} makes its logits in a way that eagle3 does not know: a factor, or a step before the head"
        raise ModelError("unloadable-target", what, where=target.path, fix="report its name, with its config.json")


def packed_kernel(target: HfTarget, device: str) -> str | None:
    """The first attention implementation of a type of device with which packed rows get the states that each has
    alone."""
    # On a CPU behind a beginning that they share: a model that masks packed rows itself does not show it to the second.
    begin = (PROBE + BESIDE)[:MIN_SHARED] if device == "cpu" else ()
    rows = [[n % len(target.head) for n in (*begin, *ids)] for ids in (PROBE, BESIDE)]
    alone = [torch.cat(target.capture_padded([ids])[0], -1) for ids in rows]
    for implementation in packed_kernels(target.model, device):
        try:
            states = target.capture_packed(rows, implementation)
        except (ImportError, TypeError, ValueError, RuntimeError):  # no such kernel for this torch, type or head size
            continue
        if all(map(_equal_states, alone, (torch.cat(of_row, -1) for of_row in states))):
            return implementation
    return None


def _equal_states(expected_SX: Tensor, states_SX: Tensor) -> bool:
    """Token by token, as some have states a thousand times as large as the others'."""
    distance_S = (states_SX.float() - expected_SX.float()).norm(dim=-1)
    return bool((distance_S <= TOLERANCE * expected_SX.float().norm(dim=-1)).all())


def pick_device(name: str) -> torch.device:
    """The device that a setting names; auto takes a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            "no-such-device", f"no such device: {name}", where="--device", fix="use cpu, cuda or cuda:N"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "no-such-device",
            "torch sees no CUDA device",
            where="--device",
            fix="use --device cpu, or see eagle3 doctor",
        )
    return device


def pick_dtype(name: str, device: torch.device, config: dict[str, Any]) -> torch.dtype:
    """The type that a setting names; auto is float32 on a CPU, else the checkpoint's own."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cpu":
        return torch.float32
    name = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    return getattr(torch, name, torch.bfloat16)
