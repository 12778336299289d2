"""`tl-dist data ...`: what is done to a data set before it is trained on."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from tl_dist.refusal import ExitCode

data_app = typer.Typer(help="Prepare data sets.", no_args_is_help=True)

_PACKING = "tl_dist.datasets.packing"  # by name, as datasets are: this side imports none of their rooms


@data_app.command()
def pack(
    source: Annotated[
        Path,
        typer.Argument(metavar="SRC", help="a config, a CSV file, or the directory of a data set"),
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="directory, new or of the same command")],
    size: Annotated[
        int | None,
        typer.Option(min=8, help="scale larger images to this shorter side; default: keep all bytes"),
    ] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="of the JPEGs that --size makes")] = 95,
    workers: Annotated[
        int | None, typer.Option("--workers", "-n", min=1, help="processes; default: one for each core")
    ] = None,
) -> int:
    """Pack a data set into a few large files. The same command goes on with one that was stopped."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    packing = import_module(_PACKING)
    splits = packing.open_anything(source)
    console = Console(highlight=False)
    columns = (
        TextColumn("packing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("packing", total=None)
        packing.pack(
            splits,
            target,
            size=size,
            quality=quality,
            workers=workers or len(os.sched_getaffinity(0)),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    total = sum(s.num_examples for s in splits.values())
    taken = sum(path.stat().st_size for path in target.glob("*.images"))
    console.print(
        f"{target}: {total:,} images, {taken / 1e6:,.1f} MB; use it with data.name=packed data.path={target}",
        soft_wrap=True,
    )
    return ExitCode.DONE
