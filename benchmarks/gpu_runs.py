"""Runs of `tl-dist train` on GPUs, measured by what they write down: for benchmarks and the acceptance of GPUs."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison import NotHereError
from tl_dist.launcher.command import visible_gpus

ROOT = Path(__file__).parents[1]
TL_DIST = Path(sys.executable).with_name("tl-dist")
CONFIG = "configs/imagenet_resnet50_gpu.yaml"
SYNTHETIC = (
    "data.name=synthetic",
    "data.path=null",
    "data.num_examples=4096",
    "data.num_classes=1000",
    "data.augment=[]",
    "epochs=null",
    "steps=400",
    "report.tensorboard=false",
    "evaluation.every_epochs=1000",
    "optimizer.schedule.name=constant",
    "optimizer.schedule.drop_at_epochs=[]",
)
"""overrides of CONFIG: no image is read, and nothing but steps is done"""
MINUTES = 30


def require_gpus(number: int = 1) -> int:
    """The GPUs that can be seen; raises where there are fewer than `number`."""
    found = visible_gpus(os.environ)
    if found < number:
        raise NotHereError("no GPU was found" if not found else f"{found} GPUs were found, and it needs {number}")
    return found


def trained(*overrides: str, config: str = CONFIG, runs: Path | None = None) -> list[dict[str, Any]]:
    """The records of a run of its own by `tl-dist train`; raises where that fails."""
    with tempfile.TemporaryDirectory(prefix="tl-dist-benchmark-") as scratch:
        root = runs or Path(scratch)
        done = command("train", config, f"--runs={root}", "name=measured", *overrides)
        if done.returncode:
            said = (done.stdout + done.stderr)[-4000:]
            raise RuntimeError(f"tl-dist train ended with {done.returncode}:\n{said}")
        lines = (root / "measured" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def command(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`tl-dist` with these arguments, in the checkout."""
    return subprocess.run(
        [TL_DIST, *arguments],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60 * MINUTES,
        check=False,
    )


def last_report(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The record of the last steps, when everything has been compiled."""
    return [record for record in records if record["event"] == "train"][-1]


def speed(*overrides: str, config: str = CONFIG) -> float:
    """Images a second at the end of a run."""
    return float(last_report(trained(*overrides, config=config))["examples_per_s"])
