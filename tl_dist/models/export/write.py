"""Write a `keras.Model` of uint8 images with Keras's own exporters."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tl_dist.refusal import printable


def write(
    model: Any,
    target: Path,
    *,
    to: str,
    class_names: Sequence[str],
    read: Callable[[Any], Any],
    numbers: str = "float32",
) -> None:
    """Write `model` to `target` in the format `to` of `FORMATS`. Its input stays uint8 [batch, size, size, 3].

    `read` decodes the bytes of one JPEG or PNG to the model's size in a graph; a SavedModel includes it.
    """
    if to == "keras":
        model.save(target)
    elif to == "savedmodel":
        _saved_model(model, target, class_names, read)
    elif to == "onnx":
        images = keras.InputSpec(shape=model.input_shape, dtype="uint8", name="images")
        model.export(str(target), format="onnx", input_signature=[images], verbose=False)
        _name_classes_in_onnx(target, class_names)
    else:
        model.export(str(target), format="litert", verbose=False, **_reduced(numbers))
        # Where TensorFlow Lite's metadata has labels: `unzip` shows them. A line break would make one name two.
        with zipfile.ZipFile(target, "a") as labels:
            labels.writestr("labels.txt", "".join(f"{printable(name)}\n" for name in class_names))


def _saved_model(model: Any, target: Path, class_names: Sequence[str], read: Callable[[Any], Any]) -> None:
    """Write two signatures to `probabilities` and `class`: `serving_default` of images, `encoded` of JPEG or PNG."""
    size = model.input_shape[1]
    archive = keras.export.ExportArchive()
    archive.track(model)
    names = tf.constant([name.encode("utf-8", "surrogateescape") for name in class_names])

    def serve(images: Any) -> dict[str, Any]:
        probabilities = model(images, training=False)
        return {"probabilities": probabilities, "class": tf.gather(names, tf.argmax(probabilities, axis=-1))}

    def serve_encoded(encoded: Any) -> dict[str, Any]:
        squares = tf.TensorSpec([size, size, 3], tf.uint8)
        return serve(tf.map_fn(read, encoded, fn_output_signature=squares))

    images = tf.TensorSpec([None, size, size, 3], tf.uint8, name="images")
    archive.add_endpoint("serving_default", serve, [images])
    archive.add_endpoint("encoded", serve_encoded, [tf.TensorSpec([None], tf.string, name="encoded")])
    archive.write_out(str(target), verbose=False)


def _name_classes_in_onnx(file: Path, class_names: Sequence[str]) -> None:
    import onnx

    model = onnx.load(str(file))
    onnx.helper.set_model_props(model, {"class_names": json.dumps(list(class_names))})
    onnx.save(model, str(file))


def _reduced(numbers: str) -> dict[str, Any]:
    """Return the converter's options for smaller weights.

    int8 is its dynamic-range quantization: weights in int8 with one scale per channel, activations by their range in
    each call. Ranges fixed by calibration images were tried: a VGG16 gave 0.82 of 164 cells the same class as before;
    with this it gave all.
    """
    if numbers == "float32":
        return {}
    options = {"optimizations": [tf.lite.Optimize.DEFAULT]}
    return options | ({"target_spec": {"supported_types": [tf.float16]}} if numbers == "float16" else {})
