"""No process outlives the test that started it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.end_to_end.harness import STARTED


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    for process in STARTED:
        if process.poll() is None:
            process.kill()
            process.communicate()
    STARTED.clear()
