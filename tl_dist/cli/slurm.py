"""`tl-dist submit`, and `srun`, which its batch script calls inside the job."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from tl_dist.cli.arguments import ConfigFile, Overrides, Root, RunPath
from tl_dist.cli.groups import app
from tl_dist.terminal.console import Console


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
