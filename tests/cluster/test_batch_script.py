"""The batch script requeues what another attempt can help, so often and no more, and trusts no 0 alone.

Real Slurm, but a driver of a few lines instead of ours, which ends with the code that the test has for the
attempt.
"""

from pathlib import Path

import pytest

from tl_dist.launcher.slurm.submit import SubmitOptions, render

from .slurm_cluster import FinishedJob, SlurmCluster

DRIVER = """\
#!/bin/bash
run_dir=${@: -1}
attempt=${SLURM_RESTART_COUNT:-0}
echo started >> "$run_dir/attempt_$attempt"
# By the shell itself and before the wait: a preemption's TERM reaches any process of the job, `sed` among them.
mapfile -t codes <"$run_dir/codes"
if [ -e "$run_dir/wait_$attempt" ]; then
  trap : TERM
  until [ -e "$run_dir/stop" ]; do sleep 0.1; done
fi
code=${codes[attempt]}
if [ "$code" = done ]; then touch "$run_dir/DONE"; exit 0; fi
exit "$code"
"""


class Trial:
    """A submitted script whose driver plays the given codes, one for each attempt."""

    def __init__(
        self,
        slurm: SlurmCluster,
        run_dir: Path,
        codes: list[str],
        *,
        max_requeue: int = 3,
        waits: bool = False,
    ):
        self._slurm = slurm
        self.run_dir = run_dir
        (run_dir / "logs").mkdir(parents=True)
        (run_dir / "codes").write_text("\n".join(codes) + "\n")
        (run_dir / "stop").touch()  # left over from an earlier attempt: must not stop this one
        if waits:
            (run_dir / "wait_0").touch()
        driver = run_dir / "driver"
        driver.write_text(DRIVER)
        driver.chmod(0o755)
        script = run_dir / "job.sbatch"
        options = SubmitOptions(max_requeue=max_requeue)
        script.write_text(render(options, run_dir=run_dir, python=str(driver)))
        self.job_id = slurm.run("sbatch", "--parsable", str(script)).strip()

    @property
    def attempts(self) -> int:
        return len(list(self.run_dir.glob("attempt_*")))

    def wait_for_attempt(self, number: int) -> None:
        self._slurm.wait_until((self.run_dir / f"attempt_{number}").exists, f"attempt {number}", timeout_s=60)

    def signal(self, *args: str) -> None:
        self._slurm.run("scancel", *args, self.job_id)

    def end(self) -> FinishedJob:
        return self._slurm.wait(self.job_id, timeout_s=120)

    def log(self) -> str:
        return (self.run_dir / "logs" / f"slurm_{self.job_id}.out").read_text()


@pytest.fixture(scope="module")
def trials(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trial]:
    """All trials of this file, side by side: most of their time is Slurm's wait before a requeued start."""
    base = tmp_path_factory.mktemp("batch_script")

    def trial(name: str, *codes: str, max_requeue: int = 3, waits: bool = False) -> Trial:
        return Trial(slurm, base / name, list(codes), max_requeue=max_requeue, waits=waits)

    return {
        "done": trial("done", "done"),
        "no_marker": trial("no_marker", "0"),
        "usr1": trial("usr1", "75", "done", waits=True),
        "cancelled": trial("cancelled", "75", "done", waits=True),
        "peer_lost": trial("peer_lost", "76", "76", "76", max_requeue=1),
        "no_requeue": trial("no_requeue", "93", "done"),
        "driver_killed": trial("driver_killed", "137", "done"),
    }


def test_done_run_completes(trials: dict[str, Trial]) -> None:
    assert trials["done"].end() == FinishedJob("COMPLETED", exit_code=0, signal=0, restarts=0)


def test_exit_code_0_without_the_marker_fails(trials: dict[str, Trial]) -> None:
    assert trials["no_marker"].end() == FinishedJob("FAILED", exit_code=70, signal=0, restarts=0)
    assert "DONE is missing although no worker failed. Fix: " in trials["no_marker"].log()


def test_warning_before_the_limit_stops_and_requeues(trials: dict[str, Trial]) -> None:
    trial = trials["usr1"]
    trial.wait_for_attempt(0)
    trial.signal("--signal=USR1", "--batch")
    assert trial.end() == FinishedJob("COMPLETED", exit_code=0, signal=0, restarts=1)
    assert trial.attempts == 2
    # The log goes on over the restart.
    assert "attempt 0: the driver ended with 75" in trial.log()
    assert "attempt 1: the driver ended with 0" in trial.log()


def test_cancelled_job_stops_and_stays_cancelled(trials: dict[str, Trial]) -> None:
    trial = trials["cancelled"]
    trial.wait_for_attempt(0)
    trial.signal()
    assert trial.end().state == "CANCELLED"
    assert (trial.run_dir / "stop").exists()
    assert trial.attempts == 1


def test_lost_peer_requeues_so_often_and_no_more(trials: dict[str, Trial]) -> None:
    trial = trials["peer_lost"]
    assert trial.end() == FinishedJob("FAILED", exit_code=76, signal=0, restarts=1)
    assert trial.attempts == 2
    assert "not requeued: it has been 1 times, the most is 1. Fix: " in trial.log()


def test_run_that_another_attempt_cannot_help_is_not_requeued(trials: dict[str, Trial]) -> None:
    assert trials["no_requeue"].end() == FinishedJob("FAILED", exit_code=93, signal=0, restarts=0)


def test_driver_that_was_killed_is_requeued(trials: dict[str, Trial]) -> None:
    assert trials["driver_killed"].end() == FinishedJob("COMPLETED", exit_code=0, signal=0, restarts=1)


def test_preempted_job_is_requeued_by_slurm(slurm: SlurmCluster, tmp_path: Path) -> None:
    """Once. Slurm sends USR1, as before a time limit, and TERM, in any order: our requeue must not be a second one."""
    trial = Trial(slurm, tmp_path / "preempted", ["75", "done"], waits=True)
    trial.wait_for_attempt(0)
    slurm.run("sbatch", "--partition=high", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=true")
    assert trial.end() == FinishedJob("COMPLETED", exit_code=0, signal=0, restarts=1)
    assert trial.attempts == 2
    assert "attempt 0: the driver ended with 75" in trial.log()
    assert "attempt 0: requeued" not in trial.log()
