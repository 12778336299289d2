"""Run a worker as a task of srun, and record its exit: `python -m tl_dist.launcher.slurm.task COMMAND...`.

srun reports its tasks' ends only in text for users. So this process outlives a worker that is killed, and records its
exit code, unless the worker has done so itself.
"""

import os
import signal
import subprocess
import sys

from tl_dist.launcher import die_with_parent
from tl_dist.runs.exit_records import Exit, ExitRecords

_PASSED_ON = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2),
    *(signal.SIGABRT, signal.SIGCONT),
)


def main() -> int:
    """Run the command to its end; return its exit code, 128 + N after signal N."""
    workers: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: object) -> None:
        # With cgroups Slurm signals only its tasks; without, a worker gets each signal twice, which is harmless.
        for worker in workers:
            worker.send_signal(number)

    for number in _PASSED_ON:
        signal.signal(number, pass_on)
    argv = [sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid()), *sys.argv[1:]]
    workers.append(subprocess.Popen(argv))
    code = workers[0].wait()
    code = code if code >= 0 else 128 - code
    exit_records, rank = ExitRecords.from_env(os.environ), int(os.environ["SLURM_PROCID"])
    if exit_records is not None and not exit_records.read([rank]):
        exit_records.write(Exit(rank, code))
    return code


if __name__ == "__main__":
    sys.exit(main())
