"""What the model of a run predicts of image files, over all workers, handed on as it is computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tl_dist.datasets.files import unlabelled
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.scores import conformal, figures, neighbours
from tl_dist.scores.neighbours import Neighbours
from tl_dist.tools.predict import Request, exchange
from tl_dist.trainer.load_model import Loaded, loaded
from tl_dist.trainer.predict import predict


def run(run: RunDir, request: Request, cores: int) -> ExitCode:
    """Predict the files that `request.into` lists; rank 0 leaves there what is asked of each."""
    model = loaded(run, request.at, cores=cores, overrides=request.overrides)
    directory, wanted = Path(request.into or ""), request
    least = None if wanted.coverage is None else _least(model, wanted.coverage, wanted.of_type)
    known = None if wanted.unknown is None else _known(model, wanted.unknown)
    source = unlabelled(exchange.asked(directory), model.class_names, model.decoding)
    if model.parallel.rank == 0:
        temperature = None if model.calibration is None else model.temperature
        exchange.put_facts(
            directory,
            step=model.step,
            moving_statistics=model.moving_statistics,
            temperature=temperature,
            least=least,
        )
    for number, found in enumerate(predict(model, source, features=known is not None)):
        if model.parallel.rank == 0:
            every = figures.Softmax(found.logits, model.temperature).in_place()
            in_set = np.empty(0, np.int32) if least is None else conformal.sets(every, least)
            classes, probabilities = figures.largest(every, max(wanted.top, int(in_set.max(initial=0))))
            p_known = np.empty(0, np.float32)
            if known is not None:
                p_known = conformal.p_values(
                    known.distances(found.features, model.cfg.evaluation_batch), known.of_known
                )
            piece = exchange.Piece(found.examples, classes, probabilities, found.faults, in_set, p_known)
            exchange.put(directory, number, piece)
    return ExitCode.DONE


def _least(model: Loaded, coverage: float, of_type: str | None) -> float:
    """The probability from which on a class is in the set of an image, perhaps of a type."""
    if model.calibration is None:
        raise _not_calibrated(model, "coverage", "")
    of_true, types = model.calibration.of_true, model.calibration.types
    if of_type is not None:
        if of_type not in types:
            names = ", ".join(sorted(set(types.tolist()))[:20])
            raise Refusal(
                f"no validation image of run '{model.run.name}' is of type or group '{of_type}'.",
                fix=f"use one of {names}." if names else "leave out --type: its data set has neither.",
                code=ExitCode.USAGE,
            )
        of_true = of_true[types == of_type]
    return conformal.least_probability(of_true, coverage)


def _known(model: Loaded, rate: float) -> Neighbours:
    found = neighbours.of_checkpoint(model.run.path, model.sha256)
    if found is None or model.calibration is None:
        raise _not_calibrated(model, "unknown", " --unknown")
    if found.features.shape[1] != model.model.num_features:
        raise Refusal(
            f"{model.run.path / neighbours.FILE} is of {found.features.shape[1]:,} features an image, and the network "
            f"has {model.model.num_features:,}.",
            fix=f"make it again: tl-dist calibrate {model.run.path} --unknown.",
            code=ExitCode.DATA,
        )
    conformal.refuse_rate(len(found.of_known), rate)
    return found


def _not_calibrated(model: Loaded, option: str, more: str) -> Refusal:
    return Refusal(
        f"--{option} needs what validation images say of step {model.step:,} of run '{model.run.name}'.",
        fix=f"tl-dist calibrate RUN{more}, with the same --at.",
        code=ExitCode.USAGE,
    )
