"""`tl-dist features`: the cached feature sets beside the runs: made, listed, and removed when nobody needs them."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tl_dist.durable import children
from tl_dist.files import limits
from tl_dist.files.foreign import read_file
from tl_dist.launch.report import ago, narrow_table, show_line
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.run import RunDir

if TYPE_CHECKING:
    from rich.console import Console

    from tl_dist.launch.train import Request

FOREIGN_S = 86400.0  # after which an unfinished set of another host is taken for abandoned


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
    return sorted(
        (_read(path) for path in children(root / "features") if _is_set(path)), key=lambda s: s.unused_s
    )


def extract(request: Request, console: Console) -> int:
    """Compute the features that a config needs, by all of its workers, so that every later run finds them."""
    from tl_dist.launch.tasks import run_shown

    run_shown(request, request.load(), ("--extract",), "extraction", console)
    show(sets(request.runs), console)
    return ExitCode.DONE


def show(found: Sequence[FeatureSetOnDisk], console: Console) -> None:
    """One line for each set."""
    from rich.text import Text

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
        table.add_row(*map(Text, cells))
    console.print(table)


def prune(
    root: Path, *, unused_days: float | None = None, keep_mb: float | None = None, unreferenced: bool = False
) -> list[Path]:
    """Remove sets that no run has used for so long, then the longest unused until the rest fits; and leftovers.

    `unreferenced`: and those that none of the runs in `root` has read, as when its run was deleted. What was removed.
    A set that a run is reading goes on to be readable by it; the next run computes it again.
    """
    if unused_days is None and keep_mb is None and not unreferenced:
        raise Refusal(
            "nothing says which feature sets may go.",
            fix="give --unused-days DAYS, --keep-mb MEGABYTES, --unreferenced, or several of them.",
            code=ExitCode.USAGE,
        )
    gone = [path for path in children(root / "features") if _abandoned(path)]
    referred = {key for path in children(root) for key in RunDir(path).features_referred_to()}
    kept = 0.0
    for one in sets(root):
        kept += one.num_bytes / 1e6
        too_old = unused_days is not None and one.unused_s > unused_days * 86400
        if (
            too_old
            or (unreferenced and one.path.name not in referred)
            or (keep_mb is not None and kept > keep_mb)
        ):
            kept -= one.num_bytes / 1e6
            gone.append(one.path)
    for path in gone:
        # Under another name first: a reader finds it whole or not at all.
        removed = path.with_name(f".tmp-removed-{path.name.removeprefix('.tmp-')}")
        path.rename(removed)
        shutil.rmtree(removed)
    return gone


def show_pruned(gone: Sequence[Path], console: Console) -> None:
    """What was removed."""
    for path in gone:
        show_line(console, f"removed {path.name}")
    show_line(console, f"{len(gone)} removed")


def _is_set(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _read(path: Path) -> FeatureSetOnDisk:
    num_bytes = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    manifest = path / "manifest.json"
    try:
        found = json.loads(read_file(manifest, max_bytes=limits.FEATURE_MANIFEST))
        rows = sum(shard["rows"] for shard in found["shards"])
        age = max(0.0, time.time() - manifest.stat().st_mtime)
        return FeatureSetOnDisk(path, found["facts"], found["shape"], found["dtype"], rows, num_bytes, age)
    except (OSError, ValueError, KeyError, TypeError):
        return FeatureSetOnDisk(path, {}, (), "", 0, num_bytes, max(0.0, time.time() - path.stat().st_mtime))


def _abandoned(path: Path) -> bool:
    """An unfinished set whose maker is gone."""
    if not path.name.startswith(".tmp-"):
        return False
    try:
        owner = json.loads(read_file(path / "owner.json", max_bytes=4096))
        if owner["host"] == socket.gethostname():
            return not psutil.pid_exists(int(owner["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return time.time() - path.stat().st_mtime > FOREIGN_S
