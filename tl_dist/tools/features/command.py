"""`tl-dist features`: compute and list the cached feature sets beside the runs, and remove unneeded ones."""

import json
import os
import re
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tl_dist.features import manifest
from tl_dist.files.atomic import children, reason
from tl_dist.files.foreign import read_file
from tl_dist.files.private import refuse_unsafe
from tl_dist.launcher import train
from tl_dist.launcher.task import run_shown
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.runs.lock import holder
from tl_dist.terminal.console import Console
from tl_dist.terminal.tables import ago, narrow_table
from tl_dist.tools.features import Request

FOREIGN_S = 86400.0  # age at which an unfinished set of another host counts as abandoned
RECENT_S = 3600.0  # a run may have opened a set used this recently, without having noted yet that it reads it

_NAME = re.compile("[0-9a-f]{32}")
_UNFINISHED = re.compile(r"\.tmp-[0-9a-z-]+")


@dataclass(frozen=True)
class FeatureSetOnDisk:
    """One directory below features/."""

    path: Path
    manifest: manifest.Manifest | None
    """None if it cannot be read"""
    num_bytes: int
    unused_s: float
    """since a run last used it"""


def sets(root: Path) -> list[FeatureSetOnDisk]:
    """Return every finished set below `root`, the most recently used first."""
    readable = filter(None, (_read(path) for path in _entries(root) if _NAME.fullmatch(path.name)))
    return sorted(readable, key=lambda feature_set: feature_set.unused_s)


def extract(options: train.Request, console: Console) -> int:
    """Compute the features that a config needs, with all of its workers, so that later runs find them."""
    run_shown(options, options.load(), Request(), "extraction", console)
    show(sets(options.runs), console)
    return ExitCode.DONE


def show(feature_sets: Sequence[FeatureSetOnDisk], console: Console) -> None:
    """Print one row for each set."""
    table = narrow_table("key", "features", "rows", "of", "MB", "last used", folds=("features",))
    for feature_set in feature_sets:
        content = "unreadable", "0", ""
        if (known := feature_set.manifest) is not None:
            facts, shape = known.facts, " x ".join(map(str, known.shape))
            size = facts.image_size and f"{facts.image_size} pixels"
            crop = facts.crop_fraction and f"middle {facts.crop_fraction:g}"
            parts = facts.backbone, facts.cut, size, facts.interpolation, crop, *facts.views
            what = [str(part) for part in parts if part]
            content = "\n".join(what), f"{known.rows:,}", f"{shape}\n{known.dtype}"
        num_mb = f"{feature_set.num_bytes / 1e6:,.1f}"
        table.add_row(feature_set.path.name[:12], *content, num_mb, ago(feature_set.unused_s))
    console.print(table)


def prune(
    root: Path,
    *,
    unused_days: float | None = None,
    keep_mb: float | None = None,
    unreferenced: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Remove feature sets and leftovers of interrupted extractions; return their paths.

    Removed are sets unused for `unused_days`, then the longest unused until the rest fits into `keep_mb`, and with
    `unreferenced` sets that no run in `root` has read, for example because its run was deleted. A set that a live run
    reads, or that was used so recently that one may, is spared. `say` is told of each.
    """
    if unused_days is None and keep_mb is None and not unreferenced:
        what = "no option says which feature sets to remove."
        fix = "give --unused-days DAYS, --keep-mb MEGABYTES, --unreferenced, or several of them."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE)
    refuse_unsafe(root / "features", links=True)
    runs = [RunDir(path) for path in children(root) if _is_own(path)]
    readers = {run: run.features_referred_to() for run in runs}
    in_use = {key: run.name for run, keys in readers.items() if keys and _lives(run) for key in keys}
    candidates = [path for path in _entries(root) if _abandoned(path)]
    total_mb = 0.0
    for feature_set in sets(root):
        name, size_mb = feature_set.path.name, feature_set.num_bytes / 1e6
        total_mb += size_mb
        too_old = unused_days is not None and feature_set.unused_s > unused_days * 86400
        unread = unreferenced and not any(name in keys for keys in readers.values())
        if not (too_old or unread or (keep_mb is not None and total_mb > keep_mb)):
            continue
        if name in in_use:
            say(f"spared {name}: run '{in_use[name]}' reads it")
        elif feature_set.unused_s < RECENT_S:
            say(f"spared {name}: used within the last hour")
        else:
            total_mb -= size_mb
            candidates.append(feature_set.path)
    removed = []
    for path in candidates:
        if names := manifest.foreign_in(path):
            say(f"spared {path.name}: it holds {names[0]}, which belongs to no feature set")
        else:
            manifest.discard(path)
            say(f"removed {path.name}")
            removed.append(path)
    say(f"{len(removed)} removed")
    return removed


def _entries(root: Path) -> list[Path]:
    """List the directories below features/, which may be a link to another disk."""
    place = Path(os.path.realpath(root / "features"))
    try:
        return [path for path in children(place) if path.is_dir() and not path.is_symlink()]
    except OSError as error:
        what = f"{place} cannot be read ({reason(error)})."
        raise Refusal(what, fix="name a directory of your own.", code=ExitCode.USAGE) from error


def _is_own(path: Path) -> bool:
    """Return whether a path is a directory of this user: runs of other users cannot read this user's features."""
    return path.is_dir() and not path.is_symlink() and path.lstat().st_uid == os.geteuid()


def _lives(run: RunDir) -> bool:
    """Return whether a run is alive, or may be because its lock cannot be read."""
    try:
        return holder(run) is not None
    except OSError:
        return True


def _read(path: Path) -> FeatureSetOnDisk | None:
    """Describe a set on disk; None if it has been removed meanwhile."""
    num_bytes, content = 0, None
    try:
        used = path.lstat().st_mtime
        with suppress(OSError, ValueError):
            num_bytes = sum(file.lstat().st_size for file in children(path))
            content = manifest.read(path)
            used = (path / manifest.MANIFEST).lstat().st_mtime
    except FileNotFoundError:
        return None
    # A time in the future, from a wrong clock, counts as equally far in the past: the set is not the youngest of all.
    return FeatureSetOnDisk(path, content, num_bytes, abs(time.time() - used))


def _abandoned(path: Path) -> bool:
    """Return whether a path is an unfinished set whose writer has ended."""
    if not _UNFINISHED.fullmatch(path.name):
        return False
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        owner = json.loads(read_file(path / "owner.json", max_bytes=4096))
        if owner["host"] == socket.gethostname():
            return not psutil.pid_exists(int(owner["pid"]))
    return time.time() - path.lstat().st_mtime > FOREIGN_S
