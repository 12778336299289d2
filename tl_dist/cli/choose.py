"""Commands that choose what to train: `tl-dist rank` between networks, `tl-dist tune` between classifiers."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Option

from tl_dist.cli.app import AsJson, ConfigFile, Overrides, Root, Strategy, Workers, app
from tl_dist.terminal.console import Console

add_command = partial(app.command, rich_help_panel="Choose")


@add_command()
def rank(
    config: ConfigFile,
    overrides: Overrides = None,
    candidates: Annotated[str, Option(metavar="FILE|a,b,c", help="each BACKBONE or BACKBONE:BLOCK")] = "",
    images: Annotated[int, Option(min=20, help="largest number of training images")] = 5000,
    out: Annotated[Path | None, Option(metavar="YAML", help="default: CONFIG_best.yaml")] = None,
    as_json: AsJson = False,
    strategy: Strategy = None,
    workers: Workers = None,
    runs: Root = Path("runs"),
) -> None:
    """Rank pretrained networks by their features of the training images; write a config with the best."""
    from tl_dist.launcher.train import Request
    from tl_dist.tools.rank import command

    request = Request(config, overrides or (), strategy, workers, runs)
    console = Console(stderr=as_json)
    ranking = command.rank(request, candidates, console, images=images, out=out)
    if as_json:
        print(json.dumps(ranking, indent=1))


@add_command()
def tune(
    config: ConfigFile,
    overrides: Overrides = None,
    folds: Annotated[int, Option(min=2, help="folds of the training split where there is no validation split")] = 5,
    strategy: Strategy = None,
    workers: Workers = None,
    runs: Root = Path("runs"),
) -> int:
    """Search for the best classifier on cached features, without the test split; write a config with it."""
    from tl_dist.launcher.train import Request
    from tl_dist.tools.tune import command

    return command.tune(Request(config, overrides or (), strategy, workers, runs), folds, Console())
