"""What ``eagle3cli.backends.target.sglang`` uses of SGLang 0.5.23, with transformers in place of its kernels.

It is as particular as the real one about processes: its world is torch's default process group, which must have
exactly ``tp_size`` members, and the groups of its ranks are made from it. With several ranks every pass is their sum,
so a group of other members, or members with other rows, gives other states or an error.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

TOKENS = 4096
_published: dict[str, Any] = {}
_groups: dict[str, Any] = {}


class ServerArgs:
    """Takes whatever the real one is given."""

    def __init__(self, **options: Any) -> None:
        vars(self).update(options)
        print(f"sglang was given mem_fraction_static {self.mem_fraction_static}", file=sys.stderr)

    def resolve_once(self) -> None:
        """Nothing to resolve."""


@dataclass
class SpawnRanks:
    """This process's place."""

    world_rank: int
    gpu_id: int


def publish(arguments: Any, *, role: str, ranks: SpawnRanks) -> None:
    """Remember the place that groups are made for."""
    assert role == "scheduler"
    _published.update(arguments=arguments, ranks=ranks)


def init_parallel_runtime(*, server_args: Any, device: str, dist_port: int) -> None:
    """As ``init_distributed_environment`` and ``initialize_model_parallel``: the default group is all there is."""
    size = server_args.tp_size
    rank = _published["ranks"].world_rank
    if not dist.is_initialized():
        init_method = f"tcp://127.0.0.1:{dist_port}"
        dist.init_process_group("gloo", init_method=init_method, world_size=size, rank=rank)
    if dist.get_world_size() != size:
        raise RuntimeError(f"world_size ({dist.get_world_size()}) is not equal to tensor_model_parallel_size ({size})")
    assert (dist.get_rank(), "tp" in _groups) == (rank, False)
    ranks = list(range(size))
    for name in ("world", "tp"):
        _groups[name] = dist.new_group(ranks, backend="gloo")
        _groups[f"{name}:cpu"] = dist.new_group(ranks, backend="gloo")
    members: list[Any] = [None] * size
    dist.all_gather_object(members, int(os.environ.get("RANK", "0")), group=_groups["tp:cpu"])
    print(f"sglang of ranks {members}", file=sys.stderr)


class ModelRunner:
    """A transformers model that leaves the states of the layers that it was told."""

    def __init__(self, *, server_args: Any, **_: Any) -> None:
        self.arguments = server_args
        self.model = AutoModelForCausalLM.from_pretrained(server_args.model_path, dtype=server_args.dtype).eval()
        self.model.get_embed_and_head = self._embed_and_head
        self.max_total_num_tokens = TOKENS
        self.page_size = 1
        self.device = "cpu"
        self.model_config = self.req_to_token_pool = self.token_to_kv_pool_allocator = Pool()

    def _embed_and_head(self) -> tuple[Any, Any]:
        return self.model.get_input_embeddings().weight, self.model.get_output_embeddings().weight

    def alloc_memory_pool(self) -> None:
        """No pool."""

    def init_attention_backends(self) -> None:
        """None to begin."""

    def init_cuda_graphs(self) -> None:
        """None either."""

    def forward(self, batch: Any) -> Any:
        """Auxiliary and last states of all tokens side by side, and the last token's logits of each sequence."""
        aux, last, logits = [], [], []
        for request in batch.reqs:
            ids = torch.tensor([list(request.origin_input_ids)])
            out = self.model(input_ids=ids, output_hidden_states=True, use_cache=False)
            layers = [out.hidden_states[n + 1][0] for n in self.arguments.return_aux_hidden_state_layer_ids]
            aux.append(torch.cat(layers, -1))
            last.append(out.hidden_states[-1][0])
            logits.append(out.logits[0, -1])
        states = (_of_all_ranks(torch.cat(aux)), _of_all_ranks(torch.cat(last)))
        output = SimpleNamespace(
            hidden_states=states[0], last_hidden_states=states[1], next_token_logits=torch.stack(logits)
        )
        return SimpleNamespace(logits_output=output)


def _of_all_ranks(states: torch.Tensor) -> torch.Tensor:
    """The sum of what the ranks of the group have, a share from each."""
    size = _published["arguments"].tp_size
    if size == 1:
        return states
    if "rank" not in _groups:  # as the workspaces of its kernels, which the first pass makes
        _groups["rank"] = dist.get_rank(_groups["tp"])
    rank = _groups["rank"]
    mine = torch.zeros_like(states)
    mine[:, rank::size] = states[:, rank::size]
    dist.all_reduce(mine, group=_groups["tp"])
    return mine


class Pool:
    """Stands for the pools, and for what else is only handed around."""

    def clear(self) -> None:
        """Empty already."""

    @classmethod
    def from_server_args(cls, _: Any) -> Pool:
        """No config either."""
        return cls()


class ScheduleBatch:
    """Sequences on their way."""

    def __init__(self, reqs: list[Any]) -> None:
        self.reqs = reqs
        self.input_ids = torch.zeros(1)

    @classmethod
    def init_new(cls, *, reqs: list[Any], **_: Any) -> ScheduleBatch:
        """A batch of these."""
        return cls(reqs)

    def prepare_for_extend(self) -> None:
        """Nothing to prepare."""


@dataclass
class Req:
    """One sequence."""

    origin_input_ids: Any
    rid: str = ""
    origin_input_text: str = ""
    sampling_params: Any = None
    return_hidden_states: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


def _anything(*_: Any, **__: Any) -> Any:
    return SimpleNamespace(page_size=1)


MODULES: dict[str, dict[str, Any]] = {
    "benchmark.one_batch": {"TreeCacheNamespace": SimpleNamespace},
    "srt.arg_groups.overrides": {"resolving_view": lambda arguments: arguments},
    "srt.configs.model_config": {"ModelConfig": Pool},
    "srt.distributed": {
        "bootstrap": SimpleNamespace(init_parallel_runtime=init_parallel_runtime, init_layer_runtime=_anything)
    },
    "srt.layers.moe": {"initialize_moe_config": _anything},
    "srt.layers.quantization.fp4_utils": {"initialize_fp4_gemm_config": _anything},
    "srt.layers.quantization.fp8_utils": {"initialize_fp8_gemm_config": _anything},
    "srt.layers.quantization.unquant": {"initialize_bf16_gemm_config": _anything},
    "srt.managers.schedule_batch": {"Req": Req, "ScheduleBatch": ScheduleBatch},
    "srt.model_executor.forward_batch_info": {"ForwardBatch": SimpleNamespace(init_new=lambda batch, *_, **__: batch)},
    "srt.model_executor.model_runner": {"ModelRunner": ModelRunner},
    "srt.runtime_context": {
        "SpawnRanks": SpawnRanks,
        "publish": publish,
        "spawn_world_rank": lambda _, *, tp_rank, pp_rank: tp_rank,
        "get_schedule": _anything,
    },
    "srt.sampling.sampling_params": {"SamplingParams": SimpleNamespace},
    "srt.server_args": {
        "ServerArgs": ServerArgs,
        "PortArgs": SimpleNamespace(init_new=lambda _: SimpleNamespace(nccl_port=29871)),
    },
    "srt.speculative.spec_info": {"SpeculativeAlgorithm": SimpleNamespace(NONE=None)},
}
for _path, _names in MODULES.items():
    _parts = _path.split(".")
    for _end in range(1, len(_parts) + 1):
        _name = ".".join(["sglang", *_parts[:_end]])
        sys.modules.setdefault(_name, ModuleType(_name))
    vars(sys.modules[f"sglang.{_path}"]).update(_names)
