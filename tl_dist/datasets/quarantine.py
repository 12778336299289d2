"""Quarantine examples that cannot be decoded: training substitutes them, evaluation leaves them out.

Training sees the next good example of the split, so the order of all others is unchanged and every number of
workers sees the same pixels. The run records bad examples in its quarantine.jsonl, which only grows.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets import Source, Splits
from tl_dist.datasets.files import FileStore, unusable
from tl_dist.datasets.headers import fault
from tl_dist.files import limits
from tl_dist.files.atomic import write_atomically
from tl_dist.files.foreign import read_file
from tl_dist.files.private import make_private, refuse_unsafe
from tl_dist.refusal import ExitCode, Refusal

if TYPE_CHECKING:  # the login side imports no TensorFlow
    from tl_dist.parallel import DataParallel

SCHEMA = 5  # increment it when a check of headers changes
_THREADS = 8  # a check waits for the disk more than it computes
_SHOWN = 10


class Changed(Refusal):
    """Report a file whose size differs from the listing of its folder: the source is not what is on the disk."""


class Bad(NamedTuple):
    """Describe an example that is not used: split, id, offset of the fault in its file in bytes, and the fault."""

    split: str
    id: str
    offset: int
    reason: str


def screen(splits: Splits, *, cache: Path, parallel: DataParallel | None = None) -> list[Bad]:
    """Check the header of every example; returns those that cannot be decoded, in the order of splits and examples.

    Each rank checks a contiguous share, and all ranks get the same result. It is cached in the directory `cache` under
    the fingerprints of the splits and the times of their files, so a second call only reads times. Raises `Changed` on
    all ranks if a file changed since it was listed.
    """
    files = {split: source for split, source in splits.items() if source.is_encoded}
    if not files:
        return []
    refuse_unsafe(cache, links=True)
    rank, world_size = (0, 1) if parallel is None else (parallel.rank, parallel.world_size)
    gather = (lambda text: [text]) if parallel is None else parallel.gather
    stamp, changed = stamp_of(files, rank, world_size)
    stamps, changes = zip(*map(json.loads, gather(json.dumps([stamp, changed]).encode())), strict=True)
    if changed := next(filter(None, changes), ""):
        raise Changed(
            f"{changed} has changed since its folder was listed.",
            fix="run the same command again.",
            code=ExitCode.DATA,
        )
    facts = {
        "schema": SCHEMA,
        "data": {split: source.fingerprint for split, source in files.items()},
        "files": sum(stamps) % 2**64,
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    file = cache / f"{key}.json"
    # Only rank 0 reads the file: on a network filesystem others may see it later.
    (text, *_) = gather(_cached(file) if rank == 0 else b"")
    if text:
        return _entries(text)
    own = [bad for entry in files.items() for bad in _check(*entry, rank, world_size)]
    order = list(files)
    everyone = [bad for text in gather(json.dumps(own).encode()) for bad in _entries(text)]
    screened = sorted(everyone, key=lambda bad: order.index(bad.split))
    if rank == 0:
        with suppress(OSError):  # then the next start checks again
            make_private(cache)
            write_atomically(file, json.dumps(screened).encode())
    return screened


def left_out(splits: Splits) -> list[Bad]:
    """List the records that their format left out when it was opened: they are in no split, and only named."""
    records = [Bad(split, *record) for split, source in splits.items() for record in source.bad]
    return list({bad.id: bad for bad in reversed(records)}.values())[::-1]


def read(file: Path) -> list[Bad]:
    """Read a quarantine.jsonl; empty if there is none. Refuses (78) a file with other content."""
    try:
        lines = read_file(file, max_bytes=limits.QUARANTINE).splitlines()
        return [Bad(**json.loads(line)) for line in lines if line]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError) as error:
        what = f"{file} is not what tl-dist wrote ({error})."
        fix = "restore it, or delete it to have all files looked at again."
        raise Refusal(what, fix=fix, code=ExitCode.UNSAFE) from error


def write(file: Path, bad: Sequence[Bad]) -> None:
    """Replace the content of the file by `bad`."""
    write_atomically(file, "".join(json.dumps(entry._asdict()) + "\n" for entry in bad).encode())


def merged(*lists: Sequence[Bad]) -> list[Bad]:
    """Merge lists, with one entry for each example, the first that names it."""
    return list({(bad.split, bad.id): bad for entries in reversed(lists) for bad in reversed(entries)}.values())[::-1]


def budget(max_bad: int | None, splits: Splits) -> int:
    """Return how many bad examples a run tolerates: `max_bad`, by default the larger of 100 and 0.01 % of all."""
    return max(100, sum(s.num_examples for s in splits.values()) // 10_000) if max_bad is None else max_bad


def refuse_beyond(most: int, bad: Sequence[Bad]) -> None:
    """Refuse (65) more than `most` bad examples, naming the first."""
    if len(bad) > most:
        shown = "; ".join(f"{example.id} {example.reason}" for example in bad[:_SHOWN])
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise unusable(
            f"{len(bad)} examples cannot be decoded, more than data.max_bad = {most}: {shown}{more}",
            "restore or delete these files (all are in quarantine.jsonl), or raise data.max_bad",
        )


def without(splits: Splits, bad: Sequence[Bad]) -> Splits:
    """Return "train" at the same size with substitutes for bad examples, and the other splits without them.

    Refuses (65) a split, or a class of "train", in which no good example is left.
    """
    usable = dict(splits)
    for split, source in splits.items():
        names = {example.id for example in bad if example.split == split}
        good = np.array([name not in names for name in source.ids]) if names else np.ones(0, bool)
        if good.all():
            continue
        rows = np.flatnonzero(good)
        lost = set(source.labels) - set(source.labels[rows]) if split == "train" else set()
        if lost or not rows.size:
            what = f"class '{source.class_names[min(lost)]}'" if lost and rows.size else f"split '{split}'"
            raise unusable(
                f"no example of {what} can be decoded: {bad[0].id} {bad[0].reason}",
                "restore the files that quarantine.jsonl names",
            )
        usable[split] = source.subset(substitutes(good) if split == "train" else rows)
    return usable


def substitutes(good: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return int64 [N]: each index if it is good, else the next good one, wrapping around."""
    good_rows = np.flatnonzero(good)
    following = np.searchsorted(good_rows, np.arange(len(good)))
    return good_rows[following % len(good_rows)].astype(np.int64)


def _share(source: Source, rank: int, world_size: int) -> range:
    num = source.num_examples
    return range(num * rank // world_size, num * (rank + 1) // world_size)


def stamp_of(files: Splits, rank: int, world_size: int) -> tuple[int, str]:
    """Sum hashes of file, size and time over the examples of a rank's share: independent of order and world size.

    Returns it with the path of a file whose size differs from the source's, or "".
    """
    total, changed = 0, ""
    for split, source in files.items():
        sizes = source.store.sizes if isinstance(source.store, FileStore) else None
        stamps: dict[Path, tuple[int | None, str]] = {}
        for index in _share(source, rank, world_size):
            path, offset, *_ = source.location(index)
            if path not in stamps:
                stamps = {path: _size_and_time(path)}  # only neighbours share a file
            size, stamp = stamps[path]
            if sizes is not None and size not in (None, sizes[source.row(index)]):
                changed = changed or os.fspath(path)
            text = f"{split}\0{index}\0{offset}\0{stamp}"
            total += int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    return total % 2**64, changed


def _size_and_time(path: Path) -> tuple[int | None, str]:
    try:
        status = path.stat()
    except OSError as error:
        return None, str(error.errno)
    return status.st_size, f"{status.st_size} {status.st_mtime_ns}"


def _check(split: str, source: Source, rank: int, world_size: int) -> list[Bad]:
    """Check the headers of this rank's share of one split."""
    share = _share(source, rank, world_size)
    with ThreadPoolExecutor(_THREADS) as pool:
        faults = pool.map(lambda index: fault(source.location(index), thorough=False), share, chunksize=64)
        return [
            Bad(split, source.ids[index], *reason)
            for index, reason in zip(share, faults, strict=True)
            if reason is not None
        ]


def _cached(file: Path) -> bytes:
    """Read an earlier result; empty if it is unreadable, and then all headers are checked again."""
    try:
        text = read_file(file, max_bytes=limits.QUARANTINE)
        _entries(text)
    except (OSError, ValueError, TypeError, KeyError):
        return b""
    return text


def _entries(text: bytes) -> list[Bad]:
    return [Bad(*entry) for entry in json.loads(text)]
