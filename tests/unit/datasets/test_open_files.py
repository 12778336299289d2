"""However many files a data set has, few are open; what the machine fails in is no example's fault."""

import errno
import os
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import tensorflow as tf

from tl_dist.data.undecodable import MACHINE_ERRORS, READ_ERRORS, machine_fault, undecodable
from tl_dist.datasets import Source, headers, open_files
from tl_dist.datasets.files import unlabelled
from tl_dist.datasets.open_files import Handle
from tl_dist.datasets.records import RecordStore
from tl_dist.datasets.store import Location
from tl_dist.files.process import allow_many_open_files
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.trainer.examples import Examples

NUM_FILES = 40


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Each holds its own number, many times."""
    made = [tmp_path / f"{k:03}.images" for k in range(NUM_FILES)]
    for k, file in enumerate(made):
        file.write_bytes(bytes([k]) * 100)
    return made


def record_source(files: list[Path]) -> Source:
    num = np.arange(len(files))
    zeros = np.zeros(len(files), np.int64)
    names = [file.name for file in files]
    store = RecordStore(
        root=files[0].parent, files=names, shards=num.astype(np.int32), offsets=zeros,
        sizes=zeros + 100, names=names,
        checks=np.array([google_crc32c.value(bytes([k]) * 100) for k in num.tolist()], np.uint32),
    )  # fmt: skip
    return Source(store, zeros.astype(np.int32), names, ["one"])


def opened(files: list[Path]) -> int:
    """How many of the files this process has open."""
    held = 0
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            held += Path(os.readlink(f"/proc/self/fd/{fd}")) in files
    return held


@contextmanager
def no_more_files() -> Iterator[None]:
    """Nothing can be opened inside."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_few_files_stay_open_and_those_that_were_read_last(files: list[Path]) -> None:
    few = lru_cache(3)(Handle)
    first = few(str(files[0])).fd
    for file in files[1:]:
        few(str(file))
        assert few(str(files[0])).fd == first  # used all the time, so never closed
        assert opened(files) <= 3
    del few
    assert opened(files) == 0


def test_a_file_that_makes_room_is_read_to_its_end_and_then_closed(files: list[Path]) -> None:
    few = lru_cache(1)(Handle)
    reader = few(str(files[0]))
    for file in files[1:]:
        few(str(file))
    assert opened(files) == 2
    assert os.pread(reader.fd, 2, 0) == b"\0\0"
    del reader
    assert opened(files) == 1


def test_a_file_is_closed_even_when_the_modules_are_gone(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow keeps the functions that it calls, and so what they hold, until the very end of a process."""
    few = lru_cache(3)(Handle)
    few(str(files[0]))
    monkeypatch.setattr(open_files, "os", None)
    del few
    assert opened(files) == 0


def test_many_threads_read_many_files_through_few_handles(files: list[Path]) -> None:
    few = lru_cache(2)(Handle)

    def read(k: int) -> bool:
        file = few(str(files[k]))
        return os.pread(file.fd, 100, 0) == bytes([k]) * 100

    order = np.random.default_rng(0).integers(0, NUM_FILES, 20_000).tolist()
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(read, order, chunksize=50))
    assert opened(files) == 2


def test_a_source_reads_more_shards_than_may_be_open(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    few = lru_cache(4)(Handle)
    monkeypatch.setattr("tl_dist.datasets.records.shared_handles", lambda: few)
    source = record_source(files)
    contents, _ = source.encoded_rows(tf.range(NUM_FILES, dtype=tf.int64))
    assert contents.numpy().tolist() == [bytes([k]) * 100 for k in range(NUM_FILES)]
    assert opened(files) == 4


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((1024, 4096), (4096, 4096)),
        ((1024, resource.RLIM_INFINITY), (65536, resource.RLIM_INFINITY)),
        ((1024, 1 << 30), (65536, 1 << 30)),
        ((128, 128), None),
        ((1 << 20, 1 << 20), None),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
    ],
)
def test_the_own_limit_is_raised_and_never_lowered(
    limits: tuple[int, int], expected: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: said.append(wanted))
    allow_many_open_files()
    assert said == ([] if expected is None else [expected])


def in_a_graph(source: Any) -> Iterator[Any]:
    """Its examples as the pipeline reads them, none ahead."""
    options = tf.data.Options()
    options.autotune.enabled = False
    rows = tf.data.Dataset.range(NUM_FILES).batch(1, drop_remainder=True)
    examples = rows.map(source.encoded_rows).with_options(options)
    found: Iterator[Any] = examples.as_numpy_iterator()
    return found


def source_of(files: list[Path], kind: str) -> Any:
    """One that Python reads, or TensorFlow."""
    if kind == "records":
        return record_source(files)
    return unlabelled([str(file) for file in files], ["one"])


@pytest.mark.parametrize("kind", ["records", "files"])
def test_too_many_open_files_are_no_examples_fault(
    kind: str, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = lru_cache(4)(Handle)
    monkeypatch.setattr("tl_dist.datasets.records.shared_handles", lambda: few)
    source = source_of(files, kind)
    read = in_a_graph(source)
    next(read)  # TensorFlow opens files of its own, and ends the process where it cannot
    splits = {"train": source}
    examples = Examples(RunDir(tmp_path), splits, splits, [], 100, None, threads=2)
    with (
        pytest.raises(Refusal) as caught,
        examples.naming_bad("train", lambda: range(NUM_FILES)),
        no_more_files(),
    ):
        next(read)
    assert caught.value.code == ExitCode.STORAGE
    assert "split 'train' cannot be read: Too many open files" in str(caught.value)
    assert not examples.run.quarantine_file.exists()


@pytest.mark.parametrize("number", open_files.MACHINE_FAULTS)
def test_faults_of_the_machine_are_told_from_those_of_files(
    number: int, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> bytes:
        raise OSError(number, os.strerror(number))

    source = record_source(files)
    monkeypatch.setattr(os, "pread", fails)
    with pytest.raises(MACHINE_ERRORS) as caught:
        next(in_a_graph(source))
    assert not isinstance(caught.value, READ_ERRORS)
    assert machine_fault(caught.value) == os.strerror(number)
    with pytest.raises(MACHINE_ERRORS) as caught:  # nor does the search for the bad one blame any
        undecodable(source, range(4), 2)
    assert machine_fault(caught.value) == os.strerror(number)
    with pytest.raises(Refusal, match="No example is to blame") as refused:
        headers.fault(Location(files[0]))
    assert refused.value.code == ExitCode.STORAGE


def test_a_file_that_is_gone_is_still_its_examples_fault(files: list[Path]) -> None:
    source = record_source(files)
    files[1].unlink()
    with pytest.raises(READ_ERRORS) as caught:
        list(in_a_graph(source))
    assert machine_fault(caught.value) is None
    assert machine_fault(OSError(errno.ENOENT, "No such file or directory")) is None
    found = headers.fault(Location(files[1]))
    assert found is not None and found.reason == "cannot be read: No such file or directory"
