"""Classifiers that are computed from features rather than trained by steps. Each is a linear map, and so a head.

Knows NumPy and scikit-learn, which is imported on use; no TensorFlow, no file.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.scores import figures

Features = NDArray[Any]
"""[examples, features], float32 or float64"""

TOLERANCE = 1e-10  # on the largest entry of the gradient of the mean loss
START_TOLERANCE = 1e-4
MAX_ITERATIONS = 200
ROWS_AT_ONCE = 8192  # that are widened to float64 together
ABSENT = -1e4  # logit of a class without training examples: its probability is 0


@dataclass(frozen=True, eq=False)
class Linear:
    """logits = features @ kernel + bias; kernel float64 [features, classes]. Softmax of them is the answer."""

    kernel: NDArray[np.float64]
    bias: NDArray[np.float64]
    iterations: int = 0
    converged: bool = True

    def logits(self, features: Features) -> NDArray[np.float64]:
        """float64 [examples, classes], computed in float64: features far from 0 would cost float32 all its digits."""
        if len(features) <= ROWS_AT_ONCE:
            return np.asarray(features.astype(np.float64) @ self.kernel + self.bias)
        parts = range(0, len(features), ROWS_AT_ONCE)
        return np.concatenate([self.logits(features[k : k + ROWS_AT_ONCE]) for k in parts])

    def probabilities(self, features: Features) -> NDArray[np.float64]:
        """float64 [examples, classes]."""
        return figures.softmax(self.logits(features))


def fit(
    name: str,
    features: Features,
    labels: NDArray[np.int32],
    num_classes: int,
    *,
    l2: float = 0.0,
    scaling: str = "standardize",
    class_weights: Sequence[float] | None = None,
) -> Linear:
    """The classifier `name` (logistic or nearest_mean) of these features.

    `scaling` standardize gives each feature mean 0 and variance 1 over the examples first; the map returned takes
    the features as they are.
    """
    if scaling == "standardize":
        mean, spread = moments(features)
    else:
        mean, spread = np.zeros(features.shape[1]), np.ones(features.shape[1])
    scaled = features - mean
    scaled /= spread
    if name == "logistic":
        found = logistic(scaled, labels, num_classes, l2=l2, class_weights=class_weights)
    else:
        found = nearest_mean(scaled, labels, num_classes)
    kernel = found.kernel / spread[:, None]
    return Linear(kernel, found.bias - mean @ kernel, found.iterations, found.converged)


def moments(features: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each feature over the examples; infinite for one that says nothing.

    That is one which varies by no more than the rounding of its own values, however small it is beside the others.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    spread = features.std(axis=0, dtype=np.float64)
    rounding = 10 * float(np.finfo(features.dtype).eps) * np.abs(mean)
    spread[spread <= rounding] = np.inf
    return mean, spread


def logistic(
    features: Features,
    labels: NDArray[np.int32],
    num_classes: int,
    *,
    l2: float,
    class_weights: Sequence[float] | None = None,
) -> Linear:
    """Multinomial logistic regression: the minimum, not a point on the way to it.

    L-BFGS in float32 comes near at little cost and rests there, since the loss changes no more in its last digit: 1e-3
    of a probability is left, more where l2 is small. From there Newton's method in float64 takes a few steps.

    Minimises mean cross-entropy + l2 / 2 * |coefficients|^2; the intercepts are free. scikit-learn's C is
    1 / (l2 * examples). With two classes there is one vector of coefficients, for the difference of the logits.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    present = np.unique(labels)
    kernel, bias = np.zeros((features.shape[1], num_classes)), np.full(num_classes, ABSENT)
    if len(present) == 1:  # nothing to tell apart
        bias[present] = 0.0
        return Linear(kernel, bias)
    weights = {int(k): float(class_weights[k]) for k in present} if class_weights is not None else None
    strength = 1.0 / (l2 * len(labels)) if l2 else np.inf
    model = LogisticRegression(C=strength, tol=START_TOLERANCE, max_iter=1000, class_weight=weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features.astype(np.float32), labels)
    iterations = int(np.max(model.n_iter_))
    model.set_params(solver="newton-cg", warm_start=True, tol=TOLERANCE, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(
            "always", UserWarning
        )  # ConvergenceWarning is one, and a line search that failed
        model.fit(features.astype(np.float64, copy=False), labels)
    iterations += int(np.max(model.n_iter_))
    if len(present) == 2:
        kernel[:, present] = model.coef_.T * [-0.5, 0.5]
        bias[present] = model.intercept_ * [-0.5, 0.5]
    else:
        kernel[:, present], bias[present] = model.coef_.T, model.intercept_
    failed = any(issubclass(warning.category, UserWarning) for warning in caught)
    return Linear(kernel, bias, iterations, not failed)


def nearest_mean(features: Features, labels: NDArray[np.int32], num_classes: int) -> Linear:
    """The class with the nearest mean; probabilities as if each class were a sphere of the spread within classes.

    Spheres of one size in as many dimensions as there are features would be far too sure, so the squared distance
    is taken in units of the mean squared distance of an example to its own class's mean.
    """
    wide = features.astype(np.float64, copy=False)
    kernel, bias = np.zeros((wide.shape[1], num_classes)), np.full(num_classes, ABSENT)
    means = {int(k): wide[labels == k].mean(axis=0) for k in np.unique(labels)}
    within = np.mean([((row - means[int(k)]) ** 2).sum() for row, k in zip(wide, labels, strict=True)])
    unit = max(float(within), 1e-12)
    for k, mean in means.items():
        kernel[:, k] = 2 * mean / unit
        bias[k] = -(mean @ mean) / unit
    return Linear(kernel, bias)
