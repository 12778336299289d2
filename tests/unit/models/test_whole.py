"""Models with a head: flat copies answer alike, without their last softmax; `training=False` drops nothing."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from tl_dist.models import heads, whole
from tl_dist.models.backbones import seam, seams
from tl_dist.refusal import Refusal

IMAGES = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)


def nested(ends: str | None = "softmax", **options: Any) -> Any:
    """A model in a model in a model, with dropout in the innermost, which is called with `options`."""
    inner = keras.Sequential([keras.Input((16, 16, 3)), layers.Conv2D(4, 3), layers.Dropout(0.5, name="inner_drop")])
    maps = keras.Input((16, 16, 3))
    middle = keras.Model(maps, layers.BatchNormalization()(inner(maps, **options)))
    inputs = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D()(middle(layers.Rescaling(2.0)(inputs)))
    return keras.Model(inputs, layers.Dense(5, activation=ends)(layers.Dropout(0.25, name="top_drop")(x)))


def flat(model: Any) -> Any:
    inputs = keras.Input((16, 16, 3))
    return keras.Model(inputs, whole.copied(model, inputs))


def test_a_flat_copy_answers_alike() -> None:
    model = nested()
    copy = flat(model)
    assert whole.is_nested(model) and not whole.is_nested(copy)
    assert not {id(layer) for layer in copy.layers} & {id(layer) for layer in model._flatten_layers()}
    np.testing.assert_allclose(copy(IMAGES), model(IMAGES), atol=1e-6)


@pytest.mark.parametrize(("ends", "of_logits"), [("softmax", keras.ops.softmax), ("sigmoid", keras.ops.sigmoid)])
def test_without_its_last_activation_it_gives_logits(ends: str, of_logits: Any) -> None:
    model = nested(ends)
    assert whole.activation_of(model) == ends
    np.testing.assert_allclose(of_logits(whole.with_logits(model)(IMAGES)), model(IMAGES), atol=1e-6)
    plain = nested(None)
    assert whole.activation_of(plain) is None
    np.testing.assert_allclose(whole.with_logits(plain)(IMAGES), plain(IMAGES), atol=1e-6)


def test_a_softmax_layer_is_left_out_too() -> None:
    plain = nested(None)
    model = keras.Model(plain.inputs, layers.Softmax()(plain.output))
    assert whole.activation_of(model) == "softmax"
    np.testing.assert_allclose(whole.with_logits(model)(IMAGES), plain(IMAGES), atol=1e-6)


@pytest.mark.parametrize(("options", "rate"), [({}, 0.5), ({"training": True}, 0.5), ({"training": False}, 0.0)])
def test_what_is_called_for_inference_drops_nothing(options: dict[str, bool], rate: float) -> None:
    copy = flat(nested(**options))
    assert copy.get_layer("inner_drop").rate == rate
    assert copy.get_layer("top_drop").rate == 0.25


def test_sigmoids_for_one_class_are_refused_since_figures_would_be_of_a_softmax() -> None:
    for gives, width, num in (("sigmoid", 1, 2), ("softmax", 5, 5), (None, 5, 5)):
        heads.Own("net", num, "cross_entropy", gives).build((None, width))
    with pytest.raises(Refusal, match=r"ends in 5 sigmoids.* Fix: end it in a softmax"):
        heads.Own("net", 5, "cross_entropy", "sigmoid").build((None, 5))
    heads.Own("net", 5, "binary_cross_entropy", "sigmoid").build((None, 5))


def test_the_head_begins_after_the_last_feature_map() -> None:
    copy = flat(nested())
    assert whole.head_of(copy, seams(copy), seam) == "top_drop"
    assert len(seam(copy, whole.last_maps(copy, seams(copy), seam) or 0).shape) == 4
