"""Turn a config into a run directory and a Slurm job: `tl-dist submit`. `driver` is what runs inside the job.

The batch script is the template slurm/train.sbatch, of the checkout or the wheel, with its holes filled.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from tl_dist.config import Config, registry
from tl_dist.files.atomic import write_atomically
from tl_dist.files.packages import shipped
from tl_dist.launcher.command import has_horovod, of_processes, require_package, worker_argv
from tl_dist.launcher.slurm.driver import srun_command
from tl_dist.launcher.train import Request, headline, open_run, prepare, with_trained_source
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.rendezvous.rank_layout import placements_of
from tl_dist.runs.directory import RunDir
from tl_dist.runs.lock.owner import OwningJob
from tl_dist.terminal.tables import relative

if TYPE_CHECKING:
    from tl_dist.terminal.console import Console

TEMPLATE = Path("slurm", "train.sbatch")
SCRIPT_NAME = "train.sbatch"
"""the filled template, in the run directory"""

_HOLE = re.compile(r"\{\{(.*?)\}\}")
_CPUS = re.compile(r"-c|--cpus-per-(task|gpu)\b")
"""matches an option by which the user asks for CPUs"""
_EARLIEST_SIGNAL_S = 60  # sbatch(1): a signal may be sent up to 60 seconds earlier than asked for

Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.,:+=/\-\[\]]+$")]
"""text that a #SBATCH line can hold without quotes"""


class SubmitOptions(BaseModel):
    """Options of a Slurm job. None leaves the choice to Slurm."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    nodes: Annotated[int, Field(ge=1)] = 1
    ntasks_per_node: Annotated[int, Field(ge=1)] = 1
    """workers on each node: one for each GPU"""
    gpus_per_node: Annotated[int, Field(ge=1)] | None = None
    cpus_per_task: Annotated[int, Field(ge=1)] | None = None
    partition: Word | None = None
    time: Annotated[str, StringConstraints(pattern=r"^([0-9]+-)?[0-9]+(:[0-9]+){0,2}$")] | None = None
    """limit, as sbatch takes it: MINUTES, HH:MM:SS, DAYS-HH:MM:SS"""
    account: Word | None = None
    signal_lead_s: Annotated[int, Field(ge=0, le=65535)] = 120
    """how long before the limit the run is asked to stop"""
    max_requeue: Annotated[int, Field(ge=0)] = 3
    """restarts, Slurm's own included, after which the job does not requeue itself"""
    mpi: Literal["none", "pmix"] = "none"
    """none: srun and our own rendezvous; pmix: Horovod's MPI controller"""
    interface: Word | None = None
    """the first node's interface or address for the rendezvous; workers, and NCCL where it finds no InfiniBand, use
    theirs towards it; default: its address in Slurm"""
    extra: tuple[Annotated[str, StringConstraints(pattern=r"^-[^\n\r]+$")], ...] = ()
    """more #SBATCH options, one each, as "--constraint=a100" """

    @model_validator(mode="after")
    def _rules(self) -> SubmitOptions:
        if self.gpus_per_node is not None and self.gpus_per_node < self.ntasks_per_node:
            raise ValueError(
                f"gpus_per_node={self.gpus_per_node} leaves some of ntasks_per_node={self.ntasks_per_node} "
                "workers without a GPU"
            )
        if self.gpus_per_node is not None and not (self.cpus_per_task or any(map(_CPUS.match, self.extra))):
            raise Refusal(
                f"gpus_per_node={self.gpus_per_node} asks for no CPUs: Slurm would give each worker one, which "
                "reads images for no GPU.",
                fix="add --cpus-per-task, the cores of a node divided by its workers (sinfo -o '%P %c %G' shows them), "
                "or --extra=--cpus-per-gpu=N.",
                code=ExitCode.USAGE,
            )
        limit_s = None if self.time is None else seconds(self.time)
        if limit_s is not None and 0 < limit_s <= self.signal_lead_s + _EARLIEST_SIGNAL_S:
            raise ValueError(
                f"time={self.time} is {limit_s} s, and the stop may be asked for {self.signal_lead_s} + "
                f"{_EARLIEST_SIGNAL_S} s before that: the run would never get to train"
            )
        return self


def options_from(**values: Any) -> SubmitOptions:
    """Validate the values of a command line, None meaning "not given". Refuses (64), naming the option."""
    try:
        return SubmitOptions(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        where = f"Slurm option {name}={first['input']!r}: " if name else "Slurm options: "
        raise Refusal(f"{where}{what}.", fix="see tl-dist submit --help.", code=ExitCode.USAGE) from None


def layout_of(asked: Config, wanted: SubmitOptions, horovod: bool) -> list[str]:
    """Return a job's strategy and workers, as overrides of its config; `horovod` is True if that is installed."""
    workers = wanted.nodes * wanted.ntasks_per_node
    if workers > 1:
        strategy = "horovod" if wanted.mpi != "none" else of_processes(asked, horovod)
        return [f"strategy={strategy}", f"workers={workers}"]
    if asked.strategy != registry.AUTO:
        return []
    # A single task has all GPUs of its node. This host's own GPUs do not count.
    replicas = asked.workers or wanted.gpus_per_node or 1
    return ["strategy=mirrored", f"workers={replicas}"] if replicas > 1 else ["strategy=single"]


def submit_run(request: Request, options: Mapping[str, Any], console: Console, *, dry_run: bool = False) -> int:
    """Submit a run; with `dry_run`, show what would be submitted, and write nothing.

    More than one task means a strategy of processes, with one worker in each. Refuses (64) what sbatch refuses.
    """
    wanted = options_from(**options)
    layout = layout_of(request.load(resolve=False), wanted, has_horovod())
    cfg = with_trained_source(request.load(*layout), request.runs)
    run = RunDir((request.runs / cfg.name).absolute())
    console.say(headline(cfg, run), style="bold")
    path, script = run.path / SCRIPT_NAME, render(wanted, run_dir=run.path)
    if dry_run:
        console.say(f"would write {relative(path)}:")
        for line in (*script.split("\n"), *commands_of(wanted, run.path)):
            console.say(line)
        return ExitCode.DONE
    require_package(cfg)
    run = open_run(request.runs, cfg)
    prepare(cfg, console)  # on the login node, often the only one with internet access
    write_atomically(path, script.encode())
    job_id = _sbatch(path)
    run.claim(OwningJob(job_id))
    console.say(f"job {job_id} of {relative(path)}; its output: {relative(run.logs)}")
    return ExitCode.DONE


def render(options: SubmitOptions, *, run_dir: Path, python: str = sys.executable) -> str:
    """Return the batch script's text. Refuses (64) a path that a #SBATCH line cannot hold."""
    if not re.fullmatch(r"[A-Za-z0-9_.,:+=/\-]+", str(run_dir)):
        what = f"run directory '{run_dir}' has characters that a #SBATCH line cannot hold."
        raise Refusal(what, fix="use letters, digits and _.,:+=- in its path.", code=ExitCode.USAGE)
    driver = [python, "-P", "-m", "tl_dist.cli.main", "srun", str(run_dir)]
    named = {
        "job_name": run_dir.name,
        "output": f"{run_dir}/logs/slurm_%j.out",
        "run_dir": shlex.quote(str(run_dir)),
        "driver": shlex.join(driver),
        "interface": shlex.quote(options.interface or ""),
    }
    return fill(shipped(TEMPLATE).read_text(), options.model_dump() | named)


def fill(template: str, values: Mapping[str, object]) -> str:
    """Replace each {{hole}}; omit a line whose value is None, and repeat it for each item of a tuple."""
    lines: list[str] = []
    for line in template.splitlines():
        hole = _HOLE.search(line)
        value = values[hole[1]] if hole else ""
        words = value if isinstance(value, tuple) else () if value is None else (value,)
        lines.extend(line.replace(hole[0], str(word)) if hole else line for word in words)
    return "\n".join(lines) + "\n"


def commands_of(options: SubmitOptions, run_dir: Path) -> list[str]:
    """Return the only srun inside the job, then each rank's place and command. The nodes have no names yet."""
    plan = [(f"node {k}", options.ntasks_per_node) for k in range(options.nodes)]
    placements = placements_of(plan)
    step = srun_command(run_dir, num_tasks=len(placements), cpus_per_task=options.cpus_per_task, mpi=options.mpi)
    command = shlex.join(worker_argv(run_dir))
    return [
        shlex.join(step),
        *(f"rank {p.rank}, {p.host}, local rank {p.local_rank}: {command}" for p in placements),
    ]


def seconds(limit: str) -> int:
    """Convert a time limit in Slurm's formats: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S. 0 means no limit."""
    days, dash, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:  # hours first
        hours, minutes, secs = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, secs = parts
    else:  # minutes first
        hours, (minutes, secs) = 0, (*parts, 0)[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + secs


def _sbatch(path: Path) -> str:
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", str(path)], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    except FileNotFoundError:
        fix = "submit from a login node of the cluster; tl-dist train runs here."
        raise Refusal("sbatch is not on this machine.", fix=fix, code=ExitCode.USAGE) from None
    if done.returncode:
        reason = done.stderr.strip().replace("sbatch: ", "")
        what = f"sbatch refused {path}: {reason}."
        raise Refusal(what, fix="change that option of tl-dist submit.", code=ExitCode.USAGE)
    return done.stdout.strip().partition(";")[0]  # JOB or JOB;CLUSTER
