"""What a run's validation split teaches about its probabilities, over all workers: see `scores.calibration`.

With `unknown` also which images are like those that it was trained on: see `scores.neighbours`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets import Source, decoded_by
from tl_dist.datasets.division import open_splits
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.runs.identity import identity_of
from tl_dist.scores import calibration, figures, neighbours, predictions
from tl_dist.scores.calibration import Calibration
from tl_dist.scores.neighbours import Neighbours
from tl_dist.tools.calibrate import Request
from tl_dist.trainer.agreement import agree
from tl_dist.trainer.load_model import Loaded, loaded
from tl_dist.trainer.predict import predict, readable, refuse_beyond_budget


def run(run: RunDir, request: Request, cores: int) -> ExitCode:
    """Calibrate a run, which is only read; rank 0 leaves the files in `request.into`."""
    model = loaded(run, request.at, cores=cores, overrides=request.overrides)
    calibrate(model, Path(request.into or ""), unknown=request.unknown)
    return ExitCode.DONE


def calibrate(model: Loaded, directory: Path, *, unknown: bool) -> None:
    """Fit it to the checkpoint; rank 0 leaves the files in `directory`. Of the run nothing is changed."""
    splits = open_splits(model.cfg.data)[0]
    if "validation" not in splits:
        raise Refusal(
            f"run '{model.run.name}' has no validation split, and the test split is not for choosing anything.",
            fix="train it with data.validation_fraction, such as 0.2, under another name=NAME.",
            code=ExitCode.USAGE,
        )
    trained = identity_of(model.run)["data"]
    # The rule of decoding is part of the fingerprint where it makes a difference to the images of a split.
    unusual = [name for name in ("train", "validation") if splits[name].fingerprint != trained.get(name)]
    splits = decoded_by(splits, model.decoding, unusual)
    validation, train = splits["validation"], splits["train"]
    found = {name: splits[name].fingerprint for name in ("train", "validation")}
    agree(model.parallel, {"data": found})
    if {name: trained.get(name) for name in found} != found:
        raise Refusal(
            f"the data of {model.run.path} are not those that it was trained on.",
            fix="bring back the images and labels as they were.",
            code=ExitCode.UNSAFE,
        )
    logits, features, examples = _of_all(model, validation, directory, features=unknown)
    held_out = validation.subset(examples)
    if model.parallel.rank == 0:
        labels = np.asarray(held_out.labels, np.int32)
        known = np.isin(labels, train.labels)  # no temperature makes up for a class that was never trained on
        taught = slice(None) if known.all() else known
        temperature = calibration.fitted(labels[taught], logits[taught])
        of_true = figures.confidences(labels, figures.Softmax(logits, temperature)).of_true
        kept = Calibration(
            step=model.step,
            sha256=model.sha256,
            views=model.cfg.evaluation.views,
            temperature=temperature,
            labels=labels,
            of_true=of_true.astype(np.float32),
            types=np.array(held_out.annotations.types or held_out.annotations.groups or (), np.str_),
        )
        predictions.save(directory / calibration.FILE, **kept.arrays())
    if unknown:
        width = model.model.num_features
        some = train.subset(neighbours.chosen(train.num_examples, width, model.cfg.seed))
        of_train = _of_all(model, some, directory, features=True)[1]
        if model.parallel.rank == 0:
            bank = neighbours.normalised(of_train)
            of_known = neighbours.distances(bank, neighbours.normalised(features), model.cfg.evaluation_batch)
            predictions.save(directory / neighbours.FILE, **Neighbours(model.sha256, bank, of_known).arrays())


def _of_all(
    model: Loaded, source: Source, directory: Path, *, features: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Logits and features of what can be decoded, on rank 0 alone, and which of the examples these are."""
    good, faults = readable(model, source, directory)
    pieces = list(predict(model, good, features=features))
    faults |= {good.ids[k]: reason for found in pieces for k, reason in found.faults.items()}
    refuse_beyond_budget(model, source, faults)
    pieces = [found for found in pieces if not found.faults]
    if not pieces:
        what = f"no image of a split of run '{model.run.name}' can be decoded."
        raise Refusal(what, fix="restore the files.", code=ExitCode.DATA)
    place = {name: k for k, name in enumerate(source.ids)}
    examples = [place[good.ids[k]] for found in pieces for k in found.examples.tolist()]
    logits, wide = ([getattr(found, name) for found in pieces] for name in ("logits", "features"))
    return np.concatenate(logits), np.concatenate(wide), np.array(examples, np.int64)
