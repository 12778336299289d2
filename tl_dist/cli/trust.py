"""Commands about how far to trust a run: `tl-dist eval`, `report`, `explain`, `compare`, `calibrate` and others."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from tl_dist.cli.app import At, ConfigFile, Overrides, Root, RunPath, Split, Strategy, Workers, app
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.terminal.console import Console

add_command = partial(app.command, rich_help_panel="Trust")


@add_command("eval")
def evaluate(
    run: RunPath,
    split: Annotated[
        Split | None, Option(help="split to evaluate; default: test, or all of a --data without it")
    ] = None,
    data: Annotated[Path | None, Option(metavar="DIR|CONFIG", help="labelled data; classes match by name")] = None,
    views: Annotated[
        str | None, Option(help="average over views, such as flip,dihedral; default: as in the run")
    ] = None,
    by_group: Annotated[bool, Option("--by-group", help="also show each type and group of the data set")] = False,
    by: Annotated[str | None, Option(metavar="COLUMN|REGEX", help="show each value of a column or path part")] = None,
    corruptions: Annotated[
        str | None, Option(metavar="all|noise,blur,weather,digital,geometry", help="evaluate on corrupted images")
    ] = None,
    severity: Annotated[str | None, Option(metavar="1-5", help="of the corruptions, or a range; default: all")] = None,
    at: At = "",
    strategy: Strategy = None,
    workers: Workers = None,
) -> None:
    """Evaluate a run on a split, on other labelled images, or on corrupted ones."""
    from tl_dist.launcher.task import Computation
    from tl_dist.terminal import tables
    from tl_dist.tools.evaluate import command

    console, groups = Console(), [*["any"] * by_group, *([by] if by else [])]
    how = Computation(at, strategy, workers, [] if views is None else [f"evaluation.views=[{views}]"])
    options: dict[str, Any] = {"data": data, "by": groups, "corruptions": corruptions, "severity": severity}
    with console.busy(f"evaluating {run}"):
        record = command.record_of(run, split, how, **options, say=partial(console.say, style="dim"))
    if corruptions is not None:
        command.show_corrupted(record, console)
    elif data is not None:
        tables.show_evaluation(record, console)
        command.show_matching(record["data"], partial(console.say, style="yellow"))
    else:
        tables.show_evaluation(record, console)
        tables.show_flattered(run, console)
        if "calibration" in record["figures"]:
            picture = run / "evaluations" / f"{record['split']}_reliability.png"
            console.say(f"reliability diagram: {tables.relative(picture)}", style="dim")


@add_command()
def report(
    runs: Annotated[list[Path], Argument(metavar="RUN...", help="a run, and runs to compare with it")],
    out: Annotated[
        Path | None, Option(metavar="FILE", help="page; default: RUN/report.html or comparison.html")
    ] = None,
    split: Annotated[Split | None, Option(help="split to report on; default: test, or validation if none")] = None,
    heat_maps: Annotated[int, Option(min=0, max=500, help="heat maps to draw, of the most confident errors")] = 40,
    strategy: Strategy = None,
    workers: Workers = None,
) -> None:
    """Write a self-contained HTML page: figures, errors with heat maps, doubtful labels, curves."""
    from tl_dist.launcher.task import Computation
    from tl_dist.terminal.tables import relative
    from tl_dist.tools.explain.command import ask
    from tl_dist.tools.report import command
    from tl_dist.tools.track.command import after_report

    console = Console()
    request = command.Request(runs, out, split, heat_maps, Computation("", strategy, workers), ask)
    with console.busy("reading the run") as show_text:
        page = command.report(request, show_text)
    console.say(f"{relative(page)}: {page.stat().st_size / 1e6:.1f} MB", style="bold")
    for line in after_report(runs[0], page) if len(runs) == 1 else ():
        console.say(line, style="dim")


@add_command()
def explain(
    run: RunPath,
    images: Annotated[list[str], Argument(metavar="IMAGE...", help="files, folders or patterns")],
    out: Annotated[Path | None, Option(metavar="DIR", help="directory; default: beside each image")] = None,
    method: Annotated[str, Option(metavar="CAM", help="heat map: layercam, gradcam or rollout")] = "layercam",
    of_class: Annotated[str | None, Option("--class", metavar="NAME", help="default: the predicted class")] = None,
    at: At = "",
    strategy: Strategy = None,
    workers: Workers = None,
) -> None:
    """Draw which parts of an image decide its class, by LayerCAM and integrated gradients."""
    from tl_dist.launcher.task import Computation
    from tl_dist.runs.directory import RunDir
    from tl_dist.tools.explain import command

    console, how = Console(), Computation(at, strategy, workers)
    with console.busy("explaining"):
        command.explain(RunDir.open(run), images, how, console.say, out=out, cam=method, of_class=of_class)


@add_command()
def compare(
    first: RunPath,
    second: RunPath,
    split: Annotated[Split, Option(help="split to compare on")] = Split.TEST,
    corruptions: Annotated[bool, Option("--corruptions", help="compare what eval --corruptions has measured")] = False,
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


@add_command()
def calibrate(
    run: RunPath,
    unknown: Annotated[bool, Option("--unknown", help="also keep the features that predict --unknown needs")] = False,
    at: At = "",
    strategy: Strategy = None,
    workers: Workers = None,
) -> None:
    """Calibrate the probabilities of a run on its validation split. No predicted class changes."""
    from tl_dist.launcher.task import Computation
    from tl_dist.tools.calibrate import command

    console = Console()
    with console.busy(f"calibrating {run}"):
        calibration = command.calibrate(run, Computation(at, strategy, workers), unknown=unknown)
    command.show(calibration, run, console.say)


@add_command()
def threshold(
    run: RunPath,
    recall: Annotated[float | None, Option(min=0.01, max=0.9999, help="find at least this share of the class")] = None,
    precision: Annotated[float | None, Option(min=0.01, max=1, help="be right this often where it is chosen")] = None,
    costs: Annotated[
        Path | None, Option(metavar="CSV", help="table of costs: true classes down, chosen across")
    ] = None,
    f1: Annotated[bool, Option("--f1", help="of several labels: the greatest F1 of each")] = False,
    of_class: Annotated[str | None, Option("--class", metavar="NAME", help="its class; default: second of two")] = None,
    remove: Annotated[bool, Option("--remove", help="go by the highest probability again")] = False,
    at: At = "",
) -> None:
    """Choose from which probability on a run decides on a class, or on each label, or go by costs."""
    from tl_dist.tools.threshold import command

    aims = {"--recall": recall, "--precision": precision, "--costs": costs, "--f1": f1 or None}
    aims["--remove"] = remove or None
    if sum(value is not None for value in aims.values()) != 1:
        what = "threshold needs one aim."
        raise Refusal(what, fix=f"give one of {', '.join(aims)}.", code=ExitCode.USAGE)
    console = Console()
    if remove:
        command.remove(run)
        console.say("from now on predict, serve and export go by the highest probability")
    else:
        wish = command.Wish(recall, precision, of_class, costs, f1)
        command.show(*command.choose(run, wish, at), run, console.say)


@add_command("cv")
def cross_validate(
    config: ConfigFile,
    overrides: Overrides = None,
    folds: Annotated[int | None, Option(min=2, help="number of folds; default: 5")] = None,
    seeds: Annotated[int | None, Option(min=1, help="number of random divisions into folds; default: 5")] = None,
    by: Annotated[str | None, Option(metavar="type|group|COLUMN|REGEX", help="hold out each group once")] = None,
    strategy: Strategy = None,
    workers: Workers = None,
    runs: Root = Path("runs"),
) -> int:
    """Cross-validate a config: mean with interval, scores by fold and group, and predictions of every example."""
    from tl_dist.launcher.train import Request
    from tl_dist.tools.cross_validate import command

    request = Request(config, overrides or (), strategy, workers, runs)
    return command.cross_validate(request, folds, seeds, Console(), by)
