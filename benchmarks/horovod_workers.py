"""Two Horovod workers with one thread each against one worker with two threads: the same global batch of 64.

VGG16 at 32 px. The ratio is what distribution costs when the hardware stays the same. Where everything is trained, each
step sends 59 MB of float32 from core to core: by TCP (Gloo), by shared memory (Open MPI), or as bfloat16. What two
workers reach that exchange nothing says how much of the cost is not the exchange: each has half of the batch, but all
of the weights to prepare, to read and to update.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.comparison import Comparison, in_turn

ROOT = Path(__file__).parent.parent
GLOO = (str(Path(sys.executable).parent / "horovodrun"), "-np", "2", "--gloo")
MPI = ("mpirun", "-np", "2", "--allow-run-as-root", "--bind-to", "none", "--oversubscribe")
CASES = {  # name: (launcher, train_from, precision, wire, bar)
    "head, mixed_bfloat16": (GLOO, "head", "mixed_bfloat16", "auto", 0.95),
    "all, mixed_bfloat16": (GLOO, "all", "mixed_bfloat16", "auto", 0.85),
    "all, float32": (GLOO, "all", "float32", "auto", 0.85),
    "all, float32, MPI": (MPI, "all", "float32", "auto", 0.85),
    "all, float32, bfloat16 sent": (GLOO, "all", "float32", "bfloat16", 0.85),
}
ROUNDS = 3


def comparisons() -> Iterator[Comparison]:
    from tl_dist.models.precision import cpu_has_bfloat16

    for name, (launcher, *case, bar) in CASES.items():
        _, precision, _ = case
        if precision == "mixed_bfloat16" and not cpu_has_bfloat16():
            continue
        details: dict[int, dict[str, float]] = {}
        sides = {
            "1": launched((), case, details),
            "2": launched(launcher, case, details),
            "apart": apart(case),
        }
        found = in_turn(sides, ROUNDS)
        note = (
            f"reduced each step: {details[2]['reduced_bytes'] / 1e6:.1f} MB per worker; "
            f"not hidden: {details[2]['reduction_share']:.1%} of the step; two that exchange nothing: "
            f"{found['apart']:.1f} images/s ({found['apart'] / found['1']:.2f}), of which it is "
            f"{found['2'] / found['apart']:.2f}"
        )
        yield Comparison(
            f"horovod_workers[{name}]", "images/s", found["2"], "1 worker", found["1"], bar=bar, note=note
        )  # fmt: skip


def launched(launcher: Sequence[str], case: Sequence[str], details: dict[int, dict[str, float]]) -> Callable[[], float]:
    workers = 2 if launcher else 1

    def measure() -> float:
        (details[workers],) = figures(launcher, case, threads=2 // workers, batch=64)
        return details[workers]["images_per_s"]

    return measure


def apart(case: Sequence[str]) -> Callable[[], float]:
    """Two workers of one thread and half of the batch, at the same time, that know nothing of each other."""
    return lambda: sum(one["images_per_s"] for one in figures((), case, threads=1, batch=32, processes=2))


def figures(
    launcher: Sequence[str], case: Sequence[str], *, threads: int, batch: int, processes: int = 1
) -> list[dict[str, float]]:
    """What so many commands at a time have measured."""
    with tempfile.TemporaryDirectory() as directory:
        outputs = [Path(directory) / f"{k}.json" for k in range(processes)]
        argv = [*launcher, sys.executable, "-m", "benchmarks.horovod_workers"]
        argv += ["horovod" if launcher else "single", *case, str(threads), str(batch)]
        env = dict(os.environ, OMP_NUM_THREADS=str(threads), TF_CPP_MIN_LOG_LEVEL="2", PYTHONPATH=str(ROOT))
        started = [
            subprocess.Popen(
                [*argv, str(output)],
                env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for output in outputs
        ]  # fmt: skip
        for process in started:
            said, _ = process.communicate()
            if process.returncode:
                raise RuntimeError(said)
        return [json.loads(output.read_text()) for output in outputs]


def trained(strategy: str, train_from: str, precision: str, wire: str, threads: str, batch: str, output: str) -> None:
    """One worker: the median rate over several stretches of steps."""
    import statistics

    from benchmarks.trainer import Trainer, advance, config, use_threads
    from tl_dist.config import registry

    use_threads(int(threads))
    cfg = config(strategy, batch=int(batch), train_from=train_from)
    parallel = registry.strategy(strategy).start(cfg)
    trainer = Trainer(cfg, parallel, precision, wire=wire, threads=int(threads))
    steps = 30 if train_from == "head" else 10

    def drive() -> None:
        reports = trainer.reports(steps)
        advance(reports, steps + 1)
        rates, shares = [], []
        for _ in range(5):
            start = time.perf_counter()
            pulled = advance(reports, steps)
            seconds = time.perf_counter() - start
            rates.append(sum(report.num_examples for report in pulled) / seconds)
            shares.append(sum(report.reduction_s for report in pulled) / seconds)
        if parallel.rank == 0:
            figures = {
                "images_per_s": statistics.median(rates),
                "reduction_share": statistics.median(shares),
                "reduced_bytes": float(getattr(parallel, "reduced_bytes", 0)),
            }
            Path(output).write_text(json.dumps(figures))

    parallel.broadcast(list(trainer.state.variables.values()))
    with parallel.naming_lost_peers():
        drive()


if __name__ == "__main__":
    trained(*sys.argv[1:])
