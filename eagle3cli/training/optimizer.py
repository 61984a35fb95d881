"""AdamW on fp32 master weights with a clip of the global gradient norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.999)
EPS = 1e-8


class Optimizer:
    """AdamW(0.9, 0.999, weight decay 0); weights that are not fp32 get an fp32 master copy.

    ``scales`` multiplies the learning rate of the parameters whose name starts with the key.
    """

    def __init__(
        self, named: list[tuple[str, nn.Parameter]], *, max_grad_norm: float, scales: dict[str, float] | None = None
    ) -> None:
        self.max_grad_norm = max_grad_norm
        self.weights = [weight for _, weight in named]
        self.masters = [w if w.dtype == torch.float32 else nn.Parameter(w.detach().float()) for w in self.weights]
        factors = [next((s for prefix, s in (scales or {}).items() if name.startswith(prefix)), 1.0) for name, _ in named]
        self.groups = [{"params": [m], "factor": factor} for m, factor in zip(self.masters, factors, strict=True)]
        self.adam = torch.optim.AdamW(self.groups, lr=0.0, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True)

    @torch.no_grad()
    def step(self, learning_rate: float) -> Tensor:
        """One update from the weights' gradients, which are cleared; returns the norm before clipping."""
        for master, weight in zip(self.masters, self.weights, strict=True):
            if master is not weight:
                master.grad = None if weight.grad is None else weight.grad.float()
        norm = nn.utils.clip_grad_norm_(self.masters, self.max_grad_norm)
        for group in self.adam.param_groups:
            group["lr"] = learning_rate * group["factor"]
        self.adam.step()
        for master, weight in zip(self.masters, self.weights, strict=True):
            master.grad = weight.grad = None
            if master is not weight:
                weight.copy_(master)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Moments and master weights, as tensors and numbers."""
        masters = [m.detach() for m, w in zip(self.masters, self.weights, strict=True) if m is not w]
        return {"adam": self.adam.state_dict(), "masters": masters}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.adam.load_state_dict(state["adam"])
        apart = [m for m, w in zip(self.masters, self.weights, strict=True) if m is not w]
        for master, saved in zip(apart, state["masters"], strict=True):
            master.copy_(saved)
