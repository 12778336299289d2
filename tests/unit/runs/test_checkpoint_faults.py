"""Whatever fails during a save: the previous checkpoint stays loadable, the run continues, nothing damaged loads."""

import collections
import json
import os
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tl_dist.files.failpoint import Failpoint, FailpointReached
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs import checkpoint, checkpoint_format
from tl_dist.runs.checkpoint import Checkpointer, restore
from tl_dist.runs.directory import RunDir, step_name
from tl_dist.runs.lock import Lock

from .save_checkpoints import state

ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[3])}
EXPECTED = {path: (array.dtype.name, array.shape) for path, array in state(0).items()}


def make_run(path) -> RunDir:
    run = RunDir(path)
    run.lock_dir.mkdir(parents=True)
    run.checkpoints.mkdir()
    return run


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "elpv")


def owned():
    return True


def save(run, *steps, keep=3):
    with Checkpointer(run, keep=keep, owned=owned) as saver:
        for step in steps:
            saver.save(step, state(step), {"history": {}}, wait=True)
            assert saver.last_checkpoint == step, saver.poll()


def start(run, keep, *steps, failpoint=None) -> subprocess.Popen:
    trap = {"TL_ALLOW_FAILPOINTS": "1", "TL_FAILPOINT": failpoint} if failpoint else {}
    command = [
        sys.executable,
        "-m",
        "tests.unit.runs.save_checkpoints",
        run.path,
        str(keep),
        *map(str, steps),
    ]
    process = subprocess.Popen(
        command, env=ENVIRONMENT | trap, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    STARTED.append(process)
    return process


STARTED = []


@pytest.fixture(autouse=True)
def _nothing_is_left():
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:  # a stopped one would stay for ever
            process.kill()
            process.communicate()


def finish(process) -> tuple[int, dict]:
    out, err = process.communicate(timeout=60)
    return process.returncode, json.loads(out) if out else {"error": err}


def entries(run) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


def assert_is_state_of(found, step):
    assert found.step == step
    for path, array in state(step).items():
        assert found.arrays[path].tobytes() == array.tobytes()


def refused(code, call, *arguments, **options) -> str:
    with pytest.raises(Refusal) as caught:
        call(*arguments, **options)
    assert caught.value.code == code
    return str(caught.value)


# --- killed while saving ------------------------------------------------------------------------------------

BEFORE_RENAME = [
    "snapshot", "temp_made", "tensors", "tensors:3", "files_done", "manifest_mid", "manifest_done",
    "before_rename",
]  # fmt: skip
AFTER_RENAME = ["after_rename", "trash_renamed", "mid_rmtree", "mid_rmtree:2"]


@pytest.mark.parametrize("place", BEFORE_RENAME + AFTER_RENAME)
def test_killed_at_a_named_place_the_last_checkpoint_is_there_and_the_next_start_cleans_up(run, place):
    save(run, 10)
    name, _, nth = place.partition(":")
    killed = start(run, 1, 20, failpoint=f"checkpoint.{name}{':' + nth if nth else ''}=kill")
    assert finish(killed)[0] == -signal.SIGKILL
    saved = 20 if place in AFTER_RENAME else 10
    assert_is_state_of(restore(run, expected=EXPECTED, log=pytest.fail), saved)
    with Lock.acquire(run) as lock, Checkpointer(run, keep=1, owned=lock.owned) as saver:
        assert all(name.startswith("step-") for name in entries(run))
        assert_is_state_of(restore(run, log=pytest.fail), saved)
        saver.save(20, state(20), {"history": {}}, wait=True)
        assert_is_state_of(restore(run, log=pytest.fail), 20)
        assert entries(run) == ["step-00000020"]


def test_killed_while_restoring_nothing_has_changed(run):
    save(run, 10)
    before = {path: path.stat().st_mtime_ns for path in run.checkpoints.rglob("*")}
    process = start(run, 1, failpoint="lock.made=kill")
    assert finish(process)[0] == -signal.SIGKILL
    assert before == {path: path.stat().st_mtime_ns for path in run.checkpoints.rglob("*")}


class Savers:
    """Writer processes that are stopped just before they save, for strace to attach to."""

    TRACED = ("mkdir", "openat", "write", "fsync", "rename", "unlink", "unlinkat", "rmdir")

    def __init__(self):
        self.parent = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.runs.fork_savers"],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def save(self, run, *options) -> int:
        """Save step 20 under strace, and 21 without; returns the wait status of the writer."""
        print(run.path, 20, file=self.parent.stdin, flush=True)
        pid = int(self.parent.stdout.readline())
        tracer = subprocess.Popen(
            ["strace", "-q", "-f", "-p", str(pid), *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not re.search(r"TracerPid:\s+[1-9]", Path(f"/proc/{pid}/status").read_text()):
            assert tracer.poll() is None, "strace could not attach"
            time.sleep(0.002)
        os.kill(pid, signal.SIGCONT)
        said = run.path / "said"
        while Path(f"/proc/{pid}").exists() and not said.stat().st_size:
            time.sleep(0.002)
        tracer.terminate()
        tracer.wait()
        return int(self.parent.stdout.readline())

    def calls_of_one_save(self, run) -> list[tuple[str, int]]:
        """Every call of the writer's thread that changes the disk or opens a file: its name, and which one."""
        log = run.path / "calls"
        assert self.save(run, "-o", log, "-e", f"trace={','.join(self.TRACED)}") == 0
        lines = re.findall(r"^(\d+)\s+(\w+)\(", log.read_text(), flags=re.MULTILINE)
        writer = next(thread for thread, name in lines if name == "mkdir")
        calls = collections.Counter(name for thread, name in lines if thread == writer)
        return [(name, number) for name, count in calls.items() for number in range(1, count + 1)]

    def close(self):
        self.parent.stdin.close()
        self.parent.wait()
        self.parent.stdout.close()


@pytest.fixture
def savers():
    savers = Savers()
    yield savers
    savers.close()


def test_killed_or_failed_at_every_system_call_of_one_save(tmp_path, savers):
    """The same without named places: between any two calls, what the disk holds is a loadable state."""
    first = make_run(tmp_path / "first")
    save(first, 10)
    calls = savers.calls_of_one_save(first)
    assert {name for name, _ in calls} >= {"mkdir", "openat", "write", "fsync", "rename", "unlink"}
    assert len(calls) > 20
    outcomes = {"kept": 0, "saved": 0, "failed": 0, "survived": 0}
    for name, number in calls:
        for error in ("EIO:signal=SIGKILL", "EIO" if number % 2 else "ENOSPC"):
            run = make_run(tmp_path / f"{name}-{number}-{error[-6:]}")
            save(run, 10)
            status = savers.save(run, "-e", f"trace={name}", "-e", f"inject={name}:error={error}:when={number}")
            found = restore(run, log=pytest.fail, expected=EXPECTED)
            assert_is_state_of(found, found.step)
            if "SIGKILL" in error:
                assert os.WIFSIGNALED(status), (name, number)
                assert found.step in (10, 20)
                outcomes["kept" if found.step == 10 else "saved"] += 1
            else:
                said = (run.path / "said").read_text()
                assert found.step == 21, (name, number, said)
                outcomes["failed" if "saving step 20 failed" in said else "survived"] += 1
                assert re.search(r"Input/output error|No space left|step \d+ saved", said), (
                    name,
                    number,
                    said,
                )
            save(run, 20, 30, keep=1)
            assert_is_state_of(restore(run, log=pytest.fail), 30)
            assert entries(run) == ["step-00000030"]
    assert all(outcomes.values()), outcomes


def test_every_file_and_name_is_durable_before_the_next_step_relies_on_it(run, monkeypatch):
    """The order that a power cut asks for, which no kill can show: the kernel outlives a killed process."""
    calls = []
    fsync, rename = os.fsync, os.rename

    def recorded_fsync(fd):
        name = Path(os.readlink(f"/proc/self/fd/{fd}")).name
        calls.append("fsync " + re.sub(r"\.tmp-step-.*", "TMP", name))
        fsync(fd)

    def recorded_rename(source, target):
        calls.append(f"rename {re.sub(r'.tmp-step-.*', 'TMP', source.name)} {target.name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    save(run, 10)
    assert calls == [
        "fsync state.safetensors",
        "fsync meta.json",
        "fsync MANIFEST.json",
        "fsync TMP",
        "rename TMP step-00000010",
        "fsync checkpoints",
    ]


# --- storage that fails -------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", disk]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_on_a_full_disk_training_goes_on_until_too_many_saves_in_a_row_have_failed(small_disk):
    run = make_run(small_disk / "elpv")
    big = {"kernel": np.zeros(100_000, np.float32)}
    with Checkpointer(run, keep=2, owned=owned, max_failed=3) as saver:
        saver.save(1, state(1), {"history": {}}, wait=True)
        assert re.match(r"step \d+ saved: ", saver.poll()[0])
        for step in (2, 3):
            saver.save(step, big, {"history": {}}, wait=True)
            (text,) = saver.poll()
            assert "No space left on device" in text
            assert "training continues" in text
            assert "last checkpoint is step 1" in text
        assert entries(run) == ["step-00000001"]
        saver.save(4, state(4), {"history": {}}, wait=True)  # a save that works forgives the ones before
        saver.poll()
        for step in (5, 6, 7):
            saver.save(step, big, {"history": {}}, wait=True)
        text = refused(ExitCode.STORAGE, saver.poll)
    assert "3 saves in a row failed" in text
    assert "No space left on device" in text
    assert "last checkpoint is step 4" in text
    assert_is_state_of(restore(run, log=pytest.fail), 4)


def test_a_file_size_limit_is_a_failed_save(run):
    code = """if True:
        import resource, sys
        import numpy as np
        from tl_dist.runs.checkpoint import Checkpointer
        from tl_dist.runs.directory import RunDir
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        with Checkpointer(RunDir(sys.argv[1]), keep=2, owned=lambda: True) as saver:
            saver.save(2, {"kernel": np.zeros(1000, np.float32)}, {"history": {}}, wait=True)
            sys.exit(saver.poll()[0])
    """
    save(run, 1)
    process = subprocess.run([sys.executable, "-c", code, run.path], env=ENVIRONMENT, capture_output=True, text=True)
    assert "File too large" in process.stderr
    assert "training continues" in process.stderr
    assert_is_state_of(restore(run, log=pytest.fail), 1)
    assert entries(run) == ["step-00000001"]


def test_any_error_in_the_writer_is_a_failed_save_and_no_dead_thread(run, monkeypatch):
    def surprise(name, path=None):
        raise FailpointReached(name)

    with Checkpointer(run, keep=2, owned=owned) as saver:
        for error_in in (checkpoint, checkpoint_format):
            with monkeypatch.context() as patch:
                patch.setattr(error_in, "failpoint", surprise)
                if error_in is checkpoint:  # the snapshot is taken by the caller, who gets the error
                    with pytest.raises(FailpointReached):
                        saver.save(1, state(1), {"history": {}}, wait=True)
                    continue
                saver.save(1, state(1), {"history": {}}, wait=True)
            assert "FailpointReached" in saver.poll()[0]
        saver.save(1, state(1), {"history": {}}, wait=True)
        assert re.match(r"step \d+ saved: ", saver.poll()[0])
    assert entries(run) == ["step-00000001"]


def test_old_checkpoints_that_cannot_be_removed_do_not_fail_the_save(run, monkeypatch):
    save(run, 1)
    monkeypatch.setattr(
        checkpoint, "_remove", lambda path: (_ for _ in ()).throw(OSError(16, "Device or resource busy"))
    )
    with Checkpointer(run, keep=1, owned=owned) as saver:
        saver.save(2, state(2), {"history": {}}, wait=True)
        said = saver.poll()
    assert "step 2 saved" in said[0]
    assert "busy" in said[1]
    assert_is_state_of(restore(run), 2)


# --- two writers --------------------------------------------------------------------------------------------


def test_a_stopped_writer_that_was_replaced_saves_nothing_when_it_wakes(run):
    """Frozen between its last look at the lock and its rename, the worst place there is."""
    save(run, 10)
    old = start(run, 2, 20, failpoint="checkpoint.before_rename=stop")
    while Path(f"/proc/{old.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)
    assert any(name.startswith(".tmp-step-00000020") for name in entries(run))
    owner = max(run.lock_dir.glob("owner-*"))
    mtime = owner.stat().st_mtime
    owner.write_text(json.dumps(json.loads(owner.read_text()) | {"host": "elsewhere"}))  # cannot be looked up
    os.utime(owner, (mtime - 5, mtime - 5))
    with Lock.acquire(run) as lock, Checkpointer(run, keep=2, owned=lock.owned) as saver:
        assert restore(run).step == 10
        saver.save(15, state(15), {"history": {}}, wait=True)
        os.kill(old.pid, signal.SIGCONT)
        code, report = finish(old)
        assert code == ExitCode.CANNOT_CREATE
        assert "taken over" in report["error"]
        assert saver.last_checkpoint == 15
        assert entries(run) == ["step-00000010", "step-00000015"]
        assert lock.owned()


@pytest.mark.parametrize("new_step", [15, 20])  # 20: the new owner gets to the same step first
@pytest.mark.parametrize("place", ["start", "temp_made", "tensors", "manifest_done", "before_rename"])
def test_a_writer_replaced_at_any_place_renames_nothing_and_is_told(run, monkeypatch, place, new_step):
    save(run, 10)
    new_owner = []
    write = checkpoint_format.write

    def start(directory, content):
        replaced("checkpoint.start")
        return write(directory, content)

    def replaced(name, path=None):
        if name == f"checkpoint.{place}" and not new_owner:
            new_owner.append(True)
            run.lock_dir.rename(run.path / "lost")  # as good as another owner: this one's file is gone
            run.lock_dir.mkdir()
            save(run, new_step)
            new_owner.append((run.checkpoints / step_name(new_step)).stat().st_ino)

    with Lock.acquire(run) as lock, Checkpointer(run, keep=1, owned=lock.owned) as saver:
        monkeypatch.setattr(checkpoint_format, "write", start)
        monkeypatch.setattr(checkpoint_format, "failpoint", replaced)
        monkeypatch.setattr(checkpoint, "failpoint", replaced)
        saver.save(20, state(20), {"history": {}}, wait=True)
        assert "taken over" in refused(ExitCode.CANNOT_CREATE, saver.poll)
        assert saver.last_checkpoint is None
        saver.save(30, state(30), {"history": {}}, wait=True)
        refused(ExitCode.CANNOT_CREATE, saver.poll)
    assert entries(run) == ["step-00000010", step_name(new_step)]
    assert (run.checkpoints / step_name(new_step)).stat().st_ino == new_owner[1]


def test_a_writer_without_the_lock_does_not_even_start(run):
    leftover = run.checkpoints / ".tmp-step-00000010-x"
    leftover.mkdir()
    with Lock.acquire(run) as lock:
        pass
    assert "not owned" in refused(ExitCode.CANNOT_CREATE, Checkpointer, run, keep=1, owned=lock.owned)
    assert leftover.exists()


def test_a_lock_that_cannot_be_read_is_a_failed_save_and_not_a_lost_run(run):
    answers = iter([True, True, OSError(5, "Input/output error"), OSError(5, "Input/output error")])

    def owned():
        answer = next(answers, True)
        if isinstance(answer, OSError):
            raise answer
        return answer

    with Checkpointer(run, keep=1, owned=owned) as saver:
        saver.save(1, state(1), {"history": {}}, wait=True)
        assert "Input/output error" in saver.poll()[0]
        saver.save(1, state(1), {"history": {}}, wait=True)
        assert re.match(r"step \d+ saved: ", saver.poll()[0])


# --- damaged files ------------------------------------------------------------------------------------------


def test_every_single_changed_bit_and_every_truncation_is_found(run):
    save(run, 10, 20)
    directory = run.checkpoints / step_name(20)
    num_cases = 0
    for path in sorted(directory.iterdir()):
        whole = path.read_bytes()
        changed = [whole + b"\0", whole + b" ", whole + whole]
        for bit in range(8 * len(whole)):
            data = bytearray(whole)
            data[bit // 8] ^= 1 << bit % 8
            changed.append(bytes(data))
        changed += [whole[:size] for size in reversed(range(len(whole)))]
        with path.open("r+b", buffering=0) as file:
            for data in changed:
                os.pwrite(file.fileno(), data, 0)
                file.truncate(len(data))
                with pytest.raises(checkpoint_format.Invalid):
                    checkpoint_format.check(directory, 20)
        num_cases += len(changed)
        path.write_bytes(whole)
        checkpoint_format.check(directory, 20)
    assert num_cases > 5000


def test_after_random_damage_the_checkpoint_before_is_used_and_both_are_named(run):
    save(run, 10, 20)
    directory = run.checkpoints / step_name(20)
    chance = random.Random(1)
    for _ in range(300):
        path = chance.choice(sorted(directory.iterdir()))
        whole = path.read_bytes()
        data = bytearray(whole)
        kind = chance.choice(["flip", "flip", "truncate", "zero", "missing"])
        if kind == "flip":
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif kind == "truncate":
            del data[chance.randrange(len(data)) :]
        elif kind == "zero":
            data = bytearray(len(data))
        path.write_bytes(data)
        if kind == "missing":
            path.unlink()
        said = []
        assert_is_state_of(restore(run, log=said.append, expected=EXPECTED), 10)
        assert len(said) == 1
        assert "step-00000020" in said[0]
        assert "step-00000010" in said[0]
        path.write_bytes(whole)
    assert_is_state_of(restore(run, log=pytest.fail), 20)


# --- hostile files ------------------------------------------------------------------------------------------


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HOSTILE_HEADERS = {
    "offset past the end": {"a": entry(shape=(200,), offsets=(0, 800))},
    "huge offset": {"a": entry(offsets=(2**63, 2**63 + 8))},
    "negative offset": {"a": entry(offsets=(-8, 0))},
    "reversed offsets": {"a": entry(offsets=(8, 0))},
    "overlapping": {"a": entry(), "b": entry()},
    "a hole": {"a": entry(shape=(1,), offsets=(4, 8))},
    "not covering the file": {"a": entry(shape=(1,), offsets=(0, 4))},
    "negative shape": {"a": entry(shape=(-2,))},
    "shape of 2**63": {"a": entry(shape=(2**63,))},
    "shape whose product overflows": {"a": entry(shape=(2**32, 2**32, 2**32))},
    "shape of 2**70": {"a": entry(shape=(2**70,))},
    "fractional shape": {"a": entry(shape=(2.0,))},
    "wrong dtype": {"a": entry(dtype="F64")},
    "unknown dtype": {"a": entry(dtype="OBJECT")},
    "dtype that is a list": {"a": entry(dtype=["F32"])},
    "no offsets": {"a": {"dtype": "F32", "shape": [2]}},
    "no object": {"a": 3},
    "a list": [1, 2],
    "duplicate path": b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
    b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "not JSON": b"\x80\x04\x95pickle",
    "deep nesting": b'{"a":' * 20_000,
    "empty": b"",
}


def plant(run, step, tensors: bytes, meta: bytes = b"{}") -> Path:
    """A checkpoint whose manifest proves whatever it holds: made by somebody who can compute digests too."""
    directory = run.checkpoints / step_name(step)
    directory.mkdir()
    written = {}
    for name, data in ((checkpoint_format.TENSORS, tensors), (checkpoint_format.META, meta)):
        written[name] = checkpoint_format.write_file(directory / name, [data])
    (directory / checkpoint_format.MANIFEST).write_bytes(checkpoint_format._manifest(step, written))
    return directory


def container(header, data=bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_the_planted_checkpoints_are_loadable_when_nothing_is_wrong_with_them(run):
    plant(run, 20, container({"a": entry(), "__metadata__": {"format": "np"}}))
    assert restore(run, log=pytest.fail).arrays["a"].tolist() == [0, 0]


@pytest.mark.parametrize("name", HOSTILE_HEADERS)
def test_a_hostile_header_is_passed_over(run, name):
    save(run, 10)
    plant(run, 20, container(HOSTILE_HEADERS[name]))
    said = []
    assert_is_state_of(restore(run, log=said.append), 10)
    assert "step-00000020" in said[0]


@pytest.mark.parametrize("length", [0, 7, 2**24 + 1, 2**63, 2**64 - 1])
def test_a_header_of_an_impossible_length_is_passed_over(run, length):
    save(run, 10)
    plant(run, 20, struct.pack("<Q", length) + b'{"a":{}}')
    assert_is_state_of(restore(run, log=lambda text: None), 10)


def test_a_large_claim_allocates_nothing(run):
    """A file of 100 bytes that says it holds terabytes is refused without asking for memory."""
    plant(run, 20, container({"a": entry(dtype="U8", shape=(2**42,), offsets=(0, 2**42))}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(ExitCode.UNSAFE, restore, run)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


@pytest.mark.parametrize("meta", [b"", b"[]", b"{", b"[" * 20_000, b'{"a": 1, "a": 2}', b"\xff\xfe"])
def test_hostile_facts_are_passed_over(run, meta):
    save(run, 10)
    plant(run, 20, container({"a": entry()}), meta)
    assert_is_state_of(restore(run, log=lambda text: None), 10)


MANIFESTS = {
    "a million entries": lambda text: text.replace(b'"files": {', b'"files": {' + b'"x": {"size": 1},' * 10**6),
    "other files too": lambda text: text.replace(b'"files": {', b'"files": {"../../x": {"size": 1, "sha256": "0"},'),
    "size that is text": lambda text: re.sub(rb'"size": (\d+)', rb'"size": "\1"', text),
    "size that is a fraction": lambda text: re.sub(rb'"size": (\d+)', rb'"size": \1.0', text),
    "endless size": lambda text: re.sub(rb'"size": \d+', b'"size": 1e999', text),
    "huge number": lambda text: re.sub(rb'"size": \d+', b'"size": ' + b"9" * 6000, text),
    "digest in capitals": lambda text: re.sub(rb'"sha256": "\w+"', lambda match: match[0].upper(), text),
    "no digests": lambda text: re.sub(rb'"sha256": "\w+",', b"", text),
    "files as a list": lambda text: b'{"files": [], "format": 1, "step": 20}',
    "not JSON": lambda text: b"\0" * 100,
    "empty": lambda text: b"",
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_hostile_manifest_is_passed_over(run, name):
    save(run, 10, 20)
    path = run.checkpoints / step_name(20) / checkpoint_format.MANIFEST
    path.write_bytes(MANIFESTS[name](path.read_bytes()))
    said = []
    assert_is_state_of(restore(run, log=said.append), 10)
    assert "MANIFEST" in said[0]


@pytest.mark.parametrize("name", [checkpoint_format.TENSORS, checkpoint_format.META, checkpoint_format.MANIFEST])
@pytest.mark.parametrize("kind", ["link", "pipe", "directory", "device"])
def test_what_is_no_regular_file_is_not_opened(run, name, kind, tmp_path):
    save(run, 10, 20)
    path = run.checkpoints / step_name(20) / name
    if kind == "link":
        path.rename(tmp_path / "moved")
        path.symlink_to(tmp_path / "moved")  # the very same bytes
    else:
        path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        if os.geteuid() != 0:
            pytest.skip("only root can make a device")
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero
    said = []
    assert_is_state_of(restore(run, log=said.append), 10)
    assert "step-00000020" in said[0]


def test_a_link_in_place_of_a_checkpoint_is_not_followed(run, tmp_path):
    save(run, 10, 20)
    for number, target in enumerate([run.checkpoints / "step-00000020", Path("/etc"), tmp_path / "nowhere"]):
        (run.checkpoints / step_name(30 + number)).symlink_to(target)
    os.mkfifo(run.checkpoints / step_name(40))
    said = []
    assert_is_state_of(restore(run, log=said.append), 20)
    assert len(said) == 4


# --- the failpoints themselves ------------------------------------------------------------------------------


def test_a_failpoint_that_is_not_allowed_is_refused(run):
    process = subprocess.run(
        [sys.executable, "-c", "from tl_dist.files import failpoint; failpoint.set_rank(0)"],
        env=ENVIRONMENT | {"TL_FAILPOINT": "x=kill"},
        capture_output=True,
        text=True,
    )
    assert "TL_FAILPOINT is set" in process.stderr
    point = Failpoint({"TL_FAILPOINT": "x=kill"})
    assert "Fix: unset" in refused(ExitCode.USAGE, point, "y")
    assert "cannot be read" in refused(
        ExitCode.USAGE, Failpoint({"TL_FAILPOINT": "x", "TL_ALLOW_FAILPOINTS": "1"}), "y"
    )


def test_a_failpoint_acts_at_its_name_rank_and_turn_only(tmp_path):
    Failpoint({})("anything")
    point = Failpoint({"TL_ALLOW_FAILPOINTS": "1", "TL_FAILPOINT": "a.b@2:2=raise,c=sleep=0.05,d=corrupt"})
    for _ in range(3):
        point("a.b")
    point.set_rank(1)
    point("a.b")
    point.set_rank(2)
    point("a.b")
    with pytest.raises(FailpointReached, match=r"a\.b"):
        point("a.b")
    point("a.b")
    before = time.monotonic()
    point("c")
    assert time.monotonic() - before >= 0.05
    (tmp_path / "file").write_bytes(b"\0" * 9)
    point("d", tmp_path)
    assert (tmp_path / "file").read_bytes() == b"\0\0\0\0\1\0\0\0\0"


def test_a_checkpoint_corrupted_by_a_failpoint_is_passed_over(run):
    save(run, 10)
    assert finish(start(run, 2, 20, failpoint="checkpoint.after_rename=corrupt"))[0] == 0
    said = []
    assert_is_state_of(restore(run, log=said.append), 10)
    assert "step-00000020" in said[0]
