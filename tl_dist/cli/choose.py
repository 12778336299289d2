"""Commands that choose what to train: `tl-dist models` and `rank` between networks, `tune` between classifiers."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from tl_dist.cli.app import AsJson, ConfigFile, Overrides, Root, Strategy, Workers, app, group
from tl_dist.terminal.console import Console

add_command = partial(app.command, rich_help_panel="Choose")
models_app = group("models", "List the networks that a config may name, and show the stages of one.", panel="Choose")


@models_app.command("list")
def models_list(as_json: AsJson = False) -> None:
    """List the networks: image size, published accuracy, stages, and where their weights come from."""
    from tl_dist.tools.networks.command import networks, show_networks

    facts = networks()
    if as_json:
        print(json.dumps(facts, indent=1))
    else:
        show_networks(facts, Console())


@models_app.command("show")
def models_show(
    name: Annotated[str, Argument(metavar="NAME", help="network, as model.backbone names it, or a config")],
    image_size: Annotated[int | None, Option(min=1, help="pixels; default: the network's own")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the stages of a network, with the output and the parameters of each."""
    from tl_dist.tools.networks.command import network, show_network

    facts = network(name, image_size)
    if as_json:
        print(json.dumps(facts, indent=1))
    else:
        show_network(facts, Console())


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
    console, best = Console(stderr=as_json), out or config.with_name(f"{config.stem}_best.yaml")
    ranking = command.rank(request, candidates, console, images=images, out=best)
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
