"""Exit records are read in order of time, of one attempt only; a damaged one counts as none."""

import os
from pathlib import Path

from tl_dist.runs.exit_records import Exit, ExitRecords


def test_endings_are_those_of_the_attempt_in_the_order_of_time(tmp_path: Path) -> None:
    exit_records, before = ExitRecords(tmp_path / "0002"), ExitRecords(tmp_path / "0001")
    before.write(Exit(1, 137))
    worker = ExitRecords.from_env(exit_records.environment)
    assert worker is not None
    for rank, ns in ((0, 2), (12_345, 1), (2, 3)):
        worker.write(Exit(rank, 65, "a\nb \u202e.", "mend it."))
        os.utime(next(tmp_path.glob(f"0002.rank_*{rank}")), ns=(ns, ns))
    (tmp_path / "0002.rank_0003").write_text('{"rank": 3}')
    (tmp_path / "0002.rank_0004").write_bytes(b"\xff")
    (tmp_path / "0002.rank_0005").symlink_to("0002.rank_0000")
    known = exit_records.read([0, 1, 2, 3, 4, 5, 6, 12_345])
    assert known == [Exit(rank, 65, "a\nb \u202e.", "mend it.") for rank in (12_345, 0, 2)]
    exit_records.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["0001.rank_0001"]


def test_a_worker_that_cannot_write_its_ending_ends_all_the_same(tmp_path: Path) -> None:
    exit_records = ExitRecords(tmp_path / "gone" / "0001")
    exit_records.write(Exit(0, 74, "the disk is full.", "free some."))
    assert exit_records.read([0]) == []
    assert ExitRecords.from_env({}) is None
