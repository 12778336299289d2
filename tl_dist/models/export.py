"""Export of a trained model to other runtimes: the formats, how each is written with Keras's exporters, and run.

Packages are imported on use: what checks a format's name needs none of them.
"""

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.files.packages import require
from tl_dist.refusal import ExitCode, Refusal, printable

Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""uint8 images [batch, size, size, 3] -> probabilities [batch, classes]"""


@dataclass(frozen=True)
class Format:
    """A format: its name on disk and for model hubs, and what it requires."""

    file: str
    library: str
    numbers: tuple[str, ...] = ("float32",)  # the types in which it can store weights
    packages: tuple[str, ...] = ()
    """the packages that writing and running it needs besides TensorFlow, by the names under which they are imported"""

    def require(self) -> None:
        """Refuse (64) if one of the packages is not installed."""
        require(self.packages, extra="export")


FORMATS: Mapping[str, Format] = {
    "savedmodel": Format("savedmodel", "tf-keras"),
    "keras": Format("model.keras", "keras"),
    "onnx": Format("model.onnx", "onnx", packages=("tf2onnx", "onnx", "onnxruntime")),
    "litert": Format("model.tflite", "litert", ("float32", "float16", "int8"), packages=("ai_edge_litert",)),
}

_OTHER_NAMES = {
    "tflite": "litert",
    "lite": "litert",
    "saved_model": "savedmodel",
    "tf": "savedmodel",
    "h5": "keras",
}


def format_of(name: str, numbers: str) -> Format:
    """Return the format of this name; refuse (64) an unknown name, and numbers in which it stores no weights."""
    export = FORMATS.get(name)
    if export is None:
        usual_name = _OTHER_NAMES.get(name.lower())
        fix = f"use --to {usual_name}" if usual_name else f"use one of {', '.join(FORMATS)}"
        raise Refusal(f"no export is called '{name}'.", fix=f"{fix}.", code=ExitCode.USAGE)
    if numbers not in export.numbers:
        others = [other for other, record in FORMATS.items() if numbers in record.numbers]
        what = f"an export to {name} has no weights in {numbers}."
        fix = f"leave out --{numbers}, or export --to {' or '.join(others)}."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE)
    return export


def write(
    model: Any,
    target: Path,
    *,
    to: str,
    class_names: Sequence[str],
    read: Callable[[Any], Any],
    numbers: str = "float32",
    one_class: bool = True,
) -> None:
    """Write `model` to `target` in the format `to` of `FORMATS`. Its input stays uint8 [batch, size, size, 3].

    With `one_class` a SavedModel also names the most probable class.

    `read` decodes the bytes of one JPEG or PNG to the model's size in a graph; a SavedModel includes it.
    """
    if to == "keras":
        model.save(target)
    elif to == "savedmodel":
        _write_saved_model(model, target, class_names if one_class else None, read)
    elif to == "onnx":
        import onnx

        _write_onnx(model, target)
        exported = onnx.load(str(target))
        onnx.helper.set_model_props(exported, {"class_names": json.dumps(list(class_names))})
        onnx.save(exported, str(target))
    else:
        model.export(str(target), format="litert", verbose=False, **_reduced(numbers))
        # Where TensorFlow Lite's metadata has labels: `unzip` shows them. A line break would make one name two.
        with zipfile.ZipFile(target, "a") as labels:
            labels.writestr("labels.txt", "".join(f"{printable(name)}\n" for name in class_names))


def _write_onnx(model: Any, target: Path) -> None:
    """Write a graph of images alone: what layers have made of their settings, as Swin its windows, becomes constant.

    Keras's own export leaves that to tf2onnx, which makes an input of each such tensor.
    """
    import tensorflow as tf
    import tf2onnx
    from keras.src.export.tf2onnx_lib import patch_tf2onnx
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    patch_tf2onnx()
    _register_erfc()
    images = [tf.TensorSpec(model.input_shape, tf.uint8, name="images")]
    call = tf.function(lambda images: model(images, training=False), input_signature=images, autograph=False)
    alone = convert_variables_to_constants_v2(call.get_concrete_function(), lower_control_flow=False)
    answer = tf.function(lambda images: alone(images)[0], autograph=False)
    tf2onnx.convert.from_function(answer, images, output_path=str(target))


def _register_erfc() -> None:
    """Tell tf2onnx how to write Erfc, by which TensorFlow computes an exact GELU and which ONNX has not: 1 - Erf."""
    from tf2onnx.handler import tf_op

    class Erfc:
        @classmethod
        def version_9(cls, graph: Any, node: Any, **_settings: Any) -> None:
            kind = np.float16 if graph.get_dtype(node.output[0]) == 10 else np.float32
            ones = graph.make_const(f"{node.name}/one", np.ones((), kind)).output[0]
            graph.remove_node(node.name)
            erf = graph.make_node("Erf", node.input).output[0]
            graph.make_node("Sub", [ones, erf], outputs=node.output, name=node.name)

    tf_op("Erfc")(Erfc)


def _write_saved_model(model: Any, target: Path, class_names: Sequence[str] | None, read: Callable[[Any], Any]) -> None:
    """Write two signatures, `serving_default` of images and `encoded` of JPEG or PNG.

    They give `probabilities`, or `values`, and the `class` if there are names.
    """
    import keras
    import tensorflow as tf

    size = model.input_shape[1]
    archive = keras.export.ExportArchive()
    archive.track(model)
    names = tf.constant([name.encode("utf-8", "surrogateescape") for name in class_names or ()], tf.string)

    def serve(images: Any) -> dict[str, Any]:
        probabilities = model(images, training=False)
        if class_names is None:
            return {model.layers[-1].name: probabilities}
        return {"probabilities": probabilities, "class": tf.gather(names, tf.argmax(probabilities, axis=-1))}

    def serve_encoded(encoded: Any) -> dict[str, Any]:
        squares = tf.TensorSpec([size, size, 3], tf.uint8)
        return serve(tf.map_fn(read, encoded, fn_output_signature=squares))

    images = tf.TensorSpec([None, size, size, 3], tf.uint8, name="images")
    archive.add_endpoint("serving_default", serve, [images])
    archive.add_endpoint("encoded", serve_encoded, [tf.TensorSpec([None], tf.string, name="encoded")])
    archive.write_out(str(target), verbose=False)


def _reduced(numbers: str) -> dict[str, Any]:
    """Return the converter's options for smaller weights.

    int8 is its dynamic-range quantization: weights in int8 with one scale per channel, activations by their range in
    each call. With ranges fixed by calibration images, a VGG16 gave 0.82 of 164 cells the same class; with this, all.
    """
    if numbers == "float32":
        return {}
    import tensorflow as tf

    options = {"optimizations": [tf.lite.Optimize.DEFAULT]}
    return options | ({"target_spec": {"supported_types": [tf.float16]}} if numbers == "float16" else {})


def opened(to: str, file: Path, *, threads: int) -> Predict:
    """Load the model in `file`, in the format `to`, to run on `threads` CPU threads if the runtime lets one choose."""
    return {"savedmodel": _saved_model, "keras": _keras, "onnx": _onnx, "litert": _litert}[to](file, threads)


def _saved_model(file: Path, threads: int) -> Predict:
    import tensorflow as tf

    # The returned function must refer to the model: a signature alone does not keep its weights alive.
    model = tf.saved_model.load(str(file))
    serve = model.signatures["serving_default"]
    name = "values" if "values" in serve.structured_outputs else "probabilities"

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert model is not None
        return np.asarray(serve(images=tf.constant(images))[name])

    return predict


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
