"""What is done with a run that has been trained: `tl-dist eval`, `predict`, `calibrate`, `report` and others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from tl_dist.cli.arguments import At, Overrides, RunPath, Split, Strategy, Workers
from tl_dist.cli.predict import predict
from tl_dist.launcher.task import Computation
from tl_dist.refusal import ExitCode, Refusal

trained_app = typer.Typer()
trained_app.command()(predict)


@trained_app.command("eval")
def evaluate(
    run: RunPath,
    split: Annotated[
        Split | None, typer.Option(help="default: test; of --data all, where it has no test split")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR|CONFIG", help="another labelled data set; classes are matched by name"),
    ] = None,
    views: Annotated[
        str | None,
        typer.Option(help="mean over these views, such as flip,dihedral; default: those of the run"),
    ] = None,
    by_group: Annotated[
        bool, typer.Option("--by-group", help="also by the types and groups that the data set has")
    ] = False,
    by: Annotated[
        str | None,
        typer.Option(metavar="COLUMN|REGEX", help="also by a column of its table, or by a part of the paths"),
    ] = None,
    corruptions: Annotated[
        str | None,
        typer.Option(
            metavar="all|noise,blur,weather,digital,geometry", help="accuracy on images that are corrupted so"
        ),
    ] = None,
    severity: Annotated[
        str | None, typer.Option(metavar="1-5", help="of the corruptions: one, or a range; default: all")
    ] = None,
    at: At = "",
    strategy: Strategy = None,
    workers: Workers = None,
) -> int:
    """Evaluate a checkpoint of a run."""
    from tl_dist.terminal.console import Console
    from tl_dist.terminal.tables import relative, show_evaluation, show_flattered
    from tl_dist.tools.evaluate.command import evaluate as evaluate_run

    console = Console()
    how = Computation(at, strategy, workers, [] if views is None else [f"evaluation.views=[{views}]"])
    groups = [*["any"] * by_group, *([by] if by else [])]
    if corruptions is not None:
        if data is not None or groups:
            what = "--corruptions is of the run's own images, all together."
            raise Refusal(what, fix="leave out --data, --by-group and --by.", code=ExitCode.USAGE)
        return _evaluate_corrupted(run, split or Split.TEST, how, corruptions, severity or "1-5")
    if severity is not None:
        what = "--severity is of corruptions, and there are none."
        raise Refusal(what, fix="add --corruptions all, or leave out --severity.", code=ExitCode.USAGE)
    if data is not None:
        return _evaluate_data(run, data, split, how, groups)
    said = partial(console.say, style="dim")
    with console.busy(f"evaluating {run}"):
        record = evaluate_run(run, split or Split.TEST, how, by=groups, say=said)
    show_evaluation(record, console)
    show_flattered(run, console)
    if "calibration" in record["figures"]:
        picture = run / "evaluations" / f"{record['split']}_reliability.png"
        console.say(f"reliability diagram: {relative(picture)}", style="dim")
    return ExitCode.DONE


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


@trained_app.command()
def calibrate(
    run: RunPath,
    unknown: Annotated[
        bool, typer.Option("--unknown", help="also keep what predict --unknown compares images with")
    ] = False,
    at: At = "",
    strategy: Strategy = None,
    workers: Workers = None,
) -> int:
    """Fit a temperature on the validation split, so that probabilities can be trusted; no class changes."""
    from tl_dist.terminal.console import Console
    from tl_dist.tools.calibrate.command import calibrate as calibrate_run
    from tl_dist.tools.calibrate.command import show

    console = Console()
    with console.busy(f"calibrating {run}"):
        found = calibrate_run(run, Computation(at, strategy, workers), unknown=unknown)
    show(found, run, console.say)
    return ExitCode.DONE


@trained_app.command()
def prune(
    run: RunPath,
    overrides: Overrides = None,
    by: Annotated[
        float,
        typer.Option(
            min=0.05, max=0.95, help="share of the channels, those of the smallest filters, to leave out"
        ),
    ] = 0.5,
    strategy: Strategy = None,
    workers: Workers = None,
) -> int:
    """Train a smaller copy of a run, without a share of its channels and taught by the run: RUN-pruned-SHARE."""
    from tl_dist.launcher.train import Request, train_config
    from tl_dist.runs.directory import RunDir
    from tl_dist.terminal.console import Console
    from tl_dist.tools.prune.command import pruned

    of = RunDir.open(run)
    request = Request(of.config_file, overrides or (), strategy, workers, of.path.parent)
    return train_config(pruned(of, by, request.all_overrides), request.runs, Console())


@trained_app.command()
def export(
    run: RunPath,
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="savedmodel, keras, onnx or litert")],
    int8: Annotated[bool, typer.Option("--int8", help="litert with weights of 8 bits")] = False,
    float16: Annotated[bool, typer.Option("--float16", help="litert with weights of 16 bits")] = False,
    check: Annotated[
        str, typer.Option(metavar="SPLIT", help="compare it with the run on this split; none: on none")
    ] = "test",
    min_agreement: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="share of images of the same class below which it fails"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="default: RUN/exports/FORMAT")
    ] = None,
    at: At = "",
) -> int:
    """Export the model of a run for another runtime, and compare it with the run image by image."""
    from tl_dist.runs.directory import RunDir
    from tl_dist.terminal.console import Console
    from tl_dist.tools.export import Request
    from tl_dist.tools.export.command import default_directory, numbers_of, show
    from tl_dist.tools.export.command import export as export_run

    console, numbers, opened = Console(), numbers_of(to, int8=int8, float16=float16), RunDir.open(run)
    target = (out or default_directory(opened, to, numbers)).absolute()
    request = Request(
        to=to, numbers=numbers, out=str(target), check=check, min_agreement=min_agreement, at=at
    )
    with console.busy(f"exporting {run}"):
        report = export_run(opened, request, say=lambda text: console.say(text, style="dim"))
    show(target, report, console)
    return ExitCode.DONE


@trained_app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="a run; several are compared with the first, on the same examples"
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="default: RUN/report.html; of several runs comparison.html"),
    ] = None,
    split: Annotated[
        Split | None, typer.Option(help="default: test; of a run without one, validation")
    ] = None,
    heat_maps: Annotated[
        int, typer.Option(min=0, max=500, metavar="N", help="of the N errors that it was most sure of")
    ] = 40,
    strategy: Strategy = None,
    workers: Workers = None,
) -> int:
    """Write a self-contained page about a run: figures, errors with heat maps, doubtful labels, curves."""
    from tl_dist.terminal.console import Console
    from tl_dist.terminal.tables import relative
    from tl_dist.tools.explain.command import ask
    from tl_dist.tools.report.command import Request
    from tl_dist.tools.report.command import report as report_runs
    from tl_dist.tools.track.command import after_report

    console = Console()
    request = Request(runs, out, split, heat_maps, Computation("", strategy, workers), ask)
    with console.busy("reading the run") as show_text:
        made = report_runs(request, show_text)
    console.say(f"{relative(made)}: {made.stat().st_size / 1e6:.1f} MB", style="bold")
    for line in after_report(runs[0], made) if len(runs) == 1 else ():
        console.say(line, style="dim")
    return ExitCode.DONE


@trained_app.command()
def sync(run: RunPath, keep_on: Annotated[bool, typer.Option("--beside", hidden=True)] = False) -> int:
    """Send a run to its trackers (report.track); nothing is sent twice."""
    from tl_dist.terminal.console import Console
    from tl_dist.tools.track.command import beside
    from tl_dist.tools.track.command import sync as sync_run

    if keep_on:
        from tl_dist.tools.report.command import Request, report

        # Without pictures, which need the data set.
        return beside(run, lambda path: report(Request([path], pictures=False), lambda text: None))
    console = Console()
    with console.busy(f"sending {run}"):
        said = sync_run(run)
    for line in said:
        console.say(line)
    return ExitCode.DONE


@trained_app.command()
def explain(
    run: RunPath,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="files, folders, patterns")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="default: beside each image")
    ] = None,
    method: Annotated[str, typer.Option(metavar="CAM", help="layercam or gradcam")] = "layercam",
    of_class: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="default: the class that is predicted")
    ] = None,
    at: At = "",
    strategy: Strategy = None,
    workers: Workers = None,
) -> int:
    """Show which part of an image decides its class: LayerCAM and integrated gradients, as a picture."""
    from tl_dist.terminal.console import Console
    from tl_dist.tools.explain.command import ExplainOptions
    from tl_dist.tools.explain.command import explain as explain_images

    console = Console()
    options = ExplainOptions(run, images, out, method, of_class, Computation(at, strategy, workers))
    with console.busy("explaining"):
        explain_images(options, console.say)
    return ExitCode.DONE


@trained_app.command()
def serve(
    path: Annotated[Path, typer.Argument(metavar="RUN|EXPORT", help="directory of a run or of an export")],
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0: any that is free")] = 8501,
    host: Annotated[
        str, typer.Option(help="address to listen on; another than this lets others in")
    ] = "127.0.0.1",
    at: At = "",
) -> int:
    """Serve a model over HTTP, in TensorFlow Serving's REST format, with a page to drop images on."""
    from tl_dist.terminal.console import Console
    from tl_dist.tools.serve.command import become_server, reachable_by_others

    if reachable_by_others(host):
        warning = f"whoever can reach {host} can use this server: it asks for no password"
        Console().say(warning, style="yellow")
    become_server(path, host=host, port=port, at=at)


@trained_app.command()
def compare(
    first: RunPath,
    second: RunPath,
    split: Split = Split.TEST,
    corruptions: Annotated[
        bool, typer.Option("--corruptions", help="on the corrupted images of eval --corruptions")
    ] = False,
) -> int:
    """Test whether two runs differ, by a paired test on the same examples."""
    from tl_dist.terminal.console import Console
    from tl_dist.terminal.tables import show_flattered
    from tl_dist.tools.compare import command

    console, names = Console(), (str(first), str(second))
    for run in (first, second):
        show_flattered(run, console, f"{run}: ")
    if corruptions:
        command.show_corrupted(command.compare_corrupted(first, second, split), names, console.say)
        return ExitCode.DONE
    command.show(command.compare(first, second, split), names, console)
    return ExitCode.DONE
