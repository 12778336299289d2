"""Commands that start and train: `tl-dist init`, `config`, `train`, `submit` and others."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Argument, Context, Option

from tl_dist.cli.app import ConfigFile, Overrides, Root, RunPath, RunsDirectory, Strategy, Workers, app, group
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.terminal.console import Console

add_command = partial(app.command, rich_help_panel="Train")
config_app = group("config", "Show a config, or every key that a config may hold.", panel="Start")


@app.command("init", rich_help_panel="Start")
def begin(
    data: Annotated[Path, Argument(metavar="DATA", help="folder of images, CSV file, or another data set")],
    out: Annotated[Path | None, Option(metavar="YAML", help="config to write; default: DATA.yaml")] = None,
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


@add_command()
def train(
    config: Annotated[
        Path, Argument(metavar="CONFIG|DATA", help="YAML file of the run, or data: init writes the file")
    ],
    overrides: Overrides = None,
    strategy: Strategy = None,
    workers: Workers = None,
    runs: Root = Path("runs"),
) -> int:
    """Train to the end. The same command resumes a run that stopped or failed."""
    from tl_dist.launcher.train import Request, train_config
    from tl_dist.rendezvous.rank_layout import started_by_launcher
    from tl_dist.tools.curate.init import config_for, is_data

    launcher = started_by_launcher(os.environ)
    if is_data(config):
        config = config_for(config, launcher, Console().say)
    request = Request(config, overrides or (), strategy, workers, runs)
    if launcher:
        from tl_dist.launcher.under_launcher import join

        join(request, os.environ)
    return train_config(request.load(), runs, Console())


@add_command("runs")
def list_runs(root: RunsDirectory = Path("runs")) -> None:
    """List the runs in a directory: state, step, figures."""
    from tl_dist.runs.table import runs
    from tl_dist.terminal.tables import show_runs

    if not root.is_dir():
        what = f"{root} is not a directory."
        raise Refusal(what, fix="name the directory that holds the runs.", code=ExitCode.USAGE)
    show_runs(runs(root), Console())


@add_command()
def prepare(config: ConfigFile, overrides: Overrides = None) -> None:
    """Download the data and weights of a config, such as on a login node before a job starts."""
    from tl_dist.launcher.train import Request, prepare_config

    prepare_config(Request(config, overrides or ()), Console())


@add_command()
def submit(
    ctx: Context,
    config: ConfigFile,
    overrides: Overrides = None,
    nodes: Annotated[int | None, Option(help="number of nodes; default: 1")] = None,
    ntasks_per_node: Annotated[int | None, Option(help="workers on each node; default: one per GPU")] = None,
    gpus_per_node: Annotated[int | None, Option(help="GPUs on each node; needs --cpus-per-task")] = None,
    cpus_per_task: Annotated[int | None, Option(help="CPU cores of each worker")] = None,
    partition: Annotated[str | None, Option(help="Slurm partition")] = None,
    time: Annotated[str | None, Option(help="time limit, as sbatch takes it: 8:00:00 or 1-12")] = None,
    account: Annotated[str | None, Option(help="Slurm account")] = None,
    signal_lead_s: Annotated[int | None, Option(help="seconds before the limit to save and stop; default: 120")] = None,
    max_requeue: Annotated[int | None, Option(help="largest number of requeues; default: 3")] = None,
    interface: Annotated[str | None, Option(help="network interface, or first node's address, to meet on")] = None,
    mpi: Annotated[str | None, Option(help="how srun starts workers: none or pmix")] = None,
    extra: Annotated[list[str] | None, Option(help='#SBATCH option, such as "--constraint=a100"')] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="show what would be submitted")] = False,
    runs: Root = Path("runs"),
) -> int:
    """Submit a run to Slurm. The job saves a checkpoint and requeues itself before its time limit."""
    from tl_dist.launcher.slurm.submit import SubmitOptions, submit_run
    from tl_dist.launcher.train import Request

    options = {name: ctx.params[name] for name in SubmitOptions.model_fields}
    options["ntasks_per_node"] = ntasks_per_node or gpus_per_node
    return submit_run(Request(config, overrides or (), runs=runs), options, Console(), dry_run=dry_run)


@add_command()
def worker(run: RunPath) -> int:
    """Run as one worker under horovodrun, mpirun or srun: `horovodrun -np 4 tl-dist worker runs/NAME`."""
    from tl_dist.launcher.under_launcher import become_worker

    become_worker(run)


@add_command()
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
