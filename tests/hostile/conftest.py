from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.arena import Arena


@pytest.fixture
def arena(tmp_path: Path) -> Arena:
    return Arena(tmp_path)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes a `case` runs on each of its module's `CASES`, or on those that are part of the suite."""
    if "case" in metafunc.fixturenames:
        full = metafunc.config.option.full
        cases = [case for case in metafunc.module.CASES if full or case.always]
        metafunc.parametrize("case", cases, ids=str)
