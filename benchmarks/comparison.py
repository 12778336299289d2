"""What a benchmark is: two sides measured in turn, a ratio, and the bar that it must meet."""

import importlib
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.results import record

BENCHMARKS = (
    "cli_start",
    "scale_start",
    "scale_meeting",
    "step_overhead",
    "checkpoint_stall",
    "vs_keras_fit",
    "vit_speed",
    "recompute",
    "vs_keras_accuracy",
    "vs_pytorch",
    "vs_horovod_examples",
    "horovod_workers",
    "scaling",
    "collective_vs_horovod",
    "elpv_features",
    "elpv_best",
    "elpv_networks",
    "cifar10",
    "input_jpeg",
    "input_vs_torchvision",
    "input_large_photos",
    "input_cifar",
    "input_packed",
    "tfrecord_index",
    "head_training",
    "classifier_fit",
    "second_classifier",
    "prefix_cache",
    "extraction_workers",
    "preprocessing",
    "predict_speed",
    "export",
    "report",
    "calibration",
    "rank",
    "distill",
    "lora",
    "tasks",
)
"""Modules of this package, each with `comparisons() -> Iterator[Comparison]`."""

ON_GPUS = ("gpu_step", "gpu_input", "gpu_idle")
"""the same, run only where they are named"""

NOT_RUN = 69
"""exit code where a benchmark needs what this machine does not have: EX_UNAVAILABLE of sysexits.h"""


class NotHereError(Exception):
    """This machine does not have what a benchmark needs; says what."""


@dataclass(frozen=True)
class Comparison:
    """Medians of two sides in one unit; `ratio` is ours over the rival's."""

    name: str
    unit: str
    ours: float
    rival_name: str
    rival: float
    bar: float
    at_most: bool = False
    """the ratio must be at most the bar, rather than at least"""
    note: str = ""

    @property
    def ratio(self) -> float:
        return self.ours / self.rival

    @property
    def holds(self) -> bool:
        return self.ratio <= self.bar if self.at_most else self.ratio >= self.bar

    @property
    def cells(self) -> tuple[str, ...]:
        """The name, the two sides, the ratio, its bar and the verdict."""
        return (
            self.name,
            f"{self.ours:.4g} {self.unit}",
            f"{self.rival_name} {self.rival:.4g} {self.unit}",
            f"{self.ratio:.3f}",
            f"{'<=' if self.at_most else '>='} {self.bar:g}",
            "holds" if self.holds else "falls short",
        )

    def __str__(self) -> str:
        name, ours, rival, ratio, bar, verdict = self.cells
        line = f"{name:<32} tl_dist {ours} | {rival} | ratio {ratio} | bar {bar} | {verdict}"
        return f"{line}\n{'':<32} {self.note}" if self.note else line


def in_turn(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of each side; every round measures each once, the order reversed from round to round."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for k in range(rounds):
        names = list(sides) if k % 2 == 0 else list(sides)[::-1]
        for name in names:
            found[name].append(sides[name]())
    return {name: statistics.median(values) for name, values in found.items()}


def main(names: Sequence[str]) -> int:
    """Run the named benchmarks, or all but those ON_GPUS; 0 when every bar holds, NOT_RUN when one could not be run.

    Each result is recorded in RESULTS.md at once.
    """
    known = (*BENCHMARKS, *ON_GPUS)
    unknown = set(names) - set(known)
    if unknown:
        print(
            f"unknown benchmark {', '.join(sorted(unknown))}. Fix: use {', '.join(known)}.",
            file=sys.stderr,
        )
        return 64
    print(machine(), flush=True)
    results: list[Comparison] = []
    missing = False
    for name in names or BENCHMARKS:
        comparisons: Iterator[Comparison] = importlib.import_module(f"benchmarks.{name}").comparisons()
        try:
            for comparison in comparisons:
                print(comparison, flush=True)
                results.append(comparison)
                record([comparison.cells], machine())
        except NotHereError as why:
            print(f"{name:<32} not run: {why}", flush=True)
            missing = True
    short = [result.name for result in results if not result.holds]
    print(f"{len(results) - len(short)} of {len(results)} hold" + (f"; short: {', '.join(short)}" if short else ""))
    if short:
        return 1
    return NOT_RUN if missing else 0


def machine() -> str:
    """Processor, cores and versions, in one line."""
    import os

    info = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":")[1].strip() for line in info.splitlines() if "model name" in line), "?")
    bfloat16 = "with bfloat16" if "avx512_bf16" in info or "amx_bf16" in info else "without bfloat16"
    packages = ", ".join(f"{name} {version(name)}" for name in ("keras", "horovod", "numpy"))
    return (
        f"{model} {bfloat16}, {len(os.sched_getaffinity(0))} cores | Python {platform.python_version()}, "
        f"TensorFlow {_tensorflow_version()}, {packages}"
    )


def _tensorflow_version() -> str:
    for name in ("tensorflow-cpu", "tensorflow"):
        try:
            return version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "?"
