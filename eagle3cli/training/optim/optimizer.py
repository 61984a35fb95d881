"""AdamW, or Muon and AdamW, on fp32 master weights with a clip of the global gradient norm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eagle3cli.models.draft import whole
from eagle3cli.runtime.distributed import SINGLE_PROCESS, Ranks
from eagle3cli.training.optim.ema import Ema
from eagle3cli.training.optim.muon import SharedMuon, make_muon

BETAS = (0.9, 0.999)
EPS = 1e-8
EMBEDDED = ("lm_head", "embed_tokens")
"""Matrices whose rows are tokens: never Muon's."""
Kind = Literal["adamw", "muon"]
AllReduce = Callable[[Sequence[Tensor]], None]
"""Makes each gradient its sum over the ranks, in place."""


class Optimizer:
    """AdamW(0.9, 0.999, weight decay 0); weights that are not fp32 get an fp32 master copy.

    ``scales`` multiplies the learning rate of the parameters whose name starts with the key. ``muon`` gives the
    matrices other than the head and an own embedding to Muon, with updates as large as AdamW's, so that the same
    learning rate serves; ``ranks`` share its work on a CPU. ``ema_decay`` keeps an average of the weights besides.
    """

    def __init__(
        self,
        named: list[tuple[str, nn.Parameter]],
        *,
        max_grad_norm: float,
        scales: dict[str, float] | None = None,
        kind: Kind = "adamw",
        ranks: Ranks = SINGLE_PROCESS,
        ema_decay: float | None = None,
    ) -> None:
        self.max_grad_norm = max_grad_norm
        self.names = [name for name, _ in named]
        self.weights = [weight for _, weight in named]
        self.masters = [w if w.dtype == torch.float32 else nn.Parameter(w.detach().float()) for w in self.weights]
        factors = [
            next((s for prefix, s in (scales or {}).items() if name.startswith(prefix)), 1.0) for name in self.names
        ]
        groups: list[dict[str, Any]] = [
            {"params": [m], "factor": factor} for m, factor in zip(self.masters, factors, strict=True)
        ]
        matrices = [kind == "muon" and m.ndim == 2 and not n.startswith(EMBEDDED) for n, m in self._named_masters()]
        adam = [group for group, matrix in zip(groups, matrices, strict=True) if not matrix]
        muon = [group for group, matrix in zip(groups, matrices, strict=True) if matrix]
        self.inner: list[torch.optim.Optimizer] = []
        if adam:
            self.inner.append(torch.optim.AdamW(adam, lr=0.0, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True))
        self._muon: SharedMuon | None = None
        if muon:
            self.inner.append(make_muon(muon))
            self._muon = SharedMuon(self.inner[-1], ranks)
        for inner in self.inner:
            for master in (weight for group in inner.param_groups for weight in group["params"]):
                inner.state[master].update(_moments(master, muon=not isinstance(inner, torch.optim.AdamW)))
        self.ema = None if ema_decay is None else Ema(self.masters, ema_decay)

    def _named_masters(self) -> list[tuple[str, Tensor]]:
        return list(zip(self.names, self.masters, strict=True))

    @torch.no_grad()
    def accumulate(self) -> None:
        """Take the weights' gradients over into the fp32 sums that :meth:`step` reads.

        Called after every micro batch, it lets them add up in fp32: eight bits of a bfloat16 sum lose what a small
        gradient adds to a large one.
        """
        for master, weight in zip(self.masters, self.weights, strict=True):
            if master is weight or weight.grad is None:
                continue
            if master.grad is None:
                master.grad = weight.grad.float()
            else:
                master.grad += weight.grad
            weight.grad = None

    @torch.no_grad()
    def step(
        self,
        learning_rate: float,
        *,
        divide_by: float = 1.0,
        all_reduce: AllReduce | None = None,
    ) -> Tensor:
        """One update from the weights' gradients divided by ``divide_by``; the gradients are cleared.

        ``all_reduce`` is given the fp32 gradients first. Returns the gradients' global norm before clipping, in the
        host's memory. A norm that is not finite leaves the weights alone.
        """
        self.accumulate()
        for master in self.masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        gradients = [m.grad for m in self.masters if m.grad is not None]
        if all_reduce is not None:
            all_reduce(gradients)
        if divide_by != 1.0:
            torch._foreach_mul_(gradients, 1.0 / divide_by)
        norm = whole(nn.utils.clip_grad_norm_(self.masters, self.max_grad_norm)).cpu()  # the step's one wait
        if torch.isfinite(norm):
            for inner in self.inner:
                for group in inner.param_groups:
                    group["lr"] = learning_rate * group["factor"]
                if self._muon is not None and self._muon.muon is inner:
                    self._muon.step()
                else:
                    inner.step()
            self.sync_weights()
        for master, weight in zip(self.masters, self.weights, strict=True):
            master.grad = weight.grad = None
        return norm

    def average(self, steps: int) -> None:
        """Take the weights into their average, where one is kept, after so many steps."""
        if self.ema is not None:
            self.ema.update(steps)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the weights are their averages, where these are kept: to be measured or written."""
        if self.ema is None:
            yield
            return
        self.ema.swap()
        self.sync_weights()
        try:
            yield
        finally:
            self.ema.swap()
            self.sync_weights()

    def state(self) -> dict[str, Tensor]:
        """Masters, averages and moments by parameter name; the tensors themselves, to be read or to be filled."""
        tensors = {f"master.{name}": master.detach() for name, master in self._named_masters()}
        if self.ema is not None:
            tensors |= {f"ema.{name}": average for name, average in zip(self.names, self.ema.averages, strict=True)}
        for name, master in self._named_masters():
            for inner in self.inner:
                for moment, value in inner.state.get(master, {}).items():
                    tensors[f"{moment}.{name}"] = value
        return tensors

    @torch.no_grad()
    def sync_weights(self) -> None:
        """The weights are their masters again, after these have changed."""
        for master, weight in zip(self.masters, self.weights, strict=True):
            if master is not weight:
                weight.copy_(master)


def _moments(master: Tensor, *, muon: bool) -> dict[str, Tensor]:
    """What the optimizers of torch begin with."""
    if muon:
        return {"momentum_buffer": torch.zeros_like(master)}
    step = torch.zeros((), dtype=torch.float32, device=master.device)
    return {"step": step, "exp_avg": torch.zeros_like(master), "exp_avg_sq": torch.zeros_like(master)}
