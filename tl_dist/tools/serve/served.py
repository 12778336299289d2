"""The model that is served, of a run or of an export, and how an image file becomes its input: as for the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist.config import file as config_file
from tl_dist.data.resize import resize
from tl_dist.data.undecodable import READ_ERRORS, first_line
from tl_dist.datasets.decoding import by_pillow, decode_rgb
from tl_dist.datasets.headers import checked
from tl_dist.datasets.preprocess import rgb
from tl_dist.features.views import apply_views, views_of
from tl_dist.files import limits
from tl_dist.files.atomic import reason
from tl_dist.files.foreign import read_file
from tl_dist.models.export import format_of
from tl_dist.models.export.runtime import Predict, compiled, opened
from tl_dist.parallel import gpus
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.trainer.load_model import restored
from tl_dist.trainer.setup import start_tensorflow


@dataclass(frozen=True)
class Served:
    """A model with its name and version, which is the step of its checkpoint."""

    name: str
    version: int
    class_names: Sequence[str]
    image_size: int
    predict: Predict
    decode: Callable[[bytes], NDArray[np.uint8]]
    """uint8 [size, size, 3] from the bytes of an image file; ValueError with the reason where they are none"""
    calibrated: bool = False
    """whether the probabilities are at the temperature of `tl-dist calibrate`"""


def of_run(run: RunDir, at: str, *, cores: int | None) -> Served:
    """The model of a checkpoint, `at` as in `checkpoint.find`, of a run that may be in use; `cores` as for `setup`."""
    cfg = config_file.load(run.config_file)
    start_tensorflow(cfg, cores)
    if cores is not None:
        gpus.take_first(1)
    own = restored(run, at, calibrated=False)
    views, model, temperature = cfg.evaluation.views, own.model, own.temperature  # not what else was read

    def predict(images: tf.Tensor) -> tf.Tensor:
        """The mean over the test-time views of the run, as its evaluation takes it; calibrated where the run is."""
        rows = tf.ones(tf.shape(images)[:1], tf.int32)
        every = [apply_views(images, views, view * rows) for view in range(views_of(views))]
        mean = tf.reduce_mean([model(one, training=False) for one in every], axis=0)
        return mean if temperature is None else tf.nn.softmax(tf.math.log(mean) / temperature)

    size = int(own.model.input_shape[1])
    return _checked(
        Served(
            run.name,
            own.step,
            own.class_names,
            size,
            compiled(predict, own.model.input_shape),
            decoder(size, cfg.data.kept_fraction, own.decoding),
            calibrated=temperature is not None,
        )
    )


def of_export(directory: Path, *, cores: int) -> Served:
    """What `tl-dist export` has made, in its own runtime."""
    try:
        report, settings = (
            json.loads(read_file(directory / name, max_bytes=limits.EVALUATION))
            for name in ("export.json", "classes.json")
        )
        form = format_of(report["to"], report["numbers"])
        form.require()
        size = int(settings["image_size"])
        return _checked(
            Served(
                str(report["run"]),
                int(report["step"]),
                [str(name) for name in settings["class_names"]],
                size,
                opened(report["to"], directory / form.file, threads=cores),
                decoder(size, settings["crop_fraction"], settings.get("decoding", 1)),
                calibrated=report.get("temperature") is not None,
            )
        )
    except Refusal:
        raise
    except Exception as error:  # of whatever kind the runtime has
        raise Refusal(
            f"{directory} is no export that can be served ({reason(error)}).",
            fix="export the run again.",
            code=ExitCode.DATA,
        ) from error


def _checked(served: Served) -> Served:
    """The model, which has answered once: the first request does not wait for its compilation."""
    found = served.predict(np.zeros((1, served.image_size, served.image_size, 3), np.uint8)).shape
    if found != (1, len(served.class_names)):
        raise ValueError(f"its answer has shape {found}, for {len(served.class_names)} classes")
    return served


def decoder(size: int, crop: float | None, decoding: int) -> Callable[[bytes], NDArray[np.uint8]]:
    """How `tl-dist predict` reads a file, for bytes that came by a request."""

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)], autograph=False)
    def fitted(pixels: tf.Tensor) -> tf.Tensor:
        return resize(pixels, size, crop)

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    def read(encoded: tf.Tensor) -> tf.Tensor:
        return fitted(decode_rgb(encoded, decoding))

    def decode(encoded: bytes) -> NDArray[np.uint8]:
        kind, width, height, _ = checked(encoded)
        if width * height > limits.SERVED_PIXELS:
            raise ValueError(f"{kind} of {width} x {height} pixels: more than {limits.SERVED_PIXELS:,}")
        with tf.device("CPU:0"):
            if by_pillow(
                kind, decoding
            ):  # not within the graph, which shows a traceback for each that is damaged
                try:
                    pixels = rgb(encoded, decoding)
                except Exception as error:
                    raise ValueError(f"cannot be decoded: it is damaged: {error}") from error
                return np.asarray(fitted(tf.constant(pixels)))
            try:
                return np.asarray(read(tf.constant(encoded)))
            except READ_ERRORS as error:
                raise ValueError(f"cannot be decoded: {first_line(error)}") from error

    return decode
