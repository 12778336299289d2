"""Read once, for the report, what a run keeps: config, records, figures and predictions. Nothing is written."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tl_dist.config import Config
from tl_dist.config import file as config_file
from tl_dist.files.atomic import children
from tl_dist.files.private import refuse_unsafe, refuse_unsafe_below
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
    done: Mapping[str, Any]  # the final record; empty before the end of the run
    records: list[dict[str, Any]]
    attempts: list[dict[str, Any]]
    versions: Mapping[str, str]  # of the packages that wrote the newest checkpoint
    split_sizes: Mapping[str, int]
    split: str
    predictions: Predictions
    out_of_fold: OutOfFold | None
    """predictions of `tl-dist cv` with the same config, in this run or beside it"""

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the records of one kind, oldest first."""
        return [record for record in self.records if record.get("event") == name]

    @property
    def folds(self) -> Mapping[str, Any] | None:
        """Return the figures of a cross-validation if the predictions are its own; else None."""
        return self.done["cross_validation"] if self.split == OUT_OF_FOLD_SPLIT else None

    @property
    def subject(self) -> str:
        """Name the predictions for a heading."""
        return "out-of-fold predictions" if self.split == OUT_OF_FOLD_SPLIT else f"{self.split} split"

    @property
    def class_names(self) -> list[str]:
        """Return the names of the classes, by number."""
        return [str(name) for name in self.predictions.class_names]

    @property
    def workers(self) -> int | None:
        """Return the number of workers of the last attempt."""
        train = self.events("train")
        return train[-1].get("workers", self.cfg.workers) if train else self.cfg.workers

    @property
    def duration(self) -> str:
        """Format the time of all attempts together; empty if it was not recorded."""
        spans = ([attempt.get(key) for key in ("began", "ended")] for attempt in self.attempts)
        parse = datetime.fromisoformat
        took = sum((parse(ended) - parse(began) for began, ended in spans if began and ended), timedelta())
        minutes, seconds = divmod(round(took.total_seconds()), 60)
        if minutes >= 60:
            return f"{minutes // 60} h {minutes % 60} min"
        return f"{minutes} min {seconds} s" if minutes else f"{seconds} s" if took else ""


def gather(path: Path, split: str | None) -> Facts:
    """Read the run at `path`.

    `split` is by default out of fold for a cross-validation, else test, else validation. Refuses (65) a run without
    predictions for the split.
    """
    run = RunDir.open(path)
    out_of_fold, done = _out_of_fold(run), run.done or {}
    if split is None and "cross_validation" in done and out_of_fold is not None:
        split, predicted = OUT_OF_FOLD_SPLIT, out_of_fold.of_one(out_of_fold.probabilities[0])
    else:
        kept = (s for s in ("test", "validation") if predictions.file_of(run.path, s).exists())
        split = split or next(kept, "test")
        predicted = predictions.load(predictions.file_of(run.path, split))
    if out_of_fold is not None:
        labels, known = (
            set(zip(each.ids.tolist(), map(str, each.truth.tolist()), strict=True)) for each in (predicted, out_of_fold)
        )
        if list(out_of_fold.class_names) != list(predicted.class_names) or not labels <= known:
            out_of_fold = None  # of other classes or examples, or with other labels
    attempts = [read_json(file) for file in sorted(children(run.attempts)) if file.suffix == ".json"]
    newest = next((directory for _, directory in steps_in(run.checkpoints)), run.checkpoints)
    versions = (read_json(newest / "meta.json") or {}).get("versions")
    ids_of = split_ids(run) if (run.path / "split.json").exists() else {}
    return Facts(
        run,
        config_file.load(run.config_file, imports=False),
        run.read_identity() or {},
        done,
        [record for record in records(run.metrics_file) if shape.is_whole(record)],
        [record for record in attempts if record is not None and shape.fault(record, shape.Attempt) is None],
        {name: str(number) for name, number in versions.items()} if isinstance(versions, dict) else {},
        {split: len(ids) for split, ids in ids_of.items()},
        split,
        predicted,
        out_of_fold,
    )


def _out_of_fold(run: RunDir) -> OutOfFold | None:
    """Load the out-of-fold predictions of the run, else of the cross-validation of its config beside it."""
    for directory in (run.path, run.path.with_name(cross_validation.name_of(run.name))):
        if (directory / OUT_OF_FOLD).exists():
            refuse_unsafe(directory)
            refuse_unsafe_below(directory)
            return cross_validation.load(directory / OUT_OF_FOLD)
    return None
