"""Which part of an image speaks for a class: LayerCAM, Grad-CAM and integrated gradients of a classifier's logits.

They need nothing of a backbone but what pooling takes from it, so they are the same for every family.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist.models.classifier import Classifier

Cam = Literal["layercam", "gradcam"]

TOLERANCE = 0.01
"""of the difference of outputs, by which the sum of integrated gradients may miss it"""
_SHALLOW = 2.0
"""the gamma of LayerCAM: how much maps of shallow stages are raised before they are joined with the deepest"""
_FEWEST_POINTS, _MOST_POINTS = 32, 256
_POINTS_AT_ONCE = 16


def class_activation(model: Classifier, kind: Cam = "layercam") -> Callable[[Any, Any], tuple[Any, Any]]:
    """A compiled function: images [n, size, size, 3], classes int32 [n] -> maps float32 [n, size, size], logits [n, k].

    A map is 0 where nothing speaks for the class, and 1 at most. LayerCAM (Jiang et al., IEEE TIP 30, 2021) weighs each
    place of each feature map by its own positive gradient, Grad-CAM (Selvaraju et al., arXiv 1610.02391) each feature
    map by its mean gradient. Where several stages are pooled, a place counts by the stage in which it is strongest; of
    LayerCAM all but the deepest are raised first, to tanh(2 m / max m), as its authors join layers (equation 9). The
    gradient is that of the head alone: no pass back through the backbone.
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
        *shallow, deepest = (_unit(_cam(kind, *pair)) for pair in zip(maps, gradients, strict=True))
        if kind == "layercam":
            shallow = [tf.tanh(_SHALLOW * one) for one in shallow]
        stages = [tf.image.resize(one[..., None], images.shape[1:3]) for one in (*shallow, deepest)]
        return _unit(tf.reduce_max(tf.concat(stages, axis=-1), axis=-1)), logits

    return compute


def _cam(kind: Cam, maps: Any, gradients: Any) -> Any:
    """float32 [n, h, w]: nothing below 0."""
    means = tf.reduce_mean(gradients, axis=(1, 2), keepdims=True)
    weights = tf.nn.relu(gradients) if kind == "layercam" else means
    return tf.nn.relu(tf.reduce_sum(weights * maps, axis=-1))


def _unit(cam: Any) -> Any:
    """The largest value of each 1; a map that is 0 stays so."""
    return tf.math.divide_no_nan(cam, tf.reduce_max(cam, axis=(1, 2), keepdims=True))


class Integrated(NamedTuple):
    """Integrated gradients of one image."""

    attributions: NDArray[np.float32]
    """[size, size]: what each pixel, its colours together, adds to the logit against the baseline"""
    difference: float
    """of the logit, from the baseline to the image"""
    num_points: int
    """at which a gradient was computed"""

    @property
    def gap(self) -> float:
        """How far the sum of the attributions is from the difference, as a share of it."""
        missing = abs(float(self.attributions.sum(dtype=np.float64)) - self.difference)
        return missing / max(abs(self.difference), 1e-6)


def integrated_gradients(model: Classifier) -> Callable[[NDArray[np.uint8], int], Integrated]:
    """A function of one image uint8 [size, size, 3] and a class (Sundararajan et al., arXiv 1703.01365).

    The baseline is the mean colour of the image: from black, dark pixels could add nothing, and cracks are dark. The
    integral is the trapezoid rule's. Between two points the difference of the logit says what a part of the integral
    should be: the parts that miss it most are halved, and no point is computed twice, until the sum of all
    attributions is the difference of the outputs within TOLERANCE, or there are _MOST_POINTS. Compute it in float32.
    """

    @tf.function(reduce_retracing=True)
    def compute(baseline: Any, way: Any, places: Any, number: Any) -> tuple[Any, Any]:
        images = baseline + places[:, None, None, None] * way
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = model(images)[:, number]
            score = tf.reduce_sum(logits)
        return logits, tf.reduce_sum(tape.gradient(score, images) * way, axis=-1)

    def of_image(image: NDArray[np.uint8], number: int) -> Integrated:
        whole = image.astype(np.float32)
        baseline = np.broadcast_to(whole.mean(axis=(0, 1)), whole.shape)
        ends = [tf.constant(one, tf.float32) for one in (baseline, whole - baseline)]
        chosen = tf.constant(number, tf.int32)
        places, logits = np.empty(0), np.empty(0)
        slopes = np.empty((0, *whole.shape[:2]), np.float32)  # of each pixel, times its way from the baseline
        new = np.linspace(0, 1, _FEWEST_POINTS)
        while True:
            for first in range(0, len(new), _POINTS_AT_ONCE):
                at = tf.constant(new[first : first + _POINTS_AT_ONCE], tf.float32)
                values, along = (one.numpy() for one in compute(*ends, at, chosen))
                logits, slopes = np.concatenate([logits, values]), np.concatenate([slopes, along])
            places = np.concatenate([places, new])
            order = np.argsort(places)
            widths = np.diff(places[order])
            weights = np.zeros(len(places))
            weights[order[:-1]] += widths / 2
            weights[order[1:]] += widths / 2
            attributions = np.tensordot(weights, slopes, axes=1).astype(np.float32)
            difference = float(logits[order[-1]] - logits[order[0]])
            found = Integrated(attributions, difference, len(places))
            if found.gap <= TOLERANCE or len(places) >= _MOST_POINTS:
                return found
            totals = slopes.sum(axis=(1, 2), dtype=np.float64)[order]
            misses = widths * (totals[1:] + totals[:-1]) / 2 - np.diff(logits[order])
            worst = np.argsort(-np.abs(misses))[:_POINTS_AT_ONCE]
            new = places[order][worst] + widths[worst] / 2

    return of_image
