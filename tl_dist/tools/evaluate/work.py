"""Evaluate a checkpoint on the workers of its run: on a split, on corrupted images of it, or on another data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tl_dist.datasets import Source
from tl_dist.datasets.grouping import named
from tl_dist.files.atomic import write_atomically
from tl_dist.refusal import ExitCode
from tl_dist.runs.directory import RunDir
from tl_dist.scores import predictions
from tl_dist.scores.evaluation import Evaluation
from tl_dist.scores.groups import by_group
from tl_dist.tools.evaluate import Request, corruptions, other_data
from tl_dist.trainer import evaluate
from tl_dist.trainer.board import class_records
from tl_dist.trainer.load_model import loaded
from tl_dist.trainer.run_writer import evaluation_record
from tl_dist.trainer.setup import setup


def run(run: RunDir, request: Request, cores: int) -> ExitCode:
    """Evaluate as requested. Rank 0 writes evaluations/SPLIT.json in the run, or evaluation.json in `request.into`."""
    if request.data is not None:
        model = loaded(run, request.at, cores=cores, overrides=request.overrides)
        into = Path(request.into or "")
        evaluated = other_data.evaluate_data(model, Path(request.data), request.split, into, request.by)
        if evaluated is not None:
            result, source, facts = evaluated
            record = _record(run, model.step, result, source, request.by) | {"data": facts}
            write_atomically(into / "evaluation.json", json.dumps(record).encode())
        return ExitCode.DONE
    run_setup = setup(run, cores=cores, overrides=request.overrides)
    split = str(request.split)
    if request.corruptions:
        names, severities = list(request.corruptions), list(request.severities)
        record = corruptions.evaluate_corrupted(run_setup, split, names, severities, request.at)
        if run_setup.is_first:
            _write(run, f"{split}_corruptions.json", json.dumps(record).encode())
        return ExitCode.DONE
    named(evaluate.split_of(run_setup, split), request.by)  # refused before an hour is spent
    result = evaluate.evaluate_checkpoint(run_setup, split, request.at)
    if run_setup.is_first:  # rank 0 alone has the figures
        record = _record(run, run_setup.state.step, result, run_setup.splits[split], request.by)
        _write(run, f"{split}.json", json.dumps(record).encode())
        if "calibration" in result.figures:
            from tl_dist.scores.pictures import reliability_picture

            picture = reliability_picture(result.figures["calibration"])
            _write(run, f"{split}_reliability.png", picture)
    return ExitCode.DONE


def _record(run: RunDir, step: int, result: Evaluation, source: Source, by: Sequence[str]) -> dict[str, Any]:
    """Return the record of an evaluation, whose predictions the run has just saved, with figures `by` group."""
    record = evaluation_record(step, result, source.class_names)
    record["classes"] = class_records(result, source.class_names)
    if groupings := named(source, by):
        saved = predictions.load(predictions.file_of(run.path, result.split))
        columns = saved.labels, saved.probabilities, saved.groups
        record["groups"] = {kind: by_group(names, *columns) for kind, names in groupings.items()}
    return record


def _write(run: RunDir, name: str, content: bytes) -> None:
    run.evaluations.mkdir(exist_ok=True)
    write_atomically(run.evaluations / name, content)
