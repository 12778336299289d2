"""Find held-out images that a run's initial weights or teacher have seen with their labels: its figures would flatter.

An image is identified by its pixels, so it is the same under another name, in a table or a folder, packed, in memory or
as another lossless file; a copy that was scaled or recompressed is another image. Every run records the images whose
labels could have reached its weights, and all that its source and teacher have seen, so the last of a chain suffices.
"""

import hashlib
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_dist.config import Config
from tl_dist.config.model_selection import SPLIT, metrics_of
from tl_dist.config.rules.model import WEIGHTS_FILES
from tl_dist.config.source import of_source
from tl_dist.datasets import Source, Splits, pool_of
from tl_dist.datasets.curation import images
from tl_dist.datasets.division import open_splits
from tl_dist.datasets.quarantine import stamp_of
from tl_dist.datasets.store import Location, PixelStore
from tl_dist.files.atomic import write_atomically
from tl_dist.files.foreign import read_file
from tl_dist.files.npz import load_npz, save_npz
from tl_dist.files.private import make_private, refuse_unsafe
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir

FILE = "seen.npz"
MOST = 50_000
"""number of files of a data set that are decoded; of more, a random sample, which shows any overlap that matters"""
Numbers = NDArray[np.uint64]
_NONE: Numbers = np.zeros(0, np.uint64)


class Seen(NamedTuple):
    """Hold the images that a run has seen, by `numbers`; nothing if that is unknown."""

    trained: Numbers = _NONE
    chosen: Numbers = _NONE
    """images whose labels chose among weights: best step, early stop, learning rate"""
    validation: Numbers = _NONE
    """the run's own validation split, to which temperature, thresholds and prediction sets are fitted"""


def numbers(source: Source, root: Path) -> Numbers:
    """Hash the pixels of each example to uint64 [N]; 0 if they cannot be decoded or are not in the sample.

    Hashes of files are cached in `root`/digests, until the files or their times change.
    """
    pool, rows = pool_of(source)
    store, sample = pool.store, np.arange(pool.num_examples)
    hashes = np.zeros(len(sample), np.uint64)
    if isinstance(store, PixelStore):
        stored = ((row, store.kept(row)) for row in rows.tolist())
        # A generated image is identified by its store and row.
        hashes[rows] = [_of(f"{pool.fingerprint} {k}".encode()) if p is None else _of_pixels(p) for k, p in stored]
        return hashes[rows]
    if len(sample) > MOST:
        sample = np.sort(np.random.default_rng(0).choice(sample, MOST, replace=False))
    files, cache = pool.subset(sample), root / "digests"
    key = f"{store.fingerprint(pool)} {stamp_of({'': files}, 0, 1)[0]} {len(sample)}"
    file = cache / hashlib.sha256(key.encode()).hexdigest()[:32]
    refuse_unsafe(cache, links=True)
    with suppress(OSError, ValueError):
        hashes[sample] = np.frombuffer(read_file(file, max_bytes=8 * MOST), np.uint64)
        return hashes[rows]
    with warnings.catch_warnings(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        warnings.simplefilter("ignore")  # from Pillow
        hashes[sample] = [*threads.map(_of_file, map(files.location, range(len(sample))))]
    with suppress(OSError):  # then the next start hashes again
        make_private(cache)
        write_atomically(file, hashes[sample].tobytes())
    return hashes[rows]


def _of_file(location: Location) -> int:
    with suppress(*images.ERRORS):
        return _of_pixels(images.pixels(location))
    return 0


def _of_pixels(pixels: NDArray[np.uint8]) -> int:
    return _of(f"{pixels.shape}".encode() + pixels.tobytes())


def _of(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") or 1


def among(source: Source, root: Path, seen: Numbers, besides: Numbers = _NONE) -> int:
    """Count the examples of a source that are in `seen` and not in `besides`."""
    hashes = numbers(source, root)
    return int((np.isin(hashes, seen) & (hashes != 0) & ~np.isin(hashes, besides)).sum())


def _learnt(cfg: Config, splits: Splits, root: Path) -> Seen:
    """Return what a run of this config itself sees of these splits."""
    validation = numbers(splits[SPLIT], root) if SPLIT in splits else _NONE
    return Seen(numbers(splits["train"], root), validation if metrics_of(cfg) else _NONE, validation)


def of_run(run: RunDir) -> Seen:
    """Return the record of what a run has seen; empty without one."""
    if not os.path.lexists(run.path / FILE):
        return Seen()
    return load_npz(
        run.path / FILE,
        lambda arrays: Seen(*(arrays[name].astype(np.uint64) for name in Seen._fields)),
        what="record of images",
        fix="restore the file from a copy.",
    )


def _runs(cfg: Config) -> Iterator[tuple[str, Path, bool]]:
    """Yield (config key, path, if overlap is allowed) of the source run, the run with the weights, and the teacher."""
    source, weights = cfg.source, cfg.model.weights
    if source is not None and source.run is not None:
        yield "source.run", Path(source.run), source.allow_seen
    elif weights.endswith(WEIGHTS_FILES):
        for folder in Path(weights).resolve().parents:
            if RunDir(folder).identity_file.is_file():
                yield "model.weights", folder, False
    if cfg.distill is not None:
        yield "distill.teacher", Path(cfg.distill.teacher), cfg.distill.allow_seen


def _starts(cfg: Config, root: Path) -> Iterator[tuple[str, bool, Seen]]:
    """Yield what each run that a config starts from has seen, and what its source task will see.

    A directory that is no run is left to those who open it: they say what is wrong with it.
    """
    for key, run, allowed in _runs(cfg):
        if RunDir(run).config_file.exists():
            yield f"{key} {run}", allowed, of_run(RunDir(run))
    if (task := of_source(cfg)) is not None:
        yield f"source.data of '{task.name}'", False, _learnt(task, open_splits(task.data)[0], root)


def record(run: RunDir, cfg: Config, splits: Splits) -> None:
    """Write the record of what a run has seen, unless it exists."""
    if not os.path.lexists(run.path / FILE):
        root = run.path.parent
        own, starts = _learnt(cfg, splits, root), [seen for *_, seen in _starts(cfg, root)]
        trained, chosen, _ = (np.unique(np.concatenate(parts)) for parts in zip(own, *starts, strict=True))
        save_npz(run.path / FILE, trained=trained, chosen=chosen, validation=own.validation)


def flattered(cfg: Config, root: Path, what: str, splits: Splits | None = None, *, begun: bool = False) -> list[str]:
    """Return warnings of held-out images that were seen before; refuses (64) them in a new run without `allow_seen`.

    `what` is the command, which decides what is held out: "train" the splits other than train, where validation may
    have chosen weights in both runs; "cv" everything that is divided into folds; "tune" the validation split or, if
    there is none, the training split, as "rank" does.
    """
    notices, starts = list[str](), list(_starts(cfg, root))
    splits = splits or (open_splits(cfg.data)[0] if starts else {})
    of_splits = what == "train" or (what == "tune" and SPLIT in splits)
    held_out = {k: source for k, source in splits.items() if k == SPLIT or k != what == "train"}
    if starts and not of_splits:
        held_out = {"held-out": pool_of(splits["train"])[0] if what == "cv" else splits["train"]}
    for (start, allowed, seen), (name, source) in product(starts, held_out.items()):
        chooses_again = what == "train" and name == SPLIT
        reached = np.concatenate([seen.trained, _NONE if chooses_again else seen.chosen])
        # Images that this run trains on anyway do not count.
        num = among(source, root, reached, numbers(splits["train"], root) if of_splits else _NONE)
        if not num and len(seen.trained):
            continue
        number = f"{num:,}" if len(seen.trained) else "an unknown number"
        text = f"{start} has seen {number} of the {source.num_examples:,} {name} images with their labels"
        if what != "train" or not (allowed or begun):
            raise Refusal(
                f"{text}, by which {what} would judge it.",
                fix="start from weights of other images, or divide the data as that run does; 'allow_seen: true' "
                "beside source.run or distill.teacher lets 'tl-dist train' do it all the same.",
                code=ExitCode.USAGE,
            )
        notices.append(f"{text}: figures of {name} flatter")
    return notices
