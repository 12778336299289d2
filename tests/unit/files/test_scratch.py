"""What is in the making goes with its maker, however that ends, and nothing else goes with it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tl_dist.files.private import keep, scratch

MAKER = """
import sys, time
from pathlib import Path
from tl_dist.files.private import scratch
with scratch(Path(sys.argv[1]), "thing") as made:
    (made / "half").write_text("x" * 1000)
    print(made, flush=True)
    time.sleep(600)
"""


def maker(place: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that is making something, and where."""
    process = subprocess.Popen([sys.executable, "-c", MAKER, place], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def made_next(place: Path) -> None:
    with scratch(place, "thing") as made:
        assert made.stat().st_mode & 0o777 == 0o700


def test_it_is_gone_at_the_end_and_after_an_error(tmp_path: Path) -> None:
    def fails() -> None:
        with scratch(tmp_path, "thing") as made:
            (made / "half").write_text("")
            raise ValueError("x")

    made_next(tmp_path)
    with pytest.raises(ValueError, match="x"):
        fails()
    assert not list(tmp_path.iterdir())


def test_that_of_a_killed_maker_goes_with_the_next_command_and_that_of_a_living_one_stays(
    tmp_path: Path,
) -> None:
    killed, first = maker(tmp_path)
    living, second = maker(tmp_path)
    try:
        made_next(tmp_path)
        assert first.exists() and second.exists()
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        made_next(tmp_path)
        assert not first.exists() and (second / "half").exists()
    finally:
        for process in (killed, living):
            process.kill()
            process.communicate()


def test_what_a_person_is_told_of_stays(tmp_path: Path) -> None:
    with scratch(tmp_path, "thing") as made:
        keep(made)
    made_next(tmp_path)
    assert made.exists()


def test_nothing_that_only_has_such_a_name_is_removed(tmp_path: Path) -> None:
    """Directories of people, marks of other hosts, links, files, and of an owner who cannot be told."""
    for name in ("thing-notes123", "thing-notes", "things-abcdefgh", "thing-abcdefgh"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("years of work")
    (tmp_path / "thing-otherhos").mkdir()
    (tmp_path / "thing-otherhos" / ".maker").write_text("another-host")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / ".maker").write_text(os.uname().nodename)
    (tmp_path / "thing-linkeded").symlink_to("outside")
    (tmp_path / "thing-markedby").mkdir()
    (tmp_path / "thing-markedby" / ".maker").symlink_to(tmp_path / "outside" / ".maker")
    (tmp_path / "thing-anyfiles").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    made_next(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
