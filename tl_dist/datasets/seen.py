"""What judges a run must be news to it: the images that its start has seen, among those that are held out.

An image is told by its pixels, so it is the same under another name, in a table or a folder, packed, in memory or as
another lossless file; a copy that was scaled or compressed again is another one. Every run records the images whose
labels could have reached its weights, and all that its source and teacher have seen: of a chain the last is enough.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tl_dist.config import Config, registry
from tl_dist.config import file as config_file
from tl_dist.config.model_selection import SPLIT, metrics_of
from tl_dist.config.rules.model import WEIGHTS_FILES
from tl_dist.config.source import of_source
from tl_dist.datasets import Source, Splits, pool_of
from tl_dist.datasets.byte_range import Location
from tl_dist.datasets.curation import images
from tl_dist.datasets.division import open_splits
from tl_dist.datasets.headers import Fault, look
from tl_dist.datasets.quarantine import stamp_of
from tl_dist.datasets.store import PixelStore
from tl_dist.files import limits
from tl_dist.files.atomic import write_atomically
from tl_dist.files.foreign import read_file
from tl_dist.files.npz import load_npz
from tl_dist.files.private import make_private, refuse_unsafe
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.scores import predictions

FILE = "seen.npz"
MOST = 50_000
"""files of a data set that are decoded for this; of more a sample, in which whatever matters shows"""
Numbers = NDArray[np.uint64]
_NONE: Numbers = np.zeros(0, np.uint64)


class Seen(NamedTuple):
    """The images that a run has seen, as `numbers` has them; of some older runs their names."""

    trained: Numbers = _NONE
    chosen: Numbers = _NONE
    """by whose labels weights were chosen: the best, an early end, a lower rate"""
    validation: Numbers = _NONE
    """of the run itself: what a temperature, a threshold and sets are fitted to"""

    def beside(self, starts: Iterable[Seen]) -> Seen:
        """The same with all that the runs have seen that this one starts from."""
        trained, chosen, _ = (np.unique(np.concatenate(every)) for every in zip(self, *starts, strict=True))
        return Seen(trained, chosen, self.validation)


def numbers(source: Source, root: Path) -> Numbers:
    """[N], a number for the pixels of each example; 0 where it cannot be told, or is not in the sample.

    What files took to decode is kept in `root`/digests, for as long as neither they nor their times change.
    """
    pool, rows = pool_of(source)
    store, some = pool.store, np.arange(pool.num_examples)
    found = np.zeros(len(some), np.uint64)
    if isinstance(store, PixelStore):
        kept = ((row, store.kept(row)) for row in rows.tolist())
        # Those that are made up when they are read are what the store and the row make them.
        found[rows] = [
            _of(f"{pool.fingerprint} {k}".encode()) if p is None else _of_pixels(p) for k, p in kept
        ]
        return found[rows]
    if len(some) > MOST:
        some = np.sort(np.random.default_rng(0).choice(some, MOST, replace=False))
    files, cache = pool.subset(some), root / "digests"
    key = f"{store.fingerprint(pool)} {stamp_of({'': files}, 0, 1)[0]} {len(some)}"
    file = cache / hashlib.sha256(key.encode()).hexdigest()[:32]
    refuse_unsafe(cache, links=True)
    with suppress(OSError, ValueError):
        found[some] = np.frombuffer(read_file(file, max_bytes=8 * MOST), np.uint64)
        return found[rows]
    with warnings.catch_warnings(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        warnings.simplefilter("ignore")  # of Pillow
        found[some] = [*threads.map(_of_file, map(files.location, range(len(some))))]
    with suppress(OSError):  # then it is done again
        make_private(cache)
        write_atomically(file, found[some].tobytes())
    return found[rows]


def _of_file(location: Location) -> int:
    with suppress(OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        if not isinstance(look(location), Fault):
            return _of_pixels(images.pixels(location))
    return 0


def _of_pixels(pixels: NDArray[np.uint8]) -> int:
    return _of(f"{pixels.shape}".encode() + pixels.tobytes())


def _of(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") or 1


def _of_names(ids: Iterable[str]) -> Numbers:
    return np.array([_of(name.encode("utf-8", "surrogateescape")) for name in ids], np.uint64)


def among(source: Source, root: Path, seen: Numbers, besides: Numbers = _NONE) -> int:
    """How many examples of a source are among those seen, and not `besides`."""
    found = numbers(source, root)
    same = np.isin(found, seen) & (found != 0) & ~np.isin(found, besides)
    return int((same | np.isin(_of_names(source.ids), seen)).sum())


def _learnt(cfg: Config, splits: Splits, root: Path) -> Seen:
    """What a run of this config sees itself of these splits."""
    validation = numbers(splits[SPLIT], root) if SPLIT in splits else _NONE
    return Seen(numbers(splits["train"], root), validation if metrics_of(cfg) else _NONE, validation)


def of_run(run: RunDir, root: Path, above: frozenset[Path] = frozenset()) -> Seen:
    """What a run has seen: its record, or of an older one what its data say, where they are as they were.

    Where they are not, the names of its examples stand for them. Nothing of another package is imported.
    """
    if os.path.lexists(run.path / FILE):
        return load_npz(
            run.path / FILE,
            lambda found: Seen(*(found[name].astype(np.uint64) for name in Seen._fields)),
            what="record of images",
            fix="restore the file from a copy, or remove it: what the run has seen is then told by its data.",
        )
    if (place := run.path.resolve()) in above or not run.config_file.is_file():
        return Seen()
    cfg, ids = config_file.load(run.config_file, imports=False), dict[str, list[str]]()
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        content = json.loads(read_file(run.path / "split.json", max_bytes=limits.SPLIT_MANIFEST))
        ids = {name: [str(one) for one in split["ids"]] for name, split in content["splits"].items()}
    own = Seen(_of_names(ids.get("train", ())), _of_names(ids.get(SPLIT, ())) if metrics_of(cfg) else _NONE)
    with suppress(Refusal, OSError):
        splits = open_splits(cfg.data)[0] if cfg.data.name in registry.DATASETS else {}
        if splits and ids in ({}, {name: list(source.ids) for name, source in splits.items()}):
            own = _learnt(cfg, splits, root)
    return own.beside(of_run(RunDir(path), root, above | {place}) for _, path, _ in _runs(cfg))


def _runs(cfg: Config) -> Iterator[tuple[str, Path, bool]]:
    """The source, the teacher, and the run in whose directory the weights lie: key, place, and if that is allowed."""
    source, weights = cfg.source, cfg.model.weights
    if source is not None and source.run is not None:
        yield "source.run", Path(source.run), source.allow_seen
    elif weights.endswith(WEIGHTS_FILES):
        of = (one for one in Path(weights).resolve().parents if RunDir(one).identity_file.is_file())
        yield from (("model.weights", one, False) for one in of)
    if cfg.distill is not None:
        yield "distill.teacher", Path(cfg.distill.teacher), cfg.distill.allow_seen


def _starts(cfg: Config, root: Path) -> Iterator[tuple[str, bool, Seen]]:
    """What has been seen by each run that a config starts from; of a source task, what will be."""
    yield from ((f"{key} {run}", allowed, of_run(RunDir(run), root)) for key, run, allowed in _runs(cfg))
    if (task := of_source(cfg)) is not None:
        yield f"source.data of '{task.name}'", False, _learnt(task, open_splits(task.data)[0], root)


def record(run: RunDir, cfg: Config, splits: Splits) -> None:
    """Leave with a run what reaches its weights, unless that is there."""
    if not os.path.lexists(run.path / FILE):
        root = run.path.parent
        found = _learnt(cfg, splits, root).beside(seen for *_, seen in _starts(cfg, root))
        predictions.save(run.path / FILE, **found._asdict())


def flattered(
    cfg: Config, root: Path, what: str, splits: Splits | None = None, *, begun: bool = False
) -> list[str]:
    """What is to be said of held-out images that were seen before; refused (64) in a new run that is not allowed it.

    `what` holds out: train the other splits, of which validation may choose in both runs; cv all that is divided into
    folds; tune the validation split, and as rank the training split where there is none.
    """
    said, starts = list[str](), list(_starts(cfg, root))
    splits = splits or (open_splits(cfg.data)[0] if starts else {})
    of_splits = what == "train" or (what == "tune" and SPLIT in splits)
    held = {name: one for name, one in splits.items() if name == SPLIT or name != what == "train"}
    if starts and not of_splits:
        held = {"held-out": pool_of(splits["train"])[0] if what == "cv" else splits["train"]}
    for (start, allowed, seen), (name, source) in product(starts, held.items()):
        twice = what == "train" and name == SPLIT
        reached = np.concatenate([seen.trained, _NONE if twice else seen.chosen])
        # Of equal images one may be trained on here in any case.
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
        said.append(f"{text}: figures of {name} flatter")
    return said
