"""Reads one parity fixture and lays it out as a packed batch; everything comes from its JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from eagle3cli.models.config import DraftConfig
from eagle3cli.models.draft import Draft

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    info: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.info["dtype"]]

    @property
    def depths(self) -> int:
        return int(self.info["ttt_length"])

    def draft(self) -> Draft:
        raw = self.info["draft_config"]
        config = DraftConfig.from_dict({**raw, "torch_dtype": self.info["dtype"]}, aux_layers=(1, 3, 5))
        draft = Draft(config)
        draft.load_state_dict(
            {k[6:]: v for k, v in self.tensors.items() if k.startswith("param.") and "embed" not in k}
        )
        return draft.cast(self.dtype)

    def packed(self) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[int, ...]]:
        """Token ids, mask, aux and last states; each sequence gets one zero token, where its last row's teacher is."""
        ids, masks, aux, last, bounds = [], [], [], [], [0]
        for k, length in enumerate(self.info["batch"]["lengths"]):
            ids.append(torch.cat([self.tensors["batch.input_ids"][k, :length], torch.zeros(1, dtype=torch.long)]))
            masks.append(
                torch.cat([self.tensors["batch.loss_mask"][k, :length].bool(), torch.zeros(1, dtype=torch.bool)])
            )
            for store, name in ((aux, "batch.hidden_state"), (last, "batch.target")):
                states = self.tensors[name][k, :length]
                store.append(torch.cat([states, torch.zeros_like(states[:1])]))
            bounds.append(bounds[-1] + length + 1)
        return torch.cat(ids), torch.cat(masks), torch.cat(aux), torch.cat(last), tuple(bounds)


def read_case(path: Path) -> Case:
    return Case(json.loads(path.read_text()), load_file(path.with_suffix(".safetensors")))
