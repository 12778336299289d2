"""Evaluate a checkpoint on the workers of its run."""

from __future__ import annotations

import json
from pathlib import Path

from tl_dist.datasets.grouping import named
from tl_dist.files.atomic import write_atomically
from tl_dist.refusal import ExitCode
from tl_dist.runs.directory import RunDir
from tl_dist.tools.evaluate import Request, corruptions, groups, other_data
from tl_dist.trainer import evaluate
from tl_dist.trainer.load_model import loaded
from tl_dist.trainer.metrics import class_records, evaluation_record
from tl_dist.trainer.setup import Setup, setup


def run(run: RunDir, request: Request, cores: int) -> ExitCode:
    """Evaluate as requested. Rank 0 writes evaluations/SPLIT.json in the run, or evaluation.json in `request.into`."""
    if request.data is not None:
        model = loaded(run, request.at, cores=cores, overrides=request.overrides)
        other_data.evaluate_data(
            model, Path(request.data), request.split, Path(request.into or ""), request.by
        )
        return ExitCode.DONE
    run_setup = setup(run, cores=cores, overrides=request.overrides)
    split = str(request.split)
    if request.corruptions:
        names, severities = list(request.corruptions), list(request.severities)
        record = corruptions.evaluate_corrupted(run_setup, split, names, severities, request.at)
        if run_setup.is_first:
            _write(run, f"{split}_corruptions.json", json.dumps(record).encode())
        return ExitCode.DONE
    _evaluate_split(run, run_setup, split, request)
    return ExitCode.DONE


def _evaluate_split(run: RunDir, setup: Setup, split: str, request: Request) -> None:
    named(evaluate.split_of(setup, split), request.by)  # refused before an hour is spent
    result = evaluate.evaluate_checkpoint(setup, split, request.at)
    if not setup.is_first:  # rank 0 alone has the figures
        return
    source = setup.splits[split]
    record = evaluation_record(setup.state.step, result, source.class_names)
    record["classes"] = class_records(result, source.class_names)
    record |= groups.record(run, split, source, request.by)
    _write(run, f"{split}.json", json.dumps(record).encode())
    if "calibration" in result.figures:
        from tl_dist.scores.pictures import reliability_picture

        picture = reliability_picture(result.figures["calibration"])
        _write(run, f"{split}_reliability.png", picture)


def _write(run: RunDir, name: str, content: bytes) -> None:
    run.evaluations.mkdir(exist_ok=True)
    write_atomically(run.evaluations / name, content)
