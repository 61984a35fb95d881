"""The frozen target through SGLang's own model runner, in this process: no server, no HTTP, no copy of a state.

SGLang captures auxiliary layers itself and hands over what its head reads. Its prefix cache is off and every batch
starts from empty pools, so that a state never depends on an earlier batch. This is the one file that knows SGLang's
insides; they change between versions, so the version is checked before anything is loaded.
"""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eagle3cli.backends.target.group import world_of_neighbours
from eagle3cli.backends.target.head import read_target_tensors
from eagle3cli.backends.target.hf import pick_device, pick_dtype, read_target_config
from eagle3cli.backends.target.logits import Head, make_head
from eagle3cli.backends.target.target import States, Tokens, refuse_images
from eagle3cli.errors import ModelError, UsageError
from eagle3cli.models.aux_layers import default_aux_layers, text_part
from eagle3cli.runtime.cpus import available_cpus
from eagle3cli.runtime.packages import installed_version
from eagle3cli.runtime.report import Reporter
from eagle3cli.settings.models import TargetSettings

VERSIONS = ("0.5.23",)
"""Versions of SGLang whose insides this file knows."""
MODEL_TYPES = frozenset(
    {
        *("llama", "llama4_text", "mistral", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gpt_oss"),
        *("deepseek_v2", "deepseek_v3", "glm4_moe", "minimax_m2", "apertus"),
    }
)
"""Model types (of the text part) whose auxiliary layers that version captures as they are."""
WITHOUT_RESIDUAL = frozenset({"gemma3_text"})
"""Those of which it captures the last sum of a layer without the residual stream (seen in 0.5.23)."""
ROWS = 64
"""Sequences of one pass."""
CPU_TOKENS = 16384
"""Tokens of one pass on a CPU, where SGLang does not measure the memory for it."""
CPU_SHARE = 0.8
"""Of the memory there: SGLang's own guess is made for machines with far more of it, and falls below zero."""
PROBE = (3, 17, 5, 40)
TOLERANCE = 0.05


@dataclass(frozen=True)
class SglangTarget:
    """A target that SGLang has loaded."""

    runner: Any
    embedding_VH: Tensor
    head: Head
    aux_layers: tuple[int, ...]
    path: str

    @property
    def device(self) -> torch.device:
        """Where states are."""
        return self.embedding_VH.device

    @torch.no_grad()
    def capture(self, sequences: Sequence[Tokens]) -> States:
        """Auxiliary states ``[S, C]`` and last hidden states ``[S, H]`` of each sequence."""
        refuse_images(sequences, "SGLang inside this process")
        states: States = []
        for part in split_to_fit(sequences, int(self.runner.max_total_num_tokens), int(self.runner.page_size)):
            out = extend(self.runner, part)
            lengths = [len(ids) for ids in part]
            states += zip(out.hidden_states.split(lengths), out.last_hidden_states.split(lengths), strict=True)
        return states


def refuse_unknown_version() -> None:
    """Raise UsageError where SGLang is absent or of a version that this file does not know."""
    version = installed_version("sglang")
    if version in VERSIONS:
        return
    what = f"SGLang {version} is installed; running inside it is known to work with {' or '.join(VERSIONS)}"
    fix = f"pip install sglang=={VERSIONS[-1]}, or use --target-model-backend hf"
    raise UsageError(
        "missing-package",
        what if version else "SGLang is not installed",
        where="--target-model-backend sglang",
        fix=fix,
    )


def split_to_fit(sequences: Sequence[Tokens], tokens: int, page: int) -> Iterator[list[Tokens]]:
    """The sequences in parts that the pools hold; raises ModelError for one that no part holds."""
    part: list[Tokens] = []
    used = 0  # tokens, in whole pages
    for ids in sequences:
        size = -(-len(ids) // page) * page
        if size > tokens:
            what = f"a row of {len(ids)} tokens; SGLang has room for {tokens}"
            raise ModelError(
                "out-of-memory", what, where="target", fix="lower --max-length or raise --sglang-mem-fraction-static"
            )
        if part and (used + size > tokens or len(part) == ROWS):
            yield part
            part = []
            used = 0
        part.append(ids)
        used += size
    if part:
        yield part


def extend(runner: Any, sequences: Sequence[Tokens]) -> Any:
    """One prefill of these sequences, as SGLang's output; the pools are empty before and after."""
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.sampling.sampling_params import SamplingParams
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    requests = []
    for number, ids in enumerate(sequences):
        request = Req(
            rid=str(number),
            origin_input_text="",
            origin_input_ids=array("q", (int(token) for token in ids)),
            sampling_params=SamplingParams(temperature=0, max_new_tokens=1),
            return_hidden_states=True,
        )
        request.full_untruncated_fill_ids = request.origin_input_ids
        request.logprob_start_len = -1
        request.extend_end = len(ids)
        requests.append(request)
    batch = ScheduleBatch.init_new(
        reqs=requests,
        req_to_token_pool=runner.req_to_token_pool,
        token_to_kv_pool_allocator=runner.token_to_kv_pool_allocator,
        tree_cache=_tree_cache(runner),
        model_config=runner.model_config,
        enable_overlap=False,
        spec_algorithm=SpeculativeAlgorithm.NONE,
    )
    batch.prepare_for_extend()
    if batch.input_ids is None:
        batch.input_ids = batch.prefill_input_ids_cpu.to(batch.device, non_blocking=True)
        batch.prefill_input_ids_cpu = None
    try:
        prepared = ForwardBatch.init_new(batch, runner, return_hidden_states_before_norm=False)
        return runner.forward(prepared).logits_output
    finally:
        runner.req_to_token_pool.clear()
        runner.token_to_kv_pool_allocator.clear()


def load_sglang(target: TargetSettings, report: Reporter, aux_layers: tuple[int, ...] | None = None) -> SglangTarget:
    """Load the target into SGLang; each ``tp_size`` neighbouring ranks have one, and each of these a share of it.

    Raises UsageError for a version of SGLang that is not known, ModelError for a model that SGLang cannot capture.
    """
    refuse_unknown_version()
    config = read_target_config(target)
    depth = int(text_part(config)["num_hidden_layers"])
    aux_layers = aux_layers or default_aux_layers(depth)
    if max(aux_layers) >= depth - 1:
        # SGLang captures a layer's output as the next layer's input.
        what = f"SGLang captures the outputs of layers 0 to {depth - 2}, not {max(aux_layers)}"
        raise UsageError(
            "aux-layers", what, where="--aux-layers", fix="choose lower layers, or use --target-model-backend hf"
        )
    device = pick_device(target.device)
    dtype = pick_dtype(target.dtype, device, config)
    with world_of_neighbours(target.tp_size):
        try:
            runner = _load_runner(target, aux_layers, device, dtype)
        except UsageError:
            raise
        except Exception as error:  # whatever SGLang's insides raise about a model
            reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            fix = "use --target-model-backend hf, or see the whole error with --debug"
            raise ModelError(
                "unsupported-engine", f"SGLang cannot run it here: {reason}", where=target.model_path, fix=fix
            ) from error
        embedding_VH, head = _embedding_and_head(runner, target, config, dtype)
        loaded = SglangTarget(runner, embedding_VH, head, aux_layers, target.model_path)
        _check_logits(loaded)  # here, because the first pass still makes things of the ranks: workspaces of its sums
    shape = f"{dtype}, {device}, {int(runner.max_total_num_tokens):,} tokens of cache, aux layers {list(aux_layers)}"
    report.info(f"target {target.model_path}, backend sglang {installed_version('sglang')}: {shape}")
    for warning in state_warnings(runner.model, text_part(config)):
        report.warn(warning)
    return loaded


def state_warnings(model: Any, text: dict[str, Any]) -> Iterator[str]:
    """Where SGLang's states are those of its own server, and not what transformers says."""
    kind = str(text.get("model_type"))
    window = text.get("sliding_window") or 0
    if kind in WITHOUT_RESIDUAL:
        yield f"SGLang hands the draft of a {kind} target its layers' last sums alone: such a draft fits SGLang only"
    slides = text.get("use_sliding_window", True) and 0 < window < (text.get("max_position_embeddings") or 0)
    if slides and not hasattr(model, "get_attention_sliding_window_size"):
        yield f"SGLang runs {kind} without its sliding window of {window} tokens"


def _load_runner(target: TargetSettings, aux_layers: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Any:
    """SGLang's model runner with the weights loaded and its pools made."""
    if device.type == "cpu":
        os.environ["SGLANG_USE_CPU_ENGINE"] = "1"  # read when SGLang is imported
        _share_cores(int(os.environ.get("LOCAL_WORLD_SIZE", target.tp_size)))
    logging.getLogger("sglang").setLevel(logging.ERROR)  # it names every model file that it cannot import
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.distributed import bootstrap
    from sglang.srt.layers.moe import initialize_moe_config
    from sglang.srt.layers.quantization.fp4_utils import initialize_fp4_gemm_config
    from sglang.srt.layers.quantization.fp8_utils import initialize_fp8_gemm_config
    from sglang.srt.layers.quantization.unquant import initialize_bf16_gemm_config
    from sglang.srt.model_executor.model_runner import ModelRunner
    from sglang.srt.runtime_context import SpawnRanks, publish, spawn_world_rank
    from sglang.srt.server_args import PortArgs

    rank, gpu = _rank(target, device)
    arguments = _arguments(target, aux_layers, device, dtype)
    ports = PortArgs.init_new(arguments)
    world = spawn_world_rank(arguments, tp_rank=rank, pp_rank=0)
    publish(arguments, role="scheduler", ranks=SpawnRanks(world_rank=world, gpu_id=gpu))
    for begin in (
        initialize_moe_config, initialize_fp8_gemm_config, initialize_bf16_gemm_config, initialize_fp4_gemm_config
    ):  # fmt: skip
        begin()
    model_config = ModelConfig.from_server_args(arguments)
    bootstrap.init_parallel_runtime(server_args=arguments, device=device.type, dist_port=ports.nccl_port)
    bootstrap.init_layer_runtime(model_config=model_config)
    runner = ModelRunner(
        model_config=model_config,
        mem_fraction_static=resolving_view(arguments).mem_fraction_static,
        gpu_id=gpu,
        nccl_port=ports.nccl_port,
        server_args=arguments,
    )
    inner: Any = getattr(runner.model, "model", None)
    if hasattr(inner, "layers_to_capture"):
        # Some families take the numbers as they are unless the first is 1; what is meant is always the layer's output.
        inner.layers_to_capture = [layer + 1 for layer in aux_layers]
    runner.alloc_memory_pool()
    runner.init_attention_backends()
    runner.init_cuda_graphs()
    return runner


def _share_cores(ranks: int) -> None:
    """Tell SGLang the cores of each rank, several of which share one where there are fewer; its own rule wants a
    memory node for each."""
    cores = available_cpus()
    each = len(cores) // ranks
    if ranks > 1:
        shares = [cores[rank * each : (rank + 1) * each] or [cores[rank % len(cores)]] for rank in range(ranks)]
        binding = "|".join(f"{share[0]}-{share[-1]}" for share in shares)
        os.environ.setdefault("SGLANG_CPU_OMP_THREADS_BIND", binding)


def _arguments(target: TargetSettings, aux_layers: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Any:
    """SGLang's arguments for prefills alone: no prefix cache, no graphs of decoding steps, no chunks."""
    from sglang.srt.server_args import ServerArgs

    where: dict[str, Any] = {"device": device.type, "mem_fraction_static": target.mem_fraction_static}
    if device.type == "cpu":
        # Both halves by name: SGLang replaces a plain attention backend in silence on some processors.
        where |= {"prefill_attention_backend": "intel_amx", "decode_attention_backend": "intel_amx"}
        where |= {"max_total_tokens": CPU_TOKENS, "mem_fraction_static": target.mem_fraction_static or CPU_SHARE}
    arguments = ServerArgs(
        model_path=target.model_path,
        revision=target.revision,
        trust_remote_code=target.trust_remote_code,
        dtype=str(dtype).removeprefix("torch."),
        tp_size=target.tp_size,
        skip_tokenizer_init=True,
        disable_radix_cache=True,
        disable_overlap_schedule=True,
        chunked_prefill_size=-1,
        max_running_requests=ROWS,
        cuda_graph_backend_decode="disabled",
        cuda_graph_backend_prefill="disabled",
        enable_return_aux_hidden_states=True,
        speculative_algorithm="EAGLE3",  # names the convention of the layers' numbers; no draft is loaded
        return_aux_hidden_state_layer_ids=list(aux_layers),
        log_level="error",
        **where,
    )
    arguments.resolve_once()
    return arguments


def _rank(target: TargetSettings, device: torch.device) -> tuple[int, int]:
    """This process's tensor-parallel rank, and its GPU."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size % target.tp_size:
        fix = f"start them with --gpus {target.tp_size}, or torchrun --nproc-per-node {target.tp_size} -m eagle3cli ..."
        raise UsageError(
            "process-count", f"needs {target.tp_size} processes; there are {world_size}", where="--tp-size", fix=fix
        )
    return int(os.environ.get("RANK", "0")) % target.tp_size, int(os.environ.get("LOCAL_RANK", device.index or 0))


def _tree_cache(runner: Any) -> Any:
    """What stands for the prefix cache: it only has room to give."""
    from sglang.benchmark.one_batch import TreeCacheNamespace
    from sglang.srt.runtime_context import get_schedule

    return TreeCacheNamespace(
        page_size=get_schedule().page_size,
        device=runner.device,
        token_to_kv_pool_allocator=runner.token_to_kv_pool_allocator,
    )


def _embedding_and_head(
    runner: Any, target: TargetSettings, config: dict[str, Any], dtype: torch.dtype
) -> tuple[Tensor, Head]:
    """Embedding and head: SGLang's own where it holds them whole, else from the files."""
    vocab = int(text_part(config)["vocab_size"])
    if target.tp_size == 1 and hasattr(runner.model, "get_embed_and_head"):
        embedding, head = (weight.detach()[:vocab] for weight in runner.model.get_embed_and_head())
        bias = getattr(getattr(runner.model, "lm_head", None), "bias", None)
        if head.is_floating_point() and head.element_size() > 1:  # else it is quantised
            return embedding, make_head(config, head, None if bias is None else bias.detach()[:vocab])
    tensors = {
        name: tensor.to(torch.device(runner.device), dtype)
        for name, tensor in read_target_tensors(target.model_path, revision=target.revision).items()
    }
    return tensors["embedding"], make_head(config, tensors["head"], tensors.get("head_bias"))


@torch.no_grad()
def _check_logits(target: SglangTarget) -> None:
    """One short pass: our head on what SGLang hands over must give SGLang's own logits."""
    out = extend(target.runner, [[n % len(target.head) for n in PROBE]])
    aux_SC = out.hidden_states
    last_SH = out.last_hidden_states
    name = type(target.runner.model).__name__
    shape = (len(PROBE), len(target.aux_layers) * target.embedding_VH.shape[1])
    if last_SH is None or aux_SC is None or tuple(aux_SC.shape) != shape:
        raise ModelError(
            "unsupported-engine",
            f"SGLang's {name} captures no auxiliary layers",
            where=target.path,
            fix="use --backend hf",
        )
    expected = out.next_token_logits[0].float()
    logits = target.head(last_SH[-1:])[0].float()
    if (logits - expected[: len(logits)]).abs().max() > TOLERANCE * expected.abs().max():
        what = f"SGLang's {name} makes its logits in a way that eagle3 does not know"
        raise ModelError("unsupported-engine", what, where=target.path, fix="use --target-model-backend hf")
