"""Commands that use a trained run: `tl-dist eval`, `predict`, `calibrate`, `report` and others."""

from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from tl_dist.cli.app import At, Overrides, RunPath, Split, Strategy, Workers, app
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.terminal.console import Console


@app.command("eval")
def evaluate(
    run: RunPath,
    split: Annotated[
        Split | None, Option(help="split to evaluate; default: test, or all of a --data without a test split")
    ] = None,
    data: Annotated[
        Path | None,
        Option(metavar="DIR|CONFIG", help="another labelled data set to evaluate on; classes match by name"),
    ] = None,
    views: Annotated[
        str | None, Option(help="average over these views, such as flip,dihedral; default: as in the run")
    ] = None,
    by_group: Annotated[
        bool, Option("--by-group", help="also show each type and group of the data set")
    ] = False,
    by: Annotated[
        str | None,
        Option(metavar="COLUMN|REGEX", help="also show each value of a table column or a part of paths"),
    ] = None,
    corruptions: Annotated[
        str | None,
        Option(metavar="all|noise,blur,weather,digital,geometry", help="evaluate on corrupted images"),
    ] = None,
    severity: Annotated[
        str | None, Option(metavar="1-5", help="severity of the corruptions, or a range; default: all")
    ] = None,
    at: At = "",
    strategy: Strategy = None,
    workers: Workers = None,
) -> None:
    """Evaluate a run on a split, on other labelled images, or on corrupted ones."""
    from tl_dist.launcher.task import Computation
    from tl_dist.terminal import tables
    from tl_dist.tools.evaluate import command

    console, selected = Console(), split or Split.TEST
    how = Computation(at, strategy, workers, [] if views is None else [f"evaluation.views=[{views}]"])
    groups = [*["any"] * by_group, *([by] if by else [])]
    _refuse_options_that_exclude_each_other(corruptions, severity, others=data is not None or bool(groups))
    if corruptions is not None:
        names_and_severities = command.parse_corruptions(corruptions, severity or "1-5")
        with console.busy(f"evaluating {run}"):
            record = command.evaluate(run, selected, how, corruptions=names_and_severities)
        command.show_corrupted(record, console)
    elif data is not None:
        with console.busy(f"evaluating {run}"):
            record = command.evaluate_data(run, data, split, how, by=groups)
        tables.show_evaluation(record, console)
        command.show_matching(record["data"], partial(console.say, style="yellow"))
    else:
        with console.busy(f"evaluating {run}"):
            record = command.evaluate(run, selected, how, by=groups, say=partial(console.say, style="dim"))
        tables.show_evaluation(record, console)
        tables.show_flattered(run, console)
        if "calibration" in record["figures"]:
            picture = run / "evaluations" / f"{record['split']}_reliability.png"
            console.say(f"reliability diagram: {tables.relative(picture)}", style="dim")


def _refuse_options_that_exclude_each_other(
    corruptions: str | None, severity: str | None, *, others: bool
) -> None:
    if corruptions is not None and others:
        what = "--corruptions takes the run's own images, without groups."
        raise Refusal(what, fix="leave out --data, --by-group and --by.", code=ExitCode.USAGE)
    if corruptions is None and severity is not None:
        what = "--severity needs --corruptions."
        raise Refusal(what, fix="add --corruptions all, or leave out --severity.", code=ExitCode.USAGE)


@app.command()
def predict(
    run: RunPath,
    images: Annotated[
        list[str],
        Argument(
            metavar="PATH...", help="files, folders or patterns; - reads a list of files from standard input"
        ),
    ],
    top: Annotated[int, Option(min=1, metavar="K", help="number of classes to show for each image")] = 1,
    out: Annotated[
        Path | None,
        Option(metavar="FILE", help="write a row for each image to this .csv, .jsonl or .parquet file"),
    ] = None,
    sort_into: Annotated[
        Path | None, Option(metavar="DIR", help="copy each image to DIR/CLASS; overwrites nothing")
    ] = None,
    null: Annotated[
        bool, Option("--null", "-0", help="names on standard input end with NUL, as by find -print0")
    ] = False,
    max_bad: Annotated[
        int | None,
        Option(min=0, help="exit with 65 if more images than this cannot be decoded; default: data.max_bad"),
    ] = None,
    coverage: Annotated[
        float | None,
        Option(min=0.5, max=0.9999, help="add a set that holds the true class at this rate, such as 0.95"),
    ] = None,
    of_type: Annotated[
        str | None,
        Option("--type", help="with --coverage: type or group of the data set that the images belong to"),
    ] = None,
    unknown: Annotated[
        float | None,
        Option(min=0.0001, max=0.5, help="flag images unlike the training images, at this false alarm rate"),
    ] = None,
    at: At = "",
    strategy: Strategy = None,
    workers: Workers = None,
) -> None:
    """Classify images with a trained run, which may still be training."""
    from tl_dist.launcher.task import Computation
    from tl_dist.tools.predict import Request
    from tl_dist.tools.predict.command import PredictOptions, predict_shown

    if of_type is not None and coverage is None:
        raise Refusal("--type needs --coverage.", fix="add --coverage 0.95.", code=ExitCode.USAGE)
    request = Request(top=top, coverage=coverage, of_type=of_type, unknown=unknown)
    how = Computation(at, strategy, workers)
    predict_shown(PredictOptions(run, images, request, how, out, sort_into, null, max_bad))


@app.command()
def calibrate(
    run: RunPath,
    unknown: Annotated[
        bool, Option("--unknown", help="also keep the features that predict --unknown compares images with")
    ] = False,
    at: At = "",
    strategy: Strategy = None,
    workers: Workers = None,
) -> None:
    """Calibrate the probabilities of a run on its validation split. No predicted class changes."""
    from tl_dist.launcher.task import Computation
    from tl_dist.tools.calibrate.command import calibrate as calibrate_run
    from tl_dist.tools.calibrate.command import show

    console = Console()
    with console.busy(f"calibrating {run}"):
        calibration = calibrate_run(run, Computation(at, strategy, workers), unknown=unknown)
    show(calibration, run, console.say)


@app.command()
def prune(
    run: RunPath,
    overrides: Overrides = None,
    by: Annotated[
        float, Option(min=0.05, max=0.95, help="share of the channels to remove, smallest filters first")
    ] = 0.5,
    strategy: Strategy = None,
    workers: Workers = None,
) -> int:
    """Train RUN-pruned-SHARE: a copy of a run with fewer channels, distilled from the run."""
    from tl_dist.launcher.train import Request, train_config
    from tl_dist.runs.directory import RunDir
    from tl_dist.tools.prune.command import pruned

    teacher = RunDir.open(run)
    request = Request(teacher.config_file, overrides or (), strategy, workers, teacher.path.parent)
    return train_config(pruned(teacher, by, request.all_overrides), request.runs, Console())


@app.command()
def export(
    run: RunPath,
    to: Annotated[str, Option("--to", metavar="FORMAT", help="format: savedmodel, keras, onnx or litert")],
    int8: Annotated[bool, Option("--int8", help="litert with 8-bit weights")] = False,
    float16: Annotated[bool, Option("--float16", help="litert with 16-bit weights")] = False,
    check: Annotated[
        str,
        Option(
            metavar="SPLIT", help="split on which the export is compared with the run; none: no comparison"
        ),
    ] = "test",
    min_agreement: Annotated[
        float | None, Option(min=0, max=1, help="smallest share of images on which export and run must agree")
    ] = None,
    out: Annotated[
        Path | None, Option("--out", metavar="DIR", help="directory to write; default: RUN/exports/FORMAT")
    ] = None,
    at: At = "",
) -> None:
    """Export the model of a run for another runtime and compare the two image by image."""
    from tl_dist.runs.directory import RunDir
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


@app.command()
def report(
    runs: Annotated[
        list[Path],
        Argument(
            metavar="RUN...", help="a run; further runs are compared with the first, on the same examples"
        ),
    ],
    out: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="page to write; default: RUN/report.html, or comparison.html for several runs",
        ),
    ] = None,
    split: Annotated[
        Split | None, Option(help="split to report on; default: test, or validation where there is none")
    ] = None,
    heat_maps: Annotated[
        int, Option(min=0, max=500, metavar="N", help="number of heat maps, of the most confident errors")
    ] = 40,
    strategy: Strategy = None,
    workers: Workers = None,
) -> None:
    """Write a self-contained HTML page: figures, errors with heat maps, doubtful labels, curves."""
    from tl_dist.launcher.task import Computation
    from tl_dist.terminal.tables import relative
    from tl_dist.tools.explain.command import ask
    from tl_dist.tools.report.command import Request
    from tl_dist.tools.report.command import report as report_runs
    from tl_dist.tools.track.command import after_report

    console = Console()
    request = Request(runs, out, split, heat_maps, Computation("", strategy, workers), ask)
    with console.busy("reading the run") as show_text:
        page = report_runs(request, show_text)
    console.say(f"{relative(page)}: {page.stat().st_size / 1e6:.1f} MB", style="bold")
    for line in after_report(runs[0], page) if len(runs) == 1 else ():
        console.say(line, style="dim")


@app.command()
def sync(run: RunPath, keep_on: Annotated[bool, Option("--beside", hidden=True)] = False) -> int:
    """Send to the trackers of a run (report.track) what they do not have yet."""
    from tl_dist.tools.track.command import beside
    from tl_dist.tools.track.command import sync as sync_run

    if keep_on:
        from tl_dist.tools.report.command import Request, report

        # Without pictures, which need the data set.
        return beside(run, lambda path: report(Request([path], pictures=False), lambda text: None))
    console = Console()
    with console.busy(f"sending {run}"):
        lines = sync_run(run)
    for line in lines:
        console.say(line)
    return ExitCode.DONE


@app.command()
def explain(
    run: RunPath,
    images: Annotated[list[str], Argument(metavar="IMAGE...", help="files, folders or patterns")],
    out: Annotated[
        Path | None,
        Option("--out", metavar="DIR", help="directory for the pictures; default: beside each image"),
    ] = None,
    method: Annotated[str, Option(metavar="CAM", help="kind of heat map: layercam or gradcam")] = "layercam",
    of_class: Annotated[
        str | None, Option("--class", metavar="NAME", help="class to explain; default: the predicted class")
    ] = None,
    at: At = "",
    strategy: Strategy = None,
    workers: Workers = None,
) -> None:
    """Draw which parts of an image decide its class, by LayerCAM and integrated gradients."""
    from tl_dist.launcher.task import Computation
    from tl_dist.runs.directory import RunDir
    from tl_dist.tools.explain.command import explain as explain_images

    console, how = Console(), Computation(at, strategy, workers)
    with console.busy("explaining"):
        explain_images(RunDir.open(run), images, how, console.say, out=out, cam=method, of_class=of_class)


@app.command()
def serve(
    path: Annotated[Path, Argument(metavar="RUN|EXPORT", help="directory of a run or of an export")],
    port: Annotated[int, Option(min=0, max=65_535, help="port to listen on; 0: any free port")] = 8501,
    host: Annotated[
        str, Option(help="address to listen on; any address but loopback lets others in")
    ] = "127.0.0.1",
    at: At = "",
) -> int:
    """Serve a model over HTTP, by TensorFlow Serving's REST API and a page to drop images on."""
    from tl_dist.tools.serve.command import become_server, reachable_by_others

    if reachable_by_others(host):
        warning = f"anyone who can reach {host} can use this server: it asks for no password"
        Console().say(warning, style="yellow")
    become_server(path, host=host, port=port, at=at)
