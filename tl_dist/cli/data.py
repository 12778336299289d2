"""`tl-dist data VERB`: look at a data set before training on it. `tl-dist features VERB`: what is cached of it."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from tl_dist.cli.app import AsJson, ConfigFile, Overrides, Root, RunsDirectory, Strategy, Workers, group
from tl_dist.refusal import ExitCode
from tl_dist.rendezvous import rank_layout
from tl_dist.terminal.console import Console

data_app = group("data", "Inspect, verify, split and pack a data set.", panel="Data")
features_app = group("features", "Compute, list and prune cached outputs of frozen backbones.", panel="Data")
augment_app = group("augment", "Preview the augmentations of a config.", panel="Data")

DataPath = Annotated[Path, Argument(metavar="PATH|CONFIG", help="data set or config", show_default=False)]
Processes = Annotated[int | None, Option("--workers", "-n", min=1, help="default: one process per core")]


@data_app.command()
def inspect(
    path: DataPath,
    sheet: Annotated[Path | None, Option(metavar="PNG", help="picture of samples")] = Path("samples.png"),
    as_json: AsJson = False,
) -> None:
    """Show what a data set holds: classes, counts, sizes, and a picture of samples."""
    from tl_dist.tools.curate import inspect as data_inspect

    _show(data_inspect.inspect(path, sheet), data_inspect.show, as_json)


@data_app.command()
def verify(
    path: DataPath,
    workers: Processes = None,
    distance: Annotated[int, Option(min=-1, max=16, help="bits of near duplicates; -1: no search")] = 3,
    as_json: AsJson = False,
) -> int:
    """Decode every image. Exit with 65 if a file is bad or an image is in two splits."""
    from tl_dist.datasets.curation import verification
    from tl_dist.tools.curate import verify

    with Console(stderr=True).bar("decoding") as advance:
        workers = workers or rank_layout.own_cores(os.environ)
        findings = verification.verify(path, workers=workers, distance=distance, advance=advance)
    _show(findings, verify.show, as_json)
    return ExitCode.DONE if findings["ok"] else ExitCode.DATA


@data_app.command()
def split(
    path: DataPath,
    test: Annotated[float, Option(min=0, max=1, help="test share of all examples")] = 0.0,
    validation: Annotated[float, Option(min=0, max=1, help="validation share of all examples")] = 0.0,
    folds: Annotated[int | None, Option(min=2, help="folds, instead of --test and --validation")] = None,
    group: Annotated[str | None, Option(help="column or regular expression of groups")] = None,
    seed: Annotated[int, Option(min=0, help="seed of the random division")] = 0,
    to: Annotated[Path, Option(metavar="FILE", help="manifest to write")] = Path("split.json"),
    force: Annotated[bool, Option("--force", help="replace another manifest in FILE")] = False,
    as_json: AsJson = False,
) -> None:
    """Divide a data set by class (and group) into a manifest that `data.split` uses."""
    from tl_dist.tools.curate import split

    manifest = split.split(path, to, test=test, validation=validation, folds=folds, group=group, seed=seed, force=force)
    _show(manifest, split.show, as_json)


@data_app.command()
def pack(
    source: Annotated[Path, Argument(metavar="SRC", help="directory or CSV file of a data set, or a config")],
    target: Annotated[Path, Argument(metavar="DST", help="directory, new or begun before")],
    size: Annotated[int | None, Option(min=8, help="shorter side of images; default: as stored")] = None,
    quality: Annotated[int, Option(min=1, max=100, help="quality of the JPEGs that --size writes")] = 95,
    workers: Processes = None,
) -> None:
    """Pack a data set into a few large files. The same command resumes a stopped pack.

    To share the work, start the command several times, on one host or many: by srun, mpirun, horovodrun or by hand.
    """
    from tl_dist.datasets import packing
    from tl_dist.datasets.curation import layout

    rank, size_of_job = rank_layout.rank_in(os.environ), rank_layout.expected_world_size(os.environ) or 1
    splits = layout.opened_whole(source)
    console = Console()
    with console.bar("packing") as advance:
        packing.pack(
            splits,
            target,
            size=size,
            quality=quality,
            workers=workers or rank_layout.own_cores(os.environ),
            part=(rank % size_of_job, size_of_job),
            progress=advance,
        )
    if rank:  # the first of several processes reports
        return
    total = sum(s.num_examples for s in splits.values())
    taken = sum(path.stat().st_size for path in target.glob("*.tfrecord"))
    console.say(f"{target}: {total:,} images, {taken / 1e6:,.1f} MB; use it with data.name=packed data.path={target}")


def _show(facts: dict[str, Any], show: Callable[[dict[str, Any], Console], None], as_json: bool) -> None:
    """Print facts as JSON for a program, or as text for the user."""
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=1) + "\n")
    else:
        show(facts, Console())


@features_app.command("extract")
def features_extract(
    config: ConfigFile,
    overrides: Overrides = None,
    strategy: Strategy = None,
    workers: Workers = None,
    runs: Root = Path("runs"),
) -> int:
    """Compute the features that a config needs, with all of its workers."""
    from tl_dist.launcher.train import Request
    from tl_dist.tools.features.command import extract

    return extract(Request(config, overrides or (), strategy, workers, runs), Console())


@features_app.command("list")
def features_list(runs: RunsDirectory = Path("runs")) -> None:
    """List the feature sets beside the runs in DIR, most recently used first."""
    from tl_dist.tools.features.command import sets, show

    show(sets(runs), Console())


@features_app.command("prune")
def features_prune(
    runs: RunsDirectory = Path("runs"),
    unused_days: Annotated[float | None, Option(min=0, help="remove sets unused for longer")] = None,
    keep_mb: Annotated[float | None, Option(min=0, help="remove the longest unused above this")] = None,
    unreferenced: Annotated[bool, Option("--unreferenced", help="remove sets that no run reads")] = False,
) -> None:
    """Remove unused feature sets and leftovers of interrupted extractions."""
    from tl_dist.tools.features.command import prune

    say = Console().say
    prune(runs.resolve(), unused_days=unused_days, keep_mb=keep_mb, unreferenced=unreferenced, say=say)


@augment_app.command("preview")
def augment_preview(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[Path, Option(metavar="PNG", help="picture to write")] = Path("augment.png"),
    rows: Annotated[int, Option(min=1, max=64, help="number of images, one per row")] = 4,
) -> None:
    """Show a few training images, each unchanged and then augmented eight times."""
    from tl_dist.tools.augment.command import preview

    preview(config, overrides or (), out, rows)
    Console().say(f"{out}: each row is an image, then the same image augmented at eight positions")
