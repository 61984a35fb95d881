"""The tensor of :mod:`tests.pretend_gpu`: it says ``cuda:0``, a CPU holds its numbers, a GPU's rules apply to it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

PACKAGE = str(Path(__file__).resolve().parent.parent / "eagle3cli") + "/"
CUDA = torch.device("cuda", 0)

SHAPE_DEPENDS_ON_DATA = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount"}
READS_A_VALUE = {"_local_scalar_dense", "equal"}
ONLY_ON_A_CPU = ("for_cpu", "mkldnn", "fbgemm", "onednn")
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


@dataclass(eq=False)
class HostCopy:
    """A copy to the host that nobody has waited for."""

    to: Tensor
    values: Tensor


@dataclass
class PretendGpu:
    """What has happened on the device since :meth:`reset`."""

    syncs: Counter[str] = field(default_factory=Counter)
    """How often the host waited for the device: by ``file:line of the package, why``."""
    copies: Counter[str] = field(default_factory=Counter)
    """Copies between host and device that nobody waited for, likewise."""
    kernels: Counter[str] = field(default_factory=Counter)
    """Operations on the device by name, views included."""
    launched: int = 0
    """Operations so far, whatever was forgotten."""
    under_way: list[HostCopy] = field(default_factory=list)
    stream: int = 0
    """The stream that operations go onto; 0 is the device's own."""
    seen: dict[tuple[int, int], int] = field(default_factory=dict)
    """How much of the work of a second stream a first one waits for: operations by (first, second)."""
    in_sdpa: bool = False
    """Inside scaled_dot_product_attention, which picks a CPU's kernel here."""

    def reset(self) -> None:
        """Forget all counts."""
        for counts in (self.syncs, self.copies, self.kernels):
            counts.clear()

    def wait(self, why: str | None, copies: list[HostCopy] | None = None) -> None:
        """The host waits for the device: all copies (or these) arrive; not counted without a ``why``."""
        if why is not None:
            self.syncs[f"{place()} {why}"] += 1
        arrived = list(self.under_way) if copies is None else copies
        for copy in arrived:
            copy.to.copy_(copy.values)
        self.under_way = [copy for copy in self.under_way if copy not in arrived]

    def report(self) -> str:
        """The syncs, most frequent first."""
        lines = [f"{count:5d}  {where}" for where, count in self.syncs.most_common()]
        return "\n".join([f"{self.syncs.total()} syncs, {self.kernels.total()} kernels", *lines])


ACTIVE = PretendGpu()
"""The device of the innermost :func:`pretend_gpu`; replaced by each."""


def place() -> str:
    """The innermost line of the package that runs."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            return f"{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def inside(file: str) -> bool:
    """Whether a function of this file is on its way."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.endswith(file):
            return True
        frame = frame.f_back
    return False


class GpuTensor(torch.Tensor):
    """A tensor that says it lies on the GPU; ``elem`` holds its numbers."""

    elem: Tensor
    made_on: int
    """The stream that makes its numbers."""
    made_at: int

    @staticmethod
    def __new__(cls, elem: Tensor) -> GpuTensor:
        layout = {"strides": elem.stride(), "storage_offset": elem.storage_offset()}
        # "cpu" is for C++: autograd would look for a driver otherwise.
        made: GpuTensor = torch.Tensor._make_wrapper_subclass(
            cls, elem.size(), **layout, dtype=elem.dtype, device="cpu"
        )
        made.elem = elem
        made.made_on = ACTIVE.stream
        made.made_at = ACTIVE.launched
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def __repr__(self) -> str:  # type: ignore[override]
        return f"GpuTensor({tuple(self.shape)}, {self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> GpuTensor:
        return GpuTensor(self.elem.clone())

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        handler = HANDLERS.get(func) or PROPERTIES.get(property_of(func))
        if handler is not None:
            return handler(func, *args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return run_kernel(func, args, kwargs or {})


def run_kernel(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run one ATen operation on the numbers behind the tensors, with a GPU's rules."""
    name = func._schema.name.removeprefix("aten::")
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    if name == "copy_" and any(not isinstance(x, GpuTensor) for x in tensors):
        return copy_between(*args, **kwargs)
    check_devices(func, name, args, tensors)
    if any(word in name for word in ONLY_ON_A_CPU) and not ACTIVE.in_sdpa:
        raise RuntimeError(f"{name} has no CUDA kernel")
    if why := why_it_waits(func, name, args, kwargs):
        ACTIVE.wait(why)
    ACTIVE.kernels[name] += 1
    ACTIVE.launched += 1
    # Operations in place return what they were given.
    wrappers = {id(x.elem): x for x in tensors if isinstance(x, GpuTensor)}
    out = func(*tree_map(numbers, args), **tree_map(numbers, kwargs))
    return tree_map_only(Tensor, lambda x: written(wrappers[id(x)]) if id(x) in wrappers else GpuTensor(x), out)


def written(x: GpuTensor) -> GpuTensor:
    """What an operation in place has given: its numbers come from here on."""
    x.made_on = ACTIVE.stream
    x.made_at = ACTIVE.launched
    return x


def numbers(x: Any) -> Any:
    """The CPU tensor behind a pretend one; anything else as it is."""
    return x.elem if isinstance(x, GpuTensor) else x


def check_devices(func: Any, name: str, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    """Raise where CUDA would: CPU tensors may be scalars that are read, or indices (which are copied).

    And where CUDA would read what another stream has not made yet.
    """
    for x in tensors:
        own = not isinstance(x, GpuTensor) or x.made_on == ACTIVE.stream
        if not own and ACTIVE.seen.get((ACTIVE.stream, x.made_on), -1) < x.made_at:
            raise RuntimeError(f"{name} reads at {place()} what another stream is still at: wait for its event")
    targets = [x for x, argument in zip(args, func._schema.arguments, strict=False) if argument.is_write]
    on_host = [x for x in tensors if not isinstance(x, GpuTensor) and (x.dim() or any(x is y for y in targets))]
    if not on_host:
        return
    if name in INDEXING and all(any(x is index for index in args[1]) for x in on_host):
        # Inside vmap a tensor's device is what C++ says, and so is that of the indices made there.
        if not inside("torch/_functorch/vmap.py"):
            ACTIVE.wait("index on the host")
        return
    what = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
    raise RuntimeError(f"{what} ({name} at {place()})")


def why_it_waits(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Why the host waits for this operation; None where it does not."""
    if name in READS_A_VALUE or name in SHAPE_DEPENDS_ON_DATA:
        return name
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        return "repeat_interleave without output_size"
    if name in INDEXING and any(isinstance(x, Tensor) and x.dtype == torch.bool for x in args[1]):
        # One value for all that are chosen is a masked_fill.
        filled = name != "index" and len(args) > 2 and args[2].numel() == 1
        return None if filled else "index by a mask"
    return None


def copy_between(to: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """``to.copy_(source)`` with one of them on the host."""
    if isinstance(to, GpuTensor):
        to.elem.copy_(to_device(source, non_blocking).elem)
    else:
        assert isinstance(source, GpuTensor)
        start_copy_to_host(to, source, asynchronous=non_blocking and is_pinned(to))
    return to


def to_device(source: Tensor, non_blocking: bool = False) -> GpuTensor:
    """A copy of a host tensor on the device: unwaited for where the caller says so."""
    if non_blocking:
        ACTIVE.copies[f"{place()} to the device"] += 1
    elif source.numel():
        ACTIVE.wait("copy to the device")
    return GpuTensor(source.detach().clone())


def to_host(source: GpuTensor, non_blocking: bool = False) -> Tensor:
    """A copy of a tensor of the device in host memory (pinned where nobody waits for it, as torch makes it)."""
    made = torch.empty_like(source.elem)
    start_copy_to_host(made, source, asynchronous=non_blocking)
    return made


def start_copy_to_host(to: Tensor, source: GpuTensor, *, asynchronous: bool) -> None:
    """Copy now, or once somebody waits; until then the host reads nonsense."""
    if not asynchronous:
        ACTIVE.wait("copy to the host")
        to.detach().copy_(source.elem)
        return
    ACTIVE.copies[f"{place()} to the host"] += 1
    to.fill_(float("nan") if to.is_floating_point() else 77)
    ACTIVE.under_way.append(HostCopy(to, source.elem.clone()))


def is_pinned(x: Tensor) -> bool:
    """Whether :func:`pin` made it."""
    return getattr(x, "pretends_to_be_pinned", False)


def pin(x: Tensor, *_: Any) -> Tensor:
    """``Tensor.pin_memory``: a copy in memory that the device reads by itself."""
    pinned = x.clone()
    pinned.pretends_to_be_pinned = True  # type: ignore[attr-defined]
    return pinned


# What Python does before an operation reaches the kernels.


def wanted_device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
    """The device among the arguments of ``Tensor.to``."""
    for x in (*args, kwargs.get("device"), kwargs.get("other")):
        if isinstance(x, Tensor):
            return x.device
        if isinstance(x, str | torch.device | int) and not isinstance(x, bool):
            return device_of(x)
    return None


def device_of(name: str | torch.device | int) -> torch.device:
    """A device by any of its names."""
    return torch.device("cuda", name) if isinstance(name, int) else torch.device(name)


def move(_func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``Tensor.to``: the type first, then the device."""
    device = wanted_device(args, kwargs)
    dtypes = (y.dtype if isinstance(y, Tensor) else y for y in (*args, kwargs.get("dtype"), kwargs.get("other")))
    dtype = next((y for y in dtypes if isinstance(y, torch.dtype)), x.dtype)
    flags = [y for y in args if isinstance(y, bool)]
    non_blocking = kwargs.get("non_blocking", flags[0] if flags else False)
    if dtype != x.dtype or kwargs.get("copy") or flags[1:] == [True]:
        with torch._C.DisableTorchFunctionSubclass():
            x = torch.Tensor.to(x, dtype, copy=True)
    on_gpu = isinstance(x, GpuTensor)
    if device is None or device.type == ("cuda" if on_gpu else x.device.type):
        return x
    if device.type == "meta" or x.device.type == "meta":
        return x.to(device)
    moved = to_host(x, non_blocking) if isinstance(x, GpuTensor) else to_device(x, non_blocking)
    return Moved.apply(x, moved) if x.requires_grad and torch.is_grad_enabled() else moved  # type: ignore[no-untyped-call]


class Moved(torch.autograd.Function):
    """Gradients go back to where the tensor came from."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, moved: Tensor) -> Tensor:
        ctx.device = x.device
        return moved

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return move(None, grads[0], ctx.device), None


def read_list(_func: Any, x: GpuTensor) -> Any:
    """``Tensor.tolist``."""
    ACTIVE.wait("tolist")
    return x.elem.tolist()


def refuse_numpy(*_: Any, **__: Any) -> Any:
    """``Tensor.numpy``."""
    raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")


def pad(func: Any, sequences: list[GpuTensor], *args: Any, **kwargs: Any) -> GpuTensor:
    """``pad_sequence``: C++ makes the padded tensor where it thinks that the sequences are."""
    assert all(isinstance(x, GpuTensor) for x in sequences)
    return GpuTensor(func([x.elem for x in sequences], *args, **kwargs))


def sdpa(func: Any, *args: Any, **kwargs: Any) -> Any:
    """``scaled_dot_product_attention``: each device has a kernel of its own."""
    ACTIVE.in_sdpa = True
    try:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)
    finally:
        ACTIVE.in_sdpa = False


def set_data(_func: Any, x: Tensor, value: Tensor) -> None:
    """``x.data = value``."""
    with torch._C.DisableTorchFunctionSubclass():
        torch.Tensor.data.__set__(x, value)  # type: ignore[attr-defined]
    if isinstance(x, GpuTensor) and isinstance(value, GpuTensor):
        x.elem = value.elem


def get_data(_func: Any, x: GpuTensor) -> GpuTensor:
    """``x.data``."""
    return GpuTensor(x.elem.detach())


def property_of(func: Any) -> str:
    """``data.__set__`` for the setter of a property of tensors."""
    return f"{getattr(getattr(func, '__self__', None), '__name__', '')}.{getattr(func, '__name__', '')}"


HANDLERS: dict[Any, Callable[..., Any]] = {
    torch.Tensor.to: move,
    torch.Tensor.cpu: lambda func, x, *_, **__: move(func, x, "cpu"),
    torch.Tensor.cuda: lambda func, x, *_, non_blocking=False, **__: move(func, x, CUDA, non_blocking=non_blocking),
    torch.Tensor.tolist: read_list,
    torch.Tensor.numpy: refuse_numpy,
    torch.Tensor.__array__: refuse_numpy,
    torch.Tensor.pin_memory: lambda func, x, *_: pin(x),
    torch.Tensor.is_pinned: lambda func, x, *_: is_pinned(x),
    torch.Tensor.new_tensor: lambda func, x, data, **options: to_device(
        torch.tensor(data, **{"dtype": x.dtype, **options})
    ),
    torch._C._nn.pad_sequence: pad,
    torch.nn.functional.scaled_dot_product_attention: sdpa,
}
PROPERTIES = {"data.__set__": set_data, "data.__get__": get_data}
