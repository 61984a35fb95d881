"""Whether an error says that memory ran out, on a GPU or in the computer, and what to do before it is told."""

from __future__ import annotations

import gc
import re

WORDS = ("can't allocate memory", "not enough memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch says in errors that have no type of their own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out."""
    import torch

    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in WORDS)


def failed_allocation(error: BaseException) -> str:
    """How much was asked for in vain, as the error says it; empty where it does not."""
    size = re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)", str(error))
    return f"; {size[1]} more were asked for" if size else ""


def release(error: BaseException) -> None:
    """Drop what the frames of an error keep alive, so that there is memory to tell it with."""
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
