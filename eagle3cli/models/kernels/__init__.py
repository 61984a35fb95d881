"""Triton kernels of the draft's layers, one file a job; imported on a GPU only, since Triton comes with torch for CUDA.

What each must equal is plain torch in ``models/draft.py``.
"""

from __future__ import annotations

import logging
from functools import cache

WIDEST_NORM = 8192
"""Numbers of a row that the norm's kernel keeps in registers; wider rows are normed in plain torch."""


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
