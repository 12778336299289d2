"""One run, one writer: a second starter is told who owns the run, a dead owner is replaced exactly once."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs import lock as locking
from tl_dist.runs.directory import RunDir
from tl_dist.runs.lock import Lock, holder
from tl_dist.runs.lock.owner import OwningJob

HERE = Path(__file__).parent
ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": str(HERE.parents[2])}
HOLD = """
import sys, time
from tl_dist.runs.lock import Lock
from tl_dist.runs.directory import RunDir
lock = Lock.acquire(RunDir(sys.argv[1]), heartbeat_s=0.1)
print("owned", flush=True)
time.sleep(60)
"""


@pytest.fixture
def run(tmp_path):
    run = RunDir(tmp_path / "elpv")
    run.lock_dir.mkdir(parents=True)
    return run


STARTED = []


@pytest.fixture(autouse=True)
def _nothing_is_left():
    yield
    while STARTED:
        end(STARTED.pop())


def start_owner(run, **environment):
    """Another process that owns the run, or has died trying."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)],
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    STARTED.append(process)
    process.stdout.readline()
    return process


def end(process):
    process.kill()
    process.wait()
    process.stdout.close()


def owner_file(run):
    return max(run.lock_dir.glob("owner-*.json"))


def pretend(run, *, age_s=0.0, **facts):
    """Change what the owner file says of its owner, and how long ago it was touched."""
    path = owner_file(run)
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    now = path.stat().st_mtime
    os.utime(path, (now - age_s, now - age_s))


def plant(run, *, age_s=0.0, **facts):
    """A lock whose owner is a process elsewhere."""
    Lock.acquire(run, heartbeat_s=3600).release()
    pretend(run, age_s=age_s, **{"released": False, "heartbeat_s": 60, "host": "elsewhere"} | facts)


def test_the_second_starter_is_refused_at_once_and_told_who_owns_the_run(run):
    with Lock.acquire(run, who="worker", job=OwningJob("4711")), pytest.raises(Refusal) as refused:
        Lock.acquire(run, sleep=pytest.fail)
    assert refused.value.code == ExitCode.CANNOT_CREATE
    for fact in ("elpv", f"pid {os.getpid()}", os.uname().nodename, "job 4711", " s ago", "Fix:"):
        assert fact in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_released_lock_is_free_at_once(run):
    first = Lock.acquire(run)
    assert first.owned()
    first.release()
    assert not first.owned()
    with Lock.acquire(run) as second:
        assert second.owned()
        assert second.history == "free"
        first.release()  # a second time: must not touch the new owner's lock
        assert second.owned()


def test_a_waiting_starter_gets_the_lock_when_it_is_released(run):
    first = Lock.acquire(run)
    with Lock.acquire(run, wait_s=20, sleep=lambda s: first.release()) as second:
        assert second.owned()


def test_an_owner_that_was_killed_is_replaced_before_anybody_has_waited_for_it(run):
    owner = start_owner(run)
    with pytest.raises(Refusal, match=f"pid {owner.pid}"):
        Lock.acquire(run)
    owner.send_signal(signal.SIGKILL)
    while Path(f"/proc/{owner.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    with Lock.acquire(run, sleep=pytest.fail) as lock:  # the owner is a zombie now
        assert f"pid {owner.pid}" in lock.history


def test_a_stopped_owner_on_this_machine_is_alive_however_old_its_heartbeat(run):
    owner = start_owner(run)
    owner.send_signal(signal.SIGSTOP)
    pretend(run, age_s=86400)
    with pytest.raises(Refusal, match=f"pid {owner.pid}.*heartbeat 86[34]"):
        Lock.acquire(run)


def test_a_pid_that_belongs_to_another_process_now_is_no_owner(run):
    plant(run, host=os.uname().nodename, started=1)  # this very process has the pid, but started later
    with Lock.acquire(run) as lock:
        assert "is gone" in lock.history


@pytest.mark.parametrize(
    "elsewhere",
    [{"host": "elsewhere"}, {"boot": "another"}, {"namespaces": [1, 1]}, {"boot": "", "namespaces": [0, 0]}],
)
def test_an_owner_that_cannot_be_looked_up_is_judged_by_its_heartbeat(run, elsewhere):
    here = {"host": os.uname().nodename} | elsewhere
    plant(run, pid=2**22 + 1, **here)  # a pid that does not exist here
    with pytest.raises(Refusal, match="in use"):
        Lock.acquire(run)
    pretend(run, age_s=301)  # more than five heartbeats
    waited = []
    with Lock.acquire(run, sleep=waited.append) as lock:
        assert "silent for" in lock.history
    assert waited == [pytest.approx(72)]  # one heartbeat and a bit, in case it comes back


def test_an_old_heartbeat_that_moves_again_is_no_death(run):
    """As after the file server's clock was set forward between a heartbeat and the look at it."""
    plant(run, age_s=3600)
    with pytest.raises(Refusal, match="in use"):
        Lock.acquire(run, sleep=lambda s: os.utime(owner_file(run), (1, 1)))


def test_the_local_clock_decides_nothing(run, monkeypatch):
    plant(run)
    for skew in (-3600, 3600, 1e9):
        now = time.time() + skew
        monkeypatch.setattr(time, "time", lambda now=now: now)
        with pytest.raises(Refusal, match="in use"):
            Lock.acquire(run)


def test_a_requeued_job_replaces_its_own_earlier_start_and_no_other_job(run):
    plant(run, job={"id": "12", "restart_count": 1})
    for job in (OwningJob("12", 1), OwningJob("12", 0), OwningJob("13", 2), None):
        with pytest.raises(Refusal, match="job 12"):
            Lock.acquire(run, job=job)
    with Lock.acquire(run, job=OwningJob("12", 2)) as lock:
        assert "start 1" in lock.history


def test_whoever_was_replaced_knows_and_cannot_take_the_lock_back(run):
    first = Lock.acquire(run, heartbeat_s=0.05)
    pretend(run, host="elsewhere", job={"id": "12", "restart_count": 0})
    second = Lock.acquire(run, job=OwningJob("12", 1))
    assert second.owned()
    assert not first.owned()
    first.refresh()
    first.release()
    assert second.owned()
    second.release()
    assert not first.owned()
    with Lock.acquire(run) as third:
        assert third.owned()


def test_the_heartbeat_moves_by_itself(run):
    with Lock.acquire(run, heartbeat_s=0.05):
        before = owner_file(run).stat().st_mtime_ns
        while owner_file(run).stat().st_mtime_ns == before:
            time.sleep(0.01)


def test_a_removed_lock_directory_ends_ownership(run):
    lock = Lock.acquire(run)
    owner_file(run).unlink()
    assert not lock.owned()
    run.lock_dir.rmdir()
    assert not lock.owned()
    run.lock_dir.mkdir()
    with Lock.acquire(run) as second:
        assert second.owned()
        assert not lock.owned()
    lock.release()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_does_not_own_its_parents_lock(run):
    with Lock.acquire(run) as lock:
        pid = os.fork()
        if pid == 0:
            os._exit(7 if lock.owned() else 0)
        assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", '{"pid": 1}', "[" * 4000, '{"job": 3}', '{"namespaces": 0}', "\0" * 100),
        *(f'{{"pid": {"9" * digits}}}' for digits in (300, 4000, 5000)),
    ],
    ids=range(12),
)
def test_an_owner_file_that_cannot_be_read_counts_as_an_owner_until_it_is_old(run, text):
    plant(run)
    owner_file(run).write_text(text)
    assert holder(run) is None
    with pytest.raises(Refusal, match="in use by another process"):
        Lock.acquire(run)
    os.utime(owner_file(run), (1, 1))
    with Lock.acquire(run, sleep=lambda s: None) as lock:
        assert "unreadable" in lock.history


@pytest.mark.parametrize(
    "facts",
    [
        *({"heartbeat_s": number} for number in (float("nan"), float("inf"), "1", None, 10**300)),
        *({"pid": number} for number in (float("nan"), 10**300, [1])),
        {"job": {"id": "1", "restart_count": float("nan")}},
    ],
    ids=range(9),
)
def test_an_owner_with_a_number_that_is_none_is_replaced_when_it_is_old(run, facts):
    """Of a heartbeat of NaN seconds no age was too old, and no wait had an end."""
    plant(run, age_s=301, **facts)
    assert holder(run) is None
    with Lock.acquire(run, sleep=lambda s: None) as lock:
        assert lock.owned()


@pytest.mark.timeout(10)
@pytest.mark.parametrize("number", [99_999_998, 99_999_999, 10**18 - 1, 10**200])
def test_a_lock_can_be_taken_after_any_number(run, number):
    """The first number of nine digits was not seen, and made again for ever."""
    Lock.acquire(run).release()
    owner_file(run).rename(run.lock_dir / f"owner-{number:08d}.json")
    for _ in range(2):
        with Lock.acquire(run) as lock, pytest.raises(Refusal, match=f"pid {os.getpid()}"):
            Lock.acquire(run)
        assert [path.name for path in run.lock_dir.iterdir()] == [f"owner-{lock._number:08d}.json"]
    assert lock._number == number + 2


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", ["000000000012", "\N{ARABIC-INDIC DIGIT THREE}" * 8, "+0000001", "0000001"])
def test_a_name_that_no_number_has_is_no_lock(run, name):
    (run.lock_dir / f"owner-{name}.json").write_text("{}")
    with Lock.acquire(run) as lock:
        assert lock._number == 1


@pytest.mark.timeout(10)
def test_a_number_whose_next_has_no_name_is_refused(run):
    (run.lock_dir / f"owner-{'9' * 244}.json").write_text(json.dumps({"released": True}))
    os.utime(owner_file(run), (1, 1))
    with pytest.raises(Refusal, match="cannot be locked"):
        Lock.acquire(run, sleep=lambda s: None)


def test_a_link_or_pipe_as_owner_file_is_refused(run, tmp_path):
    (run.lock_dir / "owner-00000009.json").symlink_to("/etc/passwd")
    with pytest.raises(Refusal, match="symbolic link") as refused:
        Lock.acquire(run)
    assert refused.value.code == ExitCode.CANNOT_CREATE
    os.mkfifo(run.lock_dir / "owner-00000010.json")
    with pytest.raises(Refusal, match="not a regular file"):
        Lock.acquire(run)


def test_without_hard_links_the_lock_is_as_exclusive(run, monkeypatch):
    def no_link(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    with Lock.acquire(run) as lock:
        assert lock.owned()
        seen = locking._look(run.lock_dir)
        assert Lock._take(run.lock_dir, seen.number, lock.owner, "") is None
        assert lock.owned()
        with pytest.raises(Refusal, match=f"pid {os.getpid()}"):
            Lock.acquire(run)


def test_holder_names_a_live_owner_only(run):
    assert holder(run) is None
    with Lock.acquire(run) as lock:
        assert holder(run) == lock.owner
    assert holder(run) is None
    plant(run)
    assert holder(run).host == "elsewhere"
    pretend(run, age_s=301)
    assert holder(run) is None
    assert holder(RunDir("/nonexistent")) is None


def test_a_run_directory_that_cannot_be_written_is_refused(run, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(Refusal, match="No space left") as refused:
        Lock.acquire(run)
    assert refused.value.code == ExitCode.CANNOT_CREATE


@pytest.mark.parametrize("place", ["lock.judged", "lock.made"])
def test_a_starter_killed_while_taking_the_lock_blocks_nobody(run, place):
    for _ in range(2):
        starter = start_owner(run, TL_ALLOW_FAILPOINTS="1", TL_FAILPOINT=f"{place}=kill")
        assert starter.wait() == -signal.SIGKILL
    with Lock.acquire(run) as lock:
        assert lock.owned()


def test_a_starter_that_overslept_the_life_of_other_owners_owns_nothing(run, monkeypatch):
    """It judged owner 1 dead; until it acts, 2 and 3 have come and gone, and the number 2 is free again."""
    plant(run, host=os.uname().nodename, started=1)
    slept = []

    def oversleep(name, path=None):
        if name == "lock.judged" and not slept:
            slept.append(True)
            for _ in range(2):
                Lock.acquire(run).release()
            slept.append(Lock.acquire(run))

    monkeypatch.setattr(locking, "failpoint", oversleep)
    with pytest.raises(Refusal, match="in use"):
        Lock.acquire(run)
    assert slept[1].owned()
    assert [path.name for path in run.lock_dir.iterdir()] == ["owner-00000004.json"]
    slept[1].release()


def race(run, mode, num, seed):
    command = [sys.executable, HERE / "race_for_lock.py", run.path, mode, str(num), str(seed)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout)


def test_of_2_to_8_simultaneous_starters_exactly_one_wins(run):
    counts = race(run, "rounds", 220, seed=1)
    assert counts["rounds with one winner"] == 220
    assert counts["died as owner"] > 100
    assert not {"two owners", "not owned", "failed"} & counts.keys()


def test_a_live_owner_is_never_robbed_however_the_starters_are_held_up(run):
    counts = race(run, "storm", 500, seed=2)
    assert counts["died as owner"] > 40
    assert counts["released"] > 20
    assert not {"two owners", "not owned", "failed"} & counts.keys()


def test_owner_files_carry_every_fact(run):
    with Lock.acquire(run, job=OwningJob("12", 3)) as lock:
        facts = json.loads(owner_file(run).read_text())
        assert facts == json.loads(json.dumps(dataclasses.asdict(lock.owner)))
        assert facts["boot"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
