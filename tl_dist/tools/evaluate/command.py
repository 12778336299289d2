"""`tl-dist eval`: evaluate a checkpoint of a run, with workers as in training."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tl_dist.data.corruptions import CATEGORIES, SEVERITIES, named, prepare
from tl_dist.files import limits
from tl_dist.files.atomic import write_atomically
from tl_dist.files.foreign import read_file
from tl_dist.launcher import read_only
from tl_dist.launcher.task import Computation, config_for, overrides_for, refuse_in_use, run_task
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir, read_json
from tl_dist.scores import robustness
from tl_dist.terminal.console import Console
from tl_dist.terminal.progress import Record
from tl_dist.terminal.tables import narrow_table
from tl_dist.tools.evaluate import Request

_MAX_NAMES = 8


def record_of(
    path: Path,
    split: str | None,
    how: Computation,
    *,
    data: Path | None = None,
    by: Sequence[str] = (),
    corruptions: str | None = None,
    severity: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Record:
    """Evaluate a split (default: test), another data set, or corrupted images of a split, and return the record.

    Of the run, only its predictions and evaluations are written. `by`: also figures by group, as
    `datasets.division.groupings` takes it. `say` is told the strategy and workers of a split.
    """
    if corruptions is not None and (data is not None or by):
        what = "--corruptions takes the run's own images, without groups."
        raise Refusal(what, fix="leave out --data, --by-group and --by.", code=ExitCode.USAGE)
    if corruptions is None and severity is not None:
        what = "--severity needs --corruptions."
        raise Refusal(what, fix="add --corruptions all, or leave out --severity.", code=ExitCode.USAGE)
    if data is not None:
        return _of_data(path, data, split, how, by)
    names, severities = ([], []) if corruptions is None else parse_corruptions(corruptions, severity or "1-5")
    run, split = RunDir.open(path), str(split or "test")
    cfg = config_for(run, how)
    if corruptions is None:
        say(f"evaluating with strategy={cfg.strategy} workers={cfg.workers}")
    refuse_in_use(run)
    prepare(names)
    overrides = overrides_for(cfg, how)
    request = Request(at=how.at, overrides=overrides, split=split, by=by, corruptions=names, severities=severities)
    run_task(run, cfg, request, what="evaluation", heading=split)
    result = f"{split}_corruptions.json" if names else f"{split}.json"
    record: Record = json.loads(read_file(run.evaluations / result, max_bytes=limits.EVALUATION))
    return record


def _of_data(path: Path, data: Path, split: str | None, how: Computation, by: Sequence[str]) -> Record:
    """Evaluate another data set and return the record, whose `data` says what was matched; keep it in evaluations/.

    `split` is one of the data set's; default: its test split, or all of it if it has none. The run may be in use.
    """
    run = RunDir.open(path)
    request = Request(split=split, data=str(data), by=tuple(by))
    with read_only.directory() as place:
        read_only.work(run, request, place, how, what="evaluation")
        record = json.loads(read_file(place / "evaluation.json", max_bytes=limits.EVALUATION))
    run.evaluations.mkdir(mode=0o700, exist_ok=True)
    file = run.evaluations / f"{record['split']}.json"
    earlier = (read_json(file) or {}).get("data")
    looks = earlier.get("looks") if isinstance(earlier, dict) else 0
    record["data"]["looks"] = looks + 1 if isinstance(looks, int) else 1
    write_atomically(file, json.dumps(record).encode())
    return record


def show_matching(data: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Print what of the data set was left out of the evaluation, and what makes its figures too good."""
    if data["seen"] is None:
        say("how many of these images the run has seen with their labels is unknown: the figures may flatter")
    elif data["seen"]:
        say(f"the run has seen {data['seen']:,} of these images with their labels: the figures flatter")
    if data["unknown"]:
        counts = [f"{name} ({number:,})" for name, number in data["unknown"].items()]
        say(f"left out, since the run does not know these classes: {_few(counts)}")
    if data["missing"]:
        say(f"classes without an example: {_few(data['missing'])}")
    if data["undecodable"]:
        first = next(iter(data["undecodable"].items()))
        say(f"left out, since they cannot be decoded: {len(data['undecodable']):,} images, first {' '.join(first)}")
    if data["moving_statistics"]:
        say("the run has not ended: batch norm uses its moving statistics as they are")
    if data["looks"] > 1:
        say(f"look {data['looks']:,} at these images: they no longer measure what was chosen by them")


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def parse_corruptions(corruptions: str, severity: str) -> tuple[list[str], list[int]]:
    """Return names and severities: of "all" or "noise,fog", and of "1-5" or "3". Refuse (64) anything else."""
    match = re.fullmatch(r"([1-5])(?:-([1-5]))?", severity)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (2, 1)
    if first > last:
        fix = f"write one from {SEVERITIES[0]} to {SEVERITIES[-1]}, or a range such as 1-5."
        raise Refusal(f"there is no severity {severity}.", fix=fix, code=ExitCode.USAGE)
    return named(corruptions), list(range(first, last + 1))


def show_corrupted(record: Mapping[str, Any], console: Console) -> None:
    """Print accuracy by corruption and severity, and the mean corruption error."""
    severities = [str(severity) for severity in record["severities"]]
    table = narrow_table("corruption", *severities, *["mean"] * (len(severities) > 1))
    cells = [""] * len(severities) + [""] * (len(severities) > 1)
    table.add_row("none", *cells[:-1], f"{record['clean']:.3f}")
    for names in CATEGORIES.values():
        rows = {name: record["accuracy"][name] for name in names if name in record["accuracy"]}
        if rows:
            table.add_section()
        for name, values in rows.items():
            mean = [sum(values) / len(values)] if len(values) > 1 else []
            table.add_row(name, *(f"{value:.3f}" for value in [*values, *mean]))
    console.say(
        f"{record['split']} accuracy by corruption and severity, of {record['num_examples']:,} examples | "
        f"step {record['step']:,} | applied at the model's size, {record['image_size']} pixels",
        style="bold",
    )
    console.print(table)
    if record["mean_corruption_error"] is not None:
        console.say(
            f"mean corruption error {record['mean_corruption_error']:.4f}, without corruption "
            f"{1 - record['clean']:.4f}; not normalized: tl-dist compare --corruptions does, by another run"
        )
    if record["mce_alexnet"] is not None:
        console.say(f"mCE {record['mce_alexnet']:.4f}, normalized by AlexNet's errors; {robustness.NOT_PUBLISHED}")
