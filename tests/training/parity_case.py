"""Reads one parity fixture and lays it out as a packed batch; everything comes from its JSON."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from eagle3cli.models.config import DraftConfig
from eagle3cli.models.draft import Draft
from eagle3cli.training.ttt.loss import LossSums, LossWeights

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

    def weights(self, rates: LossSums | None, kept: list[int]) -> LossWeights:
        """Weights of the loss's terms; ``rates`` holds those of a first pass, which the mix needs."""
        rows = self.info["batch"]["B"] * self.info["batch"]["S"]
        decay = [self.info["ploss_decay"] ** i for i in range(self.depths)]
        zeros = [0.0] * self.depths
        per_row = [d / n if n else 0.0 for d, n in zip(decay, kept, strict=True)]
        kind = self.info["loss"]["lk_loss_type"]
        if rates is None or kind is None:
            return LossWeights([d / rows for d in decay], zeros, zeros)
        if kind == "alpha":
            return LossWeights(zeros, zeros, per_row)
        mix = self._mix(rates, kept)
        kl = [k * d / rows for k, d in zip(mix, decay, strict=True)]
        return LossWeights(kl, [(1 - k) * w for k, w in zip(mix, per_row, strict=True)], zeros)

    def plosses(self, sums: LossSums, kept: list[int]) -> list[float]:
        """Loss of every depth."""
        rows = self.info["batch"]["B"] * self.info["batch"]["S"]
        kl = [float(x) / rows for x in sums.loss_T]
        kind = self.info["loss"]["lk_loss_type"]
        if kind is None:
            return kl
        if kind == "alpha":
            return [-float(x) / max(1, n) for x, n in zip(sums.log_rate_T, kept, strict=True)]
        mean = [float(x) / max(1, n) for x, n in zip(sums.rate_T, kept, strict=True)]
        return [k * a + (1 - k) * (1 - r) for k, a, r in zip(self._mix(sums, kept), kl, mean, strict=True)]

    def total(self, plosses: list[float]) -> float:
        """The weighted sum over depths."""
        return sum(self.info["ploss_decay"] ** i * loss for i, loss in enumerate(plosses))

    def constant(self, kept: list[int]) -> float:
        """What depths without a counted row add to the total: their mean rate is 0, so a mix still holds 1 - k."""
        if self.info["loss"]["lk_loss_type"] != "lambda":
            return 0.0
        left = 1 - self.info["loss"]["kl_scale"]
        return self.total([0.0 if n else left for n in kept])

    def _mix(self, sums: LossSums, kept: list[int]) -> list[float]:
        loss = self.info["loss"]
        means = [float(x) / max(1, n) for x, n in zip(sums.rate_T, kept, strict=True)]
        return [loss["kl_scale"] * math.exp(-loss["kl_decay"] * mean) for mean in means]

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
