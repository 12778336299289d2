"""Every family has heat maps, maps of several stages are joined, and integrated gradients add up."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.doubles import build
from tl_dist.config import registry
from tl_dist.models import attribution
from tl_dist.models.attribution import TOLERANCE, class_activation, integrated_gradients


def with_head(name: str, *, image_size: int, **settings: Any) -> Any:
    """Return a network whose head is not zeros, as it is at first."""
    model = build(name, image_size=image_size, **settings)
    kernel = model.trainable["head/logits/kernel"]
    kernel.assign(np.random.default_rng(0).normal(size=kernel.shape))
    return model


def images_of(size: int, num: int = 2) -> np.ndarray:
    """Return noise that is darker in one quarter."""
    images = np.random.default_rng(1).integers(0, 256, (num, size, size, 3)).astype(np.uint8)
    images[:, : size // 2, : size // 2] //= 4
    return images


@pytest.fixture
def eagerly() -> Iterator[None]:
    """Run without compiling, which takes longer than the few images."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


MORE = ("efficientnetb0", "densenet121", "inceptionv3")


@pytest.mark.parametrize(
    "name",
    [
        *("vgg16", "resnet50v2", "mobilenetv3small", "convnexttiny"),
        *(pytest.param(name, marks=pytest.mark.full) for name in MORE),
    ],
)
def test_every_family_has_maps(name: str, eagerly: None) -> None:
    size = registry.backbone(name).min_size * 2
    model = with_head(name, image_size=size)
    classes = np.array([0, 2], np.int32)
    maps, logits = class_activation(model)(images_of(size), classes)
    assert maps.shape == (2, size, size) and np.isfinite(maps).all()
    np.testing.assert_allclose(maps.numpy().max(axis=(1, 2)), 1)
    assert maps.numpy().min() >= 0 and maps.numpy().std() > 0.01
    np.testing.assert_allclose(logits, model(images_of(size)), rtol=1e-4, atol=1e-5)


def test_of_several_pooled_stages_the_strongest_counts_and_shallow_ones_are_raised(eagerly: None) -> None:
    """The gradient of a weighted mean of maps is their weights: LayerCAM is the sum by the weights above 0."""
    images, number = images_of(32), 1
    both = with_head("tiny", image_size=32, layers=["block1", "block3"])
    kernel = both.trainable["head/logits/kernel"].numpy()[:, number]
    maps = both.pooled_maps()[0](images)
    alone = []
    for stage_maps, weights in zip(maps, (kernel[:16], kernel[16:]), strict=True):
        cam = np.maximum(stage_maps.numpy() @ np.maximum(weights, 0), 0)
        alone.append(cam / cam.max(axis=(1, 2), keepdims=True))
    raised = [np.tanh(2 * alone[0]), alone[1]]
    large = [tf.image.resize(cam[..., None], (32, 32))[..., 0].numpy() for cam in raised]
    expected = np.maximum(*large)
    joined = class_activation(both)(images, np.full(2, number, np.int32))[0].numpy()
    np.testing.assert_allclose(joined, expected / expected.max(axis=(1, 2), keepdims=True), atol=1e-5)
    assert all(np.abs(joined - cam).max() > 0.1 for cam in large)


def test_where_the_sum_cannot_be_reached_there_is_an_end(monkeypatch: pytest.MonkeyPatch, eagerly: None) -> None:
    monkeypatch.setattr(attribution, "TOLERANCE", -1.0)
    asked: list[float] = []
    model = with_head("tiny", image_size=32)
    real = type(model).__call__

    def counted(self: Any, images: Any, *more: Any, **settings: Any) -> Any:
        asked.extend(np.asarray(images).std(axis=(1, 2, 3)).tolist())
        return real(self, images, *more, **settings)

    monkeypatch.setattr(type(model), "__call__", counted)
    result = attribution.integrated_gradients(model)(images_of(32)[0], 0)
    assert len(asked) == result.num_points == 256
    assert len(np.unique(np.round(asked, 6))) == 256  # no point twice: each image is further from the baseline


@pytest.mark.parametrize("number", [0, 1, 2])
def test_integrated_gradients_sum_to_the_difference_of_the_outputs(number: int) -> None:
    model = with_head("tiny", image_size=32, hidden=8)
    image = images_of(32)[0]
    result = integrated_gradients(model)(image, number)
    baseline = np.broadcast_to(image.astype(np.float32).mean(axis=(0, 1)), image.shape)
    logits = model(np.stack([baseline, image.astype(np.float32)])).numpy()[:, number]
    assert result.difference == pytest.approx(float(logits[1] - logits[0]), rel=1e-4)
    assert result.attributions.sum() == pytest.approx(result.difference, rel=TOLERANCE)
    assert result.gap <= TOLERANCE
    # Of each pixel, by a plain sum of the same path, which knows nothing of where the logit bends.
    way = (image - baseline).astype(np.float32)
    whole = np.zeros((32, 32))
    for part in ((np.arange(512) + 0.5) / 512).reshape(16, 32):
        images = tf.constant(baseline + part[:, None, None, None] * way, tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(images)
            score = tf.reduce_sum(model(images)[:, number])
        whole += (tape.gradient(score, images).numpy() * way).sum(axis=(0, -1)) / 512
    assert np.abs(result.attributions - whole).max() < 0.1 * np.abs(whole).max()
