"""Evaluate a run on a labelled data set that need not be its own: classes are matched by their names."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets import Source, pool_of, seen
from tl_dist.datasets.curation.layout import opened
from tl_dist.datasets.division import pooled
from tl_dist.datasets.files import unusable
from tl_dist.datasets.grouping import named
from tl_dist.files.atomic import write_atomically
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.scores import predictions
from tl_dist.scores.evaluation import Evaluation
from tl_dist.tools.evaluate import groups as grouped
from tl_dist.trainer.agreement import agree
from tl_dist.trainer.load_model import Loaded
from tl_dist.trainer.metrics import class_records, evaluation_record
from tl_dist.trainer.predict import predict, readable, refuse_beyond_budget
from tl_dist.training.evaluation import MAX_LOGITS

RESULT = "evaluation.json"
_MAX_NAMES = 8


def evaluate_data(
    model: Loaded, path: Path, split: str | None, directory: Path, by: Sequence[str] = ()
) -> None:
    """Evaluate the data set at `path`; rank 0 writes the record to `directory`, and the predictions to the run.

    `split` is one of the data set's; default: its test split, or all of it if it has none. Left out are examples of
    classes that the run does not know and, up to the budget of the run's config, images that cannot be decoded. `by`:
    as `grouping.named` takes it.
    """
    part, source = _part(path, split)
    named(source, by)
    agree(model.parallel, {"data": source.fingerprint, "class_names": list(source.class_names)})
    known, unknown = matched(source, model.class_names, path)
    good, faults = readable(model, known, directory)
    refuse_beyond_budget(model, source, faults, path)
    counted: list[NDArray[np.int64]] = []
    sums = _Sums(len(model.class_names), good.num_examples)
    for piece in predict(model, good):
        faults |= {good.ids[k]: reason for k, reason in piece.faults.items()}
        if model.parallel.rank == 0 and not piece.faults:
            counted.append(piece.examples)
            sums.add(piece.logits, good.labels[piece.examples])
    refuse_beyond_budget(model, source, faults, path)
    if model.parallel.rank:
        return
    if not counted:
        raise unusable(f"no image of {path} can be decoded", "see what 'tl-dist data verify' says of it")
    evaluated = good.subset(np.concatenate(counted))
    data_name = path.absolute().name if path.is_dir() else path.stem
    name = re.sub(r"[^\w.-]", "_", f"{data_name}-{part}-{source.fingerprint[:8]}")
    own = seen.of_run(model.run)
    result = predictions.with_figures(
        sums.evaluation(name),
        model.run.path,
        step=model.step,
        ids=evaluated.ids,
        labels=evaluated.labels,
        class_names=model.class_names,
        types=evaluated.annotations.types,
        groups=evaluated.annotations.groups or (),
        temperature=None if model.calibration is None else model.temperature,
        num_fitted=seen.among(evaluated, directory, own.validation),
    )
    facts = {
        "seen": seen.among(evaluated, directory, np.concatenate([own.trained, own.chosen])),
        "path": str(path),
        "split": part,
        "fingerprint": source.fingerprint,
        "unknown": unknown,
        "missing": sorted(set(model.class_names) - set(source.class_names)),
        "undecodable": faults,
        "moving_statistics": model.moving_statistics,
    }
    record = evaluation_record(model.step, result, model.class_names)
    record |= {"classes": class_records(result, model.class_names), "data": facts}
    record |= grouped.record(model.run, name, evaluated, by)
    write_atomically(directory / RESULT, json.dumps(record).encode())


def _part(path: Path, split: str | None) -> tuple[str, Source]:
    """Return the name and the examples of the part to evaluate."""
    _, splits = opened(path)
    if split is None:
        return ("test", splits["test"]) if "test" in splits else ("all", pooled(splits))
    if split not in splits:
        fix = f"use one of {', '.join(splits)}, or leave out --split."
        raise Refusal(f"{path} has no split '{split}'.", fix=fix, code=ExitCode.USAGE)
    return split, splits[split]


def matched(source: Source, class_names: Sequence[str], path: Path) -> tuple[Source, dict[str, int]]:
    """Return the examples of classes in `class_names`, labelled by their place there, and the counts of all others.

    Refuse (65) a data set without a class in common.
    """
    place = {name: k for k, name in enumerate(class_names)}
    number = np.array([place.get(name, -1) for name in source.class_names], np.int32)
    whole, rows = pool_of(source)
    known = number[source.labels] >= 0
    if not known.any():
        theirs, ours = (", ".join(list(names)[:_MAX_NAMES]) for names in (source.class_names, class_names))
        what = f"no class of {path} ({theirs}) is one of the run's ({ours})"
        raise unusable(what, "name the classes alike: they are matched by their names")
    counts = Counter(source.class_names[label] for label in source.labels[~known])
    renamed = replace(whole, labels=number[whole.labels], class_names=tuple(class_names))
    return renamed.subset(rows[known]), dict(sorted(counts.items()))


class _Sums:
    """Accumulates a confusion matrix and the loss, and the logits too unless they are too many."""

    def __init__(self, num_classes: int, num_examples: int) -> None:
        self._confusion = np.zeros((num_classes, num_classes), np.int64)
        self._loss = 0.0
        self._logits: list[NDArray[np.float32]] | None = (
            [] if num_examples * num_classes <= MAX_LOGITS else None
        )

    def add(self, logits: NDArray[np.float32], labels: NDArray[np.int32]) -> None:
        """Add some examples."""
        np.add.at(self._confusion, (labels, logits.argmax(axis=1)), 1)
        wide = logits.astype(np.float64)
        self._loss += float((np.logaddexp.reduce(wide, axis=1) - wide[np.arange(len(labels)), labels]).sum())
        if self._logits is not None:
            self._logits.append(logits)

    def evaluation(self, name: str) -> Evaluation:
        """Return the evaluation of all examples that were added."""
        num = int(self._confusion.sum())
        return Evaluation(
            split=name,
            num_examples=num,
            num_correct=int(np.trace(self._confusion)),
            mean_loss=self._loss / num,
            confusion=self._confusion,
            logits=None if self._logits is None else np.concatenate(self._logits),
        )
