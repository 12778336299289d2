"""Write the records of rank 0: JSON lines, which everything else reads, and TensorBoard. Imports no TensorFlow.

After a restart both continue from the restored step, and record it: what they hold of later steps is void, since these
steps are trained again, and no curve folds back.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.refusal import printable, shortened
from tl_dist.runs.directory import RunDir
from tl_dist.runs.records import append_to
from tl_dist.scores.evaluation import Evaluation
from tl_dist.scores.figures import by_class, largest_errors
from tl_dist.scores.pictures import confusion_picture, grid_picture
from tl_dist.scores.predictions import MAX_RECORDED_CLASSES, Predictions
from tl_dist.training.state import Report

MAX_WAITS = 16  # workers up to which the record of a chunk names what each has waited
MAX_CHARTS = 30  # classes up to which TensorBoard has charts of each
NUM_THRESHOLDS = 201
MAX_ERRORS = 10  # in the record of an evaluation that leaves out its confusion matrix


class Metrics:
    """Write the records of one attempt; used by rank 0 alone.

    `listen` gets each record as it is written, for the terminal's progress line where no supervisor reads the file.
    """

    def __init__(
        self,
        run: RunDir,
        *,
        from_step: int,
        total_steps: int,
        steps_per_epoch: float,
        epochs: float,
        num_workers: int,
        class_names: Sequence[str],
        tensorboard: bool,
        listen: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._epochs = epochs
        self._num_workers = num_workers
        self._class_names = list(class_names)
        self._listen = listen
        self._warm = False
        self._trained = from_step
        self._lines = append_to(run.metrics_file)
        self._board = Board(str(run.tensorboard), from_step) if tensorboard else None
        if from_step or self._lines.tell():  # also where an attempt ended before its first checkpoint
            self.tell({"event": "resumed", "step": from_step})

    def train(self, report: Report) -> None:
        """Record a chunk of steps."""
        seconds = max(report.elapsed_s, 1e-9)
        per_step = report.elapsed_s / report.steps
        waits = [wait / seconds for wait in report.data_wait_s]
        reduction = report.reduction_s / seconds
        values = {
            "loss": report.mean_loss,
            "accuracy": report.accuracy,
            "learning_rate": report.learning_rate,
            "gradient_norm": report.gradient_norm,
            "loss_scale": report.loss_scale,
            "skipped": report.num_skipped,
            "examples_per_s": report.num_examples / seconds,
            "data_wait_share": max(waits),
            "reduction_share": reduction,
        }
        self.tell(
            {
                "event": "train",
                "step": report.step,
                "total_steps": self._total_steps,
                # The last batch may reach a little into the epoch after the last.
                "epoch": min(report.step / self._steps_per_epoch, self._epochs),
                "epochs": self._epochs,
                **values,
                **_waits(waits),
                "step_s": per_step,
                # The first report of an attempt is of one step, which also compiled.
                "eta_s": per_step * (self._total_steps - report.step) if self._warm else None,
                "workers": self._num_workers,
            }
        )
        self._warm, self._trained = True, report.step
        if self._board:
            self._board.scalars(
                report.step,
                {
                    "train/loss": report.mean_loss,
                    "train/accuracy": report.accuracy,
                    "optimizer/learning_rate": report.learning_rate,
                    "optimizer/gradient_norm": report.gradient_norm,
                    "optimizer/loss_scale": report.loss_scale,
                    "optimizer/skipped_steps": report.num_skipped,
                    "speed/images_per_s": values["examples_per_s"],
                    "step_time/data_wait_s": per_step * max(waits),
                    "step_time/reduction_s": per_step * reduction,
                    "step_time/compute_s": per_step * max(0.0, 1.0 - max(waits) - reduction),
                },
            )

    def evaluation(self, step: int, result: Evaluation) -> None:
        """Record the figures of a whole split, and show its confusion matrix as a picture."""
        self.tell(evaluation_record(step, result, self._class_names))
        if self._board and (step >= self._trained or result.split == "test"):  # else its curve has that step
            self._board.scalars(
                step, {f"{result.split}/loss": result.mean_loss, f"{result.split}/accuracy": result.accuracy}
            )
            if len(self._class_names) <= MAX_CHARTS:
                self._board.scalars(step, _of_classes(result, self._class_names))
            self._picture(
                step,
                f"{result.split}/confusion",
                lambda: confusion_picture(result.confusion, self._class_names),
            )

    def predicted(self, split: str, predictions: Predictions) -> None:
        """Show the final precision-recall curves: of the second class of two, else of each class against the rest."""
        names = [str(name) for name in predictions.class_names]
        probabilities, labels = predictions.probabilities, predictions.labels
        if self._board and len(names) <= MAX_CHARTS and np.isfinite(probabilities).all():
            for k, name in enumerate(names):
                if len(names) > 2 or k == 1:
                    tag = f"{split}_precision_recall/{printable(name)}"
                    self._board.precision_recall(predictions.step, tag, labels == k, probabilities[:, k])

    def images(self, step: int, images: np.ndarray, labels: Sequence[int]) -> None:
        """Show a grid of augmented training images, uint8 [n, h, w, 3], as the network gets them."""
        if self._board:
            names = [self._class_names[label] for label in labels]
            self._picture(step, "train/augmented_images", lambda: grid_picture(images, names))

    def hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Show the flat config on TensorBoard's HParams page, and as text."""
        if self._board:
            self._board.hyperparameters(values)
            rows = "".join(f"| {printable(key)} | `{_cell(value)}` |\n" for key, value in values.items())
            self._board.text(0, "config", f"| key | value |\n|--|--|\n{rows}")

    def note(self, text: str) -> None:
        """Record a sentence for the user."""
        self.tell({"event": "note", "text": text})

    def tell(self, record: Mapping[str, Any]) -> None:
        """Write a record as it is, and hand it to the listener."""
        self._lines.write(json.dumps(record) + "\n")
        if self._listen:
            self._listen(record)

    def close(self) -> None:
        """Close both files."""
        self._lines.close()
        if self._board:
            self._board.close()

    def _picture(self, step: int, tag: str, draw: Callable[[], bytes]) -> None:
        """Show a picture; record a note where it cannot be drawn, which is no reason to end a run."""
        assert self._board
        try:
            self._board.image(step, tag, draw())
        except Exception as error:  # fonts, memory, a library's own faults
            self.note(f"no picture {tag} of step {step:,}: {type(error).__name__}: {error}")


def _waits(shares: Sequence[float]) -> dict[str, Any]:
    """Return how long each worker waited for data; of many workers the median, and which waited longest."""
    if len(shares) <= MAX_WAITS:
        return {"data_wait_shares": list(shares)}
    return {"data_wait_median": float(np.median(shares)), "data_wait_rank": int(np.argmax(shares))}


def evaluation_record(step: int, result: Evaluation, class_names: Sequence[str]) -> dict[str, Any]:
    """Return an evaluation as a record of metrics.jsonl.

    Beyond MAX_RECORDED_CLASSES it has the largest errors instead of the confusion matrix, which is kept beside the
    predictions.
    """
    counts: dict[str, Any] = (
        {"confusion": result.confusion.tolist(), "class_names": list(class_names)}
        if len(class_names) <= MAX_RECORDED_CLASSES
        else {
            "largest_errors": [
                (class_names[i], class_names[k], num)
                for i, k, num in largest_errors(result.confusion, MAX_ERRORS)
            ]
        }
    )
    return {
        "event": "evaluation",
        "step": step,
        "split": result.split,
        "accuracy": result.accuracy,
        "loss": result.mean_loss,
        "num_correct": result.num_correct,
        "num_examples": result.num_examples,
        "figures": dict(result.figures),
        **counts,
    }


def class_records(result: Evaluation, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of `figures.by_class` with the names of the classes."""
    rows = zip(class_names, by_class(result.confusion, result.class_intervals), strict=True)
    return [{"class": name, **figures} for name, figures in rows]


def _of_classes(result: Evaluation, class_names: Sequence[str]) -> dict[str, float]:
    """Return recall, precision and F1 of each class, by tag, without undefined values."""
    return {
        f"{result.split}_{key}/{printable(row['class'])}": row[key]
        for row in class_records(result, class_names)
        for key in ("recall", "precision", "f1")
        if row[key] is not None
    }


def _cell(value: object) -> str:
    return printable(shortened(str(value), 500)).replace("|", "\\|").replace("`", "'")


class Board:
    """Write TensorBoard's event file, by the thread of its writer."""

    def __init__(self, directory: str, from_step: int) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(directory, flush_secs=30)
        # TensorBoard drops what an earlier attempt wrote at this step or later.
        self._add(from_step + 1, session_log={"status": "START"})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve, by tag."""
        self._show(step, *({"tag": tag, "simple_value": float(value)} for tag, value in values.items()))

    def image(self, step: int, tag: str, png: bytes) -> None:
        """Show a picture in PNG format."""
        self._show(step, {"tag": tag, "image": {"encoded_image_string": png, "colorspace": 3}})

    def hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Show the settings of the run on the HParams page."""
        from tensorboard.plugins.hparams import summary_v2

        plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in values.items()}
        self._add(0, summary=summary_v2.hparams_pb(plain))

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Show a text in Markdown."""
        from tensorboard.plugins.text.metadata import create_summary_metadata

        self._tensor(step, tag, np.array(markdown, object), create_summary_metadata("", ""))

    def precision_recall(
        self, step: int, tag: str, labels: NDArray[np.bool_], probabilities: NDArray[np.floating]
    ) -> None:
        """Show a curve by counts at evenly spread thresholds from 0 to 1, as TensorBoard's page expects them."""
        from tensorboard.plugins.pr_curve.metadata import create_summary_metadata

        bins = np.linspace(0, 1, NUM_THRESHOLDS)
        # At each threshold, how many of the class, and of the others, are at or above it.
        of_class, of_others = (
            (len(values) - np.searchsorted(np.sort(values), bins)).astype(np.float64)
            for values in (probabilities[labels], probabilities[~labels])
        )
        missed, spared = labels.sum() - of_class, (~labels).sum() - of_others
        precision = of_class / np.maximum(of_class + of_others, 1)
        recall = of_class / max(labels.sum(), 1)
        rows = np.stack([of_class, of_others, spared, missed, precision, recall]).astype(np.float32)
        self._tensor(step, tag, rows, create_summary_metadata("", "", NUM_THRESHOLDS))

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()

    def _tensor(self, step: int, tag: str, values: NDArray[Any], metadata: Any) -> None:
        from tensorboard.util.tensor_util import make_tensor_proto

        self._show(step, {"tag": tag, "metadata": metadata, "tensor": make_tensor_proto(values)})

    def _show(self, step: int, *values: Mapping[str, Any]) -> None:
        self._add(step, summary={"value": values})

    def _add(self, step: int, **fields: Any) -> None:
        """Write an event with these fields, where a mapping may stand for a message."""
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(step=step, wall_time=time.time(), **fields))
