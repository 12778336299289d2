"""Commands that use a trained run: `tl-dist predict`, `serve`, `export` and `prune`."""

from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from tl_dist.cli.app import At, Overrides, RunPath, Strategy, Workers, app
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.terminal.console import Console

add_command = partial(app.command, rich_help_panel="Use")


@add_command()
def predict(
    run: RunPath,
    images: Annotated[list[str], Argument(metavar="PATH...", help="files, folders, patterns; -: listed on stdin")],
    top: Annotated[int, Option(min=1, metavar="K", help="number of classes to show for each image")] = 1,
    out: Annotated[Path | None, Option(metavar="FILE", help="write rows to a .csv, .jsonl or .parquet file")] = None,
    sort_into: Annotated[
        Path | None, Option(metavar="DIR", help="copy images to DIR/CLASS; overwrites nothing")
    ] = None,
    null: Annotated[bool, Option("--null", "-0", help="names on standard input end with NUL (find -print0)")] = False,
    max_bad: Annotated[int | None, Option(min=0, help="undecodable images to accept; default: data.max_bad")] = None,
    coverage: Annotated[float | None, Option(min=0.5, max=0.9999, help="add sets that are right this often")] = None,
    of_type: Annotated[str | None, Option("--type", help="with --coverage: type or group of these images")] = None,
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
    from tl_dist.tools.predict import Request, command

    if of_type is not None and coverage is None:
        raise Refusal("--type needs --coverage.", fix="add --coverage 0.95.", code=ExitCode.USAGE)
    request = Request(top=top, coverage=coverage, of_type=of_type, unknown=unknown)
    how = Computation(at, strategy, workers)
    options = command.PredictOptions(run, images, request, how, out, sort_into, null, max_bad)
    command.predict(options, Console())


@add_command()
def serve(
    path: Annotated[Path, Argument(metavar="RUN|EXPORT", help="directory of a run or of an export")],
    port: Annotated[int, Option(min=0, max=65_535, help="port to listen on; 0: any free port")] = 8501,
    host: Annotated[str, Option(help="address to listen on; all but loopback let others in")] = "127.0.0.1",
    at: At = "",
) -> int:
    """Serve a model over HTTP, by TensorFlow Serving's REST API and a page to drop images on."""
    from tl_dist.tools.serve.command import become_server

    become_server(path, host=host, port=port, at=at)


@add_command()
def export(
    run: RunPath,
    to: Annotated[str, Option(metavar="FORMAT", help="savedmodel, keras, onnx or litert")],
    int8: Annotated[bool, Option("--int8", help="litert with 8-bit weights")] = False,
    float16: Annotated[bool, Option("--float16", help="litert with 16-bit weights")] = False,
    check: Annotated[str, Option(metavar="SPLIT", help="split to compare export and run on; none: do not")] = "test",
    min_agreement: Annotated[
        float | None, Option(min=0, max=1, help="share of images on which both must agree")
    ] = None,
    out: Annotated[Path | None, Option(metavar="DIR", help="default: RUN/exports/FORMAT")] = None,
    at: At = "",
) -> None:
    """Export the model of a run for another runtime and compare the two image by image."""
    from tl_dist.runs.directory import RunDir
    from tl_dist.tools.export import Request, command

    console, opened = Console(), RunDir.open(run)
    numbers = command.numbers_of(to, int8=int8, float16=float16)
    target = (out or command.default_directory(opened, to, numbers)).absolute()
    request = Request(to=to, numbers=numbers, out=str(target), check=check, min_agreement=min_agreement, at=at)
    with console.busy(f"exporting {run}"):
        report = command.export(opened, request, say=lambda text: console.say(text, style="dim"))
    command.show(target, report, console)


@add_command()
def prune(
    run: RunPath,
    overrides: Overrides = None,
    by: Annotated[float, Option(min=0.05, max=0.95, help="share of channels to remove, smallest filters first")] = 0.5,
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


@add_command()
def trust(
    path: Annotated[Path, Argument(metavar="RUN", help="directory of a run from elsewhere, or a file of code")],
) -> None:
    """Let functions that came with a run run here. Read them first: they are a program."""
    from tl_dist.files import consent
    from tl_dist.files.atomic import children
    from tl_dist.runs.directory import RunDir

    files = sorted(children(RunDir.open(path).code)) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        what = f"{path} has no code." if path.is_dir() else f"there is no file {path}."
        raise Refusal(what, fix="name a run with a folder 'code', or a file.", code=ExitCode.USAGE)
    consent.grant(files)
    for file in files:
        Console().say(f"may run from now on: {file}")
