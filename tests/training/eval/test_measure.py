from __future__ import annotations

import pytest

from eagle3cli.training.eval.measure import EVAL_BATCH, EVAL_TOKENS, rows_at_once


@pytest.mark.parametrize("longest", [0, 1, 4096, 4097, 8192, 32768, 131072])
def test_more_rows_than_one_run_at_once_where_they_are_few_tokens(longest: int) -> None:
    rows = rows_at_once(longest)
    assert 1 <= rows <= EVAL_BATCH
    assert rows == 1 or rows * longest <= EVAL_TOKENS
    assert rows == EVAL_BATCH or (rows + 1) * longest > EVAL_TOKENS
