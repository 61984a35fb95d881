"""SpecForge's own EAGLE-3 training on a hidden-state store of ours, for a curve of acceptance over CPU minutes.

Run it with the Python of an environment that holds SpecForge, with this repository on PYTHONPATH:

    PYTHONPATH=. VENV/bin/python tests/speed/acceptance/train_specforge.py --store cache/hidden_states/train \
        --target TARGET --output runs/specforge --minutes 7 --ttt 3 --lr 1e-3

Model, loss, optimiser and learning-rate schedule are SpecForge's classes; rows, order, batch size and draft vocabulary
are those of the store. After each minute of CPU time it writes a folder that `eagle3 eval` measures.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import specforge.algorithms.eagle3.model as eagle3
import specforge.core.loss as losses
import torch
from safetensors.torch import save_file
from specforge.modeling.draft.llama3_eagle import LlamaForCausalLMEagle3
from specforge.modeling.target.target_head import TargetHead
from specforge.optimizer import BF16Optimizer
from specforge.runtime.contracts import TrainBatch
from specforge.training.strategies.base import Eagle3TrainStrategy
from transformers import LlamaConfig

from eagle3cli.backends.batches.store import StoreSource
from eagle3cli.backends.target.head import read_target_tensors
from eagle3cli.data.hidden_states.store import Store
from eagle3cli.models.config import EAGLE31_FLAGS, DraftConfig
from eagle3cli.runtime.devices import set_threads


class PlainLoss:
    """SpecForge's plain-torch loss; its kernel needs a GPU."""

    @staticmethod
    def apply(logits: torch.Tensor, target_p: torch.Tensor, position_mask: torch.Tensor) -> Any:
        """The loss of a depth."""
        return losses._compute_loss(logits, target_p, position_mask)


def arguments() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--target", required=True, help="folder of the target")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=7.0, help="of CPU time; the schedule ends with it")
    parser.add_argument("--ttt", type=int, default=7)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def make_config(store: Store, target: str) -> DraftConfig:
    """The draft that our trainer would make for this target and vocabulary."""
    raw = json.loads((Path(target) / "config.json").read_text())
    return DraftConfig.from_target(raw, draft_vocab_size=store.vocab.size, aux_layers=store.meta.aux_layers)


def make_strategy(config: DraftConfig, store: Store, target: str, a: argparse.Namespace) -> Any:
    """SpecForge's strategy around its model and the target's frozen head."""
    dtype = torch.float32 if a.dtype == "fp32" else torch.bfloat16
    dropped = ("architectures", "torch_dtype", "dtype", "eagle_config", "pad_token_id", *EAGLE31_FLAGS)
    kept = {k: v for k, v in config.to_sglang().items() if k not in dropped}
    draft = LlamaForCausalLMEagle3(LlamaConfig(**kept, pad_token_id=None), attention_backend="sdpa")
    draft.t2d.copy_(store.vocab.t2d)
    draft.d2t.copy_(store.vocab.d2t)
    weights = read_target_tensors(target)
    draft.embed_tokens.weight.data.copy_(weights["embedding"])
    draft.freeze_embedding()
    draft = draft.to(dtype)
    head = TargetHead.__new__(TargetHead)  # its __init__ only adds a config file read
    torch.nn.Module.__init__(head)
    head.fc = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
    head.fc.weight.data.copy_(weights["head"])
    head.freeze_weights()
    model = eagle3.OnlineEagle3Model(draft, length=a.ttt, attention_backend="sdpa")
    return Eagle3TrainStrategy(model, target_head=head.eval().to(dtype)), draft


def padded(source: StoreSource, rows: list[int], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A batch as SpecForge's collator makes it: padded right, the last row of each sample without loss."""
    batch = source.batch(rows)
    sizes = [end - begin for begin, end in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True)]
    cut = [slice(begin, end) for begin, end in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True)]

    def pad(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence([values[part] for part in cut], batch_first=True)

    mask = pad(batch.loss_mask_N.long())
    for row, size in enumerate(sizes):
        mask[row, size - 1] = 0
    return {
        "input_ids": pad(batch.token_ids_N),
        "loss_mask": mask,
        "attention_mask": pad(torch.ones(len(batch.token_ids_N), dtype=torch.long)),
        "hidden_state": pad(batch.aux_NC.to(dtype)),
        "target": pad(batch.last_NH.to(dtype)),
    }


def save(folder: Path, draft: Any, config: DraftConfig) -> None:
    """A folder that `eagle3 eval` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().contiguous() for k, v in draft.state_dict().items() if not k.startswith("embed_tokens")}
    save_file(state, folder / "model.safetensors")
    raw = {**config.to_sglang(), "torch_dtype": str(state["fc.weight"].dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(raw))


def main() -> None:
    """Train, saving once a minute."""
    a = arguments()
    eagle3.LogSoftmaxLoss = PlainLoss
    set_threads(a.threads)
    torch.manual_seed(a.seed)
    store = Store(a.store)
    source, config = StoreSource(store, device=torch.device("cpu")), make_config(store, a.target)
    strategy, draft = make_strategy(config, store, a.target, a)
    dtype, generator = draft.fc.weight.dtype, torch.Generator().manual_seed(a.seed)
    spent, step, written, total = 0.0, 0, 0, 0
    optimizer: Any = None
    order: list[int] = []
    while spent < 60 * a.minutes:
        if len(order) < a.batch_size:
            order = torch.randperm(len(store), generator=generator).tolist()
        rows, order = order[: a.batch_size], order[a.batch_size :]
        begun = time.process_time()
        if optimizer is None or (step == 3 and total == 0):
            # The schedule needs the number of steps that fit: known after three.
            total = int(60 * a.minutes / (spent / 3)) if step == 3 else 0
            optimizer = BF16Optimizer(draft, lr=a.lr, max_grad_norm=0.5, total_steps=total or 1000, warmup_ratio=0.015)
        metadata = {"target_repr": "hidden_state"}
        tensors = padded(source, rows, dtype)
        out = strategy.forward_loss(TrainBatch(sample_ids=[], strategy="eagle3", tensors=tensors, metadata=metadata))
        out.loss.backward()
        optimizer.step()
        spent += time.process_time() - begun
        step += 1
        if spent >= 60 * (written + 1) or spent >= 60 * a.minutes:
            written += 1
            save(a.output / f"minute_{written}", draft, config)
            line = {"minute": written, "cpu_seconds": round(spent, 1), "steps": step, "loss": round(float(out.loss), 4)}
            print(json.dumps(line), flush=True)


main()
