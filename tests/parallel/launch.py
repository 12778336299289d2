"""Start a script as one process or as several workers, and read what rank 0 wrote."""

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from tests import forks
from tl_dist.rendezvous.server import Rendezvous

TIMEOUT_S = 280
MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]


def run_workers(argv: list[str], environment: dict[str, str], workers: int) -> str:
    """What the command says as that many workers that meet as `tl-dist train`'s do; fails as soon as one does."""
    with Rendezvous([("localhost", workers)], "127.0.0.1") as rendezvous, TemporaryFile("w+") as said:
        started = [
            subprocess.Popen(argv, env=environment | rendezvous.worker_environment(rank), stdout=said, stderr=said)
            for rank in range(workers)
        ]
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            codes = [process.poll() for process in started]
            if any(codes) or None not in codes:
                break
            time.sleep(0.1)
        for process in started:
            process.kill()
            process.wait()
        said.seek(0)
        text = said.read()
        assert codes == [0] * workers, f"{' '.join(argv)} ended with {codes}\n{text}"
    return text


def run_script(script: str, *arguments: str, workers: int, launcher: str | None, output: Path) -> Any:
    """The JSON that `script ... OUTPUT` leaves; fails with the script's own output when it fails.

    Its process is one alone, or `launcher` starts several: "ours" or "mpi".
    """
    scenario = forks.of_module(f"{__package__}.{script.removesuffix('.py')}", *arguments, str(output))
    argv, environment = scenario["args"], scenario["env"]
    if launcher == "ours":
        run_workers(argv, environment, workers)
        return json.loads(output.read_text())
    if launcher == "mpi":  # which knows its children by more than their output
        argv = [*MPIRUN, "-np", str(workers), sys.executable, *argv[1:]]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, f"{' '.join(argv)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return json.loads(output.read_text())
