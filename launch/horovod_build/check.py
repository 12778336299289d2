"""What an installed Horovod was built with, and whether it adds up."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from horovod_build import refusal
from horovod_build.survey import probe

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
            f"Fix: {quoted} -m pip uninstall -y horovod, then {refusal.COMMAND} --python {quoted}",
            refusal.CHECK_FAILED,
        )
    return done.stdout.strip()


def check(python: Path) -> bool:
    """Whether `tl-dist doctor` finds no fault: it sums over two workers by every launcher that the build supports."""
    if not probe(python)["horovod"]:
        raise refusal.Refusal(
            f"no Horovod in {python}. Fix: {refusal.COMMAND} --python {shlex.quote(str(python))}",
            refusal.CHECK_FAILED,
        )
    checkout = Path(__file__).resolve().parents[2]
    return subprocess.run([str(python), "-m", "tl_dist.cli.main", "doctor"], cwd=checkout).returncode == 0
