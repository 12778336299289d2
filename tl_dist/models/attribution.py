"""Which part of an image speaks for a class: LayerCAM, Grad-CAM and integrated gradients of a classifier's logits.

They need nothing of a backbone but what pooling takes from it, so they are the same for every family.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist.models.classifier import Classifier

Cam = Literal["layercam", "gradcam"]

TOLERANCE = 0.01
"""of the difference of outputs, by which the sum of integrated gradients may miss it"""
_FEWEST_POINTS, _MOST_POINTS = 32, 1024
_POINTS_AT_ONCE = 16


def class_activation(model: Classifier, kind: Cam = "layercam") -> Callable[[Any, Any], tuple[Any, Any]]:
    """A compiled function: images [n, size, size, 3], classes int32 [n] -> maps float32 [n, size, size], logits [n, k].

    A map is 0 where nothing speaks for the class, and 1 at most. LayerCAM (Jiang et al., IEEE TIP 30, 2021) weighs each
    place of each feature map by its own positive gradient, Grad-CAM (Selvaraju et al., arXiv 1610.02391) each feature
    map by its mean gradient. Where several stages are pooled, a place counts by the stage in which it is strongest, as
    LayerCAM's authors join layers. The gradient is that of the head alone: no pass back through the backbone.
    """
    feature_maps, logits_of = model.pooled_maps()

    @tf.function(reduce_retracing=True)
    def compute(images: Any, classes: Any) -> tuple[Any, Any]:
        maps = [tf.cast(one, tf.float32) for one in keras.tree.flatten(feature_maps(images))]
        with tf.GradientTape() as tape:
            tape.watch(maps)
            logits = logits_of([tf.cast(one, model.network.output.dtype) for one in maps])
            score = tf.reduce_sum(tf.gather(logits, classes, batch_dims=1))
        gradients = tape.gradient(score, maps)
        size = images.shape[1:3]
        stages = [_spread(_cam(kind, *pair), size) for pair in zip(maps, gradients, strict=True)]
        return tf.reduce_max(tf.stack(stages), axis=0), logits

    return compute


def _cam(kind: Cam, maps: Any, gradients: Any) -> Any:
    """float32 [n, h, w]: nothing below 0."""
    means = tf.reduce_mean(gradients, axis=(1, 2), keepdims=True)
    weights = tf.nn.relu(gradients) if kind == "layercam" else means
    return tf.nn.relu(tf.reduce_sum(weights * maps, axis=-1))


def _spread(cam: Any, size: Any) -> Any:
    """At the size of the image, the largest value of each 1; a map that is 0 stays so."""
    large = tf.image.resize(cam[..., None], size, method="bilinear")[..., 0]
    return tf.math.divide_no_nan(large, tf.reduce_max(large, axis=(1, 2), keepdims=True))


class Integrated(NamedTuple):
    """Integrated gradients of one image."""

    attributions: NDArray[np.float32]
    """[size, size, 3]: what each pixel adds to the logit, against the baseline"""
    difference: float
    """of the logit, from the baseline to the image"""
    num_points: int

    @property
    def gap(self) -> float:
        """How far the sum of the attributions is from the difference, as a share of it."""
        missing = abs(float(self.attributions.sum(dtype=np.float64)) - self.difference)
        return missing / max(abs(self.difference), 1e-6)


def integrated_gradients(model: Classifier) -> Callable[[NDArray[np.uint8], int], Integrated]:
    """A function of one image uint8 [size, size, 3] and a class (Sundararajan et al., arXiv 1703.01365).

    The baseline is the mean colour of the image: from black, dark pixels could add nothing, and cracks are dark. The
    integral is Gauss and Legendre's, of twice as many points until the sum of all attributions is the difference of
    the outputs within TOLERANCE, as it is in exact arithmetic, or there are _MOST_POINTS. Compute it in float32.
    """

    @tf.function(reduce_retracing=True)
    def compute(images: Any, number: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = model(images)[:, number]
            score = tf.reduce_sum(logits)
        return logits, tape.gradient(score, images)

    def of_image(image: NDArray[np.uint8], number: int) -> Integrated:
        whole = image.astype(np.float32)
        baseline = np.broadcast_to(whole.mean(axis=(0, 1)), whole.shape)
        chosen = tf.constant(number, tf.int32)
        pair = np.concatenate([[baseline, whole], np.repeat(whole[None], _POINTS_AT_ONCE - 2, axis=0)])
        ends = compute(tf.constant(pair), chosen)[0].numpy()
        difference = float(ends[1]) - float(ends[0])
        num_points = _FEWEST_POINTS
        while True:
            mean = np.zeros(whole.shape, np.float64)
            places, weights = _quadrature(num_points)
            for first in range(0, num_points, _POINTS_AT_ONCE):
                part = slice(first, first + _POINTS_AT_ONCE)
                along = baseline + places[part, None, None, None] * (whole - baseline)
                gradients = compute(tf.constant(along, tf.float32), chosen)[1].numpy()
                mean += np.tensordot(weights[part], gradients.astype(np.float64), axes=1)
            found = Integrated(((whole - baseline) * mean).astype(np.float32), difference, num_points)
            if found.gap <= TOLERANCE or num_points >= _MOST_POINTS:
                return found
            num_points *= 2

    return of_image


@cache
def _quadrature(num_points: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places in 0..1 and their weights, which sum to 1."""
    places, weights = np.polynomial.legendre.leggauss(num_points)
    return (places + 1) / 2, weights / 2
