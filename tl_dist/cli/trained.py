"""Commands that use a trained run: `tl-dist eval`, `predict`, `calibrate`, `report` and others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tl_dist.cli.arguments import At, Overrides, RunPath, Split, Strategy, Workers
from tl_dist.cli.evaluate import evaluate
from tl_dist.cli.predict import predict
from tl_dist.refusal import ExitCode

trained_app = typer.Typer()
trained_app.command("eval")(evaluate)
trained_app.command()(predict)


@trained_app.command()
def calibrate(
    run: RunPath,
    unknown: Annotated[
        bool,
        typer.Option("--unknown", help="also keep the features that predict --unknown compares images with"),
    ] = False,
    at: At = "",
    strategy: Strategy = None,
    workers: Workers = None,
) -> int:
    """Calibrate the probabilities of a run on its validation split. No predicted class changes."""
    from tl_dist.launcher.task import Computation
    from tl_dist.terminal.console import Console
    from tl_dist.tools.calibrate.command import calibrate as calibrate_run
    from tl_dist.tools.calibrate.command import show

    console = Console()
    with console.busy(f"calibrating {run}"):
        calibration = calibrate_run(run, Computation(at, strategy, workers), unknown=unknown)
    show(calibration, run, console.say)
    return ExitCode.DONE


@trained_app.command()
def prune(
    run: RunPath,
    overrides: Overrides = None,
    by: Annotated[
        float,
        typer.Option(min=0.05, max=0.95, help="share of the channels to remove, smallest filters first"),
    ] = 0.5,
    strategy: Strategy = None,
    workers: Workers = None,
) -> int:
    """Train RUN-pruned-SHARE: a copy of a run with fewer channels, distilled from the run."""
    from tl_dist.launcher.train import Request, train_config
    from tl_dist.runs.directory import RunDir
    from tl_dist.terminal.console import Console
    from tl_dist.tools.prune.command import pruned

    teacher = RunDir.open(run)
    request = Request(teacher.config_file, overrides or (), strategy, workers, teacher.path.parent)
    return train_config(pruned(teacher, by, request.all_overrides), request.runs, Console())


@trained_app.command()
def export(
    run: RunPath,
    to: Annotated[
        str, typer.Option("--to", metavar="FORMAT", help="format: savedmodel, keras, onnx or litert")
    ],
    int8: Annotated[bool, typer.Option("--int8", help="litert with 8-bit weights")] = False,
    float16: Annotated[bool, typer.Option("--float16", help="litert with 16-bit weights")] = False,
    check: Annotated[
        str,
        typer.Option(
            metavar="SPLIT", help="split on which the export is compared with the run; none: no comparison"
        ),
    ] = "test",
    min_agreement: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="smallest share of images on which export and run must agree"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="directory to write; default: RUN/exports/FORMAT"),
    ] = None,
    at: At = "",
) -> int:
    """Export the model of a run for another runtime and compare the two image by image."""
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
            metavar="RUN...", help="a run; further runs are compared with the first, on the same examples"
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="page to write; default: RUN/report.html, or comparison.html for several runs",
        ),
    ] = None,
    split: Annotated[
        Split | None,
        typer.Option(help="split to report on; default: test, or validation where there is none"),
    ] = None,
    heat_maps: Annotated[
        int,
        typer.Option(min=0, max=500, metavar="N", help="number of heat maps, of the most confident errors"),
    ] = 40,
    strategy: Strategy = None,
    workers: Workers = None,
) -> int:
    """Write a self-contained HTML page: figures, errors with heat maps, doubtful labels, curves."""
    from tl_dist.launcher.task import Computation
    from tl_dist.terminal.console import Console
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
    return ExitCode.DONE


@trained_app.command()
def sync(run: RunPath, keep_on: Annotated[bool, typer.Option("--beside", hidden=True)] = False) -> int:
    """Send to the trackers of a run (report.track) what they do not have yet."""
    from tl_dist.terminal.console import Console
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


@trained_app.command()
def explain(
    run: RunPath,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="files, folders or patterns")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="directory for the pictures; default: beside each image"),
    ] = None,
    method: Annotated[
        str, typer.Option(metavar="CAM", help="kind of heat map: layercam or gradcam")
    ] = "layercam",
    of_class: Annotated[
        str | None,
        typer.Option("--class", metavar="NAME", help="class to explain; default: the predicted class"),
    ] = None,
    at: At = "",
    strategy: Strategy = None,
    workers: Workers = None,
) -> int:
    """Draw which parts of an image decide its class, by LayerCAM and integrated gradients."""
    from tl_dist.launcher.task import Computation
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
    port: Annotated[int, typer.Option(min=0, max=65_535, help="port to listen on; 0: any free port")] = 8501,
    host: Annotated[
        str, typer.Option(help="address to listen on; any address but loopback lets others in")
    ] = "127.0.0.1",
    at: At = "",
) -> int:
    """Serve a model over HTTP, by TensorFlow Serving's REST API and a page to drop images on."""
    from tl_dist.terminal.console import Console
    from tl_dist.tools.serve.command import become_server, reachable_by_others

    if reachable_by_others(host):
        warning = f"anyone who can reach {host} can use this server: it asks for no password"
        Console().say(warning, style="yellow")
    become_server(path, host=host, port=port, at=at)


@trained_app.command()
def compare(
    first: RunPath,
    second: RunPath,
    split: Annotated[Split, typer.Option(help="split to compare on")] = Split.TEST,
    corruptions: Annotated[
        bool, typer.Option("--corruptions", help="compare the results of eval --corruptions")
    ] = False,
) -> int:
    """Compare two runs by a paired test on the same examples."""
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
