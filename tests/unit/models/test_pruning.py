"""A pruned network is an ordinary one with fewer channels: the largest filters stay, and the head reads these."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.pruned import HEADS, branching, pruned, trained, with_every_weight_drawn
from tl_dist.config import ModelConfig, registry
from tl_dist.models import classifier, network, pruning
from tl_dist.models.backbones import Backbone
from tl_dist.models.classifier import Classifier

IMAGES = tf.constant(np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8))


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


INNER = {"residual_in": 3, "residual_middle": 2, "expand": 8, "top": 5}
"""convolutions whose channels one convolution alone, or the head, reads, and half of them"""


def test_between_branches_only_what_one_convolution_reads_is_left_out() -> None:
    """With half of these channels 0 in all weights, batch norm's too, the narrow network gives the whole's outputs."""
    record = Backbone("branching", branching, 32, 8, "tf", {"all": "stem"}, prunable=True)

    def branching_net(prune: float) -> Classifier:
        config = ModelConfig(backbone="branching", train_from="all", pooling="both", prune=prune)
        return classifier.Classifier(record, config, image_size=32, num_classes=3, seed=0)

    net, narrow = with_every_weight_drawn(branching_net(0.0)), branching_net(0.5)
    assert {
        half.name: half.filters
        for whole, half in zip(net.network.layers, narrow.network.layers, strict=True)
        if isinstance(half, keras.layers.Conv2D) and half.filters < whole.filters
    } == INNER
    for whole, half in zip(net.network.layers, narrow.network.layers, strict=True):
        if whole.output.shape[-1] != half.output.shape[-1]:
            for variable in whole.weights:
                values = variable.numpy()
                by_channel = isinstance(whole, keras.layers.DepthwiseConv2D) and values.ndim == 4
                np.moveaxis(values, 2 if by_channel else -1, 0)[::2] = 0
                variable.assign(values)
    weights = pruning.kept(net, narrow.network)
    for path, variable in {**narrow.moving, **narrow.frozen}.items():
        variable.assign(weights[path])
    assert not net.statistics and len(narrow.statistics) == 8  # with fewer channels they must be estimated again
    np.testing.assert_allclose(narrow(IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)
    assert np.abs(net(IMAGES)).max() > 1e-2


@pytest.mark.parametrize(
    ("name", "left"),
    [("vgg16", 0.250), pytest.param("resnet50", 0.441, marks=pytest.mark.full), ("mobilenetv2", 0.421)],
)
def test_half_of_the_channels_leaves_so_many_parameters(name: str, left: float) -> None:
    record = registry.backbone(name)
    size = (record.min_size, record.min_size, 3)
    whole, half = record.build(size), network.narrowed(record, 0.5).build(size)
    assert half.count_params() / whole.count_params() == pytest.approx(left, abs=1e-3)
    assert [v.path for v in half.weights] == [v.path for v in whole.weights] and half.name == whole.name
    # What a residual block or a chain of them passes on, all of it can read.
    assert half.output_shape[-1] == whole.output_shape[-1] // (1 if name == "resnet50" else 2)


def test_the_families_that_can_be_pruned() -> None:
    """The families of the package in which half of the channels are more than a third of the parameters."""
    assert {name for name in registry.BACKBONES if registry.backbone(name).prunable} == {
        name for name in registry.BACKBONES if name.startswith(("tiny", "vgg", "resnet", "densenet", "mobilenetv2"))
    }
