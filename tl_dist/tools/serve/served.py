"""Load the model that is served, of a run or an export, and read image files as the run does."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist import tasks
from tl_dist.config import file as config_file
from tl_dist.config.data import Square
from tl_dist.data.resize import resize
from tl_dist.data.undecodable import READ_ERRORS, first_line
from tl_dist.datasets.decoding import BY_PILLOW, decode_rgb
from tl_dist.datasets.headers import checked
from tl_dist.datasets.preprocess import rgb
from tl_dist.features.views import apply_views, views_of
from tl_dist.files import limits
from tl_dist.files.atomic import reason
from tl_dist.files.foreign import read_file
from tl_dist.models.export import Predict, compiled, format_of, opened
from tl_dist.parallel import gpus
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.scores.decision import Decision
from tl_dist.tasks import Task
from tl_dist.trainer.load_model import restored, start_tensorflow


@dataclass(frozen=True)
class Served:
    """A model with its name and its version, the step of its checkpoint."""

    name: str
    version: int
    class_names: Sequence[str]
    image_size: int
    predict: Predict
    decode: Callable[[bytes], NDArray[np.uint8]]
    """from the bytes of an image file to uint8 [size, size, 3]; raises ValueError with the reason if it cannot"""
    calibrated: bool = False
    """whether the temperature of `tl-dist calibrate` is applied to the probabilities"""
    decision: Decision | None = None
    """the rule of `tl-dist threshold` for the class"""
    task: Task = field(default_factory=lambda: tasks.named("classification"))
    """what the answers mean"""


def of_run(run: RunDir, at: str, *, cores: int | None) -> Served:
    """Load a checkpoint, `at` as in `checkpoint.find`, of a run that may be in use; `cores` as for `setup`."""
    cfg = config_file.load(run.config_file)
    start_tensorflow(cfg, cores)
    if cores is not None:
        gpus.take_first(1)
    own = restored(run, at, calibrated=False)
    # Names of their own, so that `predict` does not keep the rest of `own` alive.
    views, model, temperature = cfg.evaluation.views, own.model, own.temperature

    def predict(images: tf.Tensor) -> tf.Tensor:
        """Return the mean over the test-time views of the run, as in its evaluation; calibrated if the run is."""
        rows = tf.ones(tf.shape(images)[:1], tf.int32)
        inputs = [apply_views(images, views, view * rows) for view in range(views_of(views))]
        mean = tf.reduce_mean([model(batch, training=False) for batch in inputs], axis=0)
        return mean if temperature is None else tf.nn.softmax(tf.math.log(mean) / temperature)

    shape = own.model.input_shape
    size = int(shape[1])
    return _checked(
        Served(
            name=run.name,
            version=own.checkpoint.step,
            class_names=own.class_names,
            image_size=size,
            predict=compiled(predict, shape),
            decode=decoder(size, cfg.data.square),
            calibrated=temperature is not None,
            decision=own.decision,
            task=tasks.of(cfg),
        )
    )


def of_export(directory: Path, *, cores: int) -> Served:
    """Load what `tl-dist export` wrote, in its own runtime. Refuse (65) a directory that is no such export."""
    try:
        report, settings = (
            json.loads(read_file(directory / name, max_bytes=limits.EVALUATION))
            for name in ("export.json", "classes.json")
        )
        form = format_of(report["to"], report["numbers"])
        form.require()
        size, names = int(settings["image_size"]), [str(name) for name in settings["class_names"]]
        predict = opened(report["to"], directory / form.file, threads=cores)
        decode = decoder(size, Square(settings["crop_fraction"], settings.get("interpolation", "bilinear")))
        calibrated, rule = report.get("temperature") is not None, settings.get("decision")
        if rule is not None:
            rule = Decision.of_json(json.dumps(rule).encode(), len(names))
        task = tasks.named(settings.get("task", "classification"))
        about = str(report["run"]), int(report["step"]), names, size, predict, decode
        return _checked(Served(*about, calibrated, rule, task))
    except Refusal:
        raise
    except Exception as error:  # each runtime has its own kind
        what = f"{directory} is no export that can be served ({reason(error)})."
        raise Refusal(what, fix="export the run again.", code=ExitCode.DATA) from error


def _checked(served: Served) -> Served:
    """Return the model after a first prediction, so that no request waits for its compilation."""
    shape = served.predict(np.zeros((1, served.image_size, served.image_size, 3), np.uint8)).shape
    if shape != (1, len(served.class_names)):
        raise ValueError(f"its answer has shape {shape}, for {len(served.class_names)} classes")
    return served


def decoder(size: int, square: Square) -> Callable[[bytes], NDArray[np.uint8]]:
    """Return a function that reads the bytes of a request as `tl-dist predict` reads a file."""

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)], autograph=False)
    def fitted(pixels: tf.Tensor) -> tf.Tensor:
        return resize(pixels, size, square)

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    def read(encoded: tf.Tensor) -> tf.Tensor:
        return fitted(decode_rgb(encoded))

    def decode(encoded: bytes) -> NDArray[np.uint8]:
        kind, width, height = checked(encoded)
        if width * height > limits.SERVED_PIXELS:
            raise ValueError(f"{kind} of {width} x {height} pixels: more than {limits.SERVED_PIXELS:,}")
        with tf.device("CPU:0"):
            if kind not in BY_PILLOW:
                try:
                    return np.asarray(read(tf.constant(encoded)))
                except READ_ERRORS as error:
                    raise ValueError(f"cannot be decoded: {first_line(error)}") from error
            try:  # outside the graph, which prints a traceback for each damaged image
                pixels = rgb(encoded)
            except Exception as error:
                raise ValueError(f"cannot be decoded: it is damaged: {error}") from error
            return np.asarray(fitted(tf.constant(pixels)))

    return decode
