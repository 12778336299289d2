"""Least squares for what a network lost with its channels: each layer that read them says again what it said.

He et al., arXiv 1707.06168, section 3.1: given the channels that are left, the kernel that best gives the outputs of
the whole network is a linear regression. Layers are fitted from input to output, each on what those before it give by
then, so that it makes good their errors, too. Kernels that were learnt from a million images are kept in this way where
there are a thousand to train on.
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

ROWS = 32
"""so many equations for each unknown, where there are images for that"""
IMAGES = 512
"""at least, or all: neighbours in one image are alike"""
DAMPING = 1e-3
"""pull to the weights as they were, as a share of the mean square of an input: decides where the images do not"""


@dataclass(frozen=True)
class Fit:
    """One layer of the narrow network that reads fewer channels than that of the whole one."""

    paths: tuple[str, ...]
    """of its kernel, and of its bias where it has one"""
    num_inputs: int
    """that each of its outputs is a sum over, with a one for the bias"""
    num_outputs: int
    rows: int
    """places of an image where it looks"""
    equations: Callable[[Any], tuple[Any, Any]]
    """images -> (what it reads [images, rows, inputs], what the whole network's says there [images, rows, outputs])"""

    def num_images(self, of: int) -> int:
        """How many are needed of so many that there are."""
        return min(of, max(IMAGES, -(-ROWS * self.num_inputs // self.rows)))

    def sums(self, images: Any, num_images: int) -> tuple[Any, Any]:
        """Inside a graph: of some of these images, what of the equations the solution depends on; float32."""
        inputs, outputs = self.equations(images)
        wanted = -(-ROWS * self.num_inputs // num_images)
        if wanted < self.rows:
            places = np.sort(np.random.default_rng(0).choice(self.rows, wanted, replace=False))
            inputs, outputs = (tf.gather(values, places, axis=1) for values in (inputs, outputs))
        x, y = (tf.reshape(values, [-1, values.shape[-1]]) for values in (inputs, outputs))
        return tf.matmul(x, x, transpose_a=True), tf.matmul(x, y, transpose_a=True)

    def solve(self, variables: Mapping[str, Any], squares: NDArray[Any], products: NDArray[Any]) -> None:
        """Set the layer's weights to the solution, from the sums over all images."""
        weights = [variables[path].numpy() for path in self.paths]
        width = weights[0].shape[-1]
        start = np.concatenate([w.reshape(-1, width) for w in weights]).astype(np.float64)
        found = solved(start, squares, products)
        variables[self.paths[0]].assign(found[: weights[0].size // width].reshape(weights[0].shape))
        if len(self.paths) > 1:
            variables[self.paths[1]].assign(found[-1])


def solved(start: NDArray[Any], squares: NDArray[Any], products: NDArray[Any]) -> NDArray[np.float64]:
    """The w with the least |x w - y|^2 + d |w - start|^2, from x'x and x'y; d is DAMPING times the mean of x^2."""
    damping = DAMPING * np.trace(squares) / len(squares)
    system = squares + damping * np.eye(len(squares))
    return start + np.linalg.solve(system, products - squares @ start)


def fits(wide: Classifier, narrow: Classifier) -> Iterator[Fit]:
    """The layers to fit, from input to output; each is to be solved before the next one's equations are made."""
    chosen = pruning.channels(wide, narrow.network)
    for old, new in zip(wide.network.operations, narrow.network.operations, strict=True):
        if pruning.is_convolution(new) and new.input.shape[-1] < old.input.shape[-1]:
            places = int(np.prod(new.output.shape[1:3]))
            yield _fit(wide, narrow, old, new, f"backbone/{new.name}", places, chosen[id(new.output)])
    old, new = wide.first_of_head, narrow.first_of_head
    if new.kernel.shape[0] < old.kernel.shape[0]:
        yield _fit(wide, narrow, old, new, f"head/{new.name}", 1, np.arange(new.units))


def _fit(
    wide: Classifier, narrow: Classifier, old: Any, new: Any, path: str, places: int, kept: NDArray[Any]
) -> Fit:
    into_old, into_new = wide.into(old), narrow.into(new)

    def equations(images: Any) -> tuple[Any, Any]:
        inputs = _read(new, tf.cast(into_new(images), tf.float32), places)
        if new.use_bias:
            inputs = tf.concat([inputs, tf.ones_like(inputs[..., :1])], axis=-1)
        outputs = _linear(old, tf.cast(into_old(images), tf.float32))
        outputs = tf.reshape(tf.gather(outputs, kept, axis=-1), [-1, places, len(kept)])
        return inputs, outputs

    names = ("kernel", "bias") if new.use_bias else ("kernel",)
    num_inputs = int(np.prod(new.kernel.shape[:-1])) + new.use_bias
    return Fit(tuple(f"{path}/{name}" for name in names), num_inputs, len(kept), places, equations)


def _read(layer: Any, inputs: Any, places: int) -> Any:
    """[images, places, weights of one output]: what each of its outputs is a sum over, in the order of the kernel."""
    if pruning.is_convolution(layer):
        inputs = tf.image.extract_patches(
            inputs,
            [1, *layer.kernel_size, 1],
            [1, *layer.strides, 1],
            [1, *layer.dilation_rate, 1],
            layer.padding.upper(),
        )
    return tf.reshape(inputs, [-1, places, inputs.shape[-1]])


def _linear(layer: Any, inputs: Any) -> Any:
    """What a layer says before its activation, in float32."""
    kernel = tf.convert_to_tensor(layer.kernel.value)
    outputs = layer.convolution_op(inputs, kernel) if pruning.is_convolution(layer) else inputs @ kernel
    return outputs + tf.convert_to_tensor(layer.bias.value) if layer.use_bias else outputs
