"""Weak and strong scaling on the cores of this machine, and what a model of communication says of 64 to 1,024 GPUs.

Measured: one Horovod worker of one thread against two, with the same batch for each (weak) and the same batch in all
(strong); what each sends by step, from the kernel's counters of loopback; the exchange of the gradients by itself; and
two lone workers at once, since two cores that share memory and caches are less than twice one. VGG16 at 32 px. On a
virtual machine of two cores the lone ones reached 0.89 to 0.93, weak 0.58 to 0.72 and strong 0.52 to 0.64. The cores
were busy in 91 to 97 % of a weak step: 0.78 to 0.84 s of CPU time, where one worker alone took 0.61 to 0.63. So what is
short is cores: the exchange is copied and added up on those that compute.

The model: a step computes for t; an all-reduce in a ring sends 2 (N - 1) / N of the gradients' bytes through each
server's network and takes 2 (N - 1) hops; it hides behind the backward pass, two thirds of t, as well as it can, or
not at all. What it says is held against published figures: Horovod's benchmarks page (batch 64, 4 Pascal GPUs a server,
25 Gbit/s) and, for one such GPU, TensorFlow's of 2017. For other sizes it is a projection: nobody here has measured it.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.comparison import Comparison, in_turn

ROOT = Path(__file__).parent.parent
HOROVODRUN = str(Path(sys.executable).parent / "horovodrun")
BATCH = 32
ROUNDS = 3
HOP_S = 5e-6
SIZES = (64, 256, 1024)


@dataclass(frozen=True)
class Network:
    """Millions of parameters, and images/s of one P100 at batch 64."""

    parameters: float
    images_per_s: float


NETWORKS = {
    "Inception V3": Network(23.8e6, 142),
    "VGG-16": Network(138.4e6, 154),
    "ResNet-50": Network(25.6e6, 219),
}
PUBLISHED = {("Inception V3", 512): 0.90, ("VGG-16", 512): 0.68, ("VGG-16", 128): 0.79}


def comparisons() -> Iterator[Comparison]:
    details: dict[str, dict[str, float]] = {}
    sides: dict[str, Callable[[], float]] = {
        "one": lambda: launched("one", 1, BATCH, details),
        "apart": lambda: two_apart(details),
        "weak": lambda: launched("weak", 2, 2 * BATCH, details),
        "strong": lambda: launched("strong", 2, BATCH, details),
    }
    found = in_turn(sides, ROUNDS)
    for name in ("weak", "strong"):
        two, one = details[name], details["one"]
        step_s = (BATCH if name == "strong" else 2 * BATCH) / found[name]
        yield Comparison(
            f"scaling[{name}, 2 workers]", "images/s", found[name], "2 x 1 worker", 2 * found["one"],
            bar=0.8 if name == "weak" else 0.7,
            note=f"{two['sent_bytes'] / 1e6:.1f} MB on the wire by each in a step, {two['reduced_bytes'] / 1e6:.1f} MB "
            f"of gradients, whose exchange by itself takes {two['exchange_s']:.3f} s; CPU {two['cpu_s']:.3f} s of the "
            f"{step_s:.3f} s of a step, alone {one['cpu_s']:.3f} s; two without an exchange: {found['apart']:.1f} "
            f"images/s, {found['apart'] / (2 * found['one']):.3f}",
        )  # fmt: skip
    for (name, gpus), efficiency in PUBLISHED.items():
        least, most = efficiencies(NETWORKS[name], gpus)
        yield Comparison(
            f"scaling[model, {name} on {gpus}]", "efficiency", most, "published", efficiency,
            bar=1.0, note=f"model: {least:.0%} with nothing hidden, {most:.0%} with all that can be",
        )  # fmt: skip
    print("Projection, not measured: efficiency with nothing hidden to all that can be, float32, batch 64 by P100")
    for name, network in NETWORKS.items():
        for gbit in (25, 100):
            bounds = (efficiencies(network, gpus, gbit) for gpus in SIZES)
            shown = ", ".join(f"{n}: {a:.0%} to {b:.0%}" for n, (a, b) in zip(SIZES, bounds, strict=True))
            print(f"  {name}, {gbit} Gbit/s by server of 4 GPUs: {shown}")


def efficiencies(network: Network, gpus: int, gbit: float = 25.0) -> tuple[float, float]:
    """The least and the most that the model allows."""
    compute_s = 64 / network.images_per_s
    reduce_s = 2 * (gpus - 1) / gpus * 4 * network.parameters / (gbit / 8 * 1e9) + 2 * (gpus - 1) * HOP_S
    exposed_s = max(0.0, reduce_s - 2 / 3 * compute_s)
    return compute_s / (compute_s + reduce_s), compute_s / (compute_s + exposed_s)


def two_apart(details: dict[str, dict[str, float]]) -> float:
    """Images/s of two lone workers at the same time, together: what the machine has for two that exchange nothing."""
    with ThreadPoolExecutor(2) as pool:
        rates = pool.map(lambda name: launched(name, 1, BATCH, details), ("first", "second"))
        return sum(rates)


def launched(name: str, workers: int, batch: int, details: dict[str, dict[str, float]]) -> float:
    """Images/s of so many workers in all; the rest of what they have measured goes to `details`, by that name."""
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "figures.json"
        argv = [HOROVODRUN, "-np", str(workers), "--gloo", sys.executable, "-m", "benchmarks.scaling"]
        env = dict(os.environ, OMP_NUM_THREADS="1", TF_CPP_MIN_LOG_LEVEL="2", PYTHONPATH=str(ROOT))
        subprocess.run([*argv, str(batch), str(output)], env=env, cwd=ROOT, capture_output=True, check=True)
        details[name] = json.loads(output.read_text())
    return details[name]["images_per_s"]


def worker(batch: str, output: str) -> None:
    """One worker: the rate over some stretches of steps, and the bytes that loopback has carried meanwhile."""
    import statistics
    import time

    import tensorflow as tf

    from benchmarks.trainer import Trainer, advance, config, use_threads
    from tl_dist.config import registry

    use_threads(1)
    cfg = config("horovod", batch=int(batch))
    parallel = registry.strategy("horovod").start(cfg)
    trainer = Trainer(cfg, parallel, "float32", threads=1)
    parallel.broadcast(list(trainer.state.variables.values()))
    steps, rates = 10, []
    with parallel.naming_lost_peers():
        reports = trainer.reports(steps)
        advance(reports, steps + 1)
        before, cpu_s = loopback_bytes(), time.process_time()
        for _ in range(5):
            start = time.perf_counter()
            pulled = advance(reports, steps)
            rates.append(sum(report.num_examples for report in pulled) / (time.perf_counter() - start))
        sent = (loopback_bytes() - before) / parallel.world_size / (5 * steps)
        cpu_s = (time.process_time() - cpu_s) / (5 * steps)
        gradients = [tf.zeros(variable.shape) for variable in trainer.model.trainable.values()]
        exchange = tf.function(parallel.reduce_gradients)
        exchange(gradients)
        start = time.perf_counter()
        for _ in range(steps):
            exchange(gradients)
        exchange_s = (time.perf_counter() - start) / steps
    if parallel.rank == 0:
        figures = {
            "images_per_s": statistics.median(rates),
            "sent_bytes": sent,
            "exchange_s": exchange_s,
            "cpu_s": cpu_s,
        }
        figures["reduced_bytes"] = float(getattr(parallel, "reduced_bytes", 0))
        Path(output).write_text(json.dumps(figures))


def loopback_bytes() -> int:
    """What this host has sent to itself."""
    return int(Path("/sys/class/net/lo/statistics/tx_bytes").read_text())


if __name__ == "__main__":
    worker(*sys.argv[1:])
