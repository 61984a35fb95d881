"""Triton kernels of training, one file a job; imported on a GPU only, since Triton comes with the CUDA build of torch.

What each must equal is plain torch elsewhere: the rows of the loss in ``fused_loss``, own keys in ``attention``.
"""

from __future__ import annotations

import logging
from functools import cache


@cache
def triton_runs() -> bool:
    """Whether Triton is installed and finds a GPU to compile for; without it plain torch does the same, slower."""
    try:
        from triton.runtime import driver
    except ImportError:
        return False
    try:
        driver.active.get_current_target()
    except Exception as error:  # no GPU, no C compiler, no headers of Python: whatever keeps Triton from running
        logging.getLogger(__name__).warning("Triton does not run here, plain torch does its work: %s", error)
        return False
    return True
