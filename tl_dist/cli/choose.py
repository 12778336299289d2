"""Commands that choose: `tl-dist rank` between networks, `tl-dist compare` between runs."""

import json
from pathlib import Path
from typing import Annotated

from typer import Option

from tl_dist.cli.app import ConfigFile, Overrides, Root, RunPath, Split, Strategy, Workers, app
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


@app.command()
def compare(
    first: RunPath,
    second: RunPath,
    split: Annotated[Split, Option(help="split to compare on")] = Split.TEST,
    corruptions: Annotated[
        bool, Option("--corruptions", help="compare the results of eval --corruptions")
    ] = False,
) -> None:
    """Compare two runs by a paired test on the same examples."""
    from tl_dist.terminal.tables import show_flattered
    from tl_dist.tools.compare import command

    console, names = Console(), (str(first), str(second))
    for run in (first, second):
        show_flattered(run, console, f"{run}: ")
    if corruptions:
        command.show_corrupted(command.compare_corrupted(first, second, split), names, console.say)
        return
    command.show(command.compare(first, second, split), names, console)
