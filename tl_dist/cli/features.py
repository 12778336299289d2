"""`tl-dist features VERB`: compute, list and remove cached outputs of frozen backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tl_dist.cli.arguments import ConfigFile, Overrides, Root, Strategy, Workers
from tl_dist.refusal import ExitCode

features_app = typer.Typer(
    help="Compute, list and prune cached outputs of frozen backbones.", no_args_is_help=True
)


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
    from tl_dist.terminal.console import Console
    from tl_dist.tools.features.command import extract

    return extract(Request(config, overrides or (), strategy, workers, runs), Console())


@features_app.command("list")
def features_list(
    runs: Annotated[Path, typer.Argument(metavar="[DIR]", help="directory that holds the runs")] = Path(
        "runs"
    ),
) -> int:
    """List the feature sets beside the runs in DIR, most recently used first."""
    from tl_dist.terminal.console import Console
    from tl_dist.tools.features.command import sets, show

    show(sets(runs), Console())
    return ExitCode.DONE


@features_app.command("prune")
def features_prune(
    runs: Annotated[
        Path, typer.Argument(metavar="[DIR]", resolve_path=True, help="directory that holds the runs")
    ] = Path("runs"),
    unused_days: Annotated[
        float | None, typer.Option(min=0, help="remove sets unused for longer than this")
    ] = None,
    keep_mb: Annotated[
        float | None, typer.Option(min=0, help="keep the most recently used sets, up to this size in MB")
    ] = None,
    unreferenced: Annotated[
        bool, typer.Option("--unreferenced", help="remove sets that no run in DIR reads")
    ] = False,
) -> int:
    """Remove unused feature sets and leftovers of interrupted extractions."""
    from tl_dist.terminal.console import Console
    from tl_dist.tools.features.command import prune

    say = Console().say
    prune(runs, unused_days=unused_days, keep_mb=keep_mb, unreferenced=unreferenced, say=say)
    return ExitCode.DONE
