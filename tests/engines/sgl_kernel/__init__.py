"""The stand-in for SGLang's CPU kernels that is installed, and what it lacks: attention sinks, drafts of MLA, GPTQ.

A server that is started with ``tests/engines`` on its PYTHONPATH finds this package first. It runs the installed one's
source as its own, so that the two functions below take the place of those with the same names.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_here = Path(__file__).resolve()
_paths = (Path(folder) / "sgl_kernel" / "__init__.py" for folder in sys.path if folder)
_installed = next(path for path in _paths if path.is_file() and path.resolve() != _here)
exec(compile(_installed.read_text(encoding="utf-8"), str(_installed), "exec"))

_sinks: Tensor | None = None
"""Of the attention that is computed now."""


def _only_plain(is_cross: bool, _encoder_lens: Any, sinks: Tensor | None) -> None:
    global _sinks
    if is_cross:
        raise NotImplementedError("this stand-in has no cross-attention")
    _sinks = sinks


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, logit_cap: float, mask: Tensor | None) -> Tensor:
    """q [T, Hq, D], k and v [L, Hkv, D], mask [T, L]: a head's sink is one more score, without a value."""
    share = q.shape[1] // k.shape[1]
    q, k, v = (x.transpose(0, 1).float() for x in (q, k, v))
    k, v = k.repeat_interleave(share, 0), v.repeat_interleave(share, 0)
    scores = q @ k.transpose(1, 2) * scale
    if logit_cap:
        scores = logit_cap * torch.tanh(scores / logit_cap)
    if mask is not None:
        scores = scores.masked_fill(~mask[None], float("-inf"))
    if _sinks is not None:
        scores = torch.cat((scores, _sinks.float()[:, None, None].expand(*scores.shape[:2], 1)), -1)
    return (F.softmax(scores, -1)[..., : k.shape[1]] @ v).transpose(0, 1)


_usual_extend = _extend_attention  # noqa: F821 (of the installed package)


def _extend(q: Tensor, k: Tensor | None, v: Tensor | None, out: Tensor, k_buffer: Tensor, *rest: Any) -> None:
    """Latent attention (DeepSeek) without a prefix: keys and values of every head, beside a cache of latents."""
    if k is None or v is None or k[0].numel() == k_buffer[0].numel():
        _usual_extend(q, k, v, out, k_buffer, *rest)
        return
    seq_lens, extend_lens, starts, scale = rest[5], rest[6], rest[7], rest[9]
    _only_plain(False, None, None)
    for total, size, start in zip(seq_lens.tolist(), extend_lens.tolist(), starts.tolist(), strict=True):
        if total != size:
            raise NotImplementedError("this stand-in has no latent attention with a prefix in this form")
        rows = slice(start, start + size)
        heads = (x[rows].reshape(size, q.shape[1], -1) for x in (k, v))
        seen = torch.ones(size, size, dtype=torch.bool).tril()
        out[rows] = _attend(q[rows], *heads, scale, 0.0, seen).to(out.dtype)


_lib.impl("extend_attention_cpu", _extend, "CPU", allow_override=True)  # noqa: F821


def _in_usual_memory(make: Any) -> Any:
    """A maker of tensors for which ``pin_memory`` means nothing."""
    return lambda *given, pin_memory=False, **named: make(*given, **named)


if not torch.cuda.is_available():
    # kimi_k25_eagle3.py waits for a GPU whatever the device is, once it has given the draft the target's embedding.
    torch.cuda.synchronize = lambda device=None: None
    # Layers with LoRA adapters pin their offsets for a GPU.
    torch.tensor = _in_usual_memory(torch.tensor)
    torch.empty = _in_usual_memory(torch.empty)
    torch.zeros = _in_usual_memory(torch.zeros)
    torch.Tensor.pin_memory = lambda self, *_: self  # type: ignore[assignment]


def _unpacked(words: Tensor, side: int) -> Tensor:
    """Numbers of four bits that lie in words of 32, the lowest first, along a side."""
    numbers = words.unsqueeze(side + 1) >> torch.arange(0, 32, 4).view(-1, *(1,) * (words.dim() - 1 - side)) & 15
    return numbers.flatten(side, side + 1)


def _prepared(qweight: Tensor, qzeros: Tensor, scales: Tensor, algorithm: int) -> tuple[Tensor, Tensor, Tensor]:
    """GPTQ's weights with what they mean in the place of the packed ones; the true kernel orders them anew."""
    if algorithm != 1:
        raise NotImplementedError("this stand-in prepares GPTQ's weights alone")
    zeros = (_unpacked(qzeros, 1) + 1).repeat_interleave(qweight.shape[0] * 8 // qzeros.shape[0], 0)
    scale = scales.float().repeat_interleave(qweight.shape[0] * 8 // scales.shape[0], 0)
    return (_unpacked(qweight, 0) - zeros) * scale, qzeros, scales


def _times(x: Tensor, weight_IO: Tensor, _zeros: Tensor, _scales: Tensor, bias: Tensor | None) -> Tensor:
    """What Marlin's kernel gives on a GPU: nothing of the activations is rounded, as AMX's does."""
    product = x.float() @ weight_IO
    return (product if bias is None else product + bias).to(x.dtype)


_lib.define(  # noqa: F821
    "convert_weight_packed_scale_zp(Tensor qweight, Tensor qzeros, Tensor scales, int algorithm)"
    " -> (Tensor, Tensor, Tensor)"
)
_lib.define("int4_scaled_mm_cpu(Tensor x, Tensor w, Tensor zeros, Tensor scales, Tensor? bias) -> Tensor")  # noqa: F821
_lib.impl("convert_weight_packed_scale_zp", _prepared, "CPU")  # noqa: F821
_lib.impl("int4_scaled_mm_cpu", _times, "CPU")  # noqa: F821
