"""`tl-dist eval RUN`: evaluate a run on a split, on other labelled images, or on corrupted ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tl_dist.cli.arguments import At, RunPath, Split, Strategy, Workers
from tl_dist.refusal import ExitCode, Refusal

if TYPE_CHECKING:
    from tl_dist.launcher.task import Computation


def evaluate(
    run: RunPath,
    split: Annotated[
        Split | None,
        typer.Option(help="split to evaluate; default: test, or all of a --data without a test split"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|CONFIG", help="another labelled data set to evaluate on; classes match by name"
        ),
    ] = None,
    views: Annotated[
        str | None,
        typer.Option(help="average over these views, such as flip,dihedral; default: as in the run"),
    ] = None,
    by_group: Annotated[
        bool, typer.Option("--by-group", help="also show each type and group of the data set")
    ] = False,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN|REGEX", help="also show each value of a table column or a part of paths"
        ),
    ] = None,
    corruptions: Annotated[
        str | None,
        typer.Option(metavar="all|noise,blur,weather,digital,geometry", help="evaluate on corrupted images"),
    ] = None,
    severity: Annotated[
        str | None, typer.Option(metavar="1-5", help="severity of the corruptions, or a range; default: all")
    ] = None,
    at: At = "",
    strategy: Strategy = None,
    workers: Workers = None,
) -> int:
    """Evaluate a run on a split, on other labelled images, or on corrupted ones."""
    from tl_dist.launcher.task import Computation
    from tl_dist.terminal.console import Console
    from tl_dist.terminal.tables import relative, show_evaluation, show_flattered
    from tl_dist.tools.evaluate.command import evaluate as evaluate_run

    console = Console()
    how = Computation(at, strategy, workers, [] if views is None else [f"evaluation.views=[{views}]"])
    groups = [*["any"] * by_group, *([by] if by else [])]
    _refuse_corruptions_beside(corruptions, severity, data is not None or bool(groups))
    if corruptions is not None:
        return _evaluate_corrupted(run, split or Split.TEST, how, corruptions, severity or "1-5")
    if data is not None:
        return _evaluate_data(run, data, split, how, groups)
    with console.busy(f"evaluating {run}"):
        record = evaluate_run(run, split or Split.TEST, how, by=groups, say=partial(console.say, style="dim"))
    show_evaluation(record, console)
    show_flattered(run, console)
    if "calibration" in record["figures"]:
        picture = run / "evaluations" / f"{record['split']}_reliability.png"
        console.say(f"reliability diagram: {relative(picture)}", style="dim")
    return ExitCode.DONE


def _refuse_corruptions_beside(corruptions: str | None, severity: str | None, others: bool) -> None:
    """Refuse (64) corruptions of other images or by groups, and a severity of no corruption."""
    if corruptions is not None and others:
        what = "--corruptions takes the run's own images, without groups."
        raise Refusal(what, fix="leave out --data, --by-group and --by.", code=ExitCode.USAGE)
    if corruptions is None and severity is not None:
        what = "--severity needs --corruptions."
        raise Refusal(what, fix="add --corruptions all, or leave out --severity.", code=ExitCode.USAGE)


def _evaluate_data(
    run: Path, data: Path, split: Split | None, how: Computation, groups: Sequence[str]
) -> int:
    from tl_dist.terminal.console import Console
    from tl_dist.terminal.tables import show_evaluation
    from tl_dist.tools.evaluate.command import evaluate_data, show_matching

    console = Console()
    with console.busy(f"evaluating {run}"):
        record = evaluate_data(run, data, split, how, by=groups)
    show_evaluation(record, console)
    show_matching(record["data"], partial(console.say, style="yellow"))
    return ExitCode.DONE


def _evaluate_corrupted(run: Path, split: Split, how: Computation, corruptions: str, severity: str) -> int:
    from tl_dist.terminal.console import Console
    from tl_dist.tools.evaluate import command

    console, names_and_severities = Console(), command.parse_corruptions(corruptions, severity)
    with console.busy(f"evaluating {run}"):
        record = command.evaluate(run, split, how, corruptions=names_and_severities)
    command.show_corrupted(record, console)
    return ExitCode.DONE
