"""The examples of a run: what of its data set can be read, the same on all workers, and what is put in quarantine."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from tl_dist.config import Config
from tl_dist.data import decoded
from tl_dist.data.undecodable import READ_ERRORS, naming_machine_faults, undecodable
from tl_dist.datasets import Splits, decoded_by, directory_cache, quarantine
from tl_dist.datasets.decoding import VERSION
from tl_dist.datasets.division import open_splits
from tl_dist.parallel import DataParallel
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.runs.identity import decoding_of


@dataclass(frozen=True)
class Examples:
    """The splits of a run."""

    run: RunDir
    opened: Splits
    """as the data set has them"""
    splits: Splits
    """what can be read of them"""
    bad: list[quarantine.Bad]
    """what cannot"""
    budget: int
    """how many examples may be bad"""
    split_digest: str | None
    """of the manifest that divided them, where one did"""
    threads: int

    @contextmanager
    def naming_bad(self, split: str, indices: Callable[[], Iterable[int]]) -> Iterator[None]:
        """A failure inside, of which an example of `split` is the cause, names it and puts it in quarantine.

        `indices` gives the examples that were being read. The refusal is restartable: the next attempt resumes from
        the last checkpoint without them. A fault of the machine is no example's: it is refused as one of storage.
        """
        with naming_machine_faults(f"split '{split}'"), self._naming_bad(split, indices):
            yield

    @contextmanager
    def _naming_bad(self, split: str, indices: Callable[[], Iterable[int]]) -> Iterator[None]:
        try:
            yield
        except READ_ERRORS:
            source = self.splits[split]
            faults = undecodable(source, indices(), self.threads)
            if not faults:
                raise
            bad = [quarantine.bad_example(split, source, index, fault) for index, fault in faults.items()]
            file = self.run.quarantine_file
            known = quarantine.merged(quarantine.read(file), bad)
            quarantine.write(file, known)
            quarantine.refuse_beyond(self.budget, known)
            raise Refusal(
                f"{bad[0].id} {bad[0].reason}"
                + (f", and so do {len(bad) - 1} more" if len(bad) > 1 else "")
                + f": put in {file.name}.",
                fix="the same command resumes from the last checkpoint without it; restore the file for the next run.",
                code=ExitCode.INTERNAL,
            ) from None


def readable(cfg: Config, run: RunDir, parallel: DataParallel, threads: int) -> Examples:
    """The data set without what cannot be read, by its header or since an earlier attempt failed on it.

    Images are decoded by the rule that the run began with.
    """
    (known, *_) = parallel.gather(json.dumps(quarantine.read(run.quarantine_file)).encode())
    try:
        opened, digest, found = _screened(cfg, run, parallel)
    except quarantine.Changed:  # in its place, which no folder shows
        opened, digest, found = _screened(cfg, run, parallel, anew=True)
    opened = decoded_by(opened, decoding_of(run, new=VERSION), found.unusual)
    named = [*quarantine.left_out(opened), *found.bad]
    bad = quarantine.merged([quarantine.Bad(*entry) for entry in json.loads(known)], named)
    if bad and parallel.rank == 0:
        quarantine.write(run.quarantine_file, bad)
    budget = quarantine.budget(cfg.data.max_bad, opened)
    quarantine.refuse_beyond(budget, bad)
    return Examples(run, opened, quarantine.without(opened, bad), bad, budget, digest, threads)


def _screened(
    cfg: Config, run: RunDir, parallel: DataParallel, *, anew: bool = False
) -> tuple[Splits, str | None, quarantine.Screened]:
    """The data set, the digest of its manifest, and what the headers show.

    Rank 0 looks at the folders first, and what it has listed is there for the others: `directory_cache.kept`.
    """
    first, cache = parallel.rank == 0, run.path.parent
    run.beats.beat(parallel.rank, "listing files", 0, cfg.safety.alone_s if first else 0.0)
    met = functools.cache(functools.partial(parallel.gather, b""))  # once, as soon as one of the others lists
    folders = directory_cache.kept(
        cache / "listings",
        cfg.data.path or "",
        writes=first,
        anew=anew and first,
        begin=(lambda: None) if first else met,
    )
    try:
        with folders:
            opened, digest = open_splits(cfg.data)
    finally:  # also where it is refused: each worker says so itself
        met()
    found = quarantine.screen(
        opened,
        cache=cache / "header_checks",
        rank=parallel.rank,
        world_size=parallel.world_size,
        gather=parallel.gather,
    )
    return opened, digest, found


def decoded_once(examples: Examples, cfg: Config, parallel: DataParallel, image_size: int) -> Examples:
    """The same with their images decoded now, into memory or a local file, where the config asks for it."""
    where, run, splits = cfg.runtime.decoded_images, examples.run, examples.splits
    if where == "off":
        return examples

    def stop_requested() -> bool:
        run.beats.beat(parallel.rank, "decoding images", 0)
        return parallel.rank == 0 and run.stop_requested()

    with examples.naming_bad("train", lambda: range(splits["train"].num_examples)):
        if where == "memory":
            made = decoded.in_memory(
                splits, image_size, examples.threads, crop_fraction=cfg.data.kept_fraction
            )
        else:
            with parallel.naming_lost_peers():
                made = decoded.on_disk(
                    splits,
                    image_size,
                    examples.threads,
                    crop_fraction=cfg.data.kept_fraction,
                    directory=run.path.parent / "decoded",
                    parallel=parallel,
                    stop_requested=stop_requested,
                )
    return replace(examples, splits=made)
