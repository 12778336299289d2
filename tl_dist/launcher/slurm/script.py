"""Submit a run to Slurm: its options, the batch script, `sbatch`. `driver` is what runs inside the job.

The script is the template slurm/train.sbatch with its holes filled: beside the package in a checkout (and so in an
editable install), else among the data files of the installed distribution (share/tl_dist/slurm).
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from tl_dist.config.registry import nearest
from tl_dist.files.atomic import write_atomically
from tl_dist.launcher.command import worker_argv
from tl_dist.launcher.slurm.step import srun_command
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.rendezvous.rank_layout import placements_of

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


@dataclass(frozen=True)
class SubmitResult:
    """What was submitted, or would be."""

    job_id: str | None
    """None after a dry run"""
    script: str
    """the batch script's text"""
    script_path: Path
    """where it is, or would be"""
    step_command: str
    """the only srun inside the job"""
    rank_commands: tuple[str, ...]
    """for each rank: its place, and the command that runs there"""


def options_from(**values: Any) -> SubmitOptions:
    """Validate the values of a command line, None meaning "not given". Refuses (64), naming the option."""
    try:
        return SubmitOptions(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            guess = nearest(name, list(SubmitOptions.model_fields))
            fix = f"use {guess}." if guess else f"use one of {', '.join(SubmitOptions.model_fields)}."
            raise Refusal(f"unknown Slurm option '{name}'.", fix=fix, code=ExitCode.USAGE) from None
        what = first["msg"].removeprefix("Value error, ")
        where = f"Slurm option {name}={first['input']!r}: " if name else "Slurm options: "
        raise Refusal(f"{where}{what}.", fix="see tl-dist submit --help.", code=ExitCode.USAGE) from None


def submit(
    run_dir: Path, options: SubmitOptions, *, dry_run: bool = False, env: Mapping[str, str] | None = None
) -> SubmitResult:
    """Write the batch script into an existing run directory and hand it to `sbatch`.

    A dry run writes and starts nothing. Refuses (64) what sbatch refuses, with its own words.
    """
    run_dir = run_dir.absolute()
    script = render(options, run_dir=run_dir)
    path = run_dir / SCRIPT_NAME
    job_id = None
    if not dry_run:
        write_atomically(path, script.encode())
        job_id = _sbatch(path, env)
    return SubmitResult(
        job_id, script, path, shlex.join(_step_command(options, run_dir)), rank_commands(options, run_dir)
    )


def render(options: SubmitOptions, *, run_dir: Path, python: str = sys.executable) -> str:
    """Return the batch script's text. Refuses (64) a path that a #SBATCH line cannot hold."""
    if not re.fullmatch(r"[A-Za-z0-9_.,:+=/\-]+", str(run_dir)):
        raise Refusal(
            f"run directory '{run_dir}' has characters that a #SBATCH line cannot hold.",
            fix="use letters, digits and _.,:+=- in its path.",
            code=ExitCode.USAGE,
        )
    driver = [python, "-P", "-m", "tl_dist.cli.main", "srun", str(run_dir)]
    return fill(
        template_text(),
        {
            "job_name": run_dir.name,
            "nodes": str(options.nodes),
            "ntasks_per_node": str(options.ntasks_per_node),
            "cpus_per_task": _optional(options.cpus_per_task),
            "gpus_per_node": _optional(options.gpus_per_node),
            "partition": options.partition,
            "account": options.account,
            "time": options.time,
            "output": f"{run_dir}/logs/slurm_%j.out",
            "signal_lead_s": str(options.signal_lead_s),
            "extra": options.extra,
            "run_dir": shlex.quote(str(run_dir)),
            "max_requeue": str(options.max_requeue),
            "driver": shlex.join(driver),
            "mpi": options.mpi,
            "interface": shlex.quote(options.interface or ""),
        },
    )


def fill(template: str, values: Mapping[str, str | Sequence[str] | None]) -> str:
    """Replace each {{hole}} in `template`. Refuses (70) a hole without value and a value without hole.

    Omits a #SBATCH line if its hole's value is None, and repeats it for each item of a sequence.
    """
    unused = set(values)
    lines: list[str] = []
    for number, line in enumerate(template.splitlines(), start=1):
        parts = _HOLE.split(line)
        if len(parts) == 1:
            lines.append(line)
            continue
        before, hole, after = parts if len(parts) == 3 else (*parts[:2], "")
        value = values.get(hole)
        words = [value] if isinstance(value, str) else list(value or ())
        is_option = line.startswith("#SBATCH")
        if hole not in values or len(parts) > 3 or (len(words) != 1 and not is_option):
            raise _bad_template(f"line {number}, {line!r}, needs one value of {sorted(values)}.")
        unused.discard(hole)
        lines.extend(f"{before}{word}{after}" for word in words)
    if unused:
        raise _bad_template(f"no hole for {sorted(unused)}.")
    return "\n".join(lines) + "\n"


def template_text() -> str:
    """Read the template of this checkout, or of this installation."""
    beside_package = Path(__file__).parents[3] / TEMPLATE
    installed = Path(sysconfig.get_path("data"), "share", "tl_dist", TEMPLATE)
    for path in (beside_package, installed):
        if path.is_file():
            return path.read_text()
    raise Refusal(
        f"the batch template is neither {beside_package} nor {installed}.",
        fix="run from a checkout, or install the package again.",
        code=ExitCode.INTERNAL,
    )


def rank_commands(options: SubmitOptions, run_dir: Path) -> tuple[str, ...]:
    """Return one line per rank: its place and its command. The nodes have no names yet."""
    plan = [(f"node {k}", options.ntasks_per_node) for k in range(options.nodes)]
    command = shlex.join(worker_argv(run_dir))
    return tuple(
        f"rank {place.rank}, {place.host}, local rank {place.local_rank}: {command}"
        for place in placements_of(plan)
    )


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


def _step_command(options: SubmitOptions, run_dir: Path) -> list[str]:
    return srun_command(
        run_dir,
        num_tasks=options.nodes * options.ntasks_per_node,
        cpus_per_task=options.cpus_per_task,
        mpi=options.mpi,
    )


def _sbatch(path: Path, env: Mapping[str, str] | None) -> str:
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", str(path)],
            env=None if env is None else dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        raise Refusal(
            "sbatch is not on this machine.",
            fix="submit from a login node of the cluster; tl-dist train runs here.",
            code=ExitCode.USAGE,
        ) from None
    if done.returncode:
        reason = done.stderr.strip().replace("sbatch: ", "")
        raise Refusal(
            f"sbatch refused {path}: {reason}.",
            fix="change that option of tl-dist submit.",
            code=ExitCode.USAGE,
        )
    return done.stdout.strip().partition(";")[0]  # JOB or JOB;CLUSTER


def _optional(number: int | None) -> str | None:
    return None if number is None else str(number)


def _bad_template(what: str) -> Refusal:
    return Refusal(f"{TEMPLATE}: {what}", fix="restore the template.", code=ExitCode.INTERNAL)
