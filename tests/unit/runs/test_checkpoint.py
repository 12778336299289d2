"""What is saved comes back bit for bit, from the newest valid checkpoint, or the difference is named."""

import contextlib
import hashlib
import json
import os
import threading
import time

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs import checkpoint, checkpoint_format
from tl_dist.runs.checkpoint import Checkpointer, restore
from tl_dist.runs.directory import RunDir, step_name


@pytest.fixture
def run(tmp_path):
    run = RunDir(tmp_path / "elpv")
    run.checkpoints.mkdir(parents=True)
    return run


def owned():
    return True


def state(step):
    return {
        "dense/kernel": np.full((4, 3), step, np.float32),
        "optimizer/iterations": np.array(step, np.int64),
    }


def expected(arrays):
    return {path: (array.dtype.name, array.shape) for path, array in arrays.items()}


def save(run, *steps, keep=3):
    with Checkpointer(run, keep=keep, owned=owned) as saver:
        for step in steps:
            saver.save(step, state(step), {"epoch": step / 10, "history": {}}, wait=True)
            assert saver.last_checkpoint == step, saver.poll()
        return saver.poll()


def steps(run):
    return sorted(path.name for path in run.checkpoints.iterdir())


def damage(run, step, name=checkpoint_format.TENSORS):
    path = run.checkpoints / step_name(step) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def refused(code, call, *arguments, **options):
    with pytest.raises(Refusal) as caught:
        call(*arguments, **options)
    assert caught.value.code == code
    return str(caught.value)


# --- the same bits come back --------------------------------------------------------------------------------

RANDOM = np.random.default_rng(1)
ARRAYS = {
    "backbone/conv1/kernel:0": RANDOM.standard_normal((7, 7, 3, 8)).astype(np.float32),
    "transposed": np.arange(12, dtype=np.float64).reshape(3, 4).T,
    "strided": np.arange(100, dtype=np.int16)[::7],
    "big endian": np.arange(5, dtype=">i4"),
    "scalar": np.array(3.5, np.float16),
    "counter": np.array(2**62, np.int64),
    "flags": np.array([True, False]),
    "bytes": np.arange(256, dtype=np.uint8),
    "signed": np.array([-1], np.int8),
    "unsigned": np.array([2**63], np.uint64),
    "words": np.array([[7]], np.uint16),
    "longs": np.array([2**32 - 1], np.uint32),
    "empty": np.zeros((0, 5), np.float32),
    "half": np.array([1.5, -2.25], ml_dtypes.bfloat16),
    "extremes": np.array([np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal, -0.0], np.float32),
    'ünïcode "quoted"\n/path': np.ones(3, np.float32),
}


def test_every_dtype_and_layout_comes_back_bit_for_bit(run):
    with Checkpointer(run, keep=1, owned=owned) as saver:
        saver.save(5, ARRAYS, {"history": {"best": 0.5}}, wait=True)
    found = restore(run, expected=expected(ARRAYS))
    assert (found.step, found.meta, found.path) == (
        5,
        {"history": {"best": 0.5}},
        run.checkpoints / "step-00000005",
    )
    assert found.arrays.keys() == ARRAYS.keys()
    for path, array in ARRAYS.items():
        back = found.arrays[path]
        assert (back.dtype.name, back.shape) == (array.dtype.name, array.shape), path
        assert back.tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes(), path


def test_the_own_writer_and_the_safetensors_library_agree(run, tmp_path):
    arrays = {path: array for path, array in ARRAYS.items() if path not in ("half", "big endian")}
    arrays = {path: np.array(array, order="C") for path, array in arrays.items()}
    with Checkpointer(run, keep=1, owned=owned) as saver:
        saver.save(5, arrays, {}, wait=True)
    ours = load_file(run.checkpoints / "step-00000005" / "state.safetensors")
    save_file(arrays, tmp_path / "theirs.safetensors")
    theirs = load_file(tmp_path / "theirs.safetensors")
    assert ours.keys() == theirs.keys() == arrays.keys()
    for path in arrays:
        assert ours[path].dtype == theirs[path].dtype
        assert ours[path].tobytes() == theirs[path].tobytes()
    header = (run.checkpoints / "step-00000005" / "state.safetensors").read_bytes()[:8]
    assert int.from_bytes(header, "little") % 8 == 0


def test_contiguous_arrays_are_not_copied():
    kernel = np.zeros((1000, 10), np.float32)
    content = checkpoint_format.Content.of(1, {"kernel": kernel}, {})
    assert np.shares_memory(content.arrays["kernel"], kernel)
    assert all(np.shares_memory(piece, kernel) for piece in list(content.pieces())[1:])


@pytest.mark.parametrize(
    ("arrays", "meta"),
    [
        ({"x": np.array(["text"])}, {}),
        ({"x": np.array([object()])}, {}),
        ({"x": np.array([1j])}, {}),
        ({"__metadata__": np.zeros(1)}, {}),
        ({"x": np.zeros(1)}, {"best": float("nan")}),
        ({"x": np.zeros(1)}, {"best": object()}),
        ({"x": np.zeros(1)}, {"text": "x" * (17 << 20)}),
    ],
)
def test_what_cannot_be_kept_is_an_error_of_the_caller(run, arrays, meta):
    with Checkpointer(run, keep=1, owned=owned) as saver, pytest.raises((ValueError, TypeError)):
        saver.save(1, arrays, meta)
    assert steps(run) == []


# --- which checkpoint comes back --------------------------------------------------------------------------------


def test_no_checkpoint_is_none(run, tmp_path):
    assert restore(run) is None
    assert restore(RunDir(tmp_path / "nowhere")) is None
    (run.checkpoints / "notes.txt").write_text("")
    (run.checkpoints / ".tmp-step-00000009-x").mkdir()
    (run.checkpoints / ".trash-step-00000009-x").mkdir()
    assert restore(run) is None


def test_the_newest_checkpoint_comes_back_by_number_not_by_name_or_time(run):
    save(run, 99_999_999, 100_000_000, 7)
    os.utime(run.checkpoints / "step-00000007")
    assert restore(run).step == 100_000_000


@pytest.mark.parametrize("name", [checkpoint_format.TENSORS, checkpoint_format.META, checkpoint_format.MANIFEST])
def test_a_damaged_checkpoint_is_passed_over_loudly(run, name):
    save(run, 10, 20, 30)
    damage(run, 30, name)
    damage(run, 20, name)
    said = []
    assert restore(run, log=said.append).step == 10
    assert len(said) == 2
    for text, step in zip(said, (30, 20), strict=True):
        assert f"step-000000{step}" in text
        assert "step-00000010" in text
        assert name in text
        assert f"{step - 10} steps" in text
    damage(run, 10, name)
    assert "no checkpoint is valid" in refused(ExitCode.UNSAFE, restore, run)


def test_restore_changes_nothing_on_the_disk(run):
    save(run, 10, 20)
    damage(run, 20)
    (run.checkpoints / ".tmp-step-00000030-x").mkdir()

    def everything():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.checkpoints.rglob("*")}

    before = everything()
    restore(run, log=lambda text: None)
    assert everything() == before


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_looked_for_again(run, monkeypatch):
    save(run, 10)
    read = checkpoint_format.read

    def slow_read(path, step, expected):
        if step == 10:
            save(run, 20, keep=1)
        return read(path, step, expected)

    monkeypatch.setattr(checkpoint_format, "read", slow_read)
    assert restore(run).step == 20


def test_a_state_that_is_not_finite_ends_the_run_and_the_last_checkpoint_stays(run):
    """Not the loss scale that a run in float16 has lowered, nor a number that is only large."""
    for kind in (np.nan, np.inf, -np.inf):
        broken = state(20) | {"dense/bias": np.array([np.finfo(np.float32).max, 0, kind], np.float32)}
        with Checkpointer(run, keep=1, owned=owned) as saver:
            saver.save(10, state(10) | {"optimizer/loss_scale": np.array(1, np.float32)}, {}, wait=True)
            saver.save(20, broken, {}, wait=True)
            text = refused(ExitCode.NO_REQUEUE, saver.poll)
        assert "step 20 was not saved: 'dense/bias' holds numbers that are not finite" in text
        assert "the last checkpoint is step 10" in text
        assert steps(run) == [step_name(10)]


def test_a_checkpoint_that_is_not_finite_is_passed_over_and_replaced(run, monkeypatch):
    """Bit for bit as an earlier version wrote it."""
    save(run, 10)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_format, "require_finite", lambda path, array: None)
        with Checkpointer(run, keep=3, owned=owned) as saver:
            saver.save(20, state(20) | {"dense/kernel": np.full((4, 3), np.nan, np.float32)}, {}, wait=True)
    said = []
    assert restore(run, log=said.append).step == 10
    assert "step-00000020 is not valid ('dense/kernel' holds numbers that are not finite)" in said[0]
    save(run, 20)
    assert restore(run, log=pytest.fail).arrays["dense/kernel"].max() == 20


@pytest.mark.parametrize("meta", [{}, {"history": 5}, {"history": [1]}, {"history": None}])
def test_a_checkpoint_without_history_is_passed_over_by_who_goes_on_from_it(run, meta):
    save(run, 10)
    with Checkpointer(run, keep=3, owned=owned) as saver:
        saver.save(20, state(20), meta, wait=True)
    assert restore(run, expected=expected(state(0)), log=lambda text: None).step == 10


def test_another_set_of_arrays_is_refused_by_name(run):
    save(run, 10)
    want = expected(state(0))
    assert restore(run, expected=want).step == 10
    for change, words in (
        ({"dense/bias": ("float32", (3,))}, ["no 'dense/bias'"]),
        (
            {"dense/kernel": ("float32", (3, 4))},
            ["'dense/kernel'", "float32 [4, 3] instead of float32 [3, 4]"],
        ),
        ({"dense/kernel": ("bfloat16", (4, 3))}, ["float32 [4, 3] instead of bfloat16 [4, 3]"]),
        ({f"many/{n}": ("float32", ()) for n in range(8)}, ["'many/0'", "'many/4' and 3 more"]),
    ):
        text = refused(ExitCode.UNSAFE, restore, run, expected=want | change)
        assert all(word in text for word in words), text
        assert "\n" not in text
    del want["dense/kernel"]
    assert "unexpected 'dense/kernel'" in refused(ExitCode.UNSAFE, restore, run, expected=want)


# --- the background -----------------------------------------------------------------------------------------


@pytest.fixture
def gate(monkeypatch):
    """Holds the writer back just before its rename until the gate is opened."""
    opened = threading.Event()
    monkeypatch.setattr(
        checkpoint, "failpoint", lambda name, path=None: name != "checkpoint.before_rename" or opened.wait(20)
    )
    return opened


def writes_in_the_background() -> bool:
    return "checkpoint-writer" in [thread.name for thread in threading.enumerate()]


def test_saving_does_not_hold_the_caller_up_until_the_next_save(run, gate):
    with Checkpointer(run, keep=2, owned=owned) as saver:
        start = time.monotonic()
        saver.save(1, state(1), {})
        assert time.monotonic() - start < 5  # of the 20 that the writer would wait
        assert writes_in_the_background()
        assert (saver.last_checkpoint, saver.poll()) == (None, [])
        threading.Timer(0.1, gate.set).start()
        saver.save(2, state(2), {})
        assert gate.is_set()  # it waited for the first
        assert saver.last_checkpoint in (1, 2)
    assert not writes_in_the_background()
    assert restore(run).step == 2
    assert [text.split(":")[0] for text in saver.poll()] == ["step 1 saved", "step 2 saved"]
    assert saver.poll() == []


def test_the_facts_are_those_of_the_moment_of_saving(run, gate):
    facts = {"history": {"best": 1}}
    with Checkpointer(run, keep=2, owned=owned) as saver:
        saver.save(1, state(1), facts)
        facts["history"]["best"] = 2
        gate.set()
    assert restore(run).meta == {"history": {"best": 1}}


def test_leaving_the_context_waits_for_the_save_in_flight_also_after_an_error(run, gate):
    threading.Timer(0.2, gate.set).start()
    with contextlib.suppress(ZeroDivisionError), Checkpointer(run, keep=2, owned=owned) as saver:
        saver.save(1, state(1), {})
        raise ZeroDivisionError
    assert restore(run).step == 1


# --- retention ----------------------------------------------------------------------------------------------


def test_the_newest_checkpoints_are_kept(run):
    save(run, 10, 20, 30, 40, keep=2)
    assert steps(run) == ["step-00000030", "step-00000040"]
    save(run, 50, keep=1)
    assert steps(run) == ["step-00000050"]


def save_needing(run, needs, keep=1):
    """Steps in turn, each with the steps that it may go back to."""
    with Checkpointer(run, keep=keep, owned=owned) as saver:
        for step, needed in needs.items():
            saver.save(step, state(step), {"history": {}, "needs": needed}, wait=True)
        return saver


def test_what_a_kept_checkpoint_may_go_back_to_is_kept_besides(run):
    save_needing(run, {10: [10], 20: [20, 10], 30: [20, 10], 40: [20, 10]})
    assert steps(run) == ["step-00000010", "step-00000020", "step-00000040"]
    save_needing(run, {50: [50, 20]}, keep=2)  # 40 is kept, and still needs 10: it may be the newest that is whole
    assert steps(run) == [f"step-000000{step}" for step in (10, 20, 40, 50)]
    save_needing(run, {60: [50]})
    assert steps(run) == ["step-00000050", "step-00000060"]


def test_a_checkpoint_is_found_by_what_it_is(run):
    assert [checkpoint.find(run, at) for at in ("", "last", "best")] == [None] * 3
    save_needing(run, {10: []})
    assert checkpoint.find(run).step == 10
    assert "no best checkpoint" in refused(ExitCode.USAGE, checkpoint.find, run, "best")
    save_needing(run, {20: [20], 30: [20], 40: [20]})
    found = {at: checkpoint.find(run, at).step for at in ("", "best", "last", "20", "40")}
    assert found == {"": 20, "best": 20, "last": 40, "20": 20, "40": 40}
    assert "use one of 20, 40" in refused(ExitCode.USAGE, checkpoint.find, run, "30")
    assert "names no checkpoint" in refused(ExitCode.USAGE, checkpoint.find, run, "../10")
    damage(run, 20)
    assert "step-00000020 is not valid" in refused(ExitCode.UNSAFE, checkpoint.find, run)


def test_what_a_run_ended_with_is_found_before_the_checkpoint_of_its_step_and_replaced_by_another(run):
    saver = save_needing(run, {20: [20], 40: [20]})
    for value in (7, 8):
        saver.save_best(20, state(value), {"history": {}})
        assert checkpoint.find(run, "best").arrays["dense/kernel"].max() == 20  # not before the end
        run.mark_done({"best": {"step": 20}})
        assert checkpoint.find(run).arrays["dense/kernel"].max() == value
        run.done_file.unlink()
    assert restore(run).step == 40 and steps(run) == ["best", "step-00000020", "step-00000040"]


def test_where_one_that_is_needed_cannot_be_saved_no_later_one_is(run, monkeypatch):
    def fails(directory, content):
        raise OSError(28, "No space left on device")

    with Checkpointer(run, keep=2, owned=owned, max_failed=3) as saver:
        saver.save(10, state(10), {"history": {}, "needs": []}, wait=True)
        with monkeypatch.context() as patched:
            patched.setattr(checkpoint_format, "write", fails)
            saver.save(20, state(20), {"history": {}, "needs": [20]}, wait=True)
        saver.save(30, state(30), {"history": {}, "needs": [20]}, wait=True)
        said = refused(ExitCode.STORAGE, saver.poll)
    assert "step 20, which is among the best, could not be saved" in said and "No space left" in said
    assert steps(run) == ["step-00000010"]


def test_leftovers_never_count_as_checkpoints_and_are_removed_at_the_start(run):
    save(run, 10, 20)
    for name in (".tmp-step-00000030-a", ".trash-step-00000031-b"):
        (run.checkpoints / name).mkdir()
        (run.checkpoints / name / "state.safetensors").write_text("half")
    (run.checkpoints / ".tmp-step-00000040-link").symlink_to(run.path.parent)
    (run.checkpoints / ".trash-file").write_text("")
    said = save(run, 30, keep=2)
    assert steps(run) == ["step-00000020", "step-00000030"]
    assert "4 leftovers" in said[0]
    assert run.path.exists()


def test_a_damaged_newer_checkpoint_never_costs_a_valid_one(run):
    """The run went back from 40 to 20: until 40 is reached again it must displace nothing."""
    save(run, 20, 40)
    damage(run, 40)
    with Checkpointer(run, keep=2, owned=owned) as saver:
        assert restore(run, log=lambda text: None).step == 20
        for step, left in ((25, [20, 25, 40]), (30, [25, 30, 40]), (45, [30, 45]), (50, [45, 50])):
            saver.save(step, state(step), {}, wait=True)
            assert steps(run) == [step_name(one) for one in left]


def test_a_checkpoint_with_missing_files_does_not_count(run):
    save(run, 10, 20, 30)
    (run.checkpoints / "step-00000030" / checkpoint_format.META).unlink()
    save(run, 40, keep=2)
    assert steps(run) == ["step-00000020", "step-00000040"]


def test_saving_a_step_again_keeps_a_valid_checkpoint_and_replaces_a_damaged_one(run):
    save(run, 10, 20)
    before = (run.checkpoints / "step-00000020").stat()
    assert "it was there" in save(run, 20)[0]
    assert (run.checkpoints / "step-00000020").stat().st_ino == before.st_ino
    damage(run, 20)
    assert "it was there" not in save(run, 20)[0]
    assert restore(run).step == 20
    assert steps(run) == ["step-00000010", "step-00000020"]


@pytest.mark.parametrize("kind", ["file", "link", "empty", "full"])
def test_whatever_lies_in_the_place_of_a_checkpoint_is_replaced(run, kind, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("keep me")
    place = run.checkpoints / "step-00000020"
    if kind == "file":
        place.write_text("")
    elif kind == "link":
        place.symlink_to(precious)
    else:
        place.mkdir()
        if kind == "full":
            (place / "sub").mkdir()
            (place / "sub" / "x").symlink_to(precious)
    save(run, 20)
    assert restore(run).step == 20
    assert (precious / "file").read_text() == "keep me"
    assert steps(run) == ["step-00000020"]


def test_what_a_person_has_put_into_a_checkpoint_outlives_it(run):
    save(run, 10, 20)
    (run.checkpoints / "step-00000010" / "notes.md").write_text("mine")
    said = " ".join(save(run, 30, keep=2))
    assert "old checkpoints could not be removed" in said
    assert [name for name in steps(run) if name[0] != "."] == ["step-00000020", "step-00000030"]
    (notes,) = run.checkpoints.rglob("notes.md")
    assert notes.read_text() == "mine" and os.listdir(notes.parent) == ["notes.md"]
    assert "could not be removed" in save(run, 40)[0] and notes.exists()


# --- what the manifest says ---------------------------------------------------------------------------------


def test_the_manifest_lists_size_and_sha256_of_each_file(run):
    save(run, 10)
    directory = run.checkpoints / "step-00000010"
    manifest = json.loads((directory / "MANIFEST.json").read_text())
    assert (manifest["format"], manifest["step"]) == (1, 10)
    assert sorted(manifest["files"]) == ["meta.json", "state.safetensors"]
    for name, facts in manifest["files"].items():
        data = (directory / name).read_bytes()
        assert facts == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_a_checkpoint_under_the_name_of_another_step_is_not_valid(run):
    save(run, 10)
    (run.checkpoints / "step-00000010").rename(run.checkpoints / "step-00000099")
    assert "another step" in refused(ExitCode.UNSAFE, restore, run)


def test_a_later_format_is_said_to_be_one(run):
    save(run, 10)
    path = run.checkpoints / "step-00000010" / "MANIFEST.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    assert "format 2" in refused(ExitCode.UNSAFE, restore, run)


def test_a_clean_checkpoint_is_never_called_damaged(run):
    save(run, 10)
    start = time.monotonic()
    for _ in range(200):
        assert restore(run, log=pytest.fail).step == 10
    assert time.monotonic() - start < 20
