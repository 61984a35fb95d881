"""What a program costs on a GPU that is not there: time by a roofline of its operators, and memory by what is alive.

Floating-point tensors have shapes and no numbers (fake tensors inside of the pretend GPU's), index tensors are real, so
that what depends on them (which positions are computed, which blocks of keys are read) is what it would be. An operator
takes the longest of: its FLOP at the speed of its kind, its bytes at the memory's speed, one launch. What Inductor
would fuse is fused only where the program compiles it; what runs as a kernel of its own says so by :meth:`Cost.add`.
"""

from __future__ import annotations

import collections
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry

from tests.gpu_tensor import GpuTensor, numbers

LARGE = 1 << 20
"""Bytes: a floating-point tensor as large is made without numbers."""
PAGE = 512
"""Bytes that CUDA's allocator rounds up to."""


@dataclass(frozen=True)
class Machine:
    """What an H100 SXM reaches in practice, not what its data sheet says."""

    product_flops: float = 650e12
    """FLOP/s of large products in bf16."""
    fp32_flops: float = 50e12
    flex_forward_flops: float = 400e12
    flex_backward_flops: float = 350e12
    memory: float = 2.8e12
    """Bytes/s."""
    cache: float = 5e12
    """Bytes/s of tensors that fit into the L2 cache."""
    cache_bytes: float = 20e6
    launch: float = 3e-6
    """Seconds between two kernels."""


@dataclass
class Cost:
    """What an operator costs in one phase."""

    launches: int = 0
    bytes: float = 0.0
    flop: float = 0.0
    seconds: float = 0.0
    floor: float = 0.0
    """Seconds of the FLOP alone."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(self.values(), other.values(), strict=True)))

    def values(self) -> tuple[Any, ...]:
        """All of it."""
        return self.launches, self.bytes, self.flop, self.seconds, self.floor


VIEWS = {
    *("view", "_unsafe_view", "transpose", "t", "permute", "slice", "select", "expand", "unsqueeze", "squeeze"),
    *("detach", "alias", "split", "split_with_sizes", "unbind", "as_strided", "lift_fresh", "unsafe_split"),
    *("device", "layout", "is_contiguous", "_reshape_alias", "unfold", "diagonal", "set_", "empty", "empty_like"),
    *("new_empty", "empty_strided", "_local_scalar_dense", "is_pinned", "resize_"),
}
"""Operators that launch nothing."""
WRITERS = {"zeros", "zeros_like", "new_zeros", "fill_", "zero_", "ones", "ones_like", "full", "full_like", "new_full"}
"""Operators that read nothing."""
FACTORIES = {"empty", "zeros", "ones", "full", "rand", "randn", "empty_strided"}
ADAM_BYTES = 28
"""Gradient, master and two moments are read, all but the gradient are written, in fp32."""


@dataclass
class Costs:
    """All that is counted; ``phase`` names what runs now."""

    machine: Machine = field(default_factory=Machine)
    phase: str = ""
    by_operator: dict[tuple[str, str], Cost] = field(default_factory=lambda: collections.defaultdict(Cost))
    """By phase and operator."""
    live: dict[int, int] = field(default_factory=dict)
    bytes: int = 0
    peaks: dict[str, int] = field(default_factory=dict)
    """Most bytes alive in each phase."""
    at_peak: list[tuple[int, tuple[int, ...], str, str]] = field(default_factory=list)
    """Bytes, shape, type and maker of the largest tensors that are alive at the peak, when asked for."""
    explain: bool = False
    paused: bool = False
    """Nothing is counted: what runs now is part of a kernel that is counted whole."""
    made: dict[int, tuple[tuple[int, ...], str, str]] = field(default_factory=dict)

    @contextmanager
    def in_phase(self, name: str) -> Iterator[None]:
        """What runs in the block belongs to a phase; back to the one around it afterwards."""
        before = self.phase
        self.phase = name
        yield
        self.phase = before

    @property
    def peak(self) -> int:
        """Most bytes that were alive at a time."""
        return max(self.peaks.values(), default=0)

    def total(self, phase: str | None = None) -> Cost:
        """The sum over a phase, or over all."""
        return sum((c for (where, _), c in self.by_operator.items() if phase in (None, where)), Cost())

    def phases(self) -> list[str]:
        """In the order in which they came."""
        return list(dict.fromkeys(phase for phase, _ in self.by_operator))

    def operators(self, phase: str) -> list[tuple[str, Cost]]:
        """Those of a phase, the slowest first."""
        mine = [(name, cost) for (where, name), cost in self.by_operator.items() if where == phase]
        return sorted(mine, key=lambda item: -item[1].seconds)

    def add(
        self, name: str, *, moved: float, flop: float = 0.0, flops: float | None = None, largest: float = 1e12
    ) -> None:
        """Count one kernel: bytes that it moves, FLOP, at how many FLOP/s, and bytes of its largest tensor."""
        if self.paused:
            return
        machine = self.machine
        bandwidth = machine.cache if largest < machine.cache_bytes else machine.memory
        floor = flop / (flops or machine.product_flops)
        seconds = max(moved / bandwidth, floor, machine.launch)
        self.by_operator[self.phase, name] += Cost(1, moved, flop, seconds, floor)

    def track(self, tensor: Tensor, made_by: str = "") -> None:
        """Count the tensor's storage as alive until it is freed."""
        storage = numbers(tensor).untyped_storage()
        key = storage._cdata
        if key in self.live or self.paused:
            return
        size = -(-storage.nbytes() // PAGE) * PAGE
        self.live[key] = size
        self.bytes += size
        if self.explain:
            self.made[key] = (tuple(tensor.shape), str(tensor.dtype), f"{self.phase}: {made_by}")
        if self.explain and self.bytes > self.peak:
            largest = sorted(self.live, key=lambda k: -self.live[k])[:40]
            self.at_peak = [(self.live[k], *self.made[k]) for k in largest]
        self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), self.bytes)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.bytes -= self.live.pop(key, 0)


def on_gpu(tensor: Tensor) -> bool:
    """Whether it stands for memory of the GPU."""
    return isinstance(tensor, GpuTensor | FakeTensor)


class CostMode(TorchDispatchMode):
    """Counts every operator that runs inside of it, and makes large floating-point tensors without numbers."""

    def __init__(self, costs: Costs, fake: FakeTensorMode) -> None:
        super().__init__()
        self.costs = costs
        self.fake = fake

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1] if hasattr(func, "_schema") else str(func)
        inputs = tensors((args, kwargs))
        out = self._run(func, name, inputs, args, kwargs)
        outputs = tensors(out)
        for tensor in filter(on_gpu, outputs):
            self.costs.track(tensor, name)
        if name not in VIEWS and any(map(on_gpu, (*inputs, *outputs))):
            self._count(func, name, inputs, outputs, args, kwargs, out)
        return out

    def _run(self, func: Any, name: str, inputs: list[Tensor], args: Any, kwargs: Any) -> Any:
        """The operator itself; numbers that nobody knows are 1."""
        if name == "_local_scalar_dense" and isinstance(numbers(inputs[0]), FakeTensor):
            return torch.ones((), dtype=inputs[0].dtype).item()
        made = _without_numbers(self.fake, func, args, kwargs) if name in FACTORIES else None
        return func(*args, **kwargs) if made is None else made

    def _count(
        self, func: Any, name: str, inputs: list[Tensor], outputs: list[Tensor], args: Any, kwargs: Any, out: Any
    ) -> None:
        formula = flop_registry.get(getattr(func, "_overloadpacket", None))
        flop = formula(*args, **kwargs, out_val=out) if formula else 0
        wide = bool(flop) and inputs[0].dtype == torch.float32
        largest = max((size(t) for t in (*inputs, *outputs)), default=0)
        moved = moved_bytes(func, name, inputs, outputs, args)
        flops = self.costs.machine.fp32_flops if wide else None
        self.costs.add(name, moved=moved, flop=flop, flops=flops, largest=largest)


def _without_numbers(fake: FakeTensorMode, func: Any, args: Any, kwargs: Any) -> Tensor | None:
    """What a factory would make, where it is large and floating-point; else None."""
    dtype = kwargs.get("dtype") or torch.get_default_dtype()
    if not dtype.is_floating_point or torch.Size(args[0]).numel() * dtype.itemsize < LARGE:
        return None
    with fake:
        made: Tensor = func(*args, **kwargs)
    return made


def tensors(tree: Any) -> list[Tensor]:
    """All tensors of a call."""
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def size(tensor: Tensor) -> int:
    """Bytes of what a kernel reads or writes."""
    return tensor.numel() * tensor.element_size()


def moved_bytes(func: Any, name: str, inputs: list[Tensor], outputs: list[Tensor], args: Any) -> float:
    """Bytes that a kernel moves between itself and the memory."""
    read = sum(map(size, inputs))
    written = sum(map(size, outputs)) or sum(map(size, _mutated(func, args)))
    if name == "index":  # the rows that are chosen, not the table
        return sum(map(size, inputs[1:])) + 2 * written
    if name == "embedding":
        return 2 * written
    if name.startswith(("index_put", "_index_put")):  # sort, gather, add
        return 6 * size(inputs[-1]) + written
    if name.startswith("_fused_adam"):
        return ADAM_BYTES / 4 * sum(map(size, args[0]))
    if name == "copy_":
        return size(inputs[-1]) + written
    return written if name in WRITERS else read + written


def _mutated(func: Any, args: Any) -> list[Tensor]:
    """The arguments that an operator without a result writes to."""
    written = [
        value
        for argument, value in zip(func._schema.arguments, args, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return tensors(written)
