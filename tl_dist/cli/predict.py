"""`tl-dist predict RUN PATH...`: classify images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tl_dist.cli.arguments import At, RunPath, Strategy, Workers
from tl_dist.refusal import ExitCode, Refusal


def predict(
    run: RunPath,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...", help="files, folders or patterns; - reads a list of files from standard input"
        ),
    ],
    top: Annotated[
        int, typer.Option(min=1, metavar="K", help="number of classes to show for each image")
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="write a row for each image to this .csv, .jsonl or .parquet file"),
    ] = None,
    sort_into: Annotated[
        Path | None, typer.Option(metavar="DIR", help="copy each image to DIR/CLASS; overwrites nothing")
    ] = None,
    null: Annotated[
        bool, typer.Option("--null", "-0", help="names on standard input end with NUL, as by find -print0")
    ] = False,
    max_bad: Annotated[
        int | None,
        typer.Option(
            min=0, help="exit with 65 if more images than this cannot be decoded; default: data.max_bad"
        ),
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(
            min=0.5, max=0.9999, help="add a set that holds the true class at this rate, such as 0.95"
        ),
    ] = None,
    of_type: Annotated[
        str | None,
        typer.Option(
            "--type", help="with --coverage: type or group of the data set that the images belong to"
        ),
    ] = None,
    unknown: Annotated[
        float | None,
        typer.Option(
            min=0.0001, max=0.5, help="flag images unlike the training images, at this false alarm rate"
        ),
    ] = None,
    at: At = "",
    strategy: Strategy = None,
    workers: Workers = None,
) -> int:
    """Classify images with a trained run, which may still be training."""
    from tl_dist.launcher.task import Computation
    from tl_dist.tools.predict import Request
    from tl_dist.tools.predict.command import PredictOptions, predict_shown

    if of_type is not None and coverage is None:
        raise Refusal("--type needs --coverage.", fix="add --coverage 0.95.", code=ExitCode.USAGE)
    request = Request(top=top, coverage=coverage, of_type=of_type, unknown=unknown)
    how = Computation(at, strategy, workers)
    predict_shown(PredictOptions(run, images, request, how, out, sort_into, null, max_bad))
    return ExitCode.DONE
