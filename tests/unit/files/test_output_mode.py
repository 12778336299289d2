"""Files that the user asks for obey the umask, but never become writable for others; all others stay private."""

import os
from pathlib import Path

import pytest

from tl_dist.files.atomic import write_atomically, write_output
from tl_dist.tools.predict.table import columns, written


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o644)])
def test_the_mode_of_an_output(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_output(tmp_path / "asked", b"x", option="--out")
        with written(tmp_path / "predictions.csv", columns(1)):
            pass
        write_atomically(tmp_path / "private", b"x")
    finally:
        os.umask(before)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("asked", "predictions.csv")} == {mode}
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600
