"""Heat maps depend on the weights, are of every family's feature maps, and integrated gradients add up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import spearmanr

from tests.doubles import build
from tl_dist.config import registry
from tl_dist.models.attribution import TOLERANCE, class_activation, integrated_gradients


def with_head(name: str, *, image_size: int, **settings: Any) -> Any:
    """A network whose head says something: it starts as zeros."""
    model = build(name, image_size=image_size, **settings)
    kernel = model.trainable["head/logits/kernel"]
    kernel.assign(np.random.default_rng(0).normal(size=kernel.shape))
    return model


def images_of(size: int, num: int = 2) -> np.ndarray:
    """Noise, darker in one quarter."""
    found = np.random.default_rng(1).integers(0, 256, (num, size, size, 3)).astype(np.uint8)
    found[:, : size // 2, : size // 2] //= 4
    return found


@pytest.fixture
def eagerly() -> Iterator[None]:
    """Without a compiler, which takes longer than the few images."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


FAMILIES = (
    "vgg16", "resnet50v2", "mobilenetv3small", "efficientnetb0", "densenet121", "inceptionv3", "convnexttiny",
)  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_maps(name: str, eagerly: None) -> None:
    size = registry.backbone(name).min_size * 2
    model = with_head(name, image_size=size)
    classes = np.array([0, 2], np.int32)
    maps, logits = class_activation(model)(images_of(size), classes)
    assert maps.shape == (2, size, size) and np.isfinite(maps).all()
    np.testing.assert_allclose(maps.numpy().max(axis=(1, 2)), 1)
    assert maps.numpy().min() >= 0 and maps.numpy().std() > 0.01
    np.testing.assert_allclose(logits, model(images_of(size)), rtol=1e-4, atol=1e-5)


def test_stages_that_are_pooled_are_joined_by_the_strongest(eagerly: None) -> None:
    images, classes = images_of(32), np.array([1, 1], np.int32)
    model = with_head("tiny", image_size=32, layers=["block1", "block3"])
    joined = class_activation(model)(images, classes)[0].numpy()
    # The map of 16 x 16 places of block 1 is in it, which one of 4 x 4 cannot draw.
    steps = np.abs(np.diff(joined[:, 8:-8, 8:-8], axis=1)).max()
    coarse = class_activation(with_head("tiny", image_size=32))(images, classes)[0].numpy()
    assert steps > 2 * np.abs(np.diff(coarse[:, 8:-8, 8:-8], axis=1)).max()


def test_other_weights_give_other_maps() -> None:
    """Adebayo et al., arXiv 1810.03292: a map that stays the same when weights are random explains nothing."""
    images, classes = images_of(64, 8), np.zeros(8, np.int32)
    model = with_head("tiny", image_size=64)
    compute, gradients = class_activation(model), integrated_gradients(model)
    cams = compute(images, classes)[0].numpy()
    attributions = gradients(images[0], 0).attributions
    np.testing.assert_array_equal(compute(images, classes)[0].numpy(), cams)
    rng = np.random.default_rng(5)
    for variable in model.trainable.values():
        values = variable.numpy().ravel()
        variable.assign(rng.permutation(values).reshape(variable.shape))
    again = compute(images, classes)[0].numpy()
    alike = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(cams, again, strict=True)]
    assert np.abs(np.mean(alike)) < 0.5
    other = gradients(images[0], 0).attributions
    assert abs(spearmanr(attributions.ravel(), other.ravel()).statistic) < 0.5


@pytest.mark.parametrize("number", [0, 1, 2])
def test_integrated_gradients_sum_to_the_difference_of_the_outputs(number: int) -> None:
    model = with_head("tiny", image_size=32, hidden=8)
    image = images_of(32)[0]
    found = integrated_gradients(model)(image, number)
    baseline = np.broadcast_to(image.astype(np.float32).mean(axis=(0, 1)), image.shape)
    logits = model(np.stack([baseline, image.astype(np.float32)])).numpy()[:, number]
    assert found.difference == pytest.approx(float(logits[1] - logits[0]), rel=1e-4)
    assert found.attributions.sum() == pytest.approx(found.difference, rel=TOLERANCE)
    assert found.gap <= TOLERANCE
