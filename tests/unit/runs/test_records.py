"""Records are read once, whole and as they come; a line that holds none stops neither a look at a run nor the run.

What an attempt has done again after a kill is there once.
"""

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.runs.records import NewRecords, append_to, record_in, records


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


def test_what_is_done_again_is_read_once_however_often_a_run_resumed(tmp_path: Path) -> None:
    """Held against a reader that cuts its list at each resumption, as the file itself was once cut."""
    drawn = random.Random(0)
    for case in range(50):
        path = tmp_path / f"{case}.jsonl"
        events = ["train", "train", "train", "note", "resumed", "done"]
        written = [{"event": drawn.choice(events), "step": drawn.randrange(9), "n": n} for n in range(40)]
        for record in written:
            if record["event"] == "note":
                del record["step"]
        kept: list[dict[str, Any]] = []
        for record in written:
            if record["event"] == "resumed":
                kept = [r for r in kept if r.get("step", 0) <= record["step"] and r["event"] != "done"]
            kept.append(record)
        path.write_text(lines_of(*written))
        assert list(records(path)) == kept
        assert len(kept) < len(written)


def test_many_resumptions_are_read_in_no_time(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    count = 20_000
    path.write_text(lines_of(*({"event": "resumed", "step": step} for step in range(count))))
    began = time.process_time()
    assert len(list(records(path))) == count
    assert time.process_time() - began < 5


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
    with append_to(run.metrics_file) as file:
        file.write(lines_of({"event": "resumed", "step": 5}))
    assert list(records(run.metrics_file)) == [*good, {"event": "resumed", "step": 5}]
    assert run.metrics_file.read_bytes().startswith(damaged)


@pytest.mark.parametrize(
    ("torn", "read"),
    [("", [1, 3]), ('{"step": 2, "ev', [1, 3]), ('{"step": 2}', [1, 2, 3]), ("\0" * 99, [1, 3])],
)
def test_a_line_torn_by_a_kill_harms_neither_its_neighbours_nor_who_watches(
    tmp_path: Path, torn: str, read: list[int]
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines_of({"step": 1}) + torn)
    new = NewRecords(path)
    with append_to(path) as file:
        file.write(lines_of({"step": 3}))
        assert [record["step"] for record in records(path)] == read
        assert new.read()[-1] == {"step": 3}
    assert path.read_text().startswith(lines_of({"step": 1}) + torn)


def test_lines_beyond_any_record_take_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tl_dist.files.limits.METRICS_LINE", 100)
    path = tmp_path / "metrics.jsonl"
    new = NewRecords(path)
    path.write_bytes(b"\0" * 350 + b"\n" + b'{"step": 1}\n' + b'{"text": "%s"}\n' % (b"x" * 90) + b'{"step": 2}\n')
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
    for read in (NewRecords, lambda path: list(records(path)), append_to):
        with pytest.raises(Refusal, match=r"metrics.jsonl cannot be read.*Fix: move it away") as refusal:
            read(run.metrics_file)
        assert refusal.value.code == ExitCode.UNSAFE
