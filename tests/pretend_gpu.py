"""A pretend GPU: tensors that say ``cuda:0`` while a CPU computes their numbers.

    with pretend_gpu() as gpu:
        x = torch.arange(8, device="cuda")
        x + torch.ones(8)        # raises, as CUDA does: two devices
        int(x.sum())             # gpu.syncs: the host waited, and the line where it did

Python sees ``tensor.device == cuda:0``; C++ (autograd, kernels) sees CPU tensors, so a build of torch without CUDA is
enough and results are those of a CPU. What a GPU does otherwise is raised or counted:

* a kernel that gets tensors of two devices, a kernel that only a CPU has, ``numpy()``: an error, as on a GPU
* whatever makes the host wait for the device (a value that is read, a shape that depends on data, a copy to or from
  memory that is not pinned, an event with no work behind it): ``gpu.syncs``, by source line; copies that nobody waits
  for: ``gpu.copies``
* a copy to the host that nobody has waited for holds wrong numbers until somebody does

* what one stream makes and another reads without having waited for it: an error

What it cannot show: speed, memory, CUDA's own rounding, kernels that are compiled.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils as foreach
from torch.utils import checkpoint

from eagle3cli.models import kernels as of_layers
from eagle3cli.training.ttt import kernels as of_training
from tests import gpu_tensor
from tests.gpu_tensor import HANDLERS, GpuTensor, HostCopy, PretendGpu, device_of, numbers, pin, to_device

MEMORY = 80 << 30

MAKES_NEW = {
    *(torch.zeros, torch.ones, torch.empty, torch.full, torch.arange, torch.eye, torch.linspace, torch.empty_strided),
    *(torch.rand, torch.randn, torch.randint, torch.randperm),
    *(torch.zeros_like, torch.empty_like, torch.ones_like, torch.full_like, torch.rand_like, torch.randn_like),
    *(torch.Tensor.new_zeros, torch.Tensor.new_ones, torch.Tensor.new_empty, torch.Tensor.new_full),
}
COPIES_NEW = {torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor}
"""Their numbers come from the host, which waits until they have arrived."""

OF_HOST_TENSORS = {torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.pin_memory, torch.Tensor.is_pinned}
"""Methods of tensors of the host that have to do with the device."""


class Placement(TorchFunctionMode):
    """Makes new tensors where ``device=`` says, and moves those of the host."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in MAKES_NEW or func in COPIES_NEW:
            return make(func, args, kwargs)
        if func is torch.Tensor.backward:  # torch calls it with no mode: what it makes would lie nowhere
            with self:
                return torch.autograd.backward(*args, kwargs.pop("gradient", None), **kwargs)
        if func in OF_HOST_TENSORS:
            return HANDLERS[func](func, *args, **kwargs)
        return func(*args, **kwargs)


def make(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A new tensor of the device that is asked for, or of the one that it is like."""
    device = kwargs.pop("device", None)
    pinned = kwargs.pop("pin_memory", False)
    like = next((x for x in args if isinstance(x, Tensor)), None)
    device = device_of(device) if device is not None else like.device if like is not None else torch.device("cpu")
    trained = kwargs.pop("requires_grad", False)
    if device.type != "cuda":
        made: Tensor = func(*map(numbers, args), device=device, **kwargs)
        made = pin(made) if pinned else made
        return made.requires_grad_() if trained else made
    if func in COPIES_NEW and isinstance(like, GpuTensor):
        return like
    generator = kwargs.get("generator")
    if generator is not None:
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found '{generator.device}'")
    made = func(*map(numbers, args), **kwargs)
    on_gpu = to_device(made) if func in COPIES_NEW else GpuTensor(made)
    return on_gpu.requires_grad_() if trained else on_gpu


GROUP = torch._C._group_tensors_by_device_and_dtype


def by_device(group: Any) -> Any:
    """Torch's ``_group_tensors_by_device_and_dtype`` with the device that the tensors say."""

    def run(lists: list[list[Tensor | None]], with_indices: bool = False) -> dict[Any, Any]:
        found = group(lists, with_indices)
        return {(parts[0][0].device, dtype): (parts, at) for (_, dtype), (parts, at) in found.items()}

    return run


class Event:
    """A point in the stream's work; with it arrive the copies to the host that were begun before."""

    def __init__(self, **_: Any) -> None:
        self.copies: list[HostCopy] = []
        self.launched = 0
        self.stream = 0
        self.at = 0.0

    def record(self, stream: Stream | None = None) -> None:
        """Remember what has been begun so far."""
        self.stream = gpu_tensor.ACTIVE.stream if stream is None else stream.number
        self.copies = list(gpu_tensor.ACTIVE.under_way)
        self.launched = gpu_tensor.ACTIVE.launched
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        """Wait for it: the device runs dry meanwhile, unless it was given work since."""
        gpu = gpu_tensor.ACTIVE
        gpu.wait("event" if gpu.launched == self.launched else None, self.copies)

    def query(self) -> bool:
        """Whether the device has got there: it always has."""
        return True

    def elapsed_time(self, other: Event) -> float:
        """Milliseconds."""
        return (other.at - self.at) * 1000


class Stream:
    """A queue of work of the device. All are worked off at once, but none may read what it has not waited for."""

    def __init__(self, device: Any = None, number: int | None = None) -> None:
        self.device = device_of(device if device is not None else "cuda")
        self.number = next(STREAMS) if number is None else number

    def wait_event(self, event: Event) -> None:
        """What is given to this stream from here on may read what was given to the event's before it."""
        gpu_tensor.ACTIVE.seen[self.number, event.stream] = event.launched

    def wait_stream(self, other: Stream) -> None:
        """The same for all that the other has been given."""
        gpu_tensor.ACTIVE.seen[self.number, other.number] = gpu_tensor.ACTIVE.launched


STREAMS = count(1)


@contextmanager
def on_stream(stream: Stream) -> Iterator[None]:
    """``torch.cuda.stream``."""
    gpu = gpu_tensor.ACTIVE
    before = gpu.stream
    gpu.stream = stream.number
    try:
        yield
    finally:
        gpu.stream = before


@contextmanager
def pretend_gpu() -> Iterator[PretendGpu]:
    """A GPU within the block, and the only one that torch sees; what happens on it is counted in what is yielded."""
    gpu = PretendGpu()
    apply = BackwardCFunction.apply
    run_again = checkpoint._run_fn_with_dynamo_disabled  # type: ignore[attr-defined]
    changed = torch.__future__.get_overwrite_module_params_on_conversion()

    def with_mode(function: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            with Placement():
                return function(*args, **kwargs)

        return run

    with ExitStack() as stack:
        stack.enter_context(patch.object(gpu_tensor, "ACTIVE", gpu))
        stack.enter_context(patch.multiple(torch.cuda, **CUDA_API))
        # From C++ the passes of autograd come back to Python without the mode.
        stack.enter_context(patch.object(BackwardCFunction, "apply", with_mode(apply)))
        stack.enter_context(patch.object(checkpoint, "_run_fn_with_dynamo_disabled", with_mode(run_again)))
        stack.enter_context(patch.object(checkpoint, "get_device_states", lambda *_: ([], [])))
        stack.enter_context(patch.object(checkpoint, "set_device_states", lambda *_, **__: None))
        stack.enter_context(patch.object(torch.Tensor, "pin_memory", pin))
        stack.enter_context(patch.object(torch.Tensor, "record_stream", lambda *_: None))
        # Its tensors have no address on a device that a kernel of Triton's could read.
        for module in (of_layers, of_training):
            stack.enter_context(patch.object(module, "triton_runs", lambda: False))
        # Norms and updates over many tensors at once: C++ groups them by what it takes for their device.
        stack.enter_context(patch.object(torch._C, "_group_tensors_by_device_and_dtype", by_device(GROUP)))
        stack.enter_context(patch.object(foreach, "_foreach_supported_types", [Tensor, GpuTensor]))
        # A module's weights are replaced when it moves: a tensor of the CPU cannot become one of the device.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, changed)
        stack.enter_context(Placement())
        yield gpu


CUDA_API: dict[str, Any] = {
    "is_available": lambda: True,
    "is_initialized": lambda: False,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "get_device_name": lambda *_: "pretend GPU",
    "get_device_capability": lambda *_: (9, 0),
    "mem_get_info": lambda *_: (MEMORY, MEMORY),
    "max_memory_allocated": lambda *_: 0,
    "memory_allocated": lambda *_: 0,
    "synchronize": lambda *_: gpu_tensor.ACTIVE.wait("synchronize"),
    "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
    "set_rng_state": lambda *_: None,
    "Event": Event,
    "Stream": Stream,
    "stream": on_stream,
    "current_stream": lambda *_: Stream(number=gpu_tensor.ACTIVE.stream),
}
