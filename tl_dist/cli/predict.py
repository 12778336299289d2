"""`tl-dist predict RUN PATH...`: its options."""

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
            metavar="PATH...", help="files, folders, patterns; - for a list of files on standard input"
        ),
    ],
    top: Annotated[int, typer.Option(min=1, metavar="K", help="how many classes to say of each image")] = 1,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="a row for each image: .csv, .jsonl or .parquet")
    ] = None,
    sort_into: Annotated[
        Path | None, typer.Option(metavar="DIR", help="copy each image to DIR/CLASS; nothing is overwritten")
    ] = None,
    null: Annotated[
        bool, typer.Option("--null", "-0", help="names on standard input end with NUL, as of find -print0")
    ] = False,
    max_bad: Annotated[
        int | None,
        typer.Option(min=0, help="exit code 65 if more cannot be decoded; default: data.max_bad"),
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(
            min=0.5,
            max=0.9999,
            help="also a set of classes that holds the true one at this rate, such as 0.95",
        ),
    ] = None,
    of_type: Annotated[
        str | None,
        typer.Option("--type", help="with --coverage: the images are of this type or group of the data set"),
    ] = None,
    unknown: Annotated[
        float | None,
        typer.Option(
            min=0.0001, max=0.5, help="flag what is unlike the training images, at this rate of false alarms"
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
        raise Refusal(
            "--type says for which images --coverage holds.", fix="add --coverage 0.95.", code=ExitCode.USAGE
        )
    request = Request(top=top, coverage=coverage, of_type=of_type, unknown=unknown)
    how = Computation(at, strategy, workers)
    predict_shown(PredictOptions(run, images, request, how, out, sort_into, null, max_bad))
    return ExitCode.DONE
