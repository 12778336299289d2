"""What a run keeps, read once for its report: config, records, figures and predictions. The run is only read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
"""in place of a split: what `tl-dist cv` predicts is every example, each by a model that has not seen it"""


@dataclass(frozen=True, eq=False)
class Facts:
    """A run, and what it said of one split."""

    run: RunDir
    cfg: Config
    identity: Mapping[str, Any]
    done: Mapping[str, Any]
    """empty before the end of the run"""
    records: list[dict[str, Any]]
    attempts: list[dict[str, Any]]
    versions: Mapping[str, str]
    split_sizes: Mapping[str, int]
    split: str
    said: Predictions
    out_of_fold: OutOfFold | None
    """of `tl-dist cv` of the same config, of this run or beside it"""

    def events(self, name: str) -> list[dict[str, Any]]:
        """The records of one kind, oldest first."""
        return [record for record in self.records if record.get("event") == name]

    @property
    def subject(self) -> str:
        """What the predictions are of, in words."""
        return "out-of-fold predictions" if self.split == OUT_OF_FOLD_SPLIT else f"{self.split} split"

    @property
    def class_names(self) -> list[str]:
        return [str(name) for name in self.said.class_names]


def gather(path: Path, split: str | None) -> Facts:
    """What the run at `path` keeps; `split` by default test, where there is none validation, or out of fold.

    Refuses (65) a run that keeps no predictions of it.
    """
    run = RunDir.open(path)
    out_of_fold = _out_of_fold(run)
    done = run.done or {}
    if split is None and "cross_validation" in done and out_of_fold is not None:
        split, said = OUT_OF_FOLD_SPLIT, out_of_fold.of_one(out_of_fold.probabilities[0])
    else:
        split = split or next(
            (s for s in ("test", "validation") if predictions.file_of(run.path, s).exists()), "test"
        )
        said = predictions.load(predictions.file_of(run.path, split))
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
        said,
        out_of_fold if out_of_fold is not None and _fits(out_of_fold, said) else None,
    )


def _out_of_fold(run: RunDir) -> OutOfFold | None:
    """That of the run, or of the cross-validation of its config beside it."""
    for directory in (run.path, run.path.with_name(cross_validation.name_of(run.name))):
        if (directory / OUT_OF_FOLD).exists():
            refuse_unsafe(directory)
            refuse_unsafe_below(directory)
            return cross_validation.load(directory / OUT_OF_FOLD)
    return None


def _fits(found: OutOfFold, said: Predictions) -> bool:
    """Whether they are of the same examples, as far as these go, with the same labels."""
    if list(found.class_names) != list(said.class_names):
        return False
    labels = dict(zip(found.ids.tolist(), found.labels.tolist(), strict=True))
    pairs = zip(said.ids.tolist(), said.labels.tolist(), strict=True)
    return all(labels.get(name) == label for name, label in pairs)


def in_mean(found: OutOfFold) -> Predictions:
    """Of each example the mean over seeds: more accurate and less sure than any one model, so only for its label."""
    return found.of_one(found.probabilities.mean(axis=0))


def _attempts(run: RunDir) -> Iterator[dict[str, Any]]:
    for path in sorted(children(run.attempts)):
        record = read_json(path) if path.suffix == ".json" else None
        if record is not None and shape.fault(record, shape.Attempt) is None:
            yield record


def _versions(run: RunDir) -> Mapping[str, str]:
    """With which the newest checkpoint was made."""
    for _, directory in steps_in(run.checkpoints):
        versions = (read_json(directory / "meta.json") or {}).get("versions")
        return {k: str(v) for k, v in versions.items()} if isinstance(versions, dict) else {}
    return {}


def same_examples(runs: list[Facts]) -> list[np.ndarray]:
    """Of each run the order in which its examples are those of the first. Refuses (65) other examples or labels."""
    first, *others = runs
    orders = [np.argsort(facts.said.ids) for facts in runs]
    ids, labels = first.said.ids[orders[0]], first.said.labels[orders[0]]
    for facts, order in zip(others, orders[1:], strict=True):
        same = np.array_equal(facts.said.ids[order], ids) and facts.class_names == first.class_names
        if not same or not np.array_equal(facts.said.labels[order], labels):
            raise Refusal(
                f"{first.run.path} and {facts.run.path} were not evaluated on the same examples of '{first.split}'.",
                fix="train both with the same data section (split_seed and fractions), or report them one by one.",
                code=ExitCode.DATA,
            )
    return orders
