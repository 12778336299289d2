"""An exported model, run by the runtime of its format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""uint8 images [batch, size, size, 3] -> probabilities [batch, classes]"""


def opened(to: str, file: Path, *, threads: int) -> Predict:
    """Load the model in `file`, in the format `to`, to run on `threads` CPU threads if the runtime lets one choose."""
    return {"savedmodel": _saved_model, "keras": _keras, "onnx": _onnx, "litert": _litert}[to](file, threads)


def _saved_model(file: Path, threads: int) -> Predict:
    import tensorflow as tf

    # The returned function must refer to the model: a signature alone does not keep its weights alive.
    model = tf.saved_model.load(str(file))
    return lambda images: np.asarray(
        model.signatures["serving_default"](images=tf.constant(images))["probabilities"]
    )


def _keras(file: Path, threads: int) -> Predict:
    import keras

    model = keras.models.load_model(file, compile=False)
    return compiled(lambda images: model(images, training=False), model.input_shape)


def compiled(model: Callable[[Any], Any], shape: Sequence[int | None]) -> Predict:
    """Compile a TensorFlow function of a batch as one graph, for batches of any size."""
    import tensorflow as tf

    graph = tf.function(model, input_signature=[tf.TensorSpec(shape, tf.uint8)], autograph=False)
    return lambda images: np.asarray(graph(tf.constant(images)))


def _onnx(file: Path, threads: int) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    (images_input,) = session.get_inputs()
    return lambda images: np.asarray(session.run(None, {images_input.name: images})[0])


def _litert(file: Path, threads: int) -> Predict:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file), num_threads=threads)
    (images_input,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
    shape: Any = None

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        nonlocal shape
        if images.shape != shape:
            interpreter.resize_tensor_input(images_input["index"], images.shape)
            interpreter.allocate_tensors()
            shape = images.shape
        interpreter.set_tensor(images_input["index"], images)
        interpreter.invoke()
        return np.array(interpreter.get_tensor(output["index"]))

    return predict
