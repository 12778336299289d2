"""`tl-dist doctor`: check what is installed, and add two numbers over two workers, started like the workers of a run.

Frameworks are imported in child processes: one that crashes on import must not take the doctor with it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tl_dist.config import Config
from tl_dist.launcher.classify_exits import classify
from tl_dist.launcher.command import Command, local_commands
from tl_dist.launcher.local import Group
from tl_dist.rendezvous.server import Rendezvous
from tl_dist.runs.exit_records import ExitRecords
from tl_dist.tools.doctor.environment import first_line

SUM_S = 180.0
CHILD_S = SUM_S + 10

# Keras as a worker imports it, without its wrappers for other packages: that halves the CPU time of the whole command.
_PREFACE = "from tl_dist.trainer.__main__ import import_keras\nimport_keras()\nimport json\n"

_IMPORTS = f"""{_PREFACE}
import tensorflow as tf, keras
gpus, cuda = [d.name for d in tf.config.list_physical_devices("GPU")], tf.test.is_built_with_cuda()
facts = {{"tensorflow": tf.__version__, "keras": keras.__version__, "gpus": gpus, "cuda": cuda}}
print("FACTS " + json.dumps(facts), flush=True)
import horovod, horovod.tensorflow as hvd
built = {{"gloo": hvd.gloo_built(), "mpi": hvd.mpi_built(), "nccl": hvd.nccl_built()}}
print("FACTS " + json.dumps({{"horovod": horovod.__version__, **{{key: bool(built[key]) for key in built}}}}))
"""

# Through the strategy that runs use, so that what is tested is what will run.
_SUM = f"""{_PREFACE}
import os, signal, sys
from tl_dist.config import Config, registry
cfg = Config.model_validate_json(sys.argv[1])
parallel = registry.strategy(cfg.strategy).start(cfg)
import tensorflow as tf
number = float(parallel.rank + 1)
gradient = parallel.reduce_gradients([tf.fill([3], number)])[0].numpy()  # on GPUs by NCCL
sums = {{"sum": float(parallel.total({{"sum": number}})["sum"]), "gradient": gradient.tolist()}}
print("FACTS " + json.dumps({{**sums, "workers": parallel.world_size}}), flush=True)
if "HOROVOD_RANK" in os.environ:
    signal.pause()  # until both results are read: if a worker exits, its last message to the other may be lost
"""
_SUMS = [{"sum": 3.0, "gradient": [3.0] * 3, "workers": 2}] * 2

_CONFIG = {
    **{"name": "doctor", "workers": 2, "steps": 1, "data": {"name": "synthetic"}},
    **{"model": {"backbone": "tiny", "weights": "random"}, "optimizer": {"learning_rate": 0.1}},
}


@dataclass(frozen=True)
class Finding:
    """A line with a box. `ok` None: absent, which is no fault; `fix` says how to get it."""

    what: str
    ok: bool | None
    fix: str = ""
    indent: int = 0

    def __str__(self) -> str:
        box = "[X]" if self.ok else "[ ]" if self.ok is None else "[!]"
        return f"{'  ' * self.indent}{box} {self.what}" + (f" Fix: {self.fix}" if self.fix else "")


def examine() -> Iterator[Finding]:
    """Yield each finding as soon as it is known; `ok` is False for a fault."""
    answers, problem = facts_of_child(_python(_IMPORTS))
    if answers:
        yield from _of_frameworks(answers, problem)
    else:
        fix = "install the package's dependencies again in this environment."
        yield Finding(f"TensorFlow cannot be imported: {problem}.", False, fix)
    for name, program, needed in (("MPI", "mpirun", "mpirun"), ("Slurm", "sbatch", "tl-dist submit")):
        line = first_line(program, "--version")
        yield Finding(line or f"{name}: no {program} here; only {needed} needs it.", True if line else None)


def _of_frameworks(answers: Sequence[dict[str, Any]], problem: str) -> Iterator[Finding]:
    framework = answers[0]
    gpus = len(framework["gpus"])
    cpu_only = "CPU only" if framework["cuda"] else "built for CPUs only"
    devices = f"{gpus} GPU{'s' * (gpus > 1)}" if gpus else cpu_only
    yield Finding(f"TensorFlow {framework['tensorflow']}, Keras {framework['keras']}: {devices}", True)
    yield Finding("TensorFlow's own collectives (strategy=collective)", True)
    yield sum_over_two_workers("collective", gpus=gpus)
    install = "tl-dist install-horovod"
    if len(answers) == 1:
        absent = "No module named 'horovod'" in problem
        what = "Horovod is not installed." if absent else f"Horovod cannot be imported: {problem}."
        yield Finding(what, None if absent else False, f"run {install}; strategy=collective needs none.")
        return
    horovod = answers[1]
    yield Finding(f"Horovod {horovod['horovod']}", True)
    fixes = {"gloo": f"run {install}: tl-dist's own launcher needs it."}
    if gpus:
        fixes["nccl"] = f"run {install} --gpu: gradients go through the host's memory without it."
    for key, name in (("gloo", "Gloo"), ("mpi", "MPI"), ("nccl", "NCCL")):
        fix = "" if horovod[key] else fixes.get(key, "")
        yield Finding(name, True if horovod[key] else False if fix else None, fix, 1)
    if horovod["gloo"]:
        yield sum_over_two_workers("horovod", gpus=gpus)
    if horovod["mpi"] and shutil.which("mpirun"):
        yield sum_by_mpirun(gpus)


def sum_over_two_workers(strategy: str, seconds: float = SUM_S, *, gpus: int = 0) -> Finding:
    """Add 1 and 2 over two workers, started like the workers of a run: on two GPUs if there are, else on the CPU."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tl-dist-doctor-") as scratch:

        def log(rank: int) -> Path:
            return Path(scratch, f"rank_{rank}.out")

        with Rendezvous([("localhost", 2)], "127.0.0.1") as rendezvous:
            cfg = Config.model_validate(_CONFIG | {"strategy": strategy})
            place = partial(rendezvous.worker_environment, env=os.environ)
            commands = [
                Command(command.rank, _sum_argv(strategy), {**command.environment, **_devices(gpus)})
                for command in local_commands(cfg, Path(scratch), os.environ, processes=2, place=place)
            ]
            with Group(commands, log, ExitRecords(Path(scratch, "sum"))) as group:
                while True:
                    ended = group.wait(0.2) or any(exit.code for exit in group.exits)
                    results = _facts("".join(log(rank).read_text(errors="replace") for rank in (0, 1)))
                    if ended or len(results) == 2:
                        break
                    if time.monotonic() > began + seconds:
                        return _failed(strategy, f"two workers did not meet within {seconds:.0f} s")
                group.end(grace_s=0 if len(results) == 2 else None)
                end = classify(group.exits, done=True)
                if not end.orderly:
                    last_line = group.last_lines(end.rank or 0, 1)
                    return _failed(strategy, ": ".join([end.cause, *last_line])[:300].rstrip("."))
    return _judged(strategy, results, gpus, began)


def sum_by_mpirun(gpus: int) -> Finding:
    """Add 1 and 2 over two workers of Horovod that mpirun starts."""
    began = time.monotonic()
    argv = ["mpirun", "-np", "2"]
    if "Open MPI" in (first_line("mpirun", "--version") or ""):  # else it refuses root and few cores
        argv += ["--oversubscribe", "--bind-to", "none", "--timeout", f"{SUM_S:.0f}"]
        argv += ["--allow-run-as-root"] if os.geteuid() == 0 else []
    results, problem = facts_of_child([*argv, *_sum_argv("horovod")], _devices(gpus))
    if not results:
        return _failed("horovod", problem)
    return _judged("horovod", results, gpus, began, by=" by mpirun")


def facts_of_child(
    command: Sequence[str], variables: Mapping[str, str] | None = None
) -> tuple[list[dict[str, Any]], str]:
    """Return what a child process printed after "FACTS", and its last line on standard error."""
    env = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | dict(variables or {})
    try:
        process = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=CHILD_S
        )
    except subprocess.TimeoutExpired:
        return [], f"no answer in {CHILD_S:.0f} s"
    last_line = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    return _facts(process.stdout), last_line[:200].rstrip(".")


def _python(code: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-P", "-c", code, *arguments)


def _sum_argv(strategy: str) -> tuple[str, ...]:
    return _python(_SUM, json.dumps(_CONFIG | {"strategy": strategy}))


def _devices(gpus: int) -> dict[str, str]:
    return {} if gpus > 1 else {"CUDA_VISIBLE_DEVICES": "-1"}


def _facts(text: str) -> list[dict[str, Any]]:
    """Return what follows each "FACTS", as far as it is complete; mpirun may join the lines of two workers."""
    facts = []
    for match in re.finditer("FACTS ", text):
        with suppress(ValueError):
            facts.append(json.JSONDecoder().raw_decode(text, match.end())[0])
    return facts


def _judged(strategy: str, results: object, gpus: int, began: float, by: str = "") -> Finding:
    if results != _SUMS:
        return _failed(strategy, f"two workers should add 1 and 2 to 3, and got {results}")
    where = "GPUs" if gpus > 1 else "the CPU (two workers need two GPUs)" if gpus else "the CPU"
    what = f"2 workers added 1 and 2 to 3 on {where} in {time.monotonic() - began:.1f} s{by}"
    return Finding(what, True, indent=1)


def _failed(strategy: str, why: str) -> Finding:
    fix = {
        "horovod": "run tl-dist install-horovod again; strategy=collective works without Horovod.",
        "collective": "use strategy=horovod; strategy=mirrored has several devices in one process.",
    }[strategy]
    return Finding(f"a sum over 2 workers failed: {why}.", False, fix, 1)
