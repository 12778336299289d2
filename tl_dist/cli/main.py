"""The command line, `tl-dist VERB ...`. Each verb imports what it needs, so that `--help` answers at once."""

import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from tl_dist.cli.app import ConfigFile, Overrides, Root, RunPath, RunsDirectory, Strategy, Workers, app, group
from tl_dist.cli.errors import INTERRUPTED, complain
from tl_dist.files.process import elsewhere
from tl_dist.refusal import ExitCode, Refusal, printable
from tl_dist.terminal.console import Console

for _module in ("data", "choose", "trained"):
    import_module(f"tl_dist.cli.{_module}")  # which adds its commands
config_app = group("config", "Show a config, or every key that a config may hold.")
augment_app = group("augment", "Preview the augmentations of a config.")


@app.command("init")
def begin(
    data: Annotated[Path, Argument(metavar="DATA", help="folder of images, CSV file, or another data set")],
    out: Annotated[
        Path | None, Option("--out", metavar="YAML", help="config to write; default: DATA.yaml")
    ] = None,
) -> None:
    """Write a short config for a data set and the manifest of its splits. Replaces no file."""
    from tl_dist.tools.curate.init import init

    init(data, out, Console().say)


@config_app.command()
def show(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print a config with every default filled in. Imports no package that it names."""
    from tl_dist.config.file import dump
    from tl_dist.launcher.train import Request

    print(dump(Request(config, overrides or ()).load(imports=False)), end="")


@config_app.command()
def schema(
    as_json: Annotated[bool, Option("--json", help="print a JSON schema, for editors")] = False,
) -> None:
    """List every key that a config may hold, with its type, default and meaning."""
    if as_json:
        from tl_dist.config import file as config_file

        print(json.dumps(config_file.schema(), indent=1))
    else:
        from tl_dist.terminal.tables import show_schema

        show_schema(Console())


@app.command()
def train(
    config: Annotated[
        Path,
        Argument(
            metavar="CONFIG|DATA", help="YAML file of the run; or a data set, for which init writes one"
        ),
    ],
    overrides: Overrides = None,
    strategy: Strategy = None,
    workers: Workers = None,
    runs: Root = Path("runs"),
) -> int:
    """Train to the end. The same command resumes a run that stopped or failed."""
    from tl_dist.launcher.train import Request
    from tl_dist.rendezvous.rank_layout import started_by_launcher
    from tl_dist.tools.curate.init import config_for, is_data, refuse_launcher

    if is_data(config):
        refuse_launcher(config, started_by_launcher(os.environ))
        config = config_for(config, Console().say)
    request = Request(config, overrides or (), strategy, workers, runs)
    if started_by_launcher(os.environ):
        from tl_dist.launcher.under_launcher import join

        join(request, os.environ)
    from tl_dist.launcher.train import train_config

    return train_config(request.load(), runs, Console())


@app.command()
def prepare(config: ConfigFile, overrides: Overrides = None) -> None:
    """Download the data and weights of a config, such as on a login node before a job starts."""
    from tl_dist.launcher.train import Request, prepare_config

    prepare_config(Request(config, overrides or ()), Console())


@app.command()
def worker(run: RunPath) -> int:
    """Run as one worker under horovodrun, mpirun or srun: `horovodrun -np 4 tl-dist worker runs/NAME`."""
    from tl_dist.launcher.under_launcher import become_worker

    become_worker(run)


@app.command()
def submit(
    config: ConfigFile,
    overrides: Overrides = None,
    nodes: Annotated[int | None, Option(help="number of nodes; default: 1")] = None,
    ntasks_per_node: Annotated[int | None, Option(help="workers on each node; default: one per GPU")] = None,
    gpus_per_node: Annotated[int | None, Option(help="GPUs on each node; needs --cpus-per-task")] = None,
    cpus_per_task: Annotated[int | None, Option(help="CPU cores of each worker")] = None,
    partition: Annotated[str | None, Option(help="Slurm partition")] = None,
    time: Annotated[str | None, Option(help="time limit, as sbatch takes it: 8:00:00 or 1-12")] = None,
    account: Annotated[str | None, Option(help="Slurm account")] = None,
    signal_lead_s: Annotated[
        int | None, Option(help="seconds before the limit at which to save and stop; default: 120")
    ] = None,
    max_requeue: Annotated[int | None, Option(help="largest number of requeues; default: 3")] = None,
    interface: Annotated[
        str | None, Option(help="network interface, or address of the first node, on which workers meet")
    ] = None,
    mpi: Annotated[str | None, Option(help="how srun starts workers: none or pmix")] = None,
    extra: Annotated[
        list[str] | None, Option(help='one more #SBATCH option, such as "--constraint=a100"')
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="show what would be submitted")] = False,
    runs: Root = Path("runs"),
) -> int:
    """Submit a run to Slurm. The job saves a checkpoint and requeues itself before its time limit."""
    from tl_dist.launcher.slurm.submit import submit_run
    from tl_dist.launcher.train import Request

    options: dict[str, Any] = {
        "nodes": nodes,
        "ntasks_per_node": ntasks_per_node or gpus_per_node,
        "gpus_per_node": gpus_per_node,
        "cpus_per_task": cpus_per_task,
        "partition": partition,
        "time": time,
        "account": account,
        "signal_lead_s": signal_lead_s,
        "max_requeue": max_requeue,
        "interface": interface,
        "mpi": mpi,
        "extra": tuple(extra) if extra else None,
    }
    request = Request(config, overrides or (), runs=runs)
    return submit_run(request, options, Console(), dry_run=dry_run)


@app.command(hidden=True)
def srun(run: RunPath) -> int:
    """Start and watch the workers of one attempt inside a Slurm job. Called by the batch script."""
    from tl_dist.config import file as config_file
    from tl_dist.launcher.companion import copying
    from tl_dist.launcher.slurm.driver import drive
    from tl_dist.runs.directory import RunDir
    from tl_dist.terminal.progress import Progress

    directory = RunDir.open(run)
    with copying(directory, config_file.load(directory.config_file)), Progress(Console()) as progress:
        return drive(run, os.environ, progress)


@app.command("cv")
def cross_validate(
    config: ConfigFile,
    overrides: Overrides = None,
    folds: Annotated[int | None, Option(min=2, help="number of folds; default: 5")] = None,
    seeds: Annotated[
        int | None, Option(min=1, help="number of random divisions into folds; default: 5")
    ] = None,
    by: Annotated[
        str | None,
        Option(metavar="type|group|COLUMN|REGEX", help="leave out each group once, instead of random folds"),
    ] = None,
    strategy: Strategy = None,
    workers: Workers = None,
    runs: Root = Path("runs"),
) -> int:
    """Cross-validate a config: mean with interval, scores by fold and group, and predictions of every example."""
    from tl_dist.launcher.train import Request
    from tl_dist.tools.cross_validate.command import cross_validate as run_folds

    if by is not None and (folds or seeds):
        what = "--by leaves out each group once, and has no other folds or seeds."
        raise Refusal(what, fix="remove --folds and --seeds, or --by.", code=ExitCode.USAGE)
    request = Request(config, overrides or (), strategy, workers, runs)
    return run_folds(request, folds or 5, seeds or 5, Console(), by)


@app.command()
def tune(
    config: ConfigFile,
    overrides: Overrides = None,
    folds: Annotated[
        int, Option(min=2, help="number of folds of the training split where there is no validation split")
    ] = 5,
    strategy: Strategy = None,
    workers: Workers = None,
    runs: Root = Path("runs"),
) -> int:
    """Search for the best classifier on cached features, without the test split; write a config with it."""
    from tl_dist.launcher.train import Request
    from tl_dist.tools.tune.command import tune as search

    return search(Request(config, overrides or (), strategy, workers, runs), folds, Console())


@augment_app.command("preview")
def augment_preview(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[Path, Option("--out", metavar="PNG", help="picture to write")] = Path("augment.png"),
    rows: Annotated[int, Option(min=1, max=64, help="number of images, one per row")] = 4,
) -> None:
    """Show a few training images, each unchanged and then augmented eight times."""
    from tl_dist.tools.augment.command import preview

    preview(config, overrides or (), out, rows)
    Console().say(f"{out}: each row is an image, then the same image augmented at eight positions")


@app.command()
def env(as_json: Annotated[bool, Option("--json", help="print JSON")] = False) -> None:
    """Describe this machine and installation for a bug report."""
    from tl_dist.tools.doctor.environment import as_text, collect

    facts = collect()
    print(json.dumps(facts, indent=1) if as_json else printable(as_text(facts), lines=True))


@app.command()
def doctor() -> int:
    """Check this installation, including a sum over two workers. Exit with 1 if something is broken."""
    from tl_dist.tools.doctor.command import examine

    console = Console()
    healthy = True
    for finding in examine():
        style = "" if finding.ok else "dim" if finding.ok is None else "bold red"
        console.say(str(finding), style=style)
        healthy = healthy and finding.ok is not False
    return 0 if healthy else 1


@app.command("runs")
def list_runs(root: RunsDirectory = Path("runs")) -> None:
    """List the runs in a directory: state, step, figures."""
    from tl_dist.runs.table import runs
    from tl_dist.terminal.tables import show_runs

    if not root.is_dir():
        what = f"{root} is not a directory."
        raise Refusal(what, fix="name the directory that holds the runs.", code=ExitCode.USAGE)
    show_runs(runs(root), Console())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Any error is one line on standard error."""
    if arguments is None:
        _import_nothing_from_here()
    try:
        command = typer.main.get_command(app)
        code = int(command.main(arguments, prog_name="tl-dist", standalone_mode=False) or 0)
        if code == INTERRUPTED:  # Typer has answered Ctrl-C by it, and by nothing else
            raise KeyboardInterrupt
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python complains once more on exit
        return 0
    except (Exception, KeyboardInterrupt) as error:
        return complain(error)


def _import_nothing_from_here() -> None:
    """Keep the working directory off every search path, also of the programs that this process starts.

    It may hold a random.py, a libz.so, or an ssh. A checkout that `python -m` has found there is named by its path.
    """
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    here = {os.path.abspath(entry) for entry in entries if not os.path.isabs(entry)}
    package = str(Path(__file__).parents[2])
    if sys.path[0] == package:
        os.environ["PYTHONPATH"] = os.pathsep.join([package, *entries])
    if "PYTHONPATH" in os.environ:
        sys.path[:] = [entry for entry in sys.path if entry == package or entry not in here]
    os.environ.update(elsewhere(os.environ))
    os.environ["PYTHONSAFEPATH"] = "1"


if __name__ == "__main__":
    sys.exit(main())
