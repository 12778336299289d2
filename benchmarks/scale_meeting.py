"""How long many workers take to find each other: one process plays all of them to the rendezvous of a run."""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.comparison import Comparison
from tl_dist.rendezvous.server import Rendezvous

ROOT = Path(__file__).parent.parent
CASES = {  # name: (workers, do they exchange the addresses of Horovod's Gloo as well, seconds)
    "64, and their addresses": (64, True, 2.0),
    "1,024": (1024, False, 15.0),
}
ROUNDS = 3


def comparisons() -> Iterator[Comparison]:
    for name, (num, mesh, bar_s) in CASES.items():
        found = [played(num, mesh) for _ in range(ROUNDS)]
        seconds = statistics.median(max(each["meet_s"], each["mesh_s"]) for each in found)
        note = f"{found[0]['requests']:,.0f} requests"
        yield Comparison(f"scale_meeting[{name}]", "s", seconds, "patience", bar_s, bar=1.0, at_most=True, note=note)


def played(num: int, mesh: bool) -> dict[str, float]:
    with Rendezvous([(f"node{k}", 8) for k in range(num // 8)], "127.0.0.1") as rendezvous:
        argv = [sys.executable, "-m", "tests.scale.peers", rendezvous.endpoint.split(":")[1], str(num)]
        done = subprocess.run([*argv, *["--mesh"] * mesh], cwd=ROOT, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))
