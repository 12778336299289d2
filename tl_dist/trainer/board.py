"""Write what TensorBoard shows of a run: its event file, by the thread of a writer, and its projector's files.

Imports no TensorFlow.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.config.model_selection import FIGURES
from tl_dist.datasets import Source
from tl_dist.features.stored import FeatureSet
from tl_dist.files.atomic import write_atomically
from tl_dist.refusal import printable, shortened
from tl_dist.scores.evaluation import Evaluation
from tl_dist.scores.figures import by_class
from tl_dist.scores.pictures import confusion_picture, grid_picture
from tl_dist.scores.predictions import Predictions

MAX_CHARTS = 30  # classes up to which there are charts of each
NUM_THRESHOLDS = 201
MAX_POINTS = 1_000  # in the projector
_TAGS = {
    "loss": "train/loss",
    "accuracy": "train/accuracy",
    "learning_rate": "optimizer/learning_rate",
    "gradient_norm": "optimizer/gradient_norm",
    "loss_scale": "optimizer/loss_scale",
    "skipped": "optimizer/skipped_steps",
    "examples_per_s": "speed/images_per_s",
}
_PROJECTOR = """\
embeddings {
  tensor_name: "features"
  tensor_path: "features.tsv"
  metadata_path: "features_labels.tsv"
}
"""


class Board:
    """Write the event file of one attempt; `note` is told of each picture that cannot be drawn."""

    def __init__(
        self, directory: Path, from_step: int, class_names: Sequence[str], note: Callable[[str], None]
    ) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._class_names, self._note = list(class_names), note
        self._trained = from_step
        self._writer = EventFileWriter(str(directory), flush_secs=30)
        # TensorBoard drops what an earlier attempt wrote at this step or later.
        self._add(from_step + 1, session_log={"status": "START"})
        self.close = self._writer.close

    def train(self, record: Mapping[str, Any]) -> None:
        """Add the record of a chunk of steps to the curves."""
        self._trained, step_s = record["step"], record["step_s"]
        wait, reduction = record["data_wait_share"], record["reduction_share"]
        parts = {"data_wait": wait, "reduction": reduction, "compute": max(0.0, 1.0 - wait - reduction)}
        curves = {tag: record[key] for key, tag in _TAGS.items() if record[key] is not None}
        self._scalars(self._trained, curves | {f"step_time/{part}_s": step_s * share for part, share in parts.items()})

    def evaluation(self, step: int, result: Evaluation) -> None:
        """Add the figures of a split to the curves, and show its confusion matrix."""
        split, names = result.split, self._class_names
        if step < self._trained and split != "test":  # its curve has that step
            return
        figures = {"accuracy": result.accuracy, **result.figures}
        curves = {f"{split}/loss": result.mean_loss}
        curves |= {
            f"{split}/{name}": figures[name]
            for name in (*FIGURES, *figures.get("own", ()))
            if isinstance(figures.get(name), float)
        }
        if len(names) <= MAX_CHARTS:
            for row in class_records(result, names):
                defined = {key: row[key] for key in ("recall", "precision", "f1") if row[key] is not None}
                curves |= {f"{split}_{key}/{printable(row['class'])}": value for key, value in defined.items()}
        self._scalars(step, curves)
        if (confusion := result.confusion) is not None:
            self._picture(step, f"{split}/confusion", lambda: confusion_picture(confusion, names))

    def images(self, step: int, images: np.ndarray, labels: Sequence[str]) -> None:
        """Show a grid of augmented training images, uint8 [n, h, w, 3], as the network gets them."""
        self._picture(step, "train/augmented_images", lambda: grid_picture(images, labels))

    def hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Show the flat config on the HParams page, and as text."""
        from tensorboard.plugins.hparams import summary_v2
        from tensorboard.plugins.text.metadata import create_summary_metadata

        plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in values.items()}
        self._add(0, summary=summary_v2.hparams_pb(plain))
        rows = "".join(f"| {printable(key)} | `{_cell(value)}` |\n" for key, value in values.items())
        text = np.array(f"| key | value |\n|--|--|\n{rows}", object)
        self._tensor(0, "config", text, create_summary_metadata("", ""))

    def predicted(self, split: str, predictions: Predictions) -> None:
        """Show precision-recall curves: of the second class of two, else of each class against the rest.

        They are counts at evenly spread thresholds from 0 to 1, as TensorBoard's page expects them.
        """
        from tensorboard.plugins.pr_curve.metadata import create_summary_metadata

        if not np.isfinite(predictions.probabilities).all():
            return
        bins = np.linspace(0, 1, NUM_THRESHOLDS)
        names = [str(name) for name in predictions.class_names]
        for k in range(len(names) == 2 and not len(predictions.targets), len(names)):
            probabilities, positive = predictions.probabilities[:, k], predictions.of_class(k)
            # At each threshold, how many of the class, and of the others, are at or above it.
            of_class, of_others = (
                (len(values) - np.searchsorted(np.sort(values), bins)).astype(np.float64)
                for values in (probabilities[positive], probabilities[~positive])
            )
            missed, spared = positive.sum() - of_class, (~positive).sum() - of_others
            precision = of_class / np.maximum(of_class + of_others, 1)
            recall = of_class / max(positive.sum(), 1)
            rows = np.stack([of_class, of_others, spared, missed, precision, recall]).astype(np.float32)
            tag = f"{split}_precision_recall/{printable(names[k])}"
            self._tensor(predictions.step, tag, rows, create_summary_metadata("", "", NUM_THRESHOLDS))

    def _picture(self, step: int, tag: str, draw: Callable[[], bytes]) -> None:
        """Show a PNG picture; note where it cannot be drawn, which is no reason to end a run."""
        try:
            self._show(step, {"tag": tag, "image": {"encoded_image_string": draw(), "colorspace": 3}})
        except Exception as error:  # fonts, memory, a library's own faults
            self._note(f"no picture {tag} of step {step:,}: {type(error).__name__}: {error}")

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._show(step, *({"tag": tag, "simple_value": float(value)} for tag, value in values.items()))

    def _tensor(self, step: int, tag: str, values: NDArray[Any], metadata: Any) -> None:
        from tensorboard.util.tensor_util import make_tensor_proto

        self._show(step, {"tag": tag, "metadata": metadata, "tensor": make_tensor_proto(values)})

    def _show(self, step: int, *values: Mapping[str, Any]) -> None:
        self._add(step, summary={"value": values})

    def _add(self, step: int, **fields: Any) -> None:
        """Write an event with these fields, where a mapping may stand for a message."""
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(step=step, wall_time=time.time(), **fields))


def class_records(result: Evaluation, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of `figures.by_class`, or of the task's own figures of labels, with their names."""
    own = result.figures.get("labels", ())
    if result.confusion is not None:
        own = by_class(result.confusion, result.class_intervals)
    return [{"class": name, **figures} for name, figures in zip(class_names, own, strict=False)]


def _cell(value: object) -> str:
    return printable(shortened(str(value), 500)).replace("|", "\\|").replace("`", "'")


def show_points(directory: Path, source: Source, features: FeatureSet, rows: NDArray[np.integer] | None) -> None:
    """Show up to MAX_POINTS evenly spread examples in the projector: first view, mean over positions; once in a run.

    `rows` are the rows of `source`'s examples in the feature set; None if they have the same order.
    """
    config = directory / "projector_config.pbtxt"
    if config.exists():
        return
    chosen = np.unique(np.linspace(0, source.num_examples - 1, MAX_POINTS).astype(np.int64))
    values = features.some(chosen if rows is None else np.asarray(rows)[chosen])
    points = values.reshape(len(chosen), -1, values.shape[-1]).mean(axis=1)
    labels = [[source.in_words(source.truth[k]), str(source.ids[k])] for k in chosen.tolist()]
    write_atomically(directory / "features.tsv", _table([[f"{x:.5g}" for x in row] for row in points.tolist()]))
    write_atomically(directory / "features_labels.tsv", _table([["class", "id"], *labels]))
    write_atomically(config, _PROJECTOR.encode())


def _table(rows: Sequence[Sequence[str]]) -> bytes:
    lines = ("\t".join(printable(cell.replace("\t", " ")) for cell in row) for row in rows)
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")
