"""`tl-dist doctor`: check what is installed, and add two numbers over two workers, started like the workers of a run.

Frameworks are imported in child processes: one that crashes on import must not take the doctor with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_dist.config import Config
from tl_dist.config import file as config_file
from tl_dist.launcher.classify_exits import classify
from tl_dist.launcher.command import Command, local_commands
from tl_dist.launcher.group import Group
from tl_dist.launcher.local import place
from tl_dist.rendezvous.server import Rendezvous
from tl_dist.runs.exit_records import ExitRecords
from tl_dist.tools.doctor.environment import first_line

IMPORT_S = 180.0
SUM_S = 180.0

# Keras as a worker imports it, without its wrappers for other packages: that halves the CPU time of the whole command.
_FRAMEWORK = """
from tl_dist.trainer.__main__ import import_keras
import_keras()
import json, tensorflow as tf, keras
gpus = [d.name for d in tf.config.list_physical_devices("GPU")]
versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
print("FACTS " + json.dumps({**versions, "gpus": gpus, "cuda": tf.test.is_built_with_cuda()}))
"""

_HOROVOD = """
from tl_dist.trainer.__main__ import import_keras
import_keras()
import importlib, json
hvd = importlib.import_module("horovod.tensorflow")
version = importlib.import_module("horovod").__version__
facts = {"gloo": hvd.gloo_built(), "mpi": hvd.mpi_built(), "nccl": bool(hvd.nccl_built())}
print("FACTS " + json.dumps({"horovod": version, **{key: bool(value) for key, value in facts.items()}}))
"""

# Through the strategy that runs use, so that what is tested is what will run.
_SUM = """
from tl_dist.trainer.__main__ import import_keras
import_keras()
import json, signal, sys
from tl_dist.config import file as config_file
from tl_dist.config import registry
cfg = config_file.load(sys.argv[1])
parallel = registry.strategy(cfg.strategy).start(cfg)
import tensorflow as tf
number = float(parallel.rank + 1)
gradient = parallel.reduce_gradients([tf.fill([3], number)])[0].numpy()  # on GPUs by NCCL
sums = {"sum": float(parallel.total({"sum": number})["sum"]), "gradient": gradient.tolist()}
print("FACTS " + json.dumps({**sums, "workers": parallel.world_size}), flush=True)
signal.pause()  # until the doctor has read both results: if a worker exits, its last message to the other may be lost
"""

_CONFIG = (
    "name: doctor\nworkers: 2\nsteps: 1\ndata: {name: synthetic}\n"
    "model: {backbone: tiny, weights: random}\noptimizer: {learning_rate: 0.1}\n"
)


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
    framework, problem = facts_of_child([sys.executable, "-P", "-c", _FRAMEWORK])
    gpus = len(framework["gpus"]) if framework else 0
    if framework:
        cpu_only = "CPU only" if framework["cuda"] else "built for CPUs only"
        devices = f"{gpus} GPU{'s' * (gpus > 1)}" if gpus else cpu_only
        yield Finding(f"TensorFlow {framework['tensorflow']}, Keras {framework['keras']}: {devices}", True)
    else:
        fix = "install the package's dependencies again in this environment."
        yield Finding(f"TensorFlow cannot be imported: {problem}.", False, fix)
    if framework:
        yield Finding("TensorFlow's own collectives (strategy=collective)", True)
        yield sum_over_two_workers("collective", gpus=gpus)
    horovod, problem = facts_of_child([sys.executable, "-P", "-c", _HOROVOD])
    install = "./launch/install_horovod"
    if not horovod:
        absent = "No module named 'horovod'" in problem
        what = "Horovod is not installed." if absent else f"Horovod cannot be imported: {problem}."
        yield Finding(what, None if absent else False, f"run {install}; strategy=collective needs none.")
    else:
        yield Finding(f"Horovod {horovod['horovod']}", True)
        fixes = {"gloo": f"run {install}: tl-dist's own launcher needs it."}
        if gpus:
            fixes["nccl"] = f"run {install} --gpu: gradients go through the host's memory without it."
        for key, name in (("gloo", "Gloo"), ("mpi", "MPI"), ("nccl", "NCCL")):
            fix = "" if horovod[key] else fixes.get(key, "")
            yield Finding(name, True if horovod[key] else False if fix else None, fix, 1)
        if horovod["gloo"] and framework:
            yield sum_over_two_workers("horovod", gpus=gpus)
    for name, command, needed in (
        ("MPI", ("mpirun", "--version"), "mpirun"),
        ("Slurm", ("sbatch", "--version"), "tl-dist submit"),
    ):
        line = first_line(*command)
        yield Finding(
            line or f"{name}: no {command[0]} here; only {needed} needs it.", True if line else None
        )


def sum_over_two_workers(strategy: str, seconds: float = SUM_S, *, gpus: int = 0) -> Finding:
    """Add 1 and 2 over two workers, started like the workers of a run: on two GPUs if there are, else on the CPU."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tl-dist-doctor-") as scratch:
        file = Path(scratch, "doctor.yaml")
        file.write_text(f"strategy: {strategy}\n{_CONFIG}")
        cfg = config_file.load(file)

        def log(rank: int) -> Path:
            return Path(scratch, f"rank_{rank}.out")

        with Rendezvous([("localhost", 2)], "127.0.0.1") as rendezvous:
            devices = {} if gpus > 1 else {"CUDA_VISIBLE_DEVICES": "-1"}
            commands = _sum_commands(cfg, file, lambda rank: place(rendezvous, rank) | devices)
            with Group(commands, log, ExitRecords(Path(scratch, "sum"))) as group:
                deadline = began + seconds
                while True:
                    ended = group.wait(0.2) or any(exit.code for exit in group.exits)
                    results = [_facts(log(rank).read_text(errors="replace")) for rank in (0, 1)]
                    if ended or all(results):
                        break
                    if time.monotonic() > deadline:
                        return _failed(strategy, f"two workers did not meet within {seconds:.0f} s")
                group.end(grace_s=0 if all(results) else None)
                end = classify(group.exits, done=True)
                if not end.orderly:
                    last_line = group.last_lines(end.rank or 0, 1)
                    return _failed(strategy, ": ".join([end.cause, *last_line])[:300].rstrip("."))
    if results != [{"sum": 3.0, "gradient": [3.0] * 3, "workers": 2}] * 2:
        return _failed(strategy, f"two workers should add 1 and 2 to 3, and got {results}")
    where = "GPUs" if gpus > 1 else "the CPU (two workers need two GPUs)" if gpus else "the CPU"
    return Finding(
        f"2 workers added 1 and 2 to 3 on {where} in {time.monotonic() - began:.1f} s", True, indent=1
    )


def facts_of_child(command: list[str]) -> tuple[dict[str, Any] | None, str]:
    """Return what a child process printed after "FACTS", or None, and its last line on standard error."""
    env = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        process = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=IMPORT_S
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer in {IMPORT_S:.0f} s"
    last_line = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    return _facts(process.stdout), last_line[:200].rstrip(".")


def _sum_commands(cfg: Config, file: Path, place_of: Callable[[int], dict[str, str]]) -> list[Command]:
    commands = local_commands(cfg, file, os.environ, processes=2, place=place_of)
    argv = (sys.executable, "-P", "-c", _SUM, str(file))
    return [Command(command.rank, argv, command.environment) for command in commands]


def _facts(text: str) -> dict[str, Any] | None:
    for line in text.splitlines():
        if line.startswith("FACTS "):
            facts: dict[str, Any] = json.loads(line.removeprefix("FACTS "))
            return facts
    return None


def _failed(strategy: str, why: str) -> Finding:
    fix = {
        "horovod": "run ./launch/install_horovod again; strategy=collective works without Horovod.",
        "collective": "use strategy=horovod; strategy=mirrored has several devices in one process.",
    }[strategy]
    return Finding(f"a sum over 2 workers failed: {why}.", False, fix, 1)
