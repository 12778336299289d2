"""Layers of a pruned network fitted by least squares, against SciPy's solver on equations that torch takes apart."""

from typing import Any

import keras
import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf
import torch

from tests.doubles import build
from tests.pruned import pruned, trained, with_every_weight_drawn
from tl_dist.config import ModelConfig
from tl_dist.models import classifier, pruning
from tl_dist.models.backbones import Backbone
from tl_dist.models.classifier import Classifier

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
MANY = np.random.default_rng(0).integers(0, 256, (400, 32, 32, 3), dtype=np.uint8)
HEAD: dict[str, Any] = {"pooling": "both", "normalize": True}


def fitted(narrow: Classifier, fit: pruning.Fit, images: np.ndarray) -> None:
    squares, products = fit.sums(tf.constant(images), len(images))
    fit.solve({**narrow.moving, **narrow.frozen}, np.float64(squares), np.float64(products))


def reference(inputs: np.ndarray, outputs: np.ndarray, start: np.ndarray, damping: float) -> np.ndarray:
    """scipy.linalg.lstsq of the equations and, below them, of those that pull to the start."""
    pull = np.sqrt(damping * np.square(inputs).sum(axis=0).mean())
    below = pull * np.eye(inputs.shape[1])
    return scipy.linalg.lstsq(np.vstack([inputs, below]), np.vstack([outputs, below @ start]))[0]


def design(images: np.ndarray, network: Any, name: str, *, stride: int = 1, padding: int = 1) -> tuple[np.ndarray, Any]:
    """Patches that a 3 x 3 convolution sees, [places, height * width * channels + 1], by torch."""
    layer = network.get_layer(name)
    maps = keras.Model(network.inputs, layer.input)([images / np.float32(127.5) - 1])
    tensor = torch.tensor(maps.numpy()).permute(0, 3, 1, 2)
    found = torch.nn.functional.unfold(tensor, 3, padding=padding, stride=stride)  # [images, channels * 9, places]
    patches = found.permute(0, 2, 1).reshape(-1, tensor.shape[1], 9).permute(0, 2, 1)
    flat = patches.reshape(len(patches), -1).double().numpy()
    return np.hstack([flat, np.ones((len(flat), 1))]), layer


def test_a_convolution_and_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first that reads fewer channels, with every equation, and the head on what all convolutions give by then."""
    monkeypatch.setattr(pruning, "ROWS", 10**6)
    wide = trained(**HEAD)
    narrow = pruned(wide, 0.5, **HEAD)
    fits = pruning.fits(wide, narrow)
    fit = next(fits)
    name = fit.paths[0].split("/")[1]
    assert fit.paths == (f"backbone/{name}/kernel", f"backbone/{name}/bias")
    x, layer = design(IMAGES, narrow.network, name)
    whole, of_whole = design(IMAGES, wide.network, name)
    kernel, bias = (values.astype(np.float64) for values in of_whole.get_weights())
    kernel_left, bias_left = layer.get_weights()
    kept = [int(np.flatnonzero(bias == one)[0]) for one in bias_left]
    y = whole @ np.vstack([kernel.reshape(-1, kernel.shape[-1]), bias])[:, kept]
    start = np.vstack([kernel_left.reshape(-1, len(kept)), bias_left])
    expected = reference(x, y, start, pruning.DAMPING)
    fitted(narrow, fit, IMAGES)
    found = np.vstack([layer.get_weights()[0].reshape(-1, len(kept)), layer.get_weights()[1]])
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert np.abs(found - start).max() > 0.1 * np.abs(start).max()

    for fit in fits:
        variables = {**narrow.moving, **narrow.frozen}
        start = np.vstack([variables[path].numpy().reshape(-1, fit.num_outputs) for path in fit.paths])
        images = IMAGES if fit.rows > 1 else MANY  # the head has one equation of each
        fitted(narrow, fit, images)
    assert fit.paths == ("head/logits/kernel", "head/logits/bias")
    x = np.hstack([narrow.with_features(MANY)[1].numpy().astype(np.float64), np.ones((len(MANY), 1))])
    y = wide(MANY).numpy().astype(np.float64)
    found = np.vstack([narrow.moving[path].numpy() for path in fit.paths])
    expected = reference(x, y, start.astype(np.float64), pruning.DAMPING)
    # Noise looks alike once pooled: what its images hardly decide feels that sums are in float32, what they decide not.
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())
    np.testing.assert_allclose(x @ found, x @ expected, atol=1e-4 * np.ptp(y))


def strided(input_shape: tuple[int, int, int]) -> Any:
    """A block as ResNetV2 has it: the 3 x 3 in its middle steps by two, over a padding of its own."""
    layers = keras.layers
    x = inputs = keras.Input(input_shape)
    x = layers.Conv2D(8, 3, name="stem")(x)
    inside = layers.Conv2D(6, 1, use_bias=False, name="in")(layers.ReLU()(x))
    inside = layers.ZeroPadding2D(1)(layers.ReLU()(layers.BatchNormalization(name="norm1")(inside)))
    inside = layers.Conv2D(6, 3, strides=2, use_bias=False, name="middle")(inside)
    inside = layers.ReLU()(layers.BatchNormalization(name="norm2")(inside))
    x = layers.Add()([layers.MaxPooling2D(1, strides=2)(x), layers.Conv2D(8, 1, name="out")(inside)])
    return keras.Model(inputs, x, name="strided")


def test_a_convolution_that_steps_by_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its equations are those of the places where it looks, and of no others."""
    monkeypatch.setattr(pruning, "ROWS", 10**6)
    record = Backbone("strided", strided, 32, 8, "tf", {"all": "stem"}, prunable=True)

    def made(prune: float) -> Classifier:
        config = ModelConfig(backbone="strided", train_from="all", prune=prune)
        return classifier.Classifier(record, config, image_size=32, num_classes=3, seed=0)

    wide, narrow = with_every_weight_drawn(made(0.0)), made(0.5)
    for path, variable in {**narrow.moving, **narrow.frozen}.items():
        variable.assign(pruning.kept(wide, narrow.network)[path])
    (fit,) = [fit for fit in pruning.fits(wide, narrow) if fit.paths == ("backbone/middle/kernel",)]
    x, layer = design(IMAGES, narrow.network, "middle", stride=2, padding=0)
    whole, of_whole = design(IMAGES, wide.network, "middle", stride=2, padding=0)
    assert len(x) == len(IMAGES) * 15 * 15 == len(IMAGES) * fit.rows
    (kernel,), (start,) = of_whole.get_weights(), layer.get_weights()
    flat = kernel.reshape(-1, kernel.shape[-1]).astype(np.float64)
    left = pruning.channels(wide, narrow.network)[id(layer.output)]
    y, start = (whole[:, :-1] @ flat)[:, left], start.reshape(-1, len(left)).astype(np.float64)
    expected = reference(x[:, :-1], y, start, pruning.DAMPING)
    fitted(narrow, fit, IMAGES)
    found = layer.get_weights()[0].reshape(-1, len(left))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert np.abs(found - start).max() > 0.1 * np.abs(start).max()


def test_where_a_sample_of_places_is_enough_the_equations_are_of_these() -> None:
    wide = trained(**HEAD)
    fit = next(pruning.fits(wide, pruned(wide, 0.5, **HEAD)))
    every, _ = fit.sums(tf.constant(IMAGES), 1)
    some, _ = fit.sums(tf.constant(IMAGES), 10**6)  # so many that one place of each is enough
    ones = (
        np.float64(every)[-1, -1],
        np.float64(some)[-1, -1],
    )  # the square of the bias's one at every place
    assert ones == (len(IMAGES) * min(fit.rows, pruning.ROWS * fit.num_inputs), len(IMAGES))
    assert build(**HEAD).first_of_head.name == "logits"
