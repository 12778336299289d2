"""Find the examples of a run that can be read, the same on all workers, and quarantine the others."""

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tl_dist.config import Config
from tl_dist.data.undecodable import READ_ERRORS, naming_machine_faults, undecodable
from tl_dist.datasets import Splits, directory_cache, quarantine
from tl_dist.datasets.division import open_splits
from tl_dist.parallel import DataParallel
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir


@dataclass(frozen=True)
class Examples:
    """The splits of a run."""

    run: RunDir
    opened: Splits  # all examples of the data set
    splits: Splits  # the examples that can be read
    bad: list[quarantine.Bad]  # the examples that cannot
    budget: int  # how many examples may be bad
    split_digest: str | None  # of the manifest that divided the data set, where there is one
    threads: int

    @contextmanager
    def naming_bad(self, split: str, indices: Callable[[], Iterable[int]]) -> Iterator[None]:
        """If an example of `split` makes the body fail, quarantine it, and refuse with its name.

        `indices` gives the examples that were being read. The refusal is restartable: the next attempt resumes from
        the last checkpoint without the example. A fault of the machine is refused as a fault of storage.
        """
        with naming_machine_faults(f"split '{split}'"):
            try:
                yield
            except READ_ERRORS:
                source = self.splits[split]
                faults = undecodable(source, indices(), self.threads)
                if not faults:
                    raise
                bad = [quarantine.Bad(split, source.ids[index], *fault) for index, fault in faults.items()]
                file = self.run.quarantine_file
                known = quarantine.merged(quarantine.read(file), bad)
                quarantine.write(file, known)
                quarantine.refuse_beyond(self.budget, known)
                more = f", and so do {len(bad) - 1} more" if len(bad) > 1 else ""
                raise Refusal(
                    f"{bad[0].id} {bad[0].reason}{more}: put in {file.name}.",
                    fix="the same command resumes from the last checkpoint without it; restore the file for the next "
                    "run.",
                    code=ExitCode.INTERNAL,
                ) from None


def readable(cfg: Config, run: RunDir, parallel: DataParallel, threads: int) -> Examples:
    """Return the data set without examples whose header is bad, or on which an earlier attempt failed."""
    (known, *_) = parallel.gather(json.dumps(quarantine.read(run.quarantine_file)).encode())
    try:
        opened, digest, screened = _screened(cfg, run, parallel)
    except quarantine.Changed:  # a file was rewritten in place, which the listing of its folder does not show
        opened, digest, screened = _screened(cfg, run, parallel, list_again=True)
    named = [*quarantine.left_out(opened), *screened]
    bad = quarantine.merged([quarantine.Bad(*entry) for entry in json.loads(known)], named)
    if bad and parallel.rank == 0:
        quarantine.write(run.quarantine_file, bad)
    budget = quarantine.budget(cfg.data.max_bad, opened)
    quarantine.refuse_beyond(budget, bad)
    return Examples(run, opened, quarantine.without(opened, bad), bad, budget, digest, threads)


def _screened(
    cfg: Config, run: RunDir, parallel: DataParallel, *, list_again: bool = False
) -> tuple[Splits, str | None, list[quarantine.Bad]]:
    """Return the data set, the digest of its manifest, and the result of reading the headers.

    Rank 0 lists the folders first, and the others read its listing (`directory_cache.kept`).
    """
    first, cache = parallel.rank == 0, run.path.parent
    run.beats.beat(parallel.rank, "listing files", 0, cfg.safety.alone_s if first else 0.0)
    # Once: the other ranks wait for rank 0's listing.
    meet = functools.cache(functools.partial(parallel.gather, b""))
    folders = directory_cache.kept(
        cache / "listings",
        cfg.data.path or "",
        writes=first,
        anew=list_again and first,
        begin=(lambda: None) if first else meet,
    )
    try:
        with folders:
            opened, digest = open_splits(cfg.data)
    finally:  # also where it is refused: each worker refuses it by itself
        meet()
    return opened, digest, quarantine.screen(opened, cache=cache / "header_checks", parallel=parallel)
