"""Predict image files with the model of a run, with all workers, and pass predictions on as they are computed."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist import tasks
from tl_dist.datasets.files import unlabelled
from tl_dist.files.atomic import write_atomically
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.scores import conformal, figures, neighbours, residuals
from tl_dist.scores.decision import Decision
from tl_dist.scores.neighbours import Neighbours
from tl_dist.tools.predict import FACTS, Piece, Request, asked, put
from tl_dist.trainer.load_model import Loaded, loaded
from tl_dist.trainer.predict import Found, predict


def run(run: RunDir, request: Request, cores: int) -> ExitCode:
    """Predict the files listed in `request.into`; rank 0 writes the requested predictions there."""
    model = loaded(run, request.at, cores=cores, overrides=request.overrides)
    directory, one_class = Path(request.into or ""), tasks.one_class_each(model.cfg)
    least = half = None
    if request.coverage is not None and one_class:
        least = _least(model, request.coverage, request.of_type)
    elif request.coverage is not None:
        half = _half_widths(model, request.coverage, request.of_type)
    if request.unknown is not None:
        tasks.refuse_others(model.cfg, "--unknown needs a calibration, which keeps classes")
    known = None if request.unknown is None else _known(model, request.unknown)
    source, rule = unlabelled(asked(directory), model.class_names), model.decision
    if model.parallel.rank == 0:
        facts = {
            "step": model.step,
            "moving_statistics": model.moving_statistics,
            "temperature": None if model.calibration is None else model.temperature,
            "decision": None if rule is None else rule.aim,
            "half_widths": half,
        }
        write_atomically(directory / FACTS, json.dumps(facts).encode())
    for number, part in enumerate(predict(model, source, features=known is not None)):
        if model.parallel.rank == 0:
            rows = _of_targets(model, part, rule, half)
            if one_class:
                rows = _of_classes(model, part, request, least, known, rule)
            # Faults have no rows.
            put(directory, number, Piece(list(zip(part.examples.tolist(), rows, strict=False)), part.faults))
    return ExitCode.DONE


def _of_classes(
    model: Loaded, part: Found, request: Request, least: float | None, known: Neighbours | None, rule: Decision | None
) -> Iterator[dict[str, Any]]:
    """Yield for each image its most probable classes, the set at least that probable, and if it is unlike `known`."""
    names, softmax = model.class_names, figures.Softmax(part.logits, model.temperature).in_place()
    in_set = None if least is None else conformal.sets(softmax, least)
    most = request.top if in_set is None else max(request.top, int(in_set.max(initial=0)))
    classes, probabilities = figures.largest(softmax, most)
    decided = None if rule is None else rule.classes(softmax)
    p_known = None
    if known is not None:
        distances = known.distances(part.features, model.cfg.evaluation_batch)
        p_known = conformal.p_values(distances, known.of_known)
    for k, numbers in enumerate(classes.tolist()):
        likely = [names[number] for number in numbers]
        pairs = list(zip(likely, probabilities[k], strict=True))
        if decided is not None:  # first, whatever its probability
            first = names[decided[k]], softmax[k, decided[k]]
            pairs = [first, *(pair for pair in pairs if pair[0] != first[0])]
        chosen, shares = zip(*pairs[: request.top], strict=True)
        row: dict[str, Any] = {"classes": chosen, "probabilities": shares}
        if in_set is not None:
            row["in_set"] = likely[: in_set[k]]
        if p_known is not None:
            row |= {"p_known": p_known[k], "unknown": bool(p_known[k] <= request.unknown)}
        yield row


def _of_targets(
    model: Loaded, part: Found, rule: Decision | None, half: Sequence[float] | None
) -> Iterator[dict[str, Any]]:
    """Yield for each image all its numbers, with intervals that reach `half` to both sides; or its labels."""
    task, names = tasks.of(model.cfg), model.class_names
    answers = task.answers(part.logits)
    labels = task.given(answers, rule)
    for k, values in enumerate(answers.astype(np.float32)):
        row: dict[str, Any] = {"values": dict(zip(names, values, strict=True))}
        if labels.size:
            row["labels"] = [name for name, has in zip(names, labels[k], strict=True) if has]
        elif half is not None:
            widths = np.array(half, np.float32)
            row["ends"] = dict(zip(names, zip(values - widths, values + widths, strict=True), strict=True))
        yield row


def _half_widths(model: Loaded, coverage: float, of_type: str | None) -> list[float]:
    """Return how far the numbers of validation images were from the truth at this rate, for each target."""
    measured = residuals.of_checkpoint(model.run.path, model.sha256)
    if measured is None:
        raise _not_calibrated(model, "coverage", "")
    return conformal.half_widths(_of_type(model, measured.errors, measured.types, of_type), coverage)


def _least(model: Loaded, coverage: float, of_type: str | None) -> float:
    """Return the least probability of a class in a conformal set. Refuse (64) a type without validation images."""
    if model.calibration is None:
        raise _not_calibrated(model, "coverage", "")
    of_true = _of_type(model, model.calibration.of_true, model.calibration.types, of_type)
    return conformal.least_probability(of_true, coverage)


def _of_type(model: Loaded, values: NDArray[Any], types: NDArray[np.str_], of_type: str | None) -> NDArray[Any]:
    """Return the values of the validation images of a type, or of all. Refuse (64) a type without any."""
    if of_type is None:
        return values
    if of_type not in types:
        names = ", ".join(sorted(set(types.tolist()))[:20])
        what = f"no validation image of run '{model.run.name}' is of type or group '{of_type}'."
        fix = f"use one of {names}." if names else "leave out --type: its data set has neither."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE)
    return np.asarray(values[types == of_type])


def _known(model: Loaded, rate: float) -> Neighbours:
    """Return the training features that images are compared with. Refuse (65) a rate that is too low for them."""
    known = neighbours.of_checkpoint(model.run.path, model.sha256)
    if known is None or model.calibration is None:
        raise _not_calibrated(model, "unknown", " --unknown")
    if known.features.shape[1] != model.model.num_features:
        raise Refusal(
            f"{model.run.path / neighbours.FILE} holds {known.features.shape[1]:,} features an image, and the network "
            f"has {model.model.num_features:,}.",
            fix=f"make it again: tl-dist calibrate {model.run.path} --unknown.",
            code=ExitCode.DATA,
        )
    conformal.refuse_rate(len(known.of_known), rate)
    return known


def _not_calibrated(model: Loaded, option: str, more: str) -> Refusal:
    what = f"--{option} needs a calibration of step {model.step:,} of run '{model.run.name}'."
    return Refusal(what, fix=f"run tl-dist calibrate RUN{more}, with the same --at.", code=ExitCode.USAGE)
