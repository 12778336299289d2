"""What a piece of Python takes, in a process of its own: the high-water mark of this one is that of all tests."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LIMIT_MB = 4096  # of address space: a fault that is back fails, and takes no machine with it

_AROUND = """
import json, pathlib, resource, time

resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))

def peak_mb():
    (line,) = [l for l in pathlib.Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM")]
    return int(line.split()[1]) / 1024

{setup}
before, began = peak_mb(), time.process_time()
{measured}
print(json.dumps([time.process_time() - began, peak_mb() - before, peak_mb()]))
"""


class Taken(NamedTuple):
    """Seconds of processor time and megabytes of resident memory: what the peak grew by, and the peak."""

    seconds: float
    grown_mb: float
    peak_mb: float


def taken_by(measured: str, *, setup: str = "") -> Taken:
    """What the statements `measured` take after the statements `setup`."""
    code = _AROUND.format(limit=LIMIT_MB << 20, setup=setup, measured=measured)
    environment = dict(os.environ, PYTHONPATH=str(ROOT), TF_CPP_MIN_LOG_LEVEL="2", OMP_NUM_THREADS="1")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Taken(*json.loads(done.stdout.splitlines()[-1]))
