"""Index TFRecord files: where each image lies, built once in a cache that all workers share.

The format is TensorFlow's (tensorflow/core/lib/io/record_writer.h): length as uint64, its masked CRC-32C, the data,
its masked CRC-32C, all little-endian. Each file has its own index, under a key of its path, size and time. A process
that needs a missing index builds it under a lock for that file: workers that start together, and helper processes that
one of them starts on each host, divide the files among them.
"""

import hashlib
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets import Bad
from tl_dist.datasets.example_proto import KEYS, Keys, parse
from tl_dist.files import limits
from tl_dist.files.atomic import temporary_name, write_file
from tl_dist.files.packages import locked

SCHEMA = 2  # increment it when indexes must be built again
_HEADER, _CHECK = struct.Struct("<QI"), struct.Struct("<I")
_CHUNK = 1 << 18  # bytes read at a time
_HELPER_BYTES = 64 << 20  # with less to read, helpers cost more than they save


class ShardIndex(NamedTuple):
    """Index one file: arrays over its good records in order, and the bad ones. `lost` estimates how many are bad."""

    offsets: NDArray[np.int64]  # of the encoded image in the file
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]  # as written
    checks: NDArray[np.uint32]  # CRC-32C of the image
    starts: NDArray[np.int64]  # of the record
    filenames: list[str]
    synsets: dict[int, tuple[str, str]]  # label -> (synset, text)
    bad: list[Bad]
    lost: int
    answers: list[list[float]] = []  # noqa: RUF012  (never changed)
    """the targets or labels of each record, where it has these instead of one label"""


def index_shards(files: Sequence[Path], cache: Path, keys: Keys = KEYS) -> list[ShardIndex]:
    """Return the index of each file, from `cache` or built now, together with other processes that need it.

    Raises OSError for a file that cannot be read or a cache that cannot be written.
    """
    indexes = [cache / f"{_key(file, keys)}.json" for file in files]
    missing = [k for k, path in enumerate(indexes) if not path.exists()]
    if missing:
        cache.mkdir(parents=True, exist_ok=True)
        with _helpers([files[k] for k in missing], [indexes[k] for k in missing], keys):
            build_missing(files, indexes, keys)
    return [_load_or_build(file, path, keys) for file, path in zip(files, indexes, strict=True)]


def _load_or_build(file: Path, index: Path, keys: Keys) -> ShardIndex:
    try:
        return _load(index)
    except (OSError, ValueError, TypeError, AttributeError):
        index.unlink(missing_ok=True)
        _build(file, index, keys)
        return _load(index)


def build_missing(files: Sequence[Path], indexes: Sequence[Path], keys: Keys) -> None:
    """Build the missing indexes: first those that no other process builds, then the rest."""
    order = list(range(len(files)))
    first = os.getpid() % len(order)  # so that workers begin at different files
    for wait in (False, True):
        for k in order[first:] + order[:first]:
            if not indexes[k].exists():
                with locked(indexes[k].with_suffix(".lock"), wait=wait) as is_locked:
                    if is_locked:
                        _build(files[k], indexes[k], keys)


def _build(file: Path, index: Path, keys: Keys) -> None:
    if not index.exists():
        temporary, built = temporary_name(index), read_shard(file, keys)
        content = json.dumps([np.stack(built[:5], 1).tolist(), *built[5:]]).encode()
        # No fsync, which for many small files takes longer than building them: an index that a power cut damages is
        # built again.
        write_file(temporary, [content], sync=False)
        os.rename(temporary, index)
        with suppress(FileNotFoundError):
            index.with_suffix(".lock").unlink()


@contextmanager
def _helpers(files: Sequence[Path], indexes: Sequence[Path], keys: Keys) -> Iterator[None]:
    """Run helper processes on the other cores of this host, started by one of its workers, until all indexes are built.

    Not a multiprocessing pool: its processes would run again the script of a user who calls this package, and those of
    a killed worker would wait forever.
    """
    with locked(indexes[0].parent / f".helpers-{socket.gethostname()}.lock", wait=False) as is_first:
        cores = len(os.sched_getaffinity(0))
        size = sum(file.stat().st_size for file in files)
        number = min(cores, len(files)) - 1 if is_first and size >= _HELPER_BYTES else 0
        command = [sys.executable, "-P", "-m", "tl_dist.datasets.shard_index"]
        task = pickle.dumps((files, indexes, keys))
        # In a process group of their own: this process handles a terminal's Ctrl-C.
        helpers = [subprocess.Popen(command, stdin=subprocess.PIPE, process_group=0) for _ in range(number)]
        try:
            for helper in helpers:
                assert helper.stdin is not None
                with suppress(BrokenPipeError), helper.stdin:
                    helper.stdin.write(task)
            yield
        finally:
            for helper in helpers:
                helper.kill()  # nothing is left to build, or this process has failed
                helper.wait()


def read_shard(file: Path, keys: Keys = KEYS) -> ShardIndex:
    """Read a whole file and check every record.

    Nothing can be located after a wrong length, so one bad entry stands for the rest of the file.
    """
    rows: list[tuple[int, int, int, int, int]] = []
    filenames: list[str] = []
    answers: list[Any] = []
    synsets: dict[int, tuple[str, str]] = {}
    bad: list[Bad] = []
    lost = 0
    size = file.stat().st_size
    for start, data, problem in _records(file, size):
        try:
            if data is None or problem:
                raise ValueError(problem)
            example = parse(data, keys)
        except ValueError as error:
            bad.append(Bad(f"{file.name}:{start}", start, str(error)))
            # After a wrong length, as many as lie before it for each byte.
            lost += 1 if data is not None else max(1, (size - start) * len(rows) // max(1, start))
            continue
        check = google_crc32c.value(data[example.offset : example.offset + example.size])
        rows.append((start + 12 + example.offset, example.size, example.label, check, start))
        filenames.append(example.filename.decode("utf-8", "surrogateescape"))
        if example.answers is not None:
            answers.append(example.answers)
        if example.label not in synsets:
            synsets[example.label] = (
                example.synset.decode("utf-8", "replace"),
                example.text.decode("utf-8", "replace"),
            )
    return _of_rows(rows, filenames, synsets, bad, lost, answers)


def _of_rows(rows: Sequence[Sequence[int]], *others: Any) -> ShardIndex:
    offsets, sizes, labels, checks, starts = np.array(rows, np.int64).reshape(-1, 5).T
    return ShardIndex(offsets, sizes, labels, checks.astype(np.uint32), starts, *others)


def framed(data: bytes) -> bytes:
    """Return a record: its length and the data, each with its checksum."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, _CHECK.pack(_masked_crc(length)), data, _CHECK.pack(_masked_crc(data))))


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _records(file: Path, size: int) -> Iterator[tuple[int, bytes | None, str]]:
    """Yield (start, data, problem) of each record; data is None where the rest of the file is unreadable."""
    start = 0
    with file.open("rb", buffering=_CHUNK) as raw:
        while start < size:
            head = raw.read(12)
            if len(head) < 12:
                yield start, None, f"the file is cut off: {len(head)} bytes of a record's header"
                return
            length, length_check = _HEADER.unpack(head)
            if _masked_crc(head[:8]) != length_check:
                problem = f"the checksum of the length is wrong: the last {size - start} bytes are lost"
                yield start, None, problem
                return
            if length > limits.RECORD or start + length + 16 > size:
                why = f"the file ends after {size - start} bytes more"
                why = why if length <= limits.RECORD else f"a record has at most {limits.RECORD}"
                yield start, None, f"the length is {length}, and {why}"
                return
            data, check = raw.read(length), raw.read(4)
            if len(check) < 4:
                yield start, None, "the file became shorter while it was read"
                return
            matches = check == _CHECK.pack(_masked_crc(data))
            yield start, data, "" if matches else "the checksum of the data is wrong"
            start += length + 16


def _key(file: Path, keys: Keys) -> str:
    status = file.stat()
    facts = f"{SCHEMA}\0{file}\0{status.st_size}\0{status.st_mtime_ns}"
    facts += "" if keys == KEYS else f"\0{keys}"
    return hashlib.sha256(os.fsencode(facts)).hexdigest()[:40]


def _load(path: Path) -> ShardIndex:
    rows, filenames, synsets, bad, lost, *answers = json.loads(path.read_bytes())
    named = {int(k): (synset, text) for k, (synset, text) in synsets.items()}
    return _of_rows(rows, filenames, named, [Bad(*entry) for entry in bad], lost, *answers)


if __name__ == "__main__":
    build_missing(*pickle.load(sys.stdin.buffer))  # written by the process that started this one
