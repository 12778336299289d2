"""Examples that cannot be decoded: found, named, substituted in training and left out of evaluation.

Training sees the next good example of the split instead, so the order of all others stays as it was and every
worker count sees the same pixels. What is found belongs to the run, in quarantine.jsonl: it only grows.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets import Source, Splits
from tl_dist.datasets.files import FileStore
from tl_dist.datasets.headers import Fault, look
from tl_dist.files import limits
from tl_dist.files.atomic import write_atomically
from tl_dist.files.foreign import read_file
from tl_dist.files.private import make_private, refuse_unsafe
from tl_dist.refusal import ExitCode, Refusal

SCHEMA = 4  # raise it when a check of headers changes
_THREADS = 8  # a check waits for the disk more than it computes
_SHOWN = 10

Gather = Callable[[bytes], list[bytes]]
"""Every rank's bytes, in rank order, on every rank."""


class Changed(Refusal):
    """A file has another size than when its folder was listed: the source is not what is on the disk."""


class Bad(NamedTuple):
    """An example that is not used: its split and id, the byte of its file where the fault lies, and the fault."""

    split: str
    id: str
    offset: int
    reason: str


class Screened(NamedTuple):
    """What the headers of all examples say."""

    bad: list[Bad]
    """those that cannot be decoded, in the order of splits and examples"""
    unusual: frozenset[str]
    """the splits with images to whose pixels the version of the rule of decoding makes a difference"""


def screen(
    splits: Splits, *, cache: Path, rank: int = 0, world_size: int = 1, gather: Gather | None = None
) -> Screened:
    """A look at the header of every example.

    Each rank looks at its contiguous share, and all ranks get the same list. It is kept in the directory
    `cache`, by the fingerprints of the splits and the times of their files: a second call looks at times alone.
    Refuses, on all ranks, with `Changed`.
    """
    gather = gather or (lambda text: [text])
    files = {split: source for split, source in splits.items() if source.is_encoded}
    if not files:
        return Screened([], frozenset())
    refuse_unsafe(cache, links=True)
    stamp, changed = stamp_of(files, rank, world_size)
    stamps, everyones = zip(*map(json.loads, gather(json.dumps([stamp, changed]).encode())), strict=True)
    if changed := next(filter(None, everyones), ""):
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
    kept = cache / f"{key}.jsonl"
    # Rank 0 alone looks for the file: on a network filesystem others may see it later.
    (text, *_) = gather(_kept(kept) if rank == 0 else b"")
    if text:
        return _screened(text)
    mine = [_check(*place, rank, world_size) for place in files.items()]
    bad = [one for found in mine for one in found.bad]
    everyone = [
        _screened(text) for text in gather(_text(bad, frozenset().union(*(found.unusual for found in mine))))
    ]
    order = list(files)
    bad = sorted((one for found in everyone for one in found.bad), key=lambda bad: order.index(bad.split))
    found = Screened(bad, frozenset().union(*(found.unusual for found in everyone)))
    if rank == 0:
        with suppress(OSError):  # then the next start looks again
            make_private(cache)
            write_atomically(kept, _text(*found))
    return found


def left_out(splits: Splits) -> list[Bad]:
    """Records that their format left out when it was opened: they are in no split, and only named."""
    found: list[Bad] = []
    for split, source in splits.items():
        found += [Bad(split, *record) for record in source.bad]
    return list({bad.id: bad for bad in reversed(found)}.values())[::-1]


def read(file: Path) -> list[Bad]:
    """What a quarantine.jsonl names; nothing where there is none. Refuses (78) a file that is no such thing."""
    try:
        return list(_parse(_read(file)))
    except (ValueError, TypeError, KeyError) as error:
        raise Refusal(
            f"{file} is not what tl-dist wrote ({error}).",
            fix="restore it, or delete it to have all files looked at again.",
            code=ExitCode.UNSAFE,
        ) from error


def write(file: Path, found: Sequence[Bad]) -> None:
    """Put `found` in place of what the file holds."""
    write_atomically(file, _format(found))


def merged(*lists: Sequence[Bad]) -> list[Bad]:
    """One entry for each example, the first that names it."""
    return list(
        {(bad.split, bad.id): bad for entries in reversed(lists) for bad in reversed(entries)}.values()
    )[::-1]


def budget(max_bad: int | None, splits: Splits) -> int:
    """How many bad examples a run puts up with: `max_bad`, by default the larger of 100 and 0.01 % of all."""
    return max(100, sum(s.num_examples for s in splits.values()) // 10_000) if max_bad is None else max_bad


def refuse_beyond(most: int, found: Sequence[Bad]) -> None:
    """Refuses (65) more than `most` bad examples, naming the first."""
    if len(found) > most:
        shown = "; ".join(f"{bad.id} {bad.reason}" for bad in found[:_SHOWN])
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise Refusal(
            f"{len(found)} examples cannot be decoded, more than data.max_bad = {most}: {shown}{more}.",
            fix="restore or delete these files (all are in quarantine.jsonl), or raise data.max_bad.",
            code=ExitCode.DATA,
        )


def without(splits: Splits, found: Sequence[Bad]) -> Splits:
    """The splits as they are used: "train" of the same size with substitutes, the others without bad examples.

    Refuses (65) a split, or a class of "train", in which no good example is left.
    """
    usable: dict[str, Source] = {}
    for split, source in splits.items():
        names = {bad.id for bad in found if bad.split == split}
        good = np.array([name not in names for name in source.ids]) if names else np.ones(0, bool)
        if good.all():
            usable[split] = source
            continue
        kept = np.flatnonzero(good)
        lost = set(source.labels) - set(source.labels[kept]) if split == "train" else set()
        if lost or not kept.size:
            what = f"class '{source.class_names[min(lost)]}'" if lost and kept.size else f"split '{split}'"
            raise Refusal(
                f"no example of {what} can be decoded: {found[0].id} {found[0].reason}.",
                fix="restore the files that quarantine.jsonl names.",
                code=ExitCode.DATA,
            )
        usable[split] = source.subset(substitutes(good) if split == "train" else kept)
    return usable


def substitutes(good: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each index itself where it is good, else the next good index, around the end; int64 [N]."""
    kept = np.flatnonzero(good)
    following = np.searchsorted(kept, np.arange(len(good)))
    return kept[following % len(kept)].astype(np.int64)


def _share(source: Source, rank: int, world_size: int) -> range:
    num = source.num_examples
    return range(num * rank // world_size, num * (rank + 1) // world_size)


def stamp_of(files: Splits, rank: int, world_size: int) -> tuple[int, str]:
    """A sum over the examples of a share of hashes of file, size and time: no order, so no worker count, in it.

    And a file whose size is not that of its source, where there is one.
    """
    total, changed = 0, ""
    for split, source in files.items():
        sizes = source.store.sizes if isinstance(source.store, FileStore) else None
        stamps: dict[Path, tuple[int | None, str]] = {}
        for index in _share(source, rank, world_size):
            path, offset, *_ = source.location(index)
            if path not in stamps:
                stamps = {path: _size_and_time(path)}  # neighbours share a file, if anybody does
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


def _check(split: str, source: Source, rank: int, world_size: int) -> Screened:
    """Of this worker's share of one split."""
    share = _share(source, rank, world_size)
    bad: list[Bad] = []
    is_unusual = False
    with ThreadPoolExecutor(_THREADS) as pool:
        headers = pool.map(lambda index: look(source.location(index), thorough=False), share, chunksize=64)
        for index, found in zip(share, headers, strict=True):
            if isinstance(found, Fault):
                bad.append(bad_example(split, source, index, found))
            else:
                is_unusual |= found.is_unusual
    return Screened(bad, frozenset([split] if is_unusual else []))


def bad_example(split: str, source: Source, index: int, found: Fault) -> Bad:
    """The entry for one example."""
    return Bad(split, source.ids[index], found.offset, found.reason)


def _read(file: Path) -> bytes:
    try:
        return read_file(file, max_bytes=limits.QUARANTINE)
    except FileNotFoundError:
        return b""


def _kept(file: Path) -> bytes:
    """What an earlier start has found; nothing where it cannot be read, and then all is looked at again."""
    try:
        text = _read(file)
        _screened(text)
    except (OSError, ValueError, TypeError, KeyError):
        return b""
    return text


def _text(bad: Sequence[Bad], unusual: Collection[str]) -> bytes:
    """A line with the names of splits, and one for each bad example."""
    return json.dumps({"unusual": sorted(unusual)}).encode() + b"\n" + _format(bad)


def _screened(text: bytes) -> Screened:
    first, _, rest = text.partition(b"\n")
    return Screened(list(_parse(rest)), frozenset(json.loads(first)["unusual"]))


def _parse(text: bytes) -> Iterator[Bad]:
    for line in text.splitlines():
        if line:
            yield Bad(**json.loads(line))


def _format(found: Sequence[Bad]) -> bytes:
    return "".join(json.dumps(bad._asdict()) + "\n" for bad in found).encode()
