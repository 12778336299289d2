"""`tl-dist export`: have a worker write the model of a run for another runtime, and compare the two."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tl_dist.config import file as config_file
from tl_dist.files import limits
from tl_dist.files.foreign import read_file
from tl_dist.launcher.task import refuse_in_use, run_task
from tl_dist.models.export import format_of
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.terminal.console import Console
from tl_dist.terminal.tables import narrow_table, relative
from tl_dist.tools.export import Request, agreement


def numbers_of(to: str, *, int8: bool, float16: bool) -> str:
    """Return the number type of the weights. Refuse (64) both options at once, and a type that the format lacks."""
    if int8 and float16:
        raise Refusal("--int8 and --float16 exclude each other.", fix="give one of them.", code=ExitCode.USAGE)
    numbers = "int8" if int8 else "float16" if float16 else "float32"
    format_of(to, numbers)
    return numbers


def default_directory(run: RunDir, to: str, numbers: str) -> Path:
    """Return RUN/exports/FORMAT, or RUN/exports/FORMAT-NUMBERS for numbers other than float32."""
    return run.path / "exports" / (to if numbers == "float32" else f"{to}-{numbers}")


def export(run: RunDir, request: Request, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Have a worker export the run, and return the report."""
    refuse_in_use(run)
    cfg = config_file.load(run.config_file, ["strategy=single", "workers=1"])
    comparing = "" if request.check == "none" else f", and comparing on {request.check}"
    say(f"exporting to {request.to}{comparing}")
    run_task(run, cfg, request, what="export", heading=f"{request.to} {request.numbers}")
    return json.loads(read_file(Path(request.out) / "export.json", max_bytes=limits.EVALUATION))


def show(target: Path, report: dict[str, Any], console: Console) -> None:
    """Print what was written, how far it is from the run, and a table of its latency."""
    console.say(
        f"{relative(target / report['file'])}: {report['to']} in {report['numbers']}, {report['bytes'] / 1e6:.1f} MB, "
        f"of step {report['step']:,}",
        style="bold",
    )
    if report["temperature"] is not None:
        console.say(f"its probabilities are calibrated: temperature {report['temperature']:.3f}")
    if "split" not in report:
        console.say("not compared with the run (--check none)", style="yellow")
        return
    for line in agreement(report):
        console.say(line)
    if own := report.get("encoded"):
        console.say(
            f"its own decoding of JPEG and PNG: {own['num_agreeing']:,} of {own['num_examples']:,} the same answer | "
            f"largest difference {own['largest_difference']:.2g}"
        )
    table = narrow_table("batch", "p50 ms", "p90 ms", "p99 ms", "images/s")
    for rows, times in report["latency_ms"].items():
        table.add_row(rows, *(f"{ms:.2f}" for ms in times.values()), f"{1e3 * int(rows) / times['p50']:,.1f}")
    console.print(table)
    console.say(f"with MODEL_CARD.md, classes.json and preprocess.py in {os.path.join(relative(target), '')}")
