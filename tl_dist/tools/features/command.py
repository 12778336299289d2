"""`tl-dist features`: the cached feature sets beside the runs: made, listed, and removed when nobody needs them."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tl_dist.features import manifest
from tl_dist.files.atomic import children, reason
from tl_dist.files.foreign import read_file
from tl_dist.files.private import refuse_unsafe
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.runs.lock import holder
from tl_dist.terminal.tables import ago, narrow_table
from tl_dist.tools.features import Request as Extraction

if TYPE_CHECKING:
    from tl_dist.launcher.train import Request
    from tl_dist.terminal.console import Console

FOREIGN_S = 86400.0  # after which an unfinished set of another host is taken for abandoned
RECENT_S = 3600.0  # within which a run may have found a set, and not have noted yet that it reads it

_NAME = re.compile("[0-9a-f]{32}")
_UNFINISHED = re.compile(r"\.tmp-[0-9a-z-]+")


@dataclass(frozen=True)
class FeatureSetOnDisk:
    """One directory below features/; `facts` is empty where it cannot be read."""

    path: Path
    facts: dict[str, Any]
    shape: Sequence[int]
    dtype: str
    rows: int
    num_bytes: int
    unused_s: float  # since a run last used it


def sets(root: Path) -> list[FeatureSetOnDisk]:
    """Every finished set, the last used first."""
    found = filter(None, (_read(path) for path in _entries(root) if _NAME.fullmatch(path.name)))
    return sorted(found, key=lambda s: s.unused_s)


def extract(request: Request, console: Console) -> int:
    """Compute the features that a config needs, by all of its workers, so that every later run finds them."""
    from tl_dist.launcher.task import run_shown

    run_shown(request, request.load(), Extraction(), "extraction", console)
    show(sets(request.runs), console)
    return ExitCode.DONE


def show(found: Sequence[FeatureSetOnDisk], console: Console) -> None:
    """One line for each set."""
    table = narrow_table("key", "features", "rows", "of", "MB", "last used", folds=("features",))
    for one in found:
        what = [str(one.facts[key]) for key in ("backbone", "cut") if key in one.facts]
        if "image_size" in one.facts:
            what.append(f"{one.facts['image_size']} pixels")
        if "crop_fraction" in one.facts:
            what.append(f"middle {one.facts['crop_fraction']:g}")
        what += one.facts.get("views") or ()
        cells = [
            one.path.name[:12],
            "\n".join(what) or "unreadable",
            f"{one.rows:,}",
            f"{' x '.join(map(str, one.shape))}\n{one.dtype}".strip(),
            f"{one.num_bytes / 1e6:,.1f}",
            ago(one.unused_s),
        ]
        table.add_row(*cells)
    console.print(table)


def prune(
    root: Path,
    *,
    unused_days: float | None = None,
    keep_mb: float | None = None,
    unreferenced: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Remove sets that no run has used for so long, then the longest unused until the rest fits; and leftovers.

    `unreferenced`: and those that none of the runs in `root` has read, as when its run was deleted. What was removed.
    Spared, and told to `say`, is what a living run reads, or was used so recently that one may.
    """
    if unused_days is None and keep_mb is None and not unreferenced:
        raise Refusal(
            "nothing says which feature sets may go.",
            fix="give --unused-days DAYS, --keep-mb MEGABYTES, --unreferenced, or several of them.",
            code=ExitCode.USAGE,
        )
    refuse_unsafe(root / "features", links=True)
    runs = [RunDir(path) for path in children(root) if _is_own(path)]
    readers = {run: run.features_referred_to() for run in runs}
    referred = {key for keys in readers.values() for key in keys}
    in_use = {key: run.name for run, keys in readers.items() if keys and _lives(run) for key in keys}
    gone = [path for path in _entries(root) if _abandoned(path)]
    kept = 0.0
    for one in sets(root):
        kept += one.num_bytes / 1e6
        too_old = unused_days is not None and one.unused_s > unused_days * 86400
        unknown = unreferenced and one.path.name not in referred
        if not (too_old or unknown or (keep_mb is not None and kept > keep_mb)):
            continue
        if one.path.name in in_use:
            say(f"spared {one.path.name}: run '{in_use[one.path.name]}' reads it")
        elif one.unused_s < RECENT_S:
            say(f"spared {one.path.name}: used within the last hour")
        else:
            kept -= one.num_bytes / 1e6
            gone.append(one.path)
    foreign = {path: names for path in gone if (names := manifest.foreign_in(path))}
    for path, names in foreign.items():
        say(f"spared {path.name}: it holds {names[0]}, which is of no set")
    gone = [path for path in gone if path not in foreign]
    for path in gone:
        manifest.discard(path)
    return gone


def show_pruned(gone: Sequence[Path], console: Console) -> None:
    """What was removed."""
    for path in gone:
        console.say(f"removed {path.name}")
    console.say(f"{len(gone)} removed")


def _entries(root: Path) -> list[Path]:
    """What is below features/, which may be a link to another disk."""
    place = Path(os.path.realpath(root / "features"))
    try:
        return children(place)
    except OSError as error:
        raise Refusal(
            f"{place} cannot be read ({reason(error)}).",
            fix="name a directory of your own.",
            code=ExitCode.USAGE,
        ) from error


def _is_own(path: Path) -> bool:
    """Whether it is a directory of this user: runs of others cannot read what is private to this one."""
    return path.is_dir() and not path.is_symlink() and path.lstat().st_uid == os.geteuid()


def _lives(run: RunDir) -> bool:
    """Also where nobody can tell."""
    try:
        return holder(run) is not None
    except OSError:
        return True


def _read(path: Path) -> FeatureSetOnDisk | None:
    """None for what is no directory, or not there any more."""
    num_bytes, rows, dtype = 0, 0, ""
    facts: dict[str, Any] = {}
    shape: Sequence[int] = ()
    try:
        if path.is_symlink() or not path.is_dir():
            return None
        used = path.lstat().st_mtime
        with suppress(OSError, ValueError):
            num_bytes = sum(file.lstat().st_size for file in children(path))
            found = manifest.read(path)
            facts = found.facts.model_dump(exclude_unset=True)
            shape, dtype, rows = found.shape, found.dtype, found.rows
            used = (path / manifest.MANIFEST).lstat().st_mtime
    except FileNotFoundError:
        return None
    # A clock that was wrong has left as wrong an age, not the youngest of all.
    return FeatureSetOnDisk(path, facts, shape, dtype, rows, num_bytes, abs(time.time() - used))


def _abandoned(path: Path) -> bool:
    """An unfinished set whose maker is gone."""
    if not _UNFINISHED.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
        return False
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        owner = json.loads(read_file(path / "owner.json", max_bytes=4096))
        if owner["host"] == socket.gethostname():
            return not psutil.pid_exists(int(owner["pid"]))
    return time.time() - path.lstat().st_mtime > FOREIGN_S
