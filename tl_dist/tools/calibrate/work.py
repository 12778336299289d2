"""Fit the calibration of a run on its validation split, with all workers: see `scores.calibration`.

With `unknown`, also measure how near its images are to training images: see `scores.neighbours`.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tl_dist import tasks
from tl_dist.datasets import Source
from tl_dist.datasets.division import open_splits
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.runs.identity import identity_of
from tl_dist.scores import calibration, figures, neighbours, residuals
from tl_dist.scores.calibration import Calibration
from tl_dist.scores.neighbours import Neighbours
from tl_dist.scores.residuals import Residuals
from tl_dist.tools.calibrate import Request, refuse_labels
from tl_dist.trainer.agreement import agree
from tl_dist.trainer.load_model import Loaded, loaded
from tl_dist.trainer.predict import predict_decodable


def run(run: RunDir, request: Request, cores: int) -> ExitCode:
    """Calibrate a run as requested, without changing it; rank 0 writes the files to `request.into`."""
    model = loaded(run, request.at, cores=cores, overrides=request.overrides)
    refuse_labels(model.cfg)
    calibrate(model, Path(request.into or ""), unknown=request.unknown)
    return ExitCode.DONE


def calibrate(model: Loaded, directory: Path, *, unknown: bool) -> None:
    """Fit the calibration of a checkpoint, without changing the run; rank 0 writes the files to `directory`.

    Refuse (64) a run without a validation split, and (78) data other than it was trained on.
    """
    splits = open_splits(model.cfg.data)[0]
    if "validation" not in splits:
        what = f"run '{model.run.name}' has no validation split, and nothing may be fitted to the test split."
        fix = "train it with data.validation_fraction, such as 0.2, under another name=NAME."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE)
    trained = identity_of(model.run)["data"]
    validation, train = splits["validation"], splits["train"]
    fingerprints = {name: splits[name].fingerprint for name in ("train", "validation")}
    agree(model.parallel, {"data": fingerprints})
    if {name: trained.get(name) for name in fingerprints} != fingerprints:
        what = f"the data of {model.run.path} have changed since it was trained."
        raise Refusal(what, fix="bring back the images and labels as they were.", code=ExitCode.UNSAFE)
    logits, features, examples = _outputs(model, validation, directory, features=unknown)
    held_out = validation.subset(examples)
    kinds = np.array(held_out.annotations.types or held_out.annotations.groups or (), np.str_)
    if model.parallel.rank == 0 and held_out.truth.ndim > 1:
        errors = np.abs(tasks.of(model.cfg).answers(logits) - held_out.truth)
        Residuals(model.step, model.sha256, errors, kinds).save(directory / residuals.FILE)
    elif model.parallel.rank == 0:
        labels = np.asarray(held_out.labels, np.int32)
        known = np.isin(labels, train.labels)  # no temperature makes up for a class that was never trained on
        rows = slice(None) if known.all() else known
        temperature = calibration.fitted(labels[rows], logits[rows])
        of_true = figures.confidences(labels, figures.Softmax(logits, temperature)).of_true
        result = Calibration(
            step=model.step,
            sha256=model.sha256,
            views=np.array(model.cfg.evaluation.views, np.str_),
            temperature=temperature,
            labels=labels,
            of_true=of_true.astype(np.float32),
            types=kinds,
        )
        result.save(directory / calibration.FILE)
    if unknown:
        width = model.model.num_features
        sample = train.subset(neighbours.chosen(train.num_examples, width, model.cfg.seed))
        train_features = _outputs(model, sample, directory, features=True)[1]
        if model.parallel.rank == 0:
            bank = neighbours.normalised(train_features)
            of_known = neighbours.distances(bank, neighbours.normalised(features), model.cfg.evaluation_batch)
            Neighbours(model.sha256, bank, of_known).save(directory / neighbours.FILE)


def _outputs(
    model: Loaded, source: Source, directory: Path, *, features: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Return the logits, features and indices of the examples that can be decoded; complete on rank 0 alone."""
    pieces = list(predict_decodable(model, source, {}, cache=directory / "header_checks", features=features))
    if not pieces:
        what = f"no image of a split of run '{model.run.name}' can be decoded."
        raise Refusal(what, fix="restore the files.", code=ExitCode.DATA)
    logits = np.concatenate([piece.logits for piece in pieces])
    wide = np.concatenate([piece.features for piece in pieces])
    return logits, wide, np.concatenate([piece.examples for piece in pieces])
