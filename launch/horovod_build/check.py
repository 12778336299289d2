"""What an installed Horovod was built with, and whether it adds up: a real sum over ranks by each launcher."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

from horovod_build import refusal
from horovod_build.survey import find_mpi, output_of, probe

BUILT = """
import horovod, horovod.tensorflow as hvd
print("Horovod v" + horovod.__version__ + " built with:")
built = {"TensorFlow": True, "MPI": hvd.mpi_built(), "Gloo": hvd.gloo_built(), "NCCL": hvd.nccl_built()}
for name, there in built.items():
    print("    [X]" if there else "    [ ]", name)
"""


def boxes(python: Path) -> str:
    """What the installed Horovod was built with, as its compiled library says on being loaded.

    `horovodrun --check-build` says the same in 15 s instead of 4, and ticks PyTorch where there is none.
    """
    done = subprocess.run([str(python), "-c", BUILT], capture_output=True, text=True, cwd="/")
    if done.returncode:
        line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        quoted = shlex.quote(str(python))
        raise refusal.Refusal(
            f"the Horovod in {python} does not load: {line[:300]}. "
            f"Fix: {quoted} -m pip uninstall -y horovod, then launch/install_horovod --python {quoted}",
            refusal.CHECK_FAILED,
        )
    return done.stdout.strip()


def horovodrun(python: Path) -> list[str]:
    """Horovod's launcher by module, so that it is the one of this environment whatever PATH says."""
    return [str(python), "-m", "horovod.runner.launch"]


def check(python: Path) -> bool:
    """A real sum over ranks by every launcher that the build supports. Prints boxes and figures."""
    if not probe(python)["horovod"]:
        raise refusal.Refusal(
            f"no Horovod in {python}. Fix: launch/install_horovod --python {shlex.quote(str(python))}",
            refusal.CHECK_FAILED,
        )
    built = boxes(python)
    print(built, flush=True)
    worker = [str(python), str(Path(__file__).resolve().parent / "allreduce.py")]
    ways = {"gloo": [*horovodrun(python), "-np", "2", "--gloo", *worker]}
    if "[X] MPI" in built and shutil.which("mpirun"):
        ways["mpi"] = [*mpirun(), "-np", "2", *worker]
    num_gpus = len((output_of("nvidia-smi", "-L") or "").splitlines())
    if "[X] NCCL" in built and num_gpus:
        ways["nccl"] = [*horovodrun(python), "-np", str(min(2, num_gpus)), "--gloo", *worker, "--gpu"]
    results = {name: run_check(name, command) for name, command in ways.items()}
    return all(results.values())


def mpirun() -> list[str]:
    """Open MPI refuses root and more ranks than cores unless told; other MPIs do not know these options."""
    if "Open MPI" not in (output_of("mpirun", "--version") or "") and "Open MPI" not in find_mpi():
        return ["mpirun"]
    as_root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return ["mpirun", "--oversubscribe", "--bind-to", "none", *as_root]


def run_check(name: str, command: list[str], limit_s: float = 180) -> bool:
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output = process.communicate(timeout=limit_s)[0].decode(errors="replace")
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        output = process.communicate()[0].decode(errors="replace")
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        output += f"\nno result after {limit_s:.0f} s"
    elapsed = time.monotonic() - started
    found = re.search(r"TL_DIST_CHECK (\{.*?\})", output)
    figures = json.loads(found.group(1)) if found else {}
    if process.returncode == 0 and figures.get("right"):
        print(
            f"{name:5} ok: {figures['num_ranks']} ranks, grouped sum right on each, "
            f"{figures['milliseconds']} ms for 1 MiB, {elapsed:.0f} s in all",
            flush=True,
        )
        return True
    print(f"{name:5} FAILED (exit {process.returncode}, {elapsed:.0f} s): {' '.join(command)}", flush=True)
    print("\n".join(f"      {line}" for line in output.splitlines()[-15:]), flush=True)
    return False
