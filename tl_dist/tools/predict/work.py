"""Predict image files with the model of a run, with all workers, and pass predictions on as they are computed."""

import json
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
        if model.parallel.rank == 0 and not one_class:
            put(directory, number, _of_targets(model, part))
        elif model.parallel.rank == 0:
            softmax = figures.Softmax(part.logits, model.temperature).in_place()
            in_set = np.empty(0, np.int32) if least is None else conformal.sets(softmax, least)
            classes, probabilities = figures.largest(softmax, max(request.top, int(in_set.max(initial=0))))
            p_known = np.empty(0, np.float32)
            if known is not None:
                distances = known.distances(part.features, model.cfg.evaluation_batch)
                p_known = conformal.p_values(distances, known.of_known)
            decided = np.empty(0, np.int32) if rule is None else rule.classes(softmax)
            p_decided = softmax[np.arange(len(decided)), decided]
            piece = Piece(part.examples, classes, probabilities, part.faults, in_set, p_known, decided, p_decided)
            put(directory, number, piece)
    return ExitCode.DONE


def _of_targets(model: Loaded, part: Found) -> Piece:
    """Return the answers of images that have not one class, all in order, and the labels that are given."""
    answers = tasks.of(model.cfg).answers(part.logits)
    none, no_class = np.empty(0, np.float32), np.zeros(answers.shape, np.int32)
    labels = tasks.of(model.cfg).given(answers, model.decision).astype(np.int32)
    values = answers.astype(np.float32)
    return Piece(part.examples, no_class, values, part.faults, np.empty(0, np.int32), none, labels, none)


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
