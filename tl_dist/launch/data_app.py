"""`tl-dist data VERB`: look at a data set before training on it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from tl_dist.refusal import ExitCode

data_app = typer.Typer(help="Look at a data set, prove it whole, divide it.", no_args_is_help=True)

DataPath = Annotated[
    Path,
    typer.Argument(metavar="PATH|CONFIG", help="directory of a data set, or a config", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="as JSON")]


@data_app.command()
def inspect(
    path: DataPath,
    sheet: Annotated[Path | None, typer.Option(metavar="PNG", help="where to put samples")] = Path(
        "samples.png"
    ),
    as_json: AsJson = False,
) -> int:
    """Say what a data set holds: classes, counts, sizes; with a picture of samples."""
    from rich.console import Console

    from tl_dist.launch import data_inspect

    facts = data_inspect.inspect(path, sheet)
    if as_json:
        _write(facts)
    else:
        data_inspect.show(facts, Console(highlight=False))
    return ExitCode.DONE


@data_app.command()
def verify(
    path: DataPath,
    workers: Annotated[int | None, typer.Option(min=1, help="processes; default: one a core")] = None,
    distance: Annotated[
        int,
        typer.Option(min=-1, max=16, help="bits of 64 in which near duplicates differ; -1: none are sought"),
    ] = 3,
    as_json: AsJson = False,
) -> int:
    """Decode everything. Exit code 65 for bad files, and for images that are in two splits."""
    from rich.console import Console

    from tl_dist.launch import data_verify

    found = data_verify.verify(path, workers=workers, distance=distance, console=Console(stderr=True))
    if as_json:
        _write(found)
    else:
        data_verify.show(found, Console(highlight=False))
    return ExitCode.DONE if found["ok"] else ExitCode.DATA


@data_app.command()
def split(
    path: DataPath,
    test: Annotated[float, typer.Option(min=0, max=1, help="part of all examples")] = 0.0,
    validation: Annotated[float, typer.Option(min=0, max=1, help="part of all examples")] = 0.0,
    folds: Annotated[int | None, typer.Option(min=2, help="folds for cross-validation, instead")] = None,
    group: Annotated[
        str | None, typer.Option(help="regular expression on ids: what matches alike stays together")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    to: Annotated[Path, typer.Option("--to", metavar="FILE")] = Path("split.json"),
    as_json: AsJson = False,
) -> int:
    """Divide a data set by class (and group) into a manifest that `data.split` uses."""
    from rich.console import Console

    from tl_dist.launch import data_split

    made = data_split.split(path, to, test=test, validation=validation, folds=folds, group=group, seed=seed)
    if as_json:
        _write(made)
    else:
        data_split.show(made, Console(highlight=False))
    return ExitCode.DONE


def _write(facts: object) -> None:
    sys.stdout.write(json.dumps(facts, indent=1) + "\n")
