"""TensorFlow's own collectives against Horovod's, two workers of one thread: exchanges, and steps of VGG16 at 32 px.

Each side is started as `tl-dist train` starts workers. The ratio says which one to take on a machine; the bar is only
that the slower one be of use: half of the other's speed.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.comparison import Comparison, in_turn
from benchmarks.horovod_workers import ROOT, trained

STRATEGIES = ("collective", "horovod")
ROUNDS = 3
BAR = 0.5
SMALL, LARGE = 40, 2 * 2**20  # float32 numbers of an exchange
EXCHANGES = 50


def comparisons() -> Iterator[Comparison]:
    for case in ("head", "all"):
        found = in_turn({name: launched(name, case, "images_per_s") for name in STRATEGIES}, ROUNDS)
        yield Comparison(
            f"collective_vs_horovod[{case}]", "images/s", found["collective"], "Horovod", found["horovod"], bar=BAR
        )  # fmt: skip
    details: dict[str, dict[str, float]] = {}
    sides = {name: launched(name, "exchanges", "small_ms", details) for name in STRATEGIES}
    found = in_turn(sides, ROUNDS)
    note = "; ".join(
        f"{name}: 8 MB at {each['gigabytes_per_s']:.2f} GB/s, met after {each['met_s']:.1f} s"
        for name, each in details.items()
    )
    yield Comparison(
        "collective_vs_horovod[small]", "ms", found["collective"], "Horovod", found["horovod"],
        bar=1 / BAR, at_most=True, note=note,
    )  # fmt: skip


def launched(
    strategy: str, case: str, figure: str, details: dict[str, dict[str, float]] | None = None
) -> Callable[[], float]:
    from tl_dist.rendezvous.server import Rendezvous

    def measure() -> float:
        with (
            tempfile.TemporaryDirectory() as directory,
            Rendezvous([("localhost", 2)], "127.0.0.1") as rendezvous,
        ):
            output = Path(directory) / "figures.json"
            argv = [sys.executable, "-m", "benchmarks.collective_vs_horovod", strategy, case, str(output)]
            common = dict(os.environ, OMP_NUM_THREADS="1", TF_CPP_MIN_LOG_LEVEL="2", PYTHONPATH=str(ROOT))
            workers = [
                subprocess.Popen(argv, env=common | rendezvous.worker_environment(rank), cwd=ROOT) for rank in (0, 1)
            ]
            codes = [worker.wait() for worker in workers]
            if any(codes):
                raise RuntimeError(f"{' '.join(argv)} failed")
            figures = json.loads(output.read_text())
        if details is not None:
            details[strategy] = figures
        return float(figures[figure])

    return measure


def exchanges(strategy: str) -> dict[str, float]:
    """Seconds to meet, milliseconds of a small sum and the rate of a large one, inside a compiled loop."""
    import tensorflow as tf

    from benchmarks.trainer import config
    from tl_dist.config import registry

    began = time.perf_counter()
    parallel = registry.strategy(strategy).start(config(strategy, batch=64, train_from="head"))
    parallel.total({"met": 1.0})
    met_s = time.perf_counter() - began
    seconds = {}
    for numbers in (SMALL, LARGE):
        values = tf.random.normal([numbers])

        @tf.function
        def rounds(values: tf.Tensor = values) -> tf.Tensor:
            for _ in tf.range(EXCHANGES):
                (values,) = parallel.reduce_gradients([values * 0.5])
                values = tf.reshape(values, [values.shape[0]])
            return values

        rounds()
        began = time.perf_counter()
        rounds()
        seconds[numbers] = (time.perf_counter() - began) / EXCHANGES
    parallel.total({"done": 1.0})
    return {
        "met_s": met_s,
        "small_ms": 1e3 * seconds[SMALL],
        "gigabytes_per_s": 4 * LARGE / seconds[LARGE] / 1e9,
    }


def worker(strategy: str, case: str, output: str) -> None:
    if case != "exchanges":
        trained(strategy, case, "float32", "auto", "1", "64", output)
        return
    found = exchanges(strategy)
    if os.environ["HOROVOD_RANK"] == "0":
        Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    worker(*sys.argv[1:])
