"""What a piece of Python takes, in a process of its own: the high-water mark of this one is that of all tests."""

import json
import subprocess
import sys
from typing import NamedTuple

from tests import forks

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
print(json.dumps([time.process_time() - began, peak_mb() - before]))
"""


class Taken(NamedTuple):
    """Seconds of processor time, and by how many megabytes of resident memory the peak grew."""

    seconds: float
    grown_mb: float


def taken_by(measured: str, *, setup: str = "") -> Taken:
    """What the statements `measured` take after the statements `setup`."""
    code = _AROUND.format(limit=LIMIT_MB << 20, setup=setup, measured=measured)
    process = forks.of_module(__name__, code)
    done = subprocess.run(**process, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return Taken(*json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    exec(sys.argv[1])
