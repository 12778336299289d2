"""Last layers of other tasks than classes: how their outputs become answers.

Those of ordered grades give logarithms of probabilities, one for each grade:

corn  The chance to exceed each grade once it is reached, by a logistic regression for each grade (Shi et al., arXiv
      2111.08851). The probability of a grade is a product of these; its logarithm is the loss of the paper.
coral The chance to exceed each grade, by one logistic regression with a threshold for each grade (Cao et al., arXiv
      1901.07884). Thresholds stay in order, since each is kept as its distance from the one before.

That of numbers gives them in the units of the data: `Scaled`.
"""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from tl_dist.config.training import FOR_GRADES, FOR_VALUES, LOSSES
from tl_dist.refusal import ExitCode, Refusal

OPTIONS = {"dtype": "float32", "name": "logits"}  # of every last layer
_LEAST_GAP = 1e-6  # between two thresholds of coral


class Corn(keras.layers.Dense):
    """Compute float32 [rows, grades] of features [rows, features]; kernel [features, grades - 1], zeros at first."""

    def __init__(self, num_grades: int, **options: Any) -> None:
        super().__init__(num_grades - 1, **options)

    def call(self, features: Any, training: bool | None = None) -> Any:
        """Return the logarithms of the probabilities."""
        return log_probabilities("corn", super().call(features))


class Coral(keras.layers.Dense):
    """Compute float32 [rows, grades] of features [rows, features]; kernel [features, 1], bias [grades - 1].

    The bias holds the first threshold, and the distance of each next one as the inverse of softplus; at first they are
    those of the authors' `CoralLayer`.
    """

    def __init__(self, num_grades: int, **options: Any) -> None:
        super().__init__(1, use_bias=False, **options)
        self._num = num_grades - 1

    def build(self, input_shape: Any) -> None:
        """Add the thresholds to the kernel."""
        super().build(input_shape)
        initial = np.full(self._num, np.log(np.expm1(1 / self._num)), np.float32)
        initial[0] = 1.0
        self.bias = self.add_weight(name="bias", shape=initial.shape, initializer=lambda *_, **__: ops.array(initial))

    def call(self, features: Any, training: bool | None = None) -> Any:
        """Return the logarithms of the probabilities."""
        return log_probabilities("coral", ops.matmul(features, self.kernel) + thresholds(self.bias))


class Scaled(keras.layers.Dense):
    """Compute float32 [rows, targets] of features [rows, features], by a dense layer of targets that are standardized.

    `mean` and `spread` [targets], which no step trains, are those of the training examples.
    """

    def build(self, input_shape: Any) -> None:
        """Add the scale to kernel and bias."""
        super().build(input_shape)
        self.mean, self.spread = (
            self.add_weight(name=name, shape=(self.units,), initializer=value, trainable=False)
            for name, value in (("mean", "zeros"), ("spread", "ones"))
        )

    def call(self, features: Any, training: bool | None = None) -> Any:
        """Return the targets in the units of the data."""
        return super().call(features) * self.spread + self.mean


class Own(keras.layers.Layer):
    """Pass on the outputs [rows, outputs] of a network that has a head, in float32; two classes may have one output.

    Where the task has numbers, it holds their scale, in which losses compare them.
    """

    def __init__(self, network: str, num_classes: int, kind: str, gives: str | None, **options: Any) -> None:
        """`gives`: softmax or sigmoid, in which the network ended before it was left out."""
        super().__init__(**options)
        self._network, self._num, self._kind, self._gives = network, num_classes, kind, gives

    def build(self, input_shape: Any) -> None:
        """Check the number of outputs."""
        width, pairs = input_shape[-1], self._num == 2 and self._kind == "cross_entropy"
        self._is_one = width == 1
        if width != self._num and not (width == 1 and pairs):
            what = f"{self._network} gives {width} outputs, and the data set has {self._num} classes or targets."
            fix = f"make its last layer one of {self._num} units{', or of 1' if pairs else ''}."
            raise Refusal(what, fix=fix, code=ExitCode.USAGE)
        if self._gives == "sigmoid" and self._kind == "cross_entropy" and width > 1:
            what = f"{self._network} ends in {width} sigmoids, and each image has one class."
            fix = "end it in a softmax or in logits, or write 'task: multilabel'."
            raise Refusal(what, fix=fix, code=ExitCode.USAGE)
        if self._kind in FOR_VALUES:
            self.mean, self.spread = (
                self.add_weight(name=name, shape=(width,), initializer=value, trainable=False)
                for name, value in (("mean", "zeros"), ("spread", "ones"))
            )

    def call(self, outputs: Any, training: bool | None = None) -> Any:
        """Return the logits or values."""
        return paired(ops.cast(outputs, "float32"), "classification" if self._kind == "cross_entropy" else "")

    def as_given(self, logits: Any) -> Any:
        """Return the outputs of the network as the user wrote it, [rows, outputs]."""
        if self._is_one and logits.shape[-1] == 2:
            logits = logits[:, 1:] - logits[:, :1]
        return {"softmax": ops.softmax, "sigmoid": ops.sigmoid}.get(str(self._gives), lambda values: values)(logits)


def paired(outputs: Any, task: str) -> Any:
    """Return the logits of two classes of the one that a network gives for the second; others as they are."""
    if task != "classification" or outputs.shape[-1] != 1:
        return outputs
    return ops.concatenate([ops.zeros_like(outputs), outputs], axis=-1)


def standardize(scale: Mapping[str, Any], targets: Any) -> None:
    """Set the `scale` of a classifier to that of training examples, float32 [N, targets]; an empty one stays."""
    for path, variable in scale.items():
        wide = np.asarray(targets, np.float64)
        variable.assign(wide.mean(axis=0) if path.endswith("/mean") else np.maximum(wide.std(axis=0), 1e-12))


def standardized(scale: Mapping[str, Any], kernel: Any, bias: Any) -> dict[str, Any]:
    """Return, by path, the last layer whose outputs are features @ kernel + bias, in the units of the data."""
    if scale:
        mean, spread = (scale[f"head/logits/{name}"].numpy().astype(np.float64) for name in ("mean", "spread"))
        kernel, bias = kernel / spread, (bias - mean) / spread
    return {"head/logits/kernel": kernel, "head/logits/bias": bias}


def last_layer(kind: str, num_classes: int, **options: Any) -> Any:
    """Return the layer that gives [rows, num_classes], by the loss's name `kind`: `answers` are made of them."""
    layers = {"corn": Corn, "coral": Coral, **dict.fromkeys(FOR_VALUES, Scaled)}
    return layers.get(kind, keras.layers.Dense)(num_classes, **options)


def answers(kind: str, outputs: Any) -> Any:
    """Return the Keras tensor of probabilities of classes or of labels, or of numbers, from that of the outputs."""
    if kind in FOR_VALUES:
        return keras.layers.Identity(dtype="float32", name="values")(outputs)
    if kind in LOSSES["multilabel"]:
        return keras.layers.Activation("sigmoid", dtype="float32", name="probabilities")(outputs)
    return keras.layers.Softmax(dtype="float32", name="probabilities")(outputs)


def thresholds(bias: Any) -> Any:
    """Return the descending thresholds of `Coral` from its bias."""
    return bias[0] - ops.concatenate([ops.zeros_like(bias[:1]), ops.cumsum(ops.softplus(bias[1:]))])


def as_dense(kind: str, arrays: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the kernel and bias of a plain dense layer whose `log_probabilities` are those of the layer.

    `arrays` are the layer's, by path, such as `head/logits/kernel`.
    """
    kernel, bias = arrays["head/logits/kernel"], arrays["head/logits/bias"]
    if kind in FOR_VALUES:
        spread = arrays["head/logits/spread"]
        return kernel * spread, bias * spread + arrays["head/logits/mean"]
    if kind != "coral":
        return kernel, bias
    values = np.asarray(ops.convert_to_numpy(thresholds(ops.convert_to_tensor(bias))))
    return np.repeat(kernel, len(values), axis=1), values


def log_probabilities(kind: str, outputs: Any) -> Any:
    """Return the logarithms of the probabilities of all grades [rows, grades] from outputs [rows, grades - 1].

    For a kind that is not FOR_GRADES the outputs are logits, and are returned as they are.
    """
    if kind not in FOR_GRADES:
        return outputs
    above, below = ops.log_sigmoid(outputs), ops.log_sigmoid(-outputs)
    if kind == "corn":
        reached = ops.cumsum(above, axis=-1)
        return ops.concatenate([below[:, :1], below[:, 1:] + reached[:, :-1], reached[:, -1:]], axis=-1)
    gap = ops.maximum(outputs[:, :-1] - outputs[:, 1:], _LEAST_GAP)
    # 1 - exp(-gap), by operations that ONNX has and that keep small gaps.
    between = above[:, :-1] + below[:, 1:] + ops.log(ops.tanh(gap / 2)) + ops.softplus(-gap)
    return ops.concatenate([below[:, :1], between, above[:, -1:]], axis=-1)
