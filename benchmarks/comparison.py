"""What a benchmark is: two sides measured in turn, a ratio, and the bar that it must meet."""

import importlib
import platform
import statistics
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
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


FAILED = 70
"""exit code where a benchmark ended with an error: EX_SOFTWARE"""


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
    """Run the named benchmarks, or all but those ON_GPUS, each in a process of its own; one that fails stops no other.

    Returns 0 when every bar holds, FAILED when a benchmark failed, else 1 when a bar falls short, else NOT_RUN when one
    could not be run.
    """
    known = (*BENCHMARKS, *ON_GPUS)
    unknown = set(names) - set(known)
    if unknown:
        print(
            f"unknown benchmark {', '.join(sorted(unknown))}. Fix: use {', '.join(known)}.",
            file=sys.stderr,
        )
        return 64
    if len(names) == 1:
        return _run(names[0])
    run = str(Path(__file__).with_name("run"))
    codes = {name: subprocess.run([sys.executable, run, name], check=False).returncode for name in names or BENCHMARKS}
    names_by_code = {
        code: [name for name in codes if codes[name] == code] for code in sorted(set(codes.values()), key=_rank)
    }
    words = {0: "held", 1: "short", NOT_RUN: "not run"}
    lines = (f"{words.get(code, f'failed ({code})')}: {', '.join(of)}" for code, of in names_by_code.items())
    print("; ".join(lines), flush=True)
    worst = next(iter(names_by_code))
    return worst if worst in words else FAILED


def _rank(code: int) -> int:
    """Order exit codes, the worst first."""
    return {1: 1, NOT_RUN: 2, 0: 3}.get(code, 0)


def _run(name: str) -> int:
    """Run one benchmark here, and record each result in RESULTS.md at once; returns an exit code as `main` does."""
    print(machine(), flush=True)
    results: list[Comparison] = []
    try:
        for comparison in importlib.import_module(f"benchmarks.{name}").comparisons():
            print(comparison, flush=True)
            results.append(comparison)
            record([comparison.cells], machine())
    except NotHereError as why:
        print(f"{name:<32} not run: {why}", flush=True)
        return NOT_RUN
    except Exception:
        traceback.print_exc()
        return FAILED
    short = [result.name for result in results if not result.holds]
    print(f"{len(results) - len(short)} of {len(results)} hold" + (f"; short: {', '.join(short)}" if short else ""))
    return 1 if short else 0


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
