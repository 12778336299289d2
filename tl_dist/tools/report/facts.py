"""Read once, for the report, what a run keeps: config, records, figures and predictions. Nothing is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tl_dist.config import Config
from tl_dist.config import file as config_file
from tl_dist.files.atomic import children
from tl_dist.files.private import refuse_unsafe, refuse_unsafe_below
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs import shape
from tl_dist.runs.directory import RunDir, read_json, steps_in
from tl_dist.runs.identity import split_ids
from tl_dist.runs.records import records
from tl_dist.scores import cross_validation, predictions
from tl_dist.scores.cross_validation import OUT_OF_FOLD, OutOfFold
from tl_dist.scores.predictions import Predictions

OUT_OF_FOLD_SPLIT = "out of fold"
"""instead of a split: `tl-dist cv` predicts every example, each by a model that has not seen it"""


@dataclass(frozen=True, eq=False)
class Facts:
    """A run and its predictions for one split."""

    run: RunDir
    cfg: Config
    identity: Mapping[str, Any]
    done: Mapping[str, Any]
    """the final record; empty before the end of the run"""
    records: list[dict[str, Any]]
    attempts: list[dict[str, Any]]
    versions: Mapping[str, str]
    split_sizes: Mapping[str, int]
    split: str
    predictions: Predictions
    out_of_fold: OutOfFold | None
    """predictions of `tl-dist cv` with the same config, in this run or beside it"""

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the records of one kind, oldest first."""
        return [record for record in self.records if record.get("event") == name]

    @property
    def subject(self) -> str:
        """Name the predictions for a heading."""
        return "out-of-fold predictions" if self.split == OUT_OF_FOLD_SPLIT else f"{self.split} split"

    @property
    def class_names(self) -> list[str]:
        """Return the names of the classes, by number."""
        return [str(name) for name in self.predictions.class_names]


def gather(path: Path, split: str | None) -> Facts:
    """Read the run at `path`.

    `split` is by default out of fold for a cross-validation, else test, else validation. Refuses (65) a run without
    predictions for the split.
    """
    run = RunDir.open(path)
    out_of_fold = _out_of_fold(run)
    done = run.done or {}
    if split is None and "cross_validation" in done and out_of_fold is not None:
        split, predicted = OUT_OF_FOLD_SPLIT, out_of_fold.of_one(out_of_fold.probabilities[0])
    else:
        split = split or next(
            (s for s in ("test", "validation") if predictions.file_of(run.path, s).exists()), "test"
        )
        predicted = predictions.load(predictions.file_of(run.path, split))
    ids_of = split_ids(run) if (run.path / "split.json").exists() else {}
    return Facts(
        run,
        config_file.load(run.config_file, imports=False),
        run.read_identity() or {},
        done,
        [record for record in records(run.metrics_file) if shape.is_whole(record)],
        list(_attempts(run)),
        _versions(run),
        {split: len(ids) for split, ids in ids_of.items()},
        split,
        predicted,
        out_of_fold if out_of_fold is not None and _fits(out_of_fold, predicted) else None,
    )


def _out_of_fold(run: RunDir) -> OutOfFold | None:
    """Load the out-of-fold predictions of the run, else of the cross-validation of its config beside it."""
    for directory in (run.path, run.path.with_name(cross_validation.name_of(run.name))):
        if (directory / OUT_OF_FOLD).exists():
            refuse_unsafe(directory)
            refuse_unsafe_below(directory)
            return cross_validation.load(directory / OUT_OF_FOLD)
    return None


def _fits(out_of_fold: OutOfFold, predicted: Predictions) -> bool:
    """Tell whether `out_of_fold` covers all examples of `predicted` with the same labels."""
    if list(out_of_fold.class_names) != list(predicted.class_names):
        return False
    labels = dict(zip(out_of_fold.ids.tolist(), out_of_fold.labels.tolist(), strict=True))
    pairs = zip(predicted.ids.tolist(), predicted.labels.tolist(), strict=True)
    return all(labels.get(name) == label for name, label in pairs)


def mean_over_seeds(out_of_fold: OutOfFold) -> Predictions:
    """Average the probabilities over seeds. The mean is more accurate than any one model, so it only checks labels."""
    return out_of_fold.of_one(out_of_fold.probabilities.mean(axis=0))


def _attempts(run: RunDir) -> Iterator[dict[str, Any]]:
    for path in sorted(children(run.attempts)):
        record = read_json(path) if path.suffix == ".json" else None
        if record is not None and shape.fault(record, shape.Attempt) is None:
            yield record


def _versions(run: RunDir) -> Mapping[str, str]:
    """Return the package versions that wrote the newest checkpoint."""
    for _, directory in steps_in(run.checkpoints):
        versions = (read_json(directory / "meta.json") or {}).get("versions")
        return {k: str(v) for k, v in versions.items()} if isinstance(versions, dict) else {}
    return {}


def same_examples(runs: Sequence[Facts]) -> list[np.ndarray]:
    """Return for each run an order that aligns its examples with the others. Refuses (65) other examples or labels."""
    first, *others = runs
    orders = [np.argsort(facts.predictions.ids) for facts in runs]
    ids, labels = first.predictions.ids[orders[0]], first.predictions.labels[orders[0]]
    for facts, order in zip(others, orders[1:], strict=True):
        same = np.array_equal(facts.predictions.ids[order], ids) and facts.class_names == first.class_names
        if not same or not np.array_equal(facts.predictions.labels[order], labels):
            raise Refusal(
                f"{first.run.path} and {facts.run.path} were not evaluated on the same examples of '{first.split}'.",
                fix="train both with the same data section (split_seed and fractions), or report them one by one.",
                code=ExitCode.DATA,
            )
    return orders
