from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.arena import Arena, Warm


@pytest.fixture(scope="session")
def warm(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm | None]:
    """What plays the commands: Python's start and the imports, once for all, are most of a command's time."""
    if pytestconfig.option.full:
        yield None
        return
    made = Warm(tmp_path_factory.mktemp("warm"))
    yield made
    made.close()


@pytest.fixture
def arena(tmp_path: Path, warm: Warm | None) -> Iterator[Arena]:
    # A socket in it has to have a short path.
    with tempfile.TemporaryDirectory(prefix="arena-") as temporary:
        yield Arena(tmp_path, Path(temporary), warm)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes a `case` runs on each of its module's `CASES`, or on those that are part of the suite."""
    if "case" in metafunc.fixturenames:
        full = metafunc.config.option.full
        cases = [case for case in metafunc.module.CASES if full or case.always]
        metafunc.parametrize("case", cases, ids=str)
