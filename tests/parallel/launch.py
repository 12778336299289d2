"""Start a script as one process, or as several Horovod workers, and read what rank 0 wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]


def command(workers: int, launcher: str | None) -> list[str]:
    """What goes before `python SCRIPT` for a launcher: None, "gloo" or "mpi"."""
    if launcher is None:
        return []
    if launcher == "gloo":
        return [str(BIN / "horovodrun"), "-np", str(workers), "--gloo"]
    return [*MPIRUN, "-np", str(workers)]


def run_script(script: str, *arguments: str, workers: int, launcher: str | None, output: Path) -> Any:
    """The JSON that `script ... OUTPUT` leaves; fails with the script's own output when it fails."""
    argv = [*command(workers, launcher), sys.executable, str(HERE / script), *arguments, str(output)]
    environment = dict(
        os.environ, TF_CPP_MIN_LOG_LEVEL="2", PYTHONPATH=str(HERE.parent.parent), OMP_NUM_THREADS="1"
    )
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, (
        f"{' '.join(argv)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    )
    return json.loads(output.read_text())
