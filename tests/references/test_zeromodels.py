"""Networks of ZeroModels as they are: the two halves of each, wherever it is cut, compute what its own model does."""

import importlib
from pathlib import Path

import keras
import numpy as np
import pytest

from tl_dist.config import ModelConfig
from tl_dist.models import export
from tl_dist.models.backbones import described, functions, seam, seams

SIDE = 64
NETWORKS = {
    "swin:SwinModel": ({"window_size": 2, "pretrain_size": SIDE}, 33, "layers_2_blocks_5"),
    "convnextv2:ConvNeXtV2Model": ({}, 26, "stages_2_blocks_8"),
    "mobilenetv4:MobileNetV4Model": ({}, 53, "blocks_3_5"),
}
"""module and class below zeromodels.models; arguments; places where one tensor passes; the name of a block"""


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_cut_at_each_of_its_blocks(name: str) -> None:
    arguments, num_places, block = NETWORKS[name]
    config = ModelConfig(backbone=f"zeromodels.models.{name}", arguments=arguments, preprocessing="torch")
    facts = described.describe(config.network(SIDE))
    assert block in facts["stages"]
    built = functions.build(config.backbone, arguments, (SIDE, SIDE, 3))
    assert len(seams(built)) == num_places
    module, _, kind = config.backbone.partition(":")
    own = getattr(importlib.import_module(module), kind)(image_size=SIDE, **arguments)
    random = np.random.default_rng(0)
    built.set_weights([w + 0.05 * random.normal(size=w.shape).astype(w.dtype) for w in own.get_weights()])
    own.set_weights(built.get_weights())
    images = random.normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)
    whole = np.asarray(own(images, training=False))
    names = [layer.name for layer in built.layers]
    for first in [*facts["stages"].values()][1::4]:
        passing = seam(built, names.index(first))
        below, above = keras.Model(built.inputs[0], passing), keras.Model(passing, built.output)
        halves = np.asarray(above(below(images, training=False), training=False))
        np.testing.assert_allclose(halves, whole, atol=1e-5 * np.abs(whole).max())


@pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning")
def test_onnx_runtime_gives_what_a_network_gives_whose_layers_keep_constants(tmp_path: Path) -> None:
    """Swin has tables of its windows, which were inputs of the exported graph."""
    arguments = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "window_size": 2}
    network = functions.build("zeromodels.models.swin:SwinModel", arguments | {"pretrain_size": SIDE}, (SIDE, SIDE, 3))
    pixels = keras.Input((SIDE, SIDE, 3), dtype="uint8")
    features = keras.ops.mean(network(keras.ops.cast(pixels, "float32") / 255), axis=(1, 2))
    model = keras.Model(pixels, keras.layers.Dense(10, activation="softmax")(features))
    export.write(model, tmp_path / "swin.onnx", to="onnx", class_names=list("0123456789"), read=np.asarray)
    images = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3)).astype(np.uint8)
    expected = np.asarray(model(images, training=False))
    assert expected.std(axis=0).max() > 1e-3  # the images matter
    answers = export.opened("onnx", tmp_path / "swin.onnx", threads=1)(images)
    np.testing.assert_allclose(answers, expected, atol=1e-5)
