"""What a long row takes on one process and on two that share it, in real processes, beside the plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.speed.scaling.context_parallel import HIDDEN, LEAST, VOCAB, measure, write_store
from tests.speed.scaling.memory_forecast import Model

LENGTH, WINDOW = 65_536, 1024


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_rank_takes_its_share_of_a_long_row_and_the_plan_foretells_it(tmp_path: Path) -> None:
    Model(HIDDEN, 8, 2, 1, 176, VOCAB).write(tmp_path / "target")
    for store, length in (("long", LENGTH), ("short", LEAST)):
        write_store(tmp_path / store, tmp_path / "target", length)
    bare = measure(tmp_path, "short", 1, WINDOW)
    alone = measure(tmp_path, "long", 1, WINDOW)
    each = measure(tmp_path, "long", 2, WINDOW)
    print("", bare, alone, each, sep="\n")
    assert each.loss == pytest.approx(alone.loss, rel=1e-6)
    assert each.own - bare.own <= 0.7 * (alone.own - bare.own)  # .65 measured: keys are half as wide as this draft
    assert alone.foretold == pytest.approx(alone.resident, rel=0.15)
    assert each.foretold == pytest.approx(each.resident, rel=0.15)
