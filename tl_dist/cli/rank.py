"""`tl-dist rank`: its options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Option

from tl_dist.cli.app import ConfigFile, Overrides, Root, Strategy, Workers, app
from tl_dist.terminal.console import Console


@app.command()
def rank(
    config: ConfigFile,
    overrides: Overrides = None,
    candidates: Annotated[
        str,
        Option(
            metavar="FILE|a,b,c",
            help="networks to rank, each BACKBONE or BACKBONE:BLOCK; or a YAML file that lists them",
        ),
    ] = "",
    images: Annotated[
        int, Option(min=20, help="largest number of training images to score with, drawn by class")
    ] = 5000,
    out: Annotated[
        Path | None,
        Option("--out", metavar="YAML", help="file for the config of the best; default: CONFIG_best.yaml"),
    ] = None,
    as_json: Annotated[bool, Option("--json", help="print the result as JSON")] = False,
    strategy: Strategy = None,
    workers: Workers = None,
    runs: Root = Path("runs"),
) -> None:
    """Rank pretrained networks by their features of the training images; write a config with the best."""
    from tl_dist.launcher.train import Request
    from tl_dist.tools.rank.command import rank as rank_candidates

    request = Request(config, overrides or (), strategy, workers, runs)
    console = Console(stderr=as_json)
    ranking = rank_candidates(request, candidates, console, images=images, out=out)
    if as_json:
        print(json.dumps(ranking, indent=1))
