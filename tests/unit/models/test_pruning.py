"""A pruned network is an ordinary one with fewer channels: those of the largest filters, which the head reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.doubles import build
from tl_dist.config import registry
from tl_dist.models import pruning
from tl_dist.models.classifier import Classifier

IMAGES = tf.constant(np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8))
HEADS: dict[str, dict[str, Any]] = {
    "average": {},
    "both, of two stages": {"pooling": "both", "layers": ("block2", "block3")},
    "flatten, hidden": {"pooling": "flatten", "hidden": 8},
}


def trained(**settings: Any) -> Classifier:
    """A classifier whose every weight is drawn, biases and head as well."""
    net = build(**settings)
    rng = np.random.default_rng(1)
    for variable in {**net.moving, **net.frozen}.values():
        variable.assign(rng.normal(0, 0.1, variable.shape))
    return net


def pruned(net: Classifier, prune: float, **settings: Any) -> Classifier:
    """What is left of it."""
    narrow = build(prune=prune, **settings)
    kept = pruning.kept(net, narrow.network)
    for path, variable in {**narrow.moving, **narrow.frozen}.items():
        variable.assign(kept[path])
    return narrow


@pytest.mark.parametrize("head", HEADS)
def test_without_a_share_nothing_changes(head: str) -> None:
    net = trained(**HEADS[head])
    same = pruned(net, 0.0, **HEADS[head])
    np.testing.assert_array_equal(same(IMAGES), net(IMAGES))
    for path, variable in {**same.moving, **same.frozen}.items():
        np.testing.assert_array_equal(variable, {**net.moving, **net.frozen}[path])


@pytest.mark.parametrize("head", HEADS)
def test_channels_that_are_zero_are_left_out_of_every_layer_and_of_the_head(head: str) -> None:
    net = trained(**HEADS[head])
    rng = np.random.default_rng(2)
    for layer in net.network.layers:
        if layer.weights:
            dead = rng.permutation(layer.filters)[: layer.filters // 2]
            for variable in layer.weights:
                values = variable.numpy()
                values[..., dead] = 0
                variable.assign(values)
    narrow = pruned(net, 0.5, **HEADS[head])
    assert [layer.filters for layer in narrow.network.layers if layer.weights] == [8, 16, 32]
    np.testing.assert_allclose(narrow(IMAGES), net(IMAGES), rtol=1e-5, atol=1e-6)
    assert np.abs(net(IMAGES)).max() > 1e-2


def test_the_filters_of_the_largest_l1_norm_are_kept_in_their_order() -> None:
    net = trained()
    narrow = pruned(net, 0.75)
    inputs = range(3)
    for wide, layer in zip(net.network.layers, narrow.network.layers, strict=True):
        if not layer.weights:
            continue
        kernel, bias = wide.get_weights()
        norms = [sum(abs(float(w)) for w in kernel[..., k].flat) for k in range(kernel.shape[-1])]
        best = sorted(sorted(range(len(norms)), key=lambda k: -norms[k])[: len(norms) // 4])
        np.testing.assert_array_equal(layer.get_weights()[0], kernel[:, :, list(inputs)][..., best])
        np.testing.assert_array_equal(layer.get_weights()[1], bias[best])
        inputs = best


def test_pruning_again_keeps_fewer_of_the_same() -> None:
    net = trained()
    once = pruned(net, 0.5)
    twice = pruned(once, 0.75)
    assert [layer.filters for layer in twice.network.layers if layer.weights] == [4, 8, 16]


@pytest.mark.parametrize("name", ["tiny", "vgg16"])
def test_a_chain_is_one(name: str) -> None:
    """What the record of a backbone says, seen in its network: each layer reads the one before it alone."""
    assert [name for name in registry.BACKBONES if registry.backbone(name).chain] == [
        "tiny",
        "vgg16",
        "vgg19",
    ]
    record = registry.backbone(name)
    size = (record.min_size, record.min_size, 3)
    whole, half = record.build(size), pruning.narrowed(record, 0.5).build(size)
    for before, layer in zip(whole.layers, whole.layers[1:], strict=False):
        assert layer.input is before.output
        assert {v.name for v in layer.weights} in (set(), {"kernel", "bias"})
    assert [v.path for v in half.weights] == [v.path for v in whole.weights]
    assert 0.24 < half.count_params() / whole.count_params() < 0.28
    assert half.name == whole.name and half.output_shape[-1] == whole.output_shape[-1] // 2
