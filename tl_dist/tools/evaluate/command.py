"""`tl-dist eval`: the figures of a checkpoint of a run, computed by workers as in training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tl_dist.data.corruptions import prepare
from tl_dist.files import limits
from tl_dist.files.atomic import write_atomically
from tl_dist.files.foreign import read_file
from tl_dist.launcher import read_only
from tl_dist.launcher.task import Computation, config_for, overrides_for, refuse_in_use, run_task
from tl_dist.runs.directory import RunDir, read_json
from tl_dist.terminal.progress import Record
from tl_dist.tools.evaluate import Request

_NAMED = 8


def evaluate(
    path: Path,
    split: str,
    how: Computation,
    *,
    by: Sequence[str] = (),
    corruptions: tuple[Sequence[str], Sequence[int]] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Record:
    """The evaluation of a split, as a record of `metrics.jsonl` has it. Of the run it writes only its predictions.

    `say` is told the workers. `by`: figures by group as well, as `datasets.grouping.named` has it. `corruptions`: in
    place of all that, the record of images with these at these severities.
    """
    run = RunDir.open(path)
    cfg = config_for(run, how)
    say(f"evaluating with strategy={cfg.strategy} workers={cfg.workers}")
    refuse_in_use(run)
    names, severities = corruptions or ((), ())
    prepare(names)
    request = Request(
        at=how.at,
        overrides=overrides_for(cfg, how),
        split=str(split),
        by=by,
        corruptions=names,
        severities=severities,
    )
    run_task(run, cfg, request, what="evaluation", heading=split)
    result = f"{split}_corruptions.json" if names else f"{split}.json"
    record: Record = json.loads(read_file(run.evaluations / result, max_bytes=limits.EVALUATION))
    return record


def evaluate_data(
    path: Path,
    data: Path,
    split: str | None,
    how: Computation,
    *,
    by: Sequence[str] = (),
) -> Record:
    """The evaluation of a data set as a record, whose `data` says what was matched; it is kept in evaluations/.

    `split` is one of the data set; default: its test split, and all of a set without one. The run may be in use.
    """
    run = RunDir.open(path)
    request = Request(split=split, data=str(data), by=tuple(by))
    with read_only.directory() as place:
        read_only.work(run, request, place, how, what="evaluation")
        record = json.loads(read_file(place / "evaluation.json", max_bytes=limits.EVALUATION))
    run.evaluations.mkdir(mode=0o700, exist_ok=True)
    file = run.evaluations / f"{record['split']}.json"
    earlier = (read_json(file) or {}).get("data")
    looks = earlier.get("looks", 0) if isinstance(earlier, dict) else 0
    record["data"]["looks"] = looks + 1 if isinstance(looks, int) else 1
    write_atomically(file, json.dumps(record).encode())
    return record


def show_matching(data: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """What of the data set was evaluated, and what not."""
    if data["seen"]:
        say(f"the run has seen {data['seen']:,} of these images with their labels: the figures flatter")
    if data["unknown"]:
        counts = [f"{name} ({number:,})" for name, number in data["unknown"].items()]
        say(f"left out, since the run does not know these classes: {_few(counts)}")
    if data["missing"]:
        say(f"without an example: {_few(data['missing'])}")
    if data["undecodable"]:
        first = next(iter(data["undecodable"].items()))
        say(
            f"left out, since they cannot be decoded: {len(data['undecodable']):,} images, first {' '.join(first)}"
        )
    if data["moving_statistics"]:
        say("the run has not ended: batch norm has its moving statistics as they are")
    if data["looks"] > 1:
        say(f"look {data['looks']:,} at these images: what is chosen by them is no longer measured by them")


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
