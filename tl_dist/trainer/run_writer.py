"""Write the records and checkpoints of a run: rank 0 alone has a writer. Imports no TensorFlow.

After a restart metrics.jsonl and TensorBoard continue from the restored step, and record it: what they hold of later
steps is void, since these steps are trained again, and no curve folds back.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tl_dist import tasks
from tl_dist.config import Config
from tl_dist.config import file as config_file
from tl_dist.runs import checkpoint_format
from tl_dist.runs.checkpoint import Checkpointer
from tl_dist.runs.directory import RunDir
from tl_dist.runs.records import append_to
from tl_dist.scores import predictions
from tl_dist.scores.evaluation import Evaluation
from tl_dist.scores.figures import largest_errors
from tl_dist.trainer.board import MAX_CHARTS, Board
from tl_dist.training import monitor
from tl_dist.training.state import Report, TrainState

MAX_WAITS = 16  # workers up to which the record of a chunk names what each has waited
MAX_ERRORS = 10  # in the record of an evaluation that leaves out its confusion matrix

Listen = Callable[[Mapping[str, Any]], None]


@dataclass
class RunWriter:
    """Write a run. Saves when told, and between steps `checkpoint.every_s` after the last save.

    A failed save is a note; only several in a row are an error. `meta` goes into each checkpoint. `listen` gets each
    record as it is written, for the terminal's progress line where no supervisor reads the file.
    """

    run: RunDir
    cfg: Config
    state: TrainState
    checkpointer: Checkpointer
    total_steps: int
    steps_per_epoch: float
    num_workers: int
    class_names: Sequence[str]
    meta: Mapping[str, Any]
    listen: Listen | None = None

    def __post_init__(self) -> None:
        self._last_save = self._began = time.monotonic()
        self._saved_step: int | None = self.state.step or None
        self._announced: int | None = self.checkpointer.last_checkpoint
        self._figures: dict[str, Any] = {}
        self._best: dict[str, Any] = {}
        self._blocked_s = 0.0  # that training has waited for snapshots, and for earlier saves
        self._warm = False
        self._lines = append_to(self.run.metrics_file)
        self._board = None
        if self.cfg.report.tensorboard:
            self._board = Board(self.run.tensorboard, self.state.step, self.class_names, self.note)
        if self.state.step or self._lines.tell():  # also where an attempt ended before its first checkpoint
            self.tell({"event": "resumed", "step": self.state.step})
        if self.state.step == 0 and self._board:
            self._board.hyperparameters(config_file.flat(self.cfg))

    def close(self) -> None:
        """Record the end of the last save, and close the files."""
        try:
            self.checkpointer.wait()
            self._settle()
        finally:
            self._lines.close()
            if self._board:
                self._board.close()

    def tell(self, record: Mapping[str, Any]) -> None:
        """Write a record to metrics.jsonl, and hand it to the listener."""
        self._lines.write(json.dumps(record) + "\n")
        if self.listen:
            self.listen(record)

    def note(self, text: str) -> None:
        """Record a sentence for the user."""
        self.tell({"event": "note", "text": text})

    def report(self, report: Report) -> None:
        """Record a chunk of steps, and what the background writer has saved meanwhile."""
        seconds = max(report.elapsed_s, 1e-9)
        per_step = report.elapsed_s / report.steps
        waits = [wait / seconds for wait in report.data_wait_s]
        epochs = self.cfg.epochs or self.total_steps / self.steps_per_epoch
        record = {
            "event": "train",
            "step": report.step,
            "total_steps": self.total_steps,
            # The last batch may reach a little into the epoch after the last.
            "epoch": min(report.step / self.steps_per_epoch, epochs),
            "epochs": epochs,
            "loss": report.mean_loss,
            "accuracy": None if math.isnan(report.accuracy) else report.accuracy,
            "learning_rate": report.learning_rate,
            "gradient_norm": report.gradient_norm,
            "loss_scale": report.loss_scale,
            "skipped": report.num_skipped,
            "examples_per_s": report.num_examples / seconds,
            "data_wait_share": max(waits),
            "reduction_share": report.reduction_s / seconds,
            **(
                {"data_wait_shares": waits}
                if len(waits) <= MAX_WAITS
                else {"data_wait_median": float(np.median(waits)), "data_wait_rank": int(np.argmax(waits))}
            ),
            "step_s": per_step,
            # The first report of an attempt is of one step, which also compiled.
            "eta_s": per_step * (self.total_steps - report.step) if self._warm else None,
            "workers": self.num_workers,
        }
        self.tell(record)
        self._warm = True
        if self._board:
            self._board.train(record)
        self._settle()

    def evaluated(self, step: int, result: Evaluation) -> None:
        """Record an evaluation; keep its figures for the summary."""
        self.tell(evaluation_record(step, result, self.class_names))
        if self._board:
            self._board.evaluation(step, result)
        others = {key: value for key, value in result.figures.items() if key != "accuracy"}
        self._figures[result.split] = _counts(result) | others
        # The best of a test split would be a selection by it.
        best = self.state.history.get("best_validation")
        accuracy = result.accuracy
        if result.split == "validation" and accuracy is not None and (best is None or accuracy > best["accuracy"]):
            self.state.history["best_validation"] = {"accuracy": accuracy, "step": step}

    def images(self, images: np.ndarray, labels: Sequence[str]) -> None:
        """Show the first training images, as the network sees them, in TensorBoard."""
        if self._board:
            self._board.images(self.state.step, images, labels)

    def save(self, *, wait: bool = False) -> None:
        """Save the state of this step unless it is saved; `wait` until it is on disk."""
        if self._saved_step != self.state.step:
            start = time.monotonic()
            self.checkpointer.wait()  # the snapshot is written over the one before
            self.checkpointer.save(self.state.step, self.state.arrays(), self._facts())
            self._blocked_s += time.monotonic() - start
            self._saved_step, self._last_save = self.state.step, time.monotonic()
        if wait:
            self.checkpointer.wait()
            self._settle()

    def save_if(self, due: bool) -> None:
        """Save between two steps, where that is due or `checkpoint.every_s` have passed since the last save."""
        if due or time.monotonic() - self._last_save >= self.cfg.checkpoint.every_s:
            self.save()

    def nothing_to_save(self) -> None:
        """Take the state of this step as saved: it was read from a checkpoint."""
        self._saved_step = self.state.step

    def ends_with(self, best: Mapping[str, Any], *, save: bool) -> None:
        """Keep `best` for the summary; `save` the state as the best, where no checkpoint holds it."""
        self._best = {"best": dict(best)}
        if save:
            self.checkpointer.save_best(self.state.step, self.state.arrays(), self._facts())

    def done(self) -> None:
        """Write the summary and the DONE marker."""
        summary = {
            "step": self.state.step,
            "figures": self._figures,
            **{key: self.state.history.get(key) for key in ("best_validation", "classifier")},
            **self._best,
            "seconds": time.monotonic() - self._began,
            "checkpoint_blocked_s": self._blocked_s,
        }
        curves = tasks.one_class_each(self.cfg) or tasks.gives_labels(self.cfg)
        if self._board and curves and len(self.class_names) <= MAX_CHARTS:
            for split in self._figures:
                file = predictions.file_of(self.run.path, split)
                if file.exists():
                    self._board.predicted(split, predictions.load(file))
        self.tell({"event": "done", **summary})
        self.run.mark_done(summary)

    def _facts(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside the arrays."""
        history = self.state.history
        needs = {checkpoint_format.NEEDS: monitor.best_steps(history)} if monitor.KEY in history else {}
        return {**self.meta, "history": history, **needs}

    def _settle(self) -> None:
        """Record what the background writer has done since the last call."""
        for message in self.checkpointer.poll():
            self.note(message)
        saved = self.checkpointer.last_checkpoint
        if saved is not None and saved != self._announced:
            self._announced = saved
            self.tell({"event": "checkpoint", "step": saved})


def evaluation_record(step: int, result: Evaluation, class_names: Sequence[str]) -> dict[str, Any]:
    """Return an evaluation as a record of metrics.jsonl.

    Beyond MAX_RECORDED_CLASSES it has the largest errors instead of the confusion matrix, which is kept beside the
    predictions.
    """
    head = {"event": "evaluation", "step": step, "split": result.split}
    record = head | _counts(result) | {"figures": dict(result.figures)}
    if result.confusion is None:
        return record | {"class_names": list(class_names)}
    if len(class_names) <= predictions.MAX_RECORDED_CLASSES:
        return record | {"confusion": result.confusion.tolist(), "class_names": list(class_names)}
    errors = largest_errors(result.confusion, MAX_ERRORS)
    return record | {"largest_errors": [(class_names[i], class_names[k], num) for i, k, num in errors]}


def _counts(result: Evaluation) -> dict[str, Any]:
    return {
        "accuracy": result.accuracy,
        "loss": result.mean_loss,
        "num_correct": result.num_correct,
        "num_examples": result.num_examples,
    }
