"""Which channels of a network a narrower one keeps, their weights, and the least-squares fit that follows.

A fit keeps what kernels learnt from a million images when there are only a thousand to train on.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist.models.backbones import seam
from tl_dist.models.classifier import Classifier
from tl_dist.models.network import inputs_of, is_convolution

ROWS = 32  # equations for each unknown, if there are enough images
IMAGES = 512  # the fewest to use, or all: neighbouring places of one image are alike
DAMPING = 1e-3
"""pull to the old weights, as a share of the mean square of an input: decides what the images leave open"""


def channels(wide: Classifier, network: Any) -> dict[int, np.ndarray]:
    """Return which channels of `wide` each tensor of a narrower `network` of the same layers has, by tensor id.

    `network` determines how many channels of each convolution stay, the weights of `wide` which: the filters with the
    largest L1 norm (Li et al., arXiv 1608.08710).
    """
    chosen: dict[int, np.ndarray] = {}
    for old, new in zip(wide.network.operations, network.operations, strict=True):
        indices = np.arange(old.output.shape[-1])
        if new.output.shape[-1] < len(indices):
            indices = chosen[id(inputs_of(new)[0])]
            if is_convolution(new):
                norms = np.abs(old.kernel.numpy()).sum(axis=(0, 1, 2), dtype=np.float64)
                indices = np.sort(np.argsort(-norms, kind="stable")[: new.filters])
        chosen[id(new.output)] = indices
    return chosen


def kept(wide: Classifier, network: Any) -> dict[str, np.ndarray]:
    """Return the weights that a narrower `network` of the same layers, and its head, take over from `wide`, by path."""
    arrays = {path: v.numpy() for path, v in {**wide.moving, **wide.frozen}.items()}
    chosen = channels(wide, network)
    for new in network.operations:
        indices = chosen[id(new.output)]
        for variable in getattr(new, "weights", ()):
            path = f"backbone/{new.name}/{variable.name}"
            if variable.name == "kernel" and is_convolution(new):
                arrays[path] = arrays[path][:, :, chosen[id(new.input)]][..., indices]
            else:  # [channels], or [height, width, channels, 1] in a depthwise convolution
                arrays[path] = arrays[path].take(indices, axis=2 if len(variable.shape) == 4 else 0)
    rows, first = [], 0
    for end, width, num_channels in zip(wide.stage_ends, wide.stage_widths, wide.stage_channels, strict=True):
        # However a map is pooled, channels are the last axis of the result.
        of_map = (first + np.arange(width)).reshape(-1, num_channels)
        rows.append(of_map[:, chosen[id(seam(network, end))]].ravel())
        first += width
    kernel = f"head/{wide.first_of_head.name}/kernel"
    arrays[kernel] = arrays[kernel][np.concatenate(rows)]
    return arrays


class Fit:
    """The regression of one layer of the narrow network that reads fewer channels than in the whole one.

    Its kernel is to reproduce the outputs of the whole network (He et al., arXiv 1707.06168, section 3.1).
    """

    def __init__(self, wide: Classifier, narrow: Classifier, old: Any, new: Any, channels: NDArray[Any]) -> None:
        self._old, self._new, self._channels = old, new, channels
        self._into_old, self._into_new = wide.into(old), narrow.into(new)
        part = "backbone" if is_convolution(new) else "head"
        names = ("kernel", "bias") if new.use_bias else ("kernel",)
        self.paths = tuple(f"{part}/{new.name}/{name}" for name in names)
        self.num_inputs = int(np.prod(new.kernel.shape[:-1])) + new.use_bias
        """terms of each output's sum, the bias included"""
        self.num_outputs = len(channels)
        self.rows = int(np.prod(new.output.shape[1:3])) if is_convolution(new) else 1
        """places of an image at which it computes outputs"""

    def _equations(self, images: Any) -> tuple[Any, Any]:
        """Return its inputs [images, rows, inputs], and the whole network's outputs there [images, rows, outputs]."""
        old, new = self._old, self._new
        inputs, whole = (tf.cast(into(images), tf.float32) for into in (self._into_new, self._into_old))
        kernel = tf.convert_to_tensor(old.kernel.value)
        if is_convolution(new):
            strides, rates = [1, *new.strides, 1], [1, *new.dilation_rate, 1]
            inputs = tf.image.extract_patches(inputs, [1, *new.kernel_size, 1], strides, rates, new.padding.upper())
            outputs = old.convolution_op(whole, kernel)
        else:
            outputs = whole @ kernel
        if old.use_bias:
            outputs += tf.convert_to_tensor(old.bias.value)
        inputs = tf.reshape(inputs, [-1, self.rows, inputs.shape[-1]])
        if new.use_bias:
            inputs = tf.concat([inputs, tf.ones_like(inputs[..., :1])], axis=-1)
        outputs = tf.gather(outputs, self._channels, axis=-1)
        return inputs, tf.reshape(outputs, [-1, self.rows, self.num_outputs])

    def num_images(self, available: int) -> int:
        """Return how many of the available images the regression needs."""
        return min(available, max(IMAGES, -(-ROWS * self.num_inputs // self.rows)))

    def sums(self, images: Any, num_images: int) -> tuple[Any, Any]:
        """Return x'x and x'y of these images' equations, float32, in a graph; the fit uses `num_images` in all."""
        inputs, outputs = self._equations(images)
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
    """Yield the layers to fit, from input to output; solve each before the next one, which corrects its errors, too."""
    chosen = channels(wide, narrow.network)
    for old, new in zip(wide.network.operations, narrow.network.operations, strict=True):
        if is_convolution(new) and new.input.shape[-1] < old.input.shape[-1]:
            yield Fit(wide, narrow, old, new, chosen[id(new.output)])
    old, new = wide.first_of_head, narrow.first_of_head
    if new.kernel.shape[0] < old.kernel.shape[0]:
        yield Fit(wide, narrow, old, new, np.arange(new.units))
