"""Records are read once, whole and as they come; a line that holds none stops neither a look at a run nor the run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.runs.records import NewRecords, record_in, records
from tl_dist.worker.metrics import drop_lines_after


def lines_of(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_records_are_read_once_whole_and_from_the_present_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records = NewRecords(path)
    assert records.read() == []
    path.write_text(lines_of({"step": 1}) + '{"step": ')
    assert records.read() == [{"step": 1}]
    with path.open("a") as file:
        file.write("2}\nno json\n[1]\n" + lines_of({"step": 3}))
    assert records.read() == [{"step": 2}, {"step": 3}]
    assert records.read() == []
    assert NewRecords(path).read() == []


def test_a_replaced_file_shows_only_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    note = {"event": "note", "text": "resumed from step 2"}
    path.write_text(lines_of({"step": 1}, note, {"step": 2}, {"step": 3}))
    records = NewRecords(path)
    replacement = tmp_path / "new"
    replacement.write_text(lines_of({"step": 1}, note, {"step": 2}))
    replacement.rename(path)
    with path.open("a") as file:
        file.write(lines_of(note, {"step": 3, "loss": 1}))
    assert records.read() == [note, {"step": 3, "loss": 1}]
    assert records.read() == []


HOSTILE = [
    *(b"\xff\xfe\x00", b"5", b"null", b'"text"', b"[1]", b"{", b'{"step": "x"}', b'{"step": NaN}'),
    *(b'{"step": []}', b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b'{"step": ' + b"9" * 5000 + b"}"),
]


@pytest.mark.parametrize("line", HOSTILE, ids=range(len(HOSTILE)))
def test_a_line_that_is_no_record_is_passed_over(tmp_path: Path, line: bytes) -> None:
    """One of these made a run that could never be resumed."""
    run = RunDir(tmp_path)
    good = [{"event": "train", "step": 1}, {"event": "note", "text": "no step"}]
    damaged = lines_of(good[0]).encode() + line + b"\n" + lines_of(good[1], {"step": 9}).encode()
    run.metrics_file.write_bytes(damaged)
    assert record_in(line) is None
    assert list(records(run.metrics_file)) == [*good, {"step": 9}]
    drop_lines_after(run, 5)
    assert run.metrics_file.read_text() == lines_of(*good)


def test_a_line_torn_by_a_kill_goes_and_a_whole_one_without_its_end_stays(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for torn in ("", '{"step": 2, "ev'):
        run.metrics_file.write_text(lines_of({"step": 1}) + torn)
        drop_lines_after(run, 5)
        assert run.metrics_file.read_text() == lines_of({"step": 1})
    run.metrics_file.write_text('{"step": 1}')
    drop_lines_after(run, 5)
    assert run.metrics_file.read_text() == lines_of({"step": 1})


def test_lines_beyond_any_record_take_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tl_dist.files.limits.METRICS_LINE", 100)
    path = tmp_path / "metrics.jsonl"
    new = NewRecords(path)
    path.write_bytes(
        b"\0" * 350 + b"\n" + b'{"step": 1}\n' + b'{"text": "%s"}\n' % (b"x" * 90) + b'{"step": 2}\n'
    )
    assert list(records(path)) == new.read() == [{"step": 1}, {"step": 2}]
    with path.open("ab") as file:
        file.write(b'{"step": 3}\n' + b"\0" * 350)
    assert list(records(path))[2:] == new.read() == [{"step": 3}]


@pytest.mark.parametrize("kind", ["pipe", "link", "directory"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    run = RunDir(tmp_path)
    if kind == "pipe":
        os.mkfifo(run.metrics_file)
    elif kind == "link":
        run.metrics_file.symlink_to("/dev/zero")
    else:
        run.metrics_file.mkdir()
    for read in (NewRecords, lambda path: list(records(path)), lambda path: drop_lines_after(run, 5)):
        with pytest.raises(Refusal, match=r"metrics.jsonl cannot be read.*Fix: move it away") as refusal:
            read(run.metrics_file)
        assert refusal.value.code == ExitCode.UNSAFE
