"""Two Horovod workers with one thread each against one worker with two threads: the same global batch of 64.

VGG16 at 32 px. The ratio is what distribution costs when the hardware stays the same. Where everything is trained, each
step sends 59 MB of float32 from core to core: by TCP (Gloo), by shared memory (Open MPI), or as bfloat16.
"""

from __future__ import annotations

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
        sides = {"1": launched((), case, details), "2": launched(launcher, case, details)}
        found = in_turn(sides, ROUNDS)
        note = (
            f"reduced each step: {details[2]['reduced_bytes'] / 1e6:.1f} MB per worker; "
            f"not hidden: {details[2]['reduction_share']:.1%} of the step"
        )
        yield Comparison(
            f"horovod_workers[{name}]", "images/s", found["2"], "1 worker", found["1"], bar=bar, note=note
        )  # fmt: skip


def launched(
    launcher: Sequence[str], case: Sequence[str], details: dict[int, dict[str, float]]
) -> Callable[[], float]:
    workers = 2 if launcher else 1
    threads = str(2 // workers)
    strategy = "horovod" if launcher else "single"

    def measure() -> float:
        with tempfile.TemporaryDirectory() as directory:
            output = Path(directory) / "figures.json"
            argv = [*launcher, sys.executable, "-m", "benchmarks.horovod_workers"]
            argv += [strategy, *case, threads, str(output)]
            env = dict(os.environ, OMP_NUM_THREADS=threads, TF_CPP_MIN_LOG_LEVEL="2", PYTHONPATH=str(ROOT))
            done = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(done.stdout + done.stderr)
            details[workers] = json.loads(output.read_text())
        return details[workers]["images_per_s"]

    return measure


def trained(strategy: str, train_from: str, precision: str, wire: str, threads: str, output: str) -> None:
    """One worker: the median rate over several stretches of steps."""
    import statistics

    from benchmarks.trainer import Trainer, advance, config, use_threads
    from tl_dist.config import registry

    use_threads(int(threads))
    cfg = config(strategy, batch=64, train_from=train_from)
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
