"""A pruned network reproduces the outputs of the whole, where the channels that are left can express them."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.doubles import build
from tests.pruned import HEADS, branching, with_every_weight_drawn
from tl_dist.config import ModelConfig
from tl_dist.models import classifier, pruning
from tl_dist.models.backbones import Backbone
from tl_dist.models.classifier import Classifier

IMAGES = tf.constant(np.random.default_rng(3).integers(0, 256, (48, 32, 32, 3), dtype=np.uint8))
SMALLER = 0.3
"""the size of a filter, beside one that is the same otherwise: the one that pruning leaves out"""


def with_twins(net: Classifier, narrow: Classifier) -> None:
    """Make every second channel of the pruned layers a smaller copy of the one before it."""
    for whole, half in zip(net.network.layers, narrow.network.layers, strict=True):
        if half.output.shape[-1] == whole.output.shape[-1]:
            continue
        for variable in whole.weights:
            values = variable.numpy()
            by_channel = isinstance(whole, keras.layers.DepthwiseConv2D) and values.ndim == 4
            channels = np.moveaxis(values, 2 if by_channel else -1, 0)
            power = {"kernel": 1, "bias": 1, "moving_mean": 1, "moving_variance": 2}.get(variable.name, 0)
            power = 0 if by_channel else power
            channels[1::2] = channels[::2] * SMALLER**power
            variable.assign(values)


def recovered(net: Classifier, narrow: Classifier) -> tuple[float, float]:
    """Return the relative error of the logits before and after the fit, against the whole network."""
    for path, variable in {**narrow.moving, **narrow.frozen}.items():
        variable.assign(pruning.kept(net, narrow.network)[path])
    expected = net(IMAGES).numpy()
    off = [np.abs(narrow(IMAGES) - expected).max()]
    for fit in pruning.fits(net, narrow):
        squares, products = fit.sums(IMAGES, fit.num_images(len(IMAGES)))
        fit.solve({**narrow.moving, **narrow.frozen}, np.float64(squares), np.float64(products))
    off.append(np.abs(narrow(IMAGES) - expected).max())
    return off[0] / np.abs(expected).max(), off[1] / np.abs(expected).max()


@pytest.mark.parametrize("head", HEADS)
def test_a_channel_that_another_is_like_is_made_good(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "DAMPING", 1e-9)
    net, narrow = with_every_weight_drawn(build(**HEADS[head])), build(prune=0.5, **HEADS[head])
    with_twins(net, narrow)
    before, after = recovered(net, narrow)
    assert before > 0.1 and after < 1e-2


def test_between_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strides, no padding, no bias, batch norm and convolutions by channel in between."""
    monkeypatch.setattr(pruning, "DAMPING", 1e-9)
    record = Backbone("branching", branching, 32, 8, "tf", {"all": "stem"}, prunable=True)

    def prunable_net(prune: float) -> Classifier:
        config = ModelConfig(backbone="branching", train_from="all", pooling="both", prune=prune)
        return classifier.Classifier(record, config, image_size=32, num_classes=3, seed=0)

    net, narrow = with_every_weight_drawn(prunable_net(0.0)), prunable_net(0.5)
    with_twins(net, narrow)
    before, after = recovered(net, narrow)
    assert before > 0.05 and after < 1e-2
    layers: list[Any] = [fit.paths[0].split("/")[1] for fit in pruning.fits(net, narrow)]
    assert layers == ["residual_middle", "residual_out", "project", "logits"]


def test_where_the_images_say_nothing_the_weights_stay() -> None:
    start = np.random.default_rng(0).normal(size=(5, 2))
    squares, products = np.diag([4.0, 4.0, 0, 0, 0]), np.zeros((5, 2))
    solution = pruning.solution_near(start, squares, products)
    np.testing.assert_array_equal(solution[2:], start[2:])
    assert np.abs(solution[:2]).max() < 1e-3
