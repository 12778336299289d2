"""The same command finds its run again, a changed experiment is refused, and small files are whole or absent."""

import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tl_dist.config import Config
from tl_dist.config import file as config_file
from tl_dist.config.file import differences
from tl_dist.files import atomic, foreign
from tl_dist.files.atomic import write_atomically
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs import heartbeats
from tl_dist.runs.directory import RunDir, step_name, steps_in
from tl_dist.runs.heartbeats import Heartbeats
from tl_dist.runs.lock import Lock
from tl_dist.runs.lock.owner import ELSEWHERE_S, OwningJob
from tl_dist.runs.table import runs

ROOT = Path(__file__).parents[3]


def experiment(**changes) -> Config:
    values = {
        "name": "elpv",
        "steps": 100,
        "data": {"name": "elpv", "path": "/data/one"},
        "model": {"backbone": "resnet50"},
        "optimizer": {"learning_rate": 0.1},
    }
    return Config.model_validate(values | changes)


def create(root, **changes) -> RunDir:
    cfg = experiment(**changes)
    return RunDir.create(root, cfg)


def refused(code, call, *arguments, **options) -> str:
    with pytest.raises(Refusal) as caught:
        call(*arguments, **options)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert " Fix: " in str(caught.value)
    return str(caught.value)


# --- one directory, one experiment --------------------------------------------------------------------------


def test_a_new_run_holds_its_resolved_config_and_is_private(tmp_path):
    run = create(tmp_path / "runs")
    assert config_file.load(run.config_file) == experiment()
    for path in [run.path, *run.path.iterdir()]:
        assert not path.stat().st_mode & 0o077, path
    assert run.rank_log(3) == run.path / "logs" / "rank_0003.out"
    assert sorted(path.name for path in run.path.iterdir()) == [
        "attempts", "checkpoints", "config.yaml", "heartbeats", "lock", "logs", "starting.json", "tb",
    ]  # fmt: skip


def test_the_same_command_again_finds_the_run(tmp_path):
    before = create(tmp_path).config_file.stat()
    again = create(tmp_path)
    assert again.config_file.stat().st_mtime_ns == before.st_mtime_ns
    assert RunDir.open(again.path).name == "elpv"


def test_keys_that_do_not_decide_the_weights_are_replaced(tmp_path):
    create(tmp_path)
    run = create(tmp_path, strategy="horovod", workers=4, data={"name": "elpv", "path": "/data/moved"})
    loaded = config_file.load(run.config_file)
    assert (loaded.strategy, loaded.workers, loaded.data.path) == ("horovod", 4, "/data/moved")


def test_another_trajectory_is_refused_with_every_difference(tmp_path):
    run = create(tmp_path)
    run.freeze_identity({"seed": 0})
    before = run.config_file.read_bytes()
    text = refused(
        ExitCode.UNSAFE,
        create,
        tmp_path,
        optimizer={"learning_rate": 0.01},
        data={"name": "elpv", "augment": ("flip",)},
        runtime={"wire": "bfloat16"},
    )
    assert "optimizer.learning_rate: 0.1 -> 0.01" in text
    assert "runtime.wire: auto -> bfloat16" in text
    assert 'data.augment: [] -> ["flip"]' in text
    assert "name=NAME" in text
    assert run.config_file.read_bytes() == before


def test_the_config_of_a_run_in_use_is_not_replaced(tmp_path):
    run = create(tmp_path)
    with Lock.acquire(run):
        assert create(tmp_path).path == run.path  # nothing to replace
        assert f"pid {os.getpid()}" in refused(ExitCode.CANNOT_CREATE, create, tmp_path, strategy="mirrored")
    assert config_file.load(run.config_file).strategy == "single"


STARTER = """
import sys
from tests.unit.runs.test_run_directory import Refusal, create
for line in sys.stdin:
    try:
        create(line.strip(), optimizer={"learning_rate": float(sys.argv[1])})
        print(sys.argv[1], flush=True)
    except Refusal as refusal:
        print(int(refusal.code), flush=True)
"""


@contextmanager
def starters(*rates) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that each create the run in the directories that they are told, at their rate, and live on."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    argv = [sys.executable, "-c", STARTER]
    processes = [subprocess.Popen([*argv, str(rate)], cwd=ROOT, **pipes) for rate in rates]
    try:
        yield processes
    finally:
        for process in processes:
            process.communicate()


def tell(process, directory) -> None:
    process.stdin.write(f"{directory}\n")
    process.stdin.flush()


def test_of_several_first_starters_with_different_experiments_one_goes_on(tmp_path):
    with starters(0.1, 0.2, 0.3) as processes:
        for number in range(4):
            for process in processes:
                tell(process, tmp_path / str(number))
            results = [float(process.stdout.readline()) for process in processes]
            winner = config_file.load(tmp_path / str(number) / "elpv" / "config.yaml").optimizer.learning_rate
            assert sorted(results) == [winner, 78, 78]
    assert create(tmp_path / "0", optimizer={"learning_rate": 0.4})  # none of them lives, and none has begun


def test_a_command_that_lives_keeps_its_config_until_it_ends(tmp_path):
    with starters(0.1) as (process,):
        tell(process, tmp_path)
        process.stdout.readline()
        text = refused(ExitCode.UNSAFE, create, tmp_path, optimizer={"learning_rate": 0.2})
        assert f"was started with other values by tl-dist with pid {process.pid} on" in text
        assert "0.1 -> 0.2" in text
        create(tmp_path, optimizer={"learning_rate": 0.1})  # the same: its claim is left alone
        refused(ExitCode.UNSAFE, create, tmp_path, optimizer={"learning_rate": 0.2})
    run = create(tmp_path, optimizer={"learning_rate": 0.2})
    assert config_file.load(run.config_file).optimizer.learning_rate == 0.2


def test_a_job_that_waits_binds_its_run_up_to_its_first_attempt(tmp_path):
    run = create(tmp_path, optimizer={"learning_rate": 0.1})
    run.claim(OwningJob("17"))
    assert "of SLURM job 17" in refused(ExitCode.UNSAFE, create, tmp_path, optimizer={"learning_rate": 0.2})
    (run.attempts / "0001.json").write_text("{}")
    create(tmp_path, optimizer={"learning_rate": 0.2})


def test_a_claim_from_elsewhere_is_believed_for_a_while(tmp_path):
    run = create(tmp_path, optimizer={"learning_rate": 0.1})
    owner = json.loads(run.claim_file.read_text()) | {"host": "elsewhere"}
    run.claim_file.write_text(json.dumps(owner))
    assert "on elsewhere" in refused(ExitCode.UNSAFE, create, tmp_path, optimizer={"learning_rate": 0.2})
    os.utime(run.claim_file, (time.time() - 2 * ELSEWHERE_S,) * 2)
    create(tmp_path, optimizer={"learning_rate": 0.2})


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 4000, '{"pid": "x"}', "x" * 100_000])
def test_a_damaged_claim_binds_to_nothing(tmp_path, text):
    create(tmp_path, optimizer={"learning_rate": 0.1}).claim_file.write_text(text)
    create(tmp_path, optimizer={"learning_rate": 0.2})


def test_a_mistyped_run_is_refused_with_the_nearest_name(tmp_path):
    create(tmp_path)
    assert "elpv'" in refused(ExitCode.USAGE, RunDir.open, tmp_path / "elvp")
    refused(ExitCode.USAGE, RunDir.open, tmp_path / "nowhere" / "x")
    (tmp_path / "elpv" / "config.yaml").unlink()
    assert "config.yaml" in refused(ExitCode.USAGE, RunDir.open, tmp_path / "elpv")


# --- hostile directories ------------------------------------------------------------------------------------


def test_a_link_in_place_of_the_run_or_of_anything_in_it_is_refused(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "elpv").symlink_to(elsewhere)
    assert "symbolic link" in refused(ExitCode.UNSAFE, create, tmp_path / "runs")
    assert list(elsewhere.iterdir()) == []
    run = create(tmp_path / "other")
    for name in ("lock", "attempts", "checkpoints", "tb", "logs", "heartbeats"):
        (run.path / name).rename(run.path / "kept")
        (run.path / name).symlink_to(elsewhere)
        assert name in refused(ExitCode.UNSAFE, RunDir.open, run.path)
        assert name in refused(ExitCode.UNSAFE, create, tmp_path / "other")
        (run.path / name).unlink()
        (run.path / "kept").rename(run.path / name)
    for name in ("run.json", "starting.json", "metrics.jsonl", "stop", "DONE"):
        (run.path / name).unlink(missing_ok=True)
        (run.path / name).symlink_to(tmp_path / "canary")
        assert name in refused(ExitCode.UNSAFE, RunDir.open, run.path)
        assert name in refused(ExitCode.UNSAFE, create, tmp_path / "other")
        (run.path / name).unlink()
    assert not (tmp_path / "canary").exists()
    RunDir.open(run.path)


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_directory_that_others_can_write_is_refused(tmp_path, mode):
    run = create(tmp_path)
    for directory in (run.path, run.checkpoints):
        directory.chmod(mode)
        assert "chmod go-w" in refused(ExitCode.UNSAFE, RunDir.open, run.path)
        assert "chmod go-w" in refused(ExitCode.UNSAFE, create, tmp_path)
        directory.chmod(0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(tmp_path):
    run = create(tmp_path)
    os.chown(run.path, 4711, -1)
    assert "user 4711" in refused(ExitCode.UNSAFE, RunDir.open, run.path)
    assert "user 4711" in refused(ExitCode.UNSAFE, create, tmp_path)


def test_a_file_in_place_of_the_run_is_refused(tmp_path):
    (tmp_path / "elpv").write_text("")
    assert "not a directory" in refused(ExitCode.UNSAFE, create, tmp_path)


def test_a_root_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    assert "Not a directory" in refused(ExitCode.CANNOT_CREATE, create, tmp_path / "file" / "runs")


# --- files that exist whole or not at all -------------------------------------------------------------------


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    for call in ("fsync", "rename", "write", "close"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing(call))
            with pytest.raises(OSError, match="Input/output error"):
                write_atomically(path, b"new")
        assert path.read_bytes() == b"old"
        assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def failing(name):
    real = getattr(os, name)

    def call(*arguments, **options):
        if name == "close":
            real(*arguments)
        raise OSError(5, "Input/output error")

    return call


def test_a_short_write_is_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data[:3])))
    written = atomic.write_file(tmp_path / "file", [b"0123456789", b"", b"ab"])
    assert (tmp_path / "file").read_bytes() == b"0123456789ab"
    assert written.size == 12


@pytest.mark.parametrize("hard_links", [True, False])
def test_an_exclusive_write_never_replaces(tmp_path, monkeypatch, hard_links):
    if not hard_links:
        monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(PermissionError(1, "no links here")))
    write_atomically(tmp_path / "file", b"first", exclusive=True)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "file", b"second", exclusive=True)
    assert (tmp_path / "file").read_bytes() == b"first"
    assert len(list(tmp_path.iterdir())) == 1


def test_only_regular_files_of_a_sane_size_are_read(tmp_path):
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "big").write_bytes(b"x" * 11)
    for name, why in (("link", "symbolic link"), ("pipe", "not a regular file"), ("big", "larger than 10")):
        with pytest.raises(OSError, match=why):
            foreign.read_file(tmp_path / name, max_bytes=10)
    with pytest.raises(OSError, match="not a regular file"):
        foreign.read_file(tmp_path, max_bytes=10)


# --- identity, stop, done -----------------------------------------------------------------------------------


def test_identity_is_frozen_at_the_first_start(tmp_path):
    run = create(tmp_path)
    assert run.read_identity() is None
    identity = {"seed": 1, "data": {"train": "a" * 64, "classes": ("x", "y")}, "weights_sha256": None}
    run.freeze_identity(identity)
    run.freeze_identity(identity)
    assert run.read_identity() == json.loads(json.dumps(identity))
    changed = identity | {"data": {"train": "b" * 64, "classes": ["x"]}, "new": 1}
    text = refused(ExitCode.UNSAFE, run.freeze_identity, changed)
    assert "data.train: aaaa" in text
    assert "-> bbbb" in text
    assert "a" * 41 not in text
    assert 'data.classes: ["x", "y"] -> ["x"]' in text
    assert "new: (none) -> 1" in text
    assert "seed" not in text
    assert run.read_identity() == json.loads(json.dumps(identity))


def test_a_run_in_another_order_is_refused_and_not_resumed(tmp_path):
    run = create(tmp_path)
    before = {"seed": 1, "order": 1, "data": {"train": "a" * 64}}
    run.freeze_identity(before)
    text = refused(ExitCode.UNSAFE, run.freeze_identity, before | {"order": 2})
    assert "was started with version 1 of the order of its training examples, and this is version 2." in text
    assert "Fix: start a new run with another name=NAME" in text and "\n" not in text
    assert run.read_identity() == before
    run.freeze_identity(before)


def test_a_run_that_moves_to_another_generation_of_gpus_is_told_why_it_cannot(tmp_path):
    run = create(tmp_path)
    run.freeze_identity({"seed": 1, "precision": "mixed_float16"})
    text = refused(ExitCode.UNSAFE, run.freeze_identity, {"seed": 1, "precision": "mixed_bfloat16"})
    assert "precision: mixed_float16 -> mixed_bfloat16. Its 'precision: auto' means that on this machine." in text
    assert "Fix: resume on a GPU or processor like that of its start, or start a new run" in text
    text = refused(ExitCode.UNSAFE, run.freeze_identity, {"seed": 2, "precision": "mixed_bfloat16"})
    assert "auto" not in text and "Fix: bring back what it was started with" in text


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 4000])
def test_a_damaged_identity_is_refused(tmp_path, text):
    run = create(tmp_path)
    run.identity_file.write_text(text)
    assert "run.json" in refused(ExitCode.UNSAFE, run.freeze_identity, {"seed": 1})


def test_differences_are_dotted_and_short():
    old = {"a": {"b": 1, "c": {"d": True}}, "e": None, "same": [1, 2], "out": 1, "list": [{"x": 1}]}
    new = {"a": {"b": 2, "c": {}}, "e": "x" * 100, "same": (1, 2), "out": 2, "list": [{"x": 2}]}
    assert differences(old, new, ["a", "e", "same", "list", "absent"]) == [
        "a.b: 1 -> 2",
        "a.c.d: true -> (none)",
        "a.c: (none) -> {}",
        f"e: null -> {'x' * 37}...",
        'list: [{"x": 1}] -> [{"x": 2}]',
    ]


def test_a_stop_is_seen_until_it_is_cleared(tmp_path):
    run = create(tmp_path)
    assert not run.stop_requested()
    run.request_stop()
    run.request_stop()
    assert run.stop_requested()
    assert RunDir(run.path).stop_requested()
    run.clear_stop()
    run.clear_stop()
    assert not run.stop_requested()


def test_done_gives_the_summary_back(tmp_path):
    run = create(tmp_path)
    assert run.done is None
    run.mark_done({"step": 100, "test_accuracy": 0.9})
    assert RunDir(run.path).done == {"step": 100, "test_accuracy": 0.9}


# --- heartbeats ---------------------------------------------------------------------------------------------


def test_beats_tell_who_does_what_and_since_when(tmp_path):
    run = create(tmp_path)
    run.beats.beat(0, "training", 12)
    run.beats.beat(11, "evaluating", 7, 3600.0)
    beats = RunDir(run.path).beats.read()
    assert sorted(beats) == [0, 11]
    assert beats[11][1:] == ("evaluating", 7, os.uname().nodename, os.getpid(), 2, 3600.0)
    run.beats.beat(0, "x" * 1000, 10**12)
    assert run.beats.read()[0].step == 10**12


class Clock:
    """The watching process's monotonic clock; the test moves it."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_old_beat_is_old_at_first_sight_and_grows_older(tmp_path, monkeypatch):
    run, clock = create(tmp_path), Clock()
    run.beats.beat(0, "training", 12)
    path = next(run.heartbeats.iterdir())
    monkeypatch.setattr(heartbeats, "server_time_ns", lambda directory: path.stat().st_mtime_ns + 50 * 10**9)
    watched = Heartbeats(run.heartbeats, clock=clock)
    assert watched.read()[0].age_s == 50
    clock.now += 7
    assert watched.read()[0].age_s == 57
    run.beats.beat(0, "training", 13)
    assert watched.read()[0].age_s == 0


def test_a_beat_of_this_moment_is_young_at_first_sight(tmp_path):
    run = create(tmp_path)
    run.beats.beat(0, "training", 12)
    assert 0 <= RunDir(run.path).beats.read()[0].age_s < 30


def test_a_clock_that_jumps_makes_no_watched_worker_old(tmp_path):
    """The file server's clock goes back or forward between two beats; the supervisor has seen both."""
    run, clock = create(tmp_path), Clock()
    run.beats.beat(0, "training", 1)
    watched = Heartbeats(run.heartbeats, clock=clock)
    watched.read()
    path = next(run.heartbeats.iterdir())
    for jump in (-3600, 3600):
        os.utime(path, (time.time() + jump,) * 2)
        clock.now += 5
        assert watched.read()[0].age_s == 0
        clock.now += 2
        assert watched.read()[0].age_s == 2


def test_spaced_beats_are_written_as_often_as_asked_and_the_last_one_always(tmp_path, monkeypatch):
    """By the end of that time, with how long it has been held back: who holds up whom is told by last words."""
    run = create(tmp_path)
    written = []
    write = Heartbeats._write

    def counted(self, rank, facts):
        written.append(facts["step"])
        write(self, rank, facts)

    monkeypatch.setattr(Heartbeats, "_write", counted)
    run.beats.space(0.5)
    began = time.monotonic()
    step = 0
    while time.monotonic() - began < 0.25:
        step += 1
        run.beats.beat(0, "training", step, patience_s=7.0)
    assert written == [1]
    time.sleep(1.0)
    assert written == [1, step]
    beat = run.beats.read()[0]
    assert (beat.step, beat.number, beat.patience_s) == (step, step, 7.0)
    assert beat.age_s >= 0.25  # since it was said, not since it was written
    run.beats.beat(0, "training", 100)  # after the time, at once
    run.beats.beat(0, "saving", 101)
    run.beats.space(0)  # the process ends
    assert written == [1, step, 100, 101]


def test_a_thread_that_wakes_late_writes_no_beat_before_its_time(tmp_path, monkeypatch):
    """What it was to write has been written by a beat that came when it was due; the one held now is another's."""
    run, now, waking = create(tmp_path), [0.0], threading.Event()
    monkeypatch.setattr(heartbeats.time, "sleep", lambda seconds: waking.wait(60))
    watched = Heartbeats(run.heartbeats, clock=lambda: now[0])
    watched._every_s = 5.0
    before = set(threading.enumerate())
    for at, step in ((0.0, 1), (1.0, 2), (5.1, 3)):  # the second one is held, and its thread late
        now[0] = at
        watched.beat(0, "training", step)
    (late,) = set(threading.enumerate()) - before
    facts = {"phase": "training", "step": 4, "host": "", "pid": 1, "number": 4, "patience_s": 0.0}
    watched._held = (0, facts, 5.2)
    waking.set()
    late.join(60)
    assert json.loads((run.heartbeats / "rank_0000").read_bytes())["step"] == 3


def test_a_beat_that_is_held_back_ends_with_its_directory(tmp_path, capfd):
    run = create(tmp_path)
    run.beats.space(0.1)
    for step in (1, 2):
        run.beats.beat(0, "training", step)
    shutil.rmtree(run.path)
    time.sleep(0.3)
    assert capfd.readouterr().err == ""


def test_cleared_beats_are_gone_and_a_living_worker_comes_back(tmp_path):
    run = create(tmp_path)
    run.beats.beat(0, "training", 1)
    run.beats.clear()
    assert run.beats.read() == {}
    run.beats.beat(0, "training", 2)
    assert run.beats.read()[0].step == 2


def test_torn_or_foreign_heartbeat_files_are_no_beats(tmp_path):
    run = create(tmp_path)
    for rank, text in enumerate(["", "{", "[]", '{"phase": 1}', "x" * 10_000]):
        (run.heartbeats / f"rank_{rank:04d}").write_text(text)
    (run.heartbeats / "rank_0009").symlink_to("/etc/passwd")
    os.mkfifo(run.heartbeats / "rank_0010")
    assert run.beats.read() == {}


# --- storage and the table ----------------------------------------------------------------------------------


def test_storage_that_cannot_keep_a_file_is_refused_at_the_start(tmp_path, monkeypatch):
    run = create(tmp_path)
    run.probe_storage()
    for call in ("fsync", "rename", "write"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing(call))
            assert "Input/output error" in refused(ExitCode.CANNOT_CREATE, run.probe_storage)


def test_the_probe_removes_old_leftovers_only(tmp_path):
    run = create(tmp_path)
    old, young, other = run.path / ".tmp-DONE-1", run.path / ".tmp-DONE-2", run.path / "tmp-mine"
    for path in (old, young, other):
        path.write_text("")
    for path in (old, other):
        os.utime(path, (1, 1))
    run.probe_storage()
    assert (old.exists(), young.exists(), other.exists()) == (False, True, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs mount")
def test_a_read_only_disk_is_refused_at_the_start(tmp_path):
    run = create(tmp_path)
    mount = "mount --bind $1 $1 && mount -o remount,bind,ro $1"
    if subprocess.run(["sh", "-c", mount, "sh", run.path], capture_output=True).returncode:
        pytest.skip("mount is not allowed here")
    try:
        assert "Read-only file system" in refused(ExitCode.CANNOT_CREATE, run.probe_storage)
        assert "Read-only file system" in refused(ExitCode.CANNOT_CREATE, Lock.acquire, run)
    finally:
        subprocess.run(["umount", run.path], check=True)


def test_only_canonical_step_names_are_checkpoints(tmp_path):
    names = [
        "step-00000012",
        "step-123456789",
        "step-000000012",
        "step-12",
        "step-00000001x",
        ".tmp-step-00000099-a",
    ]
    for name in [*names, ".trash-step-00000098-b", "step-00000000", "step-" + "9" * 19]:
        (tmp_path / name).mkdir()
    assert [step for step, _ in steps_in(tmp_path)] == [123456789, 12, 0]
    assert step_name(12) == "step-00000012"
    assert steps_in(tmp_path / "nowhere") == []


def test_attempts_are_counted_by_the_files_that_are_theirs(tmp_path):
    run = create(tmp_path)
    assert run.next_attempt() == 1
    for name in (
        "0007.json",
        "\N{SUPERSCRIPT TWO}.json",
        "9" * 240 + ".json",
        "0009.txt",
        "x.json",
        "99.json",
    ):
        (run.attempts / name).write_text("{}")
    assert run.next_attempt() == 8


def test_the_table_of_runs(tmp_path):
    assert runs(tmp_path / "nowhere") == []
    for name in ("finished", "busy", "stopped", "broken", "failed"):
        create(tmp_path, name=name, strategy="horovod", workers=3)
    (tmp_path / "not_a_run").mkdir()
    by_name = {name: RunDir(tmp_path / name) for name in ("finished", "busy", "stopped", "broken", "failed")}
    by_name["finished"].mark_done({"step": 100})
    (by_name["stopped"].checkpoints / "step-00000040").mkdir()
    (by_name["broken"].config_file).write_text("nonsense: [")
    (by_name["failed"].attempts / "0001.json").write_text(json.dumps({"exit_code": 0}))
    (by_name["failed"].attempts / "0002.json").write_text(json.dumps({"exit_code": 76}))
    records = [
        {"event": "train", "step": 10, "loss": 2.5},
        {"event": "evaluation", "step": 10, "split": "validation", "accuracy": 0.75},
        {"event": "evaluation", "step": 20, "split": "validation", "accuracy": 0.5},
        {"event": "train", "step": 30, "loss": 1.5},
    ]
    text = "".join(json.dumps(record) + "\n" for record in records) + '{"event": "train", "st'
    by_name["busy"].metrics_file.write_text(text)
    with Lock.acquire(by_name["busy"]):
        table = {summary.name: summary for summary in runs(tmp_path)}
    assert {name: summary.state for name, summary in table.items()} == {
        "finished": "done", "busy": "running", "stopped": "stopped", "broken": "stopped", "failed": "failed",
    }  # fmt: skip
    assert table["busy"].figures == {
        "loss": 1.5,
        "validation_accuracy": 0.5,
        "best_validation_accuracy": 0.75,
    }
    assert (table["busy"].step, table["stopped"].step) == (30, 40)
    assert (table["busy"].strategy, table["busy"].workers, table["broken"].strategy) == ("horovod", 3, "?")
    assert all(0 <= summary.age_s < 60 for summary in table.values())


def test_the_run_directory_imports_no_tensorflow():
    code = (
        "import sys, tl_dist.runs.checkpoint, tl_dist.runs.directory; "
        "sys.exit(bool({'tensorflow', 'keras'} & sys.modules.keys()))"
    )
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


def test_a_directory_fsync_that_the_filesystem_does_not_know_is_no_error(tmp_path, monkeypatch):
    def unknown(fd):
        assert stat.S_ISDIR(os.fstat(fd).st_mode)
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", unknown)
    atomic.fsync_directory(tmp_path)


def test_a_run_that_never_began_is_bound_to_nothing(tmp_path):
    """Whoever mistypes a rate, is refused, and mends it, types the same name again."""
    run = create(tmp_path, optimizer={"learning_rate": 0.1})
    create(tmp_path, optimizer={"learning_rate": 0.2})
    assert config_file.load(run.config_file).optimizer.learning_rate == 0.2
    with Lock.acquire(run):  # an attempt that lives, and has not begun yet
        refused(ExitCode.CANNOT_CREATE, create, tmp_path, optimizer={"learning_rate": 0.3})
    assert config_file.load(run.config_file).optimizer.learning_rate == 0.2


@pytest.mark.parametrize("begun", ["run.json", "metrics.jsonl", "DONE", "predictions", "checkpoints/step-00000001"])
def test_whatever_a_run_has_brought_binds_it_to_its_config(tmp_path, begun):
    run = create(tmp_path, optimizer={"learning_rate": 0.2})
    (run.path / begun).write_text("{}")
    assert "0.2 -> 0.3" in refused(ExitCode.UNSAFE, create, tmp_path, optimizer={"learning_rate": 0.3})


def test_what_begins_while_the_lock_is_waited_for_binds_the_run(tmp_path, monkeypatch):
    """Of two commands at once the other one's worker agreed on its identity between our look and our lock."""
    run = create(tmp_path, optimizer={"learning_rate": 0.1})
    acquire = Lock.acquire

    def late(run, **options):
        run.freeze_identity({"seed": 0})
        return acquire(run, **options)

    monkeypatch.setattr(Lock, "acquire", late)
    assert "0.1 -> 0.2" in refused(ExitCode.UNSAFE, create, tmp_path, optimizer={"learning_rate": 0.2})
    assert config_file.load(run.config_file).optimizer.learning_rate == 0.1


def test_a_worker_whose_config_was_replaced_before_it_had_the_lock_is_refused(tmp_path):
    run = create(tmp_path, optimizer={"learning_rate": 0.1})
    read = config_file.load(run.config_file)
    run.refuse_other_config(read)
    create(tmp_path, optimizer={"learning_rate": 0.2})
    refused(ExitCode.CANNOT_CREATE, run.refuse_other_config, read)


def test_a_key_that_an_earlier_version_did_not_know_must_have_its_default(tmp_path: Path) -> None:
    run, values = RunDir(tmp_path), json.loads(json.dumps(config_file.trajectory(experiment())))
    old = {**values, "loss": {key: v for key, v in values["loss"].items() if key not in ("name", "gamma")}}
    run.freeze_identity({"trajectory": old})
    run.freeze_identity({"trajectory": values})
    changed = {**values, "loss": {**values["loss"], "gamma": 3.0}}
    with pytest.raises(Refusal, match=r"something else: trajectory\.loss\.gamma: 2\.0 -> 3\.0\."):
        run.freeze_identity({"trajectory": changed})
    with pytest.raises(Refusal, match=r"trajectory\.loss\.tau: 1\.0 -> \(none\)"):
        run.freeze_identity({"trajectory": {**values, "loss": {"name": "cross_entropy"}}})
