"""Batches that are trained on again wait in the host's memory, and come back to their device."""

from __future__ import annotations

import torch

from eagle3cli.backends.batches.batch import TargetBatch
from eagle3cli.backends.batches.kept import KeptBatches
from tests.gpu_tensor import PretendGpu


def test_a_gpus_batch_comes_back_and_takes_none_of_its_memory_meanwhile(gpu: PretendGpu) -> None:
    device = torch.device("cuda")
    ids = torch.arange(3).to(device)
    aux = torch.rand(3, 4).to(device)
    last = torch.rand(3, 2).to(device)
    mask = torch.ones(3, dtype=torch.bool)
    batch = TargetBatch(ids, mask, (0, 3), aux, last, ids + 1, (7,), top_host_N=torch.arange(1, 4))
    kept = KeptBatches()
    kept.put([[7], [8]], batch)
    kept.put([[], [9]], None)
    assert [[7], [8]] in kept
    assert [[7]] not in kept
    (waiting, nothing) = kept._kept.values()
    assert nothing is None
    assert waiting is not None
    held = (*waiting.rest.on_device, *(copy.values for copy in waiting.copies))
    assert {tensor.device.type for tensor in held} == {"cpu"}
    back = kept.take([[7], [8]])
    assert back is not None
    assert {tensor.device.type for tensor in back.on_device} == {"cuda"}
    for before, after in zip(batch.on_device, back.on_device, strict=True):
        assert torch.equal(before.cpu(), after.cpu())
    assert (back.rows, back.cu_seqlens) == ((7,), (0, 3))
    assert kept.take([[], [9]]) is None
    assert len(kept) == 0
