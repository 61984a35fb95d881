"""AdamW on fp32 master weights with a clip of the global gradient norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.999)
EPS = 1e-8
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Optimizer:
    """AdamW(0.9, 0.999, weight decay 0); weights that are not fp32 get an fp32 master copy.

    ``scales`` multiplies the learning rate of the parameters whose name starts with the key.
    """

    def __init__(
        self, named: list[tuple[str, nn.Parameter]], *, max_grad_norm: float, scales: dict[str, float] | None = None
    ) -> None:
        self.max_grad_norm = max_grad_norm
        self.names = [name for name, _ in named]
        self.weights = [weight for _, weight in named]
        self.masters = [w if w.dtype == torch.float32 else nn.Parameter(w.detach().float()) for w in self.weights]
        factors = [
            next((s for prefix, s in (scales or {}).items() if name.startswith(prefix)), 1.0) for name in self.names
        ]
        groups = [{"params": [m], "factor": factor} for m, factor in zip(self.masters, factors, strict=True)]
        self.adam = torch.optim.AdamW(groups, lr=0.0, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True)

    @torch.no_grad()
    def step(self, learning_rate: float, *, divide_by: float = 1.0) -> Tensor:
        """One update from the weights' gradients divided by ``divide_by``; the gradients are cleared.

        Returns the gradients' global norm before clipping. A norm that is not finite leaves the weights alone.
        """
        for master, weight in zip(self.masters, self.weights, strict=True):
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            if master is not weight:
                master.grad = weight.grad.float()
        gradients = [m.grad for m in self.masters if m.grad is not None]
        if divide_by != 1.0:
            torch._foreach_mul_(gradients, 1.0 / divide_by)
        norm = nn.utils.clip_grad_norm_(self.masters, self.max_grad_norm)
        if torch.isfinite(norm):
            for group in self.adam.param_groups:
                group["lr"] = learning_rate * group["factor"]
            self.adam.step()
            for master, weight in zip(self.masters, self.weights, strict=True):
                if master is not weight:
                    weight.copy_(master)
        for master, weight in zip(self.masters, self.weights, strict=True):
            master.grad = weight.grad = None
        return norm

    def state(self) -> dict[str, Tensor]:
        """Master weights and moments by parameter name, as tensors."""
        found = {}
        for name, master in zip(self.names, self.masters, strict=True):
            found[f"master.{name}"] = master.detach()
            for moment in MOMENTS:
                if moment in self.adam.state[master]:
                    found[f"{moment}.{name}"] = self.adam.state[master][moment]
        return found

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`state` gave, weights included."""
        for name, master, weight in zip(self.names, self.masters, self.weights, strict=True):
            master.copy_(state[f"master.{name}"])
            if master is not weight:
                weight.copy_(master)
            for moment in MOMENTS:
                if f"{moment}.{name}" in state:
                    self.adam.state[master][moment] = state[f"{moment}.{name}"].to(
                        "cpu" if moment == "step" else master.device
                    )
