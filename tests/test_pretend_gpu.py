"""The pretend GPU itself: it raises what CUDA raises, and counts what a GPU would wait for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.gpu_tensor import PretendGpu
from tests.pretend_gpu import pretend_gpu


def waits(gpu: PretendGpu) -> int:
    count = gpu.syncs.total()
    gpu.reset()
    return count


def test_two_devices_in_one_operation_are_an_error(gpu: PretendGpu) -> None:
    a = torch.zeros(3, device="cuda")
    assert (a.device, a.is_cuda) == (torch.device("cuda:0"), True)
    for operation in (torch.add, torch.minimum, lambda x, y: torch.cat([x, y]), lambda x, y: torch.where(x > 0, x, y)):
        with pytest.raises(RuntimeError, match="same device"):
            operation(a, torch.ones(3))
    assert (a + torch.tensor(1.0)).tolist() == [1, 1, 1]  # a number of the host may take part
    with pytest.raises(RuntimeError, match="same device"):
        torch.zeros(3)[1].add_(a[1])  # but not take a result


def test_numpy_a_cpus_kernel_and_a_cpus_generator_are_refused(gpu: PretendGpu) -> None:
    states = torch.zeros(1, 2, 3, 16, device="cuda")
    with pytest.raises(TypeError, match="numpy"):
        states.numpy()
    with pytest.raises(RuntimeError, match="no CUDA kernel"):
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(states, states, states)
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device="cuda", generator=torch.Generator())
    assert F.scaled_dot_product_attention(states, states, states).is_cuda


def test_work_on_the_device_waits_for_nothing(gpu: PretendGpu) -> None:
    ids = torch.arange(12, device="cuda")
    table = torch.randn(12, 4, device="cuda")
    ids.new_zeros(3).fill_(2)
    torch.zeros_like(table).index_add_(0, ids, table)
    F.embedding(ids, table).softmax(-1).topk(2)
    table[table > 0] = 0.0  # a masked_fill
    table.masked_fill_(table > 0, 1.0)
    torch.searchsorted(ids, ids[3:6]).repeat_interleave(2)
    torch.repeat_interleave(table, ids, dim=0, output_size=66)
    assert not gpu.syncs


def test_whatever_reads_values_or_makes_shapes_from_them_waits(gpu: PretendGpu) -> None:
    x = torch.arange(6, device="cuda")
    waits(gpu)
    for reads in (
        lambda: int(x[2]),
        lambda: bool((x > 3).any()),
        lambda: x.tolist(),
        lambda: x.cpu(),
        lambda: x.to("cpu", torch.float32),
        lambda: x[x > 2],
        lambda: x.nonzero(),
        lambda: x.unique(),
        lambda: torch.equal(x, x),
        lambda: torch.repeat_interleave(x, x),
        lambda: torch.tensor([1, 2], device="cuda"),
        lambda: x.new_tensor([1, 2]),
        lambda: torch.arange(3).to("cuda"),
        lambda: x[torch.tensor([0, 2])],
        lambda: torch.cuda.synchronize(),
    ):
        reads()
        assert waits(gpu) == 1


def test_a_copy_that_nobody_waited_for_is_not_there(gpu: PretendGpu) -> None:
    x = torch.arange(4, device="cuda")
    there = x.to("cpu", non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    late = x.to("cpu", non_blocking=True)
    assert not gpu.syncs
    assert there.tolist() != [0, 1, 2, 3]
    event.synchronize()
    assert there.tolist() == [0, 1, 2, 3]
    assert late.tolist() != [0, 1, 2, 3]
    int(x[0])  # whoever waits for the device waits for its copies
    assert late.tolist() == [0, 1, 2, 3]
    event = torch.cuda.Event()
    event.record()
    waits(gpu)
    event.synchronize()
    assert waits(gpu) == 1
    event.record()
    x + 1
    event.synchronize()  # the device has more to do meanwhile
    assert waits(gpu) == 0
    buffer = torch.empty(4, dtype=torch.long, pin_memory=True)
    waits(gpu)
    buffer.copy_(x, non_blocking=True)
    assert waits(gpu) == 0
    torch.empty(4, dtype=torch.long).copy_(x, non_blocking=True)  # the device cannot write there by itself
    assert waits(gpu) == 1


def test_a_stream_reads_of_another_what_it_has_waited_for(gpu: PretendGpu) -> None:
    beside = torch.cuda.Stream()
    x = torch.arange(4, device="cuda")
    done = torch.cuda.Event()
    with torch.cuda.stream(beside):
        with pytest.raises(RuntimeError, match="another stream"):
            x + 1
        beside.wait_stream(torch.cuda.current_stream())
        y = torch.ones(4, device="cuda") * 2
        done.record(beside)
        late = y + 1
    with pytest.raises(RuntimeError, match="another stream"):
        y + x
    torch.cuda.current_stream().wait_event(done)
    assert (y + x).tolist() == [2, 3, 4, 5]
    with pytest.raises(RuntimeError, match="another stream"):
        late + x


def test_gradients_and_recomputed_passes_stay_on_the_device(gpu: PretendGpu) -> None:
    layer = torch.nn.Linear(3, 2).to("cuda")
    made: list[Tensor] = []

    def run(x: Tensor) -> Tensor:
        made.append(torch.ones(2, device=x.device))
        return layer(x).sin() * made[-1]

    checkpoint(run, torch.randn(5, 3, device="cuda"), use_reentrant=False).sum().backward()
    assert len(made) == 2
    assert all(weight.grad is not None and weight.grad.is_cuda for weight in layer.parameters())
    host = torch.ones(3, requires_grad=True)
    (host.to("cuda") * 2).sum().backward()
    assert host.grad is not None
    assert host.grad.tolist() == [2, 2, 2]
    assert not host.grad.is_cuda


def test_torch_is_as_before_afterwards() -> None:
    before = torch.cuda.is_available()
    with pretend_gpu():
        assert torch.cuda.is_available()
        assert torch.cuda.get_device_name() == "pretend GPU"
    assert torch.cuda.is_available() == before
    if not before:
        with pytest.raises((AssertionError, RuntimeError)):
            torch.zeros(3, device="cuda")
