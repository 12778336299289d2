"""`tl-dist features VERB`: compute, list and remove cached outputs of frozen backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from tl_dist.cli.arguments import ConfigFile, Overrides, Root, RunsDirectory, Strategy, Workers
from tl_dist.cli.groups import group
from tl_dist.terminal.console import Console

features_app = group("features", "Compute, list and prune cached outputs of frozen backbones.")


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
    runs: Annotated[
        Path, Argument(metavar="[DIR]", resolve_path=True, help="directory that holds the runs")
    ] = Path("runs"),
    unused_days: Annotated[
        float | None, Option(min=0, help="remove sets unused for longer than this")
    ] = None,
    keep_mb: Annotated[
        float | None, Option(min=0, help="keep the most recently used sets, up to this size in MB")
    ] = None,
    unreferenced: Annotated[
        bool, Option("--unreferenced", help="remove sets that no run in DIR reads")
    ] = False,
) -> None:
    """Remove unused feature sets and leftovers of interrupted extractions."""
    from tl_dist.tools.features.command import prune, show_pruned

    console = Console()
    removed = prune(
        runs, unused_days=unused_days, keep_mb=keep_mb, unreferenced=unreferenced, say=console.say
    )
    show_pruned(removed, console)
