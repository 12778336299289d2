"""Which part of an image supports a class: LayerCAM, Grad-CAM and integrated gradients; and where attention looks."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist.models import network as networks
from tl_dist.models.backbones import Backbone
from tl_dist.models.classifier import Classifier
from tl_dist.models.pooling import as_maps, pool

Cam = Literal["layercam", "gradcam"]

TOLERANCE = 0.01
"""largest gap between the sum of integrated gradients and the difference of outputs, as a share of the latter"""
_SHALLOW = 2.0
"""the gamma of LayerCAM: how much maps of shallow stages are raised before they are joined with the deepest map"""
_FEWEST_POINTS, _MOST_POINTS = 32, 256
_POINTS_AT_ONCE = 16


def class_activation(model: Classifier, kind: Cam = "layercam") -> Callable[[Any, Any], tuple[Any, Any]]:
    """Compile a function: images [n, size, size, 3], classes int32 [n] -> maps float32 [n, size, size], logits [n, k].

    A map is 0 where nothing supports the class, and 1 at most. LayerCAM (Jiang et al., IEEE TIP 30, 2021) weighs each
    place of each feature map by its own positive gradient, Grad-CAM (Selvaraju et al., arXiv 1610.02391) each feature
    map by its mean gradient. If several stages are pooled, each place takes the strongest of their maps; for LayerCAM
    all maps but the deepest are first raised to tanh(2 m / max m), as its authors join layers (equation 9). Gradients
    pass through the head alone, not back through the backbone.
    """
    (feature_maps, logits_of), patches = model.pooled_maps(), model.num_patches

    @tf.function(reduce_retracing=True)
    def compute(images: Any, classes: Any) -> tuple[Any, Any]:
        maps = [tf.cast(stage_maps, tf.float32) for stage_maps in keras.tree.flatten(feature_maps(images))]
        with tf.GradientTape() as tape:
            tape.watch(maps)
            logits = logits_of([tf.cast(stage_maps, model.network.output.dtype) for stage_maps in maps])
            score = tf.reduce_sum(tf.gather(logits, classes, batch_dims=1))
        gradients = tape.gradient(score, maps)
        pairs = ([as_maps(each, patches) for each in pair] for pair in zip(maps, gradients, strict=True))
        *shallow, deepest = (_unit(_cam(kind, *pair)) for pair in pairs)
        if kind == "layercam":
            shallow = [tf.tanh(_SHALLOW * cam) for cam in shallow]
        stages = [tf.image.resize(cam[..., None], images.shape[1:3]) for cam in (*shallow, deepest)]
        return _unit(tf.reduce_max(tf.concat(stages, axis=-1), axis=-1)), logits

    return compute


def _cam(kind: Cam, maps: Any, gradients: Any) -> Any:
    """Return float32 [n, h, w], nothing below 0."""
    means = tf.reduce_mean(gradients, axis=(1, 2), keepdims=True)
    weights = tf.nn.relu(gradients) if kind == "layercam" else means
    return tf.nn.relu(tf.reduce_sum(weights * maps, axis=-1))


def _unit(cam: Any) -> Any:
    """Scale each map to a largest value of 1; a map of zeros stays."""
    return tf.math.divide_no_nan(cam, tf.reduce_max(cam, axis=(1, 2), keepdims=True))


def attention_rollout(
    model: Classifier, backbone: Backbone, pooling: str
) -> Callable[[Any, Any], tuple[Any, Any]] | None:
    """Compile a function as `class_activation` does, of attention alone: its maps are the same for every class.

    Attention rollout (Abnar and Zuidema, arXiv 2005.00928): the attention of each block, its mean over heads, counts
    half and what passes by it half, and the product over blocks says how much of each patch is in each token. A head
    that pools by attention has nothing that passes by. The map is of what is pooled: the class token, the average of
    patches, or the mean of both. Returns None for a network that is no vision transformer of `backbones.vit`.
    """
    network = model.network
    layers = [layer for layer in network.layers if isinstance(layer, keras.layers.MultiHeadAttention)]
    if backbone.function or not layers or not backbone.leading_tokens:
        return None
    inputs_of = networks.from_images(backbone, network, [layer.input for layer in layers])
    patches = networks.num_patches(backbone, network)
    kind = pooling if pooling in ("token", "attention", "both") else "average"

    @tf.function(reduce_retracing=True, autograph=False)
    def compute(images: Any, classes: Any) -> tuple[Any, Any]:
        del classes
        inputs = keras.tree.flatten(inputs_of(images))
        total: Any = None
        for layer, query, tokens in zip(layers, inputs[::2], inputs[1::2], strict=True):
            _, scores = layer(query, tokens, return_attention_scores=True, training=False)
            attention = tf.reduce_mean(tf.cast(scores, tf.float32), axis=1)
            if query.shape[1] != tokens.shape[1]:
                total = tf.concat([attention @ total, total], axis=1)
            else:
                attention = (attention + tf.eye(query.shape[1])) / 2
                total = attention if total is None else attention @ total
        pooled = pool(total, kind, patches)
        rows = sum(tf.split(pooled, pooled.shape[-1] // total.shape[-1], axis=-1))
        maps = as_maps(rows[..., None], patches)
        return _unit(tf.image.resize(maps, images.shape[1:3])[..., 0]), model(images)

    return compute


class Integrated(NamedTuple):
    """Integrated gradients of one image."""

    attributions: NDArray[np.float32]
    """[size, size]: what each pixel, summed over its colours, adds to the logit of the baseline"""
    difference: float  # of the logit, between the image and the baseline
    num_points: int  # points at which a gradient was computed

    @property
    def gap(self) -> float:
        """Return how far the sum of the attributions is from the difference, as a share of it."""
        missing = abs(float(self.attributions.sum(dtype=np.float64)) - self.difference)
        return missing / max(abs(self.difference), 1e-6)


def integrated_gradients(model: Classifier) -> Callable[[NDArray[np.uint8], int], Integrated]:
    """Return a function of one image uint8 [size, size, 3] and a class (Sundararajan et al., arXiv 1703.01365).

    The baseline is the mean colour of the image: from black, dark pixels could add nothing, and cracks are dark. The
    integral is computed by the trapezoid rule. The integral between two points should be the difference of the logit
    there: the intervals that miss it most are halved, without computing any point twice, until the sum of all
    attributions equals the difference of the outputs within TOLERANCE, or there are _MOST_POINTS. Compute in float32.
    """

    @tf.function(reduce_retracing=True)
    def compute(baseline: Any, direction: Any, places: Any, number: Any) -> tuple[Any, Any]:
        images = baseline + places[:, None, None, None] * direction
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = model(images)[:, number]
            score = tf.reduce_sum(logits)
        return logits, tf.reduce_sum(tape.gradient(score, images) * direction, axis=-1)

    def of_image(image: NDArray[np.uint8], number: int) -> Integrated:
        whole = image.astype(np.float32)
        baseline = np.broadcast_to(whole.mean(axis=(0, 1)), whole.shape)
        line = [tf.constant(values, tf.float32) for values in (baseline, whole - baseline)]
        target = tf.constant(number, tf.int32)
        places, logits = np.empty(0), np.empty(0)
        # Of each pixel, times its distance from the baseline.
        slopes = np.empty((0, *whole.shape[:2]), np.float32)
        new = np.linspace(0, 1, _FEWEST_POINTS)
        while True:
            for first in range(0, len(new), _POINTS_AT_ONCE):
                at = tf.constant(new[first : first + _POINTS_AT_ONCE], tf.float32)
                new_logits, new_slopes = (tensor.numpy() for tensor in compute(*line, at, target))
                logits = np.concatenate([logits, new_logits])
                slopes = np.concatenate([slopes, new_slopes])
            places = np.concatenate([places, new])
            order = np.argsort(places)
            widths = np.diff(places[order])
            weights = np.zeros(len(places))
            weights[order[:-1]] += widths / 2
            weights[order[1:]] += widths / 2
            attributions = np.tensordot(weights, slopes, axes=1).astype(np.float32)
            difference = float(logits[order[-1]] - logits[order[0]])
            result = Integrated(attributions, difference, len(places))
            if result.gap <= TOLERANCE or len(places) >= _MOST_POINTS:
                return result
            totals = slopes.sum(axis=(1, 2), dtype=np.float64)[order]
            misses = widths * (totals[1:] + totals[:-1]) / 2 - np.diff(logits[order])
            worst = np.argsort(-np.abs(misses))[:_POINTS_AT_ONCE]
            new = places[order][worst] + widths[worst] / 2

    return of_image
