"""Fine-tuning all of ViT-S/16 at 224 px, batch 32, float32: each block computed again for its gradient, against once.

Memory is what the peak of a process grows by in its steps, time that of its processor in a step.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.comparison import Comparison

SIZE, BATCH, STEPS = 224, 32, 2

SIDE = """
import re, sys, time
from pathlib import Path
from benchmarks.trainer import Trainer, advance, config
from tl_dist.parallel.single import SingleDevice

size, batch, steps, recomputes = map(int, sys.argv[1:])
cfg = config(backbone="vit_small", batch=batch, image_size=size, recompute=bool(recomputes))
reports = Trainer(cfg, SingleDevice(cfg), "float32").reports(steps)

def peak_mb():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

before = peak_mb()
advance(reports, steps)  # compiles
start = time.process_time()
advance(reports, steps)
print([peak_mb() - before, (time.process_time() - start) / steps])
"""


def comparisons() -> Iterator[Comparison]:
    (memory, seconds), (most, least) = measured(recomputes=True), measured(recomputes=False)
    yield Comparison("recompute[memory]", "MB", memory, "once", most, bar=0.4, at_most=True)
    yield Comparison("recompute[time]", "CPU s/step", seconds, "once", least, bar=1.45, at_most=True)


def measured(*, recomputes: bool) -> tuple[float, float]:
    """Return the megabytes and the seconds of a process of its own."""
    arguments = map(str, (SIZE, BATCH, STEPS, int(recomputes)))
    done = subprocess.run(
        [sys.executable, "-c", SIDE, *arguments], cwd=Path(__file__).parents[1], capture_output=True, check=True
    )
    memory, seconds = json.loads(done.stdout.splitlines()[-1])
    return memory, seconds
