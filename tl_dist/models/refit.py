"""Least squares after pruning: each layer that lost inputs is fitted to the outputs that it had in the whole network.

He et al., arXiv 1707.06168, section 3.1: the kernel that best reproduces the outputs of the whole network from the
channels that are left is a linear regression. Layers are fitted from input to output, each on the outputs of the layers
already fitted, so that it corrects their errors, too. This preserves what kernels learnt from a million images when
there are only a thousand to train on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist.models import pruning
from tl_dist.models.classifier import Classifier
from tl_dist.models.narrow import is_convolution

ROWS = 32
"""equations for each unknown, if there are enough images"""
IMAGES = 512
"""the fewest to use, or all: neighbouring places of one image are alike"""
DAMPING = 1e-3
"""pull to the old weights, as a share of the mean square of an input: decides what the images leave open"""


@dataclass(frozen=True)
class Fit:
    """The regression of one layer of the narrow network that reads fewer channels than in the whole one."""

    paths: tuple[str, ...]
    """of its kernel, and of its bias if it has one"""
    num_inputs: int
    """terms of each output's sum, the bias included"""
    num_outputs: int
    rows: int
    """places of an image at which it computes outputs"""
    equations: Callable[[Any], tuple[Any, Any]]
    """images -> (its inputs [images, rows, inputs], the whole network's outputs there [images, rows, outputs])"""

    def num_images(self, available: int) -> int:
        """Return how many of the available images the regression needs."""
        return min(available, max(IMAGES, -(-ROWS * self.num_inputs // self.rows)))

    def sums(self, images: Any, num_images: int) -> tuple[Any, Any]:
        """Return x'x and x'y of these images' equations, float32, in a graph; the fit uses `num_images` in all."""
        inputs, outputs = self.equations(images)
        rows = -(-ROWS * self.num_inputs // num_images)
        if rows < self.rows:
            places = np.sort(np.random.default_rng(0).choice(self.rows, rows, replace=False))
            inputs, outputs = (tf.gather(values, places, axis=1) for values in (inputs, outputs))
        x, y = (tf.reshape(values, [-1, values.shape[-1]]) for values in (inputs, outputs))
        return tf.matmul(x, x, transpose_a=True), tf.matmul(x, y, transpose_a=True)

    def solve(self, variables: Mapping[str, Any], squares: NDArray[Any], products: NDArray[Any]) -> None:
        """Set the layer's weights to the solution, from the sums over all images."""
        weights = [variables[path].numpy() for path in self.paths]
        width = weights[0].shape[-1]
        start = np.concatenate([w.reshape(-1, width) for w in weights]).astype(np.float64)
        solution = solution_near(start, squares, products)
        variables[self.paths[0]].assign(solution[: weights[0].size // width].reshape(weights[0].shape))
        if len(self.paths) > 1:
            variables[self.paths[1]].assign(solution[-1])


def solution_near(start: NDArray[Any], squares: NDArray[Any], products: NDArray[Any]) -> NDArray[np.float64]:
    """Return the w with the least |x w - y|^2 + d |w - start|^2, from x'x and x'y; d is DAMPING times the mean x^2."""
    damping = DAMPING * np.trace(squares) / len(squares)
    system = squares + damping * np.eye(len(squares))
    return start + np.linalg.solve(system, products - squares @ start)


def fits(wide: Classifier, narrow: Classifier) -> Iterator[Fit]:
    """Yield the layers to fit, from input to output; solve each before computing the next one's equations."""
    chosen = pruning.channels(wide, narrow.network)
    for old, new in zip(wide.network.operations, narrow.network.operations, strict=True):
        if is_convolution(new) and new.input.shape[-1] < old.input.shape[-1]:
            places = int(np.prod(new.output.shape[1:3]))
            yield _fit(wide, narrow, old, new, f"backbone/{new.name}", places, chosen[id(new.output)])
    old, new = wide.first_of_head, narrow.first_of_head
    if new.kernel.shape[0] < old.kernel.shape[0]:
        yield _fit(wide, narrow, old, new, f"head/{new.name}", 1, np.arange(new.units))


def _fit(
    wide: Classifier, narrow: Classifier, old: Any, new: Any, path: str, places: int, channels: NDArray[Any]
) -> Fit:
    into_old, into_new = wide.into(old), narrow.into(new)

    def equations(images: Any) -> tuple[Any, Any]:
        inputs = _read(new, tf.cast(into_new(images), tf.float32), places)
        if new.use_bias:
            inputs = tf.concat([inputs, tf.ones_like(inputs[..., :1])], axis=-1)
        outputs = _linear(old, tf.cast(into_old(images), tf.float32))
        outputs = tf.reshape(tf.gather(outputs, channels, axis=-1), [-1, places, len(channels)])
        return inputs, outputs

    names = ("kernel", "bias") if new.use_bias else ("kernel",)
    num_inputs = int(np.prod(new.kernel.shape[:-1])) + new.use_bias
    return Fit(tuple(f"{path}/{name}" for name in names), num_inputs, len(channels), places, equations)


def _read(layer: Any, inputs: Any, places: int) -> Any:
    """Return the terms of each output's sum, [images, places, weights of one output], in the order of the kernel."""
    if is_convolution(layer):
        inputs = tf.image.extract_patches(
            inputs,
            [1, *layer.kernel_size, 1],
            [1, *layer.strides, 1],
            [1, *layer.dilation_rate, 1],
            layer.padding.upper(),
        )
    return tf.reshape(inputs, [-1, places, inputs.shape[-1]])


def _linear(layer: Any, inputs: Any) -> Any:
    """Return the outputs of a layer before its activation, in float32."""
    kernel = tf.convert_to_tensor(layer.kernel.value)
    outputs = layer.convolution_op(inputs, kernel) if is_convolution(layer) else inputs @ kernel
    return outputs + tf.convert_to_tensor(layer.bias.value) if layer.use_bias else outputs
