"""Classifiers that are computed from features rather than trained by steps. Each is a linear map, and so a head.

NumPy and scikit-learn; no TensorFlow, no file.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.scores import figures

Features = NDArray[Any]  # [examples, features], float32 or float64
Weights = NDArray[np.float64]  # [examples], above 0

TOLERANCE = 1e-10  # on the largest entry of the gradient of the mean loss
ROWS_AT_ONCE = 8192  # widened to float64 together
ABSENT = -1e4  # logit of a class without training examples: its probability is 0
LOOK_S = 1.0
MOST_STEPS = 100
STEPS_AT_ONCE = 2  # of Newton's method between two looks for a stop

Watch = Callable[[], None]  # called in every round of a fit, which it ends by an exception


class Stopped(Exception):
    """A stop was requested: raised by a `Watch`, and by extraction."""


def unwatched() -> None:
    """Never end a fit."""


def watching(stop_requested: Callable[[], bool]) -> Watch:
    """Return a watch that raises `Stopped` if a stop is requested; it looks every `LOOK_S` at most."""
    last_look = -LOOK_S

    def watch() -> None:
        nonlocal last_look
        if time.monotonic() - last_look >= LOOK_S:
            last_look = time.monotonic()
            if stop_requested():
                raise Stopped

    return watch


@dataclass(frozen=True, eq=False)
class Linear:
    """The map logits = features @ kernel + bias, with a float64 kernel [features, classes]."""

    kernel: NDArray[np.float64]
    bias: NDArray[np.float64]
    iterations: int = 0
    converged: bool = True
    answers: Callable[[NDArray[np.float64]], NDArray[np.float64]] = figures.softmax
    """makes probabilities, or numbers, of the logits"""

    def logits(self, features: Features) -> NDArray[np.float64]:
        """Return float64 [examples, classes], in float64: features far from 0 would cost float32 its digits."""
        if len(features) <= ROWS_AT_ONCE:
            return np.asarray(features.astype(np.float64) @ self.kernel + self.bias)
        parts = range(0, len(features), ROWS_AT_ONCE)
        return np.concatenate([self.logits(features[k : k + ROWS_AT_ONCE]) for k in parts])

    def probabilities(self, features: Features) -> NDArray[np.float64]:
        """Return the answers, float64 [examples, classes]: the softmax of the logits, or as the classifier says."""
        return self.answers(self.logits(features))


def fit(
    name: str,
    features: Features,
    labels: NDArray[Any],
    num_classes: int,
    *,
    l2: float = 0.0,
    scaling: str = "standardize",
    class_weights: Sequence[float] | None = None,
    weights: Weights | None = None,
    watch: Watch = unwatched,
    tolerance: float = TOLERANCE,
    model: Any = None,
) -> Linear:
    """Fit the classifier `name` (logistic, nearest_mean or ridge) to these features.

    `labels` are int32 [examples], or 0 and 1 [examples, labels] for one logistic regression each, or the targets of
    ridge, float32 [examples, targets].
    `scaling` "standardize" gives each feature mean 0 and variance 1 over the examples first; the returned map takes
    unscaled features. `weights` of the examples are scikit-learn's sample_weight, in the scaling as in the fit: 2
    counts an example twice, and only ratios matter. `tolerance` and `model` as for `logistic`; with a `model` it is
    fitted in float32.
    """
    counts = np.ones(len(labels)) if weights is None else weights
    mean, spread = np.zeros(features.shape[1]), np.ones(features.shape[1])
    if scaling == "standardize":
        mean, spread = moments(features, counts)
    scaled = features - mean
    scaled /= spread
    settings: dict[str, Any] = {"l2": l2, "weights": counts, "watch": watch, "tolerance": tolerance}
    if name == "ridge":
        fitted = ridge(scaled, labels, l2=l2, weights=counts)
    elif name == "logistic" and labels.ndim > 1:
        fitted = one_vs_rest(scaled, labels, **settings)
    elif name == "logistic":
        scaled = scaled if model is None else scaled.astype(np.float32)
        fitted = logistic(scaled, labels, num_classes, class_weights=class_weights, model=model, **settings)
    else:
        fitted = nearest_mean(scaled, labels, num_classes, counts)
    kernel = fitted.kernel / spread[:, None]
    return replace(fitted, kernel=kernel, bias=fitted.bias - mean @ kernel)


def moments(features: Features, weights: Weights) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and the standard deviation of each feature over the examples; infinity for a constant one.

    A feature is constant if it varies by no more than the rounding of its own values, however small these are.
    """
    share = weights / weights.sum()
    mean = share @ features
    centred = features - mean
    spread = np.sqrt(share @ np.square(centred, out=centred))
    rounding = 10 * float(np.finfo(features.dtype).eps) * np.abs(mean)
    spread[spread <= rounding] = np.inf
    return mean, spread


def solver() -> Any:
    """Return scikit-learn's Newton's method with conjugate gradients, whose searches begin at its last solution."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(solver="newton-cg", warm_start=True, max_iter=STEPS_AT_ONCE)


def logistic(
    features: Features,
    labels: NDArray[np.int32],
    num_classes: int,
    *,
    l2: float,
    class_weights: Sequence[float] | None = None,
    weights: Weights | None = None,
    watch: Watch = unwatched,
    tolerance: float = TOLERANCE,
    model: Any = None,
) -> Linear:
    """Fit a multinomial logistic regression to the minimum of its loss.

    The loss is mean cross-entropy + l2 / 2 * |coefficients|^2; the intercepts are not penalized. scikit-learn's C is
    1 / (l2 * the sum of the examples' weights). For two classes there is one vector of coefficients, for the difference
    of the logits. The search ends when no entry of the gradient is above `tolerance`; it begins at the last solution of
    `model`, a `solver` that may have fitted these examples with another l2.
    """
    present = np.unique(labels)
    kernel, bias = np.zeros((features.shape[1], num_classes)), np.full(num_classes, ABSENT)
    if len(present) == 1:
        bias[present] = 0.0
        return Linear(kernel, bias)
    counts = np.ones(len(labels)) if weights is None else weights
    losses = in_loss(labels, class_weights, counts)
    model = solver() if model is None else model
    model.set_params(C=1 / (l2 * counts.sum()) if l2 else np.inf, tol=tolerance)
    steps, converged, stuck = 0, False, False
    while steps < MOST_STEPS and not converged and not stuck:
        watch()
        with warnings.catch_warnings(record=True) as caught:  # every search that ends before the minimum warns
            warnings.simplefilter("always")
            model.fit(features, labels, sample_weight=losses)
        steps += int(model.n_iter_[0])
        stuck = any(str(warning.message) == "Line Search failed" for warning in caught)
        converged = model.n_iter_[0] < STEPS_AT_ONCE and not stuck
    halves = [-0.5, 0.5] if len(present) == 2 else 1.0
    kernel[:, present], bias[present] = model.coef_.T * halves, model.intercept_ * halves
    return Linear(kernel, bias, steps, converged)


def one_vs_rest(features: Features, labels: NDArray[np.floating], **settings: Any) -> Linear:
    """Fit a `logistic` regression of each column of labels by itself; the logit is of having the label."""
    from scipy.special import expit

    each = [logistic(features, column.astype(np.int32), 2, **settings) for column in labels.T]
    kernel = np.stack([fitted.kernel[:, 1] - fitted.kernel[:, 0] for fitted in each], axis=1)
    bias = np.array([fitted.bias[1] - fitted.bias[0] for fitted in each])
    steps, converged = max(fitted.iterations for fitted in each), all(fitted.converged for fitted in each)
    return Linear(kernel, bias, steps, converged, lambda logits: np.asarray(expit(logits)))


def ridge(features: Features, targets: NDArray[np.floating], *, l2: float, weights: Weights) -> Linear:
    """Fit a linear regression of each target to the minimum of its loss, by scikit-learn; answers are in its units.

    The loss is half the mean squared error of the standardized target + l2 / 2 * |coefficients|^2; the intercepts are
    not penalized. scikit-learn's alpha is l2 * the sum of the examples' weights.
    """
    from sklearn.linear_model import Ridge

    mean, spread = moments(targets.astype(np.float64), weights)
    spread = np.where(np.isfinite(spread), spread, 1.0)
    model = Ridge(alpha=l2 * weights.sum(), solver="cholesky")
    model.fit(features.astype(np.float64), (targets - mean) / spread, sample_weight=weights)
    kernel = model.coef_.reshape(targets.shape[1], -1).T * spread
    return Linear(kernel, model.intercept_ * spread + mean, answers=lambda values: values)


def in_loss(labels: NDArray[np.int32], class_weights: Sequence[float] | None, weights: Weights) -> Weights:
    """Return the weight of each example in the loss: its own times its class's."""
    return weights if class_weights is None else np.asarray(class_weights, float)[labels] * weights


def nearest_mean(features: Features, labels: NDArray[np.int32], num_classes: int, weights: Weights) -> Linear:
    """Fit the classifier that predicts the class with the nearest mean.

    Its logits are negative squared distances to the means, in units of the mean squared distance of an example to the
    mean of its own class: in units of the variance of a feature, so many features would make it far too confident.
    """
    wide = features.astype(np.float64, copy=False)
    kernel, bias = np.zeros((wide.shape[1], num_classes)), np.full(num_classes, ABSENT)
    members = {int(k): labels == k for k in np.unique(labels)}
    means = {k: np.average(wide[rows], axis=0, weights=weights[rows]) for k, rows in members.items()}
    squares = [((row - means[int(k)]) ** 2).sum() for row, k in zip(wide, labels, strict=True)]
    unit = max(float(np.average(squares, weights=weights)), 1e-12)
    for k, mean in means.items():
        kernel[:, k] = 2 * mean / unit
        bias[k] = -(mean @ mean) / unit
    return Linear(kernel, bias)
