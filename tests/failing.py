"""What a test says of an error: its code and the values that it carries, never its sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from eagle3cli.errors import Eagle3Error


@contextmanager
def fails(
    code: str, *values: object, kind: type[Eagle3Error] = Eagle3Error
) -> Iterator[pytest.ExceptionInfo[Eagle3Error]]:
    """The block ends in an error of this code whose text holds each of ``values`` (a path, a key, a number)."""
    with pytest.raises(kind) as caught:
        yield caught
    assert caught.value.code == code, caught.value
    for value in values:
        assert str(value) in str(caught.value)
