"""Logistic regressions on the same rows, solved together to their minimum. NumPy and SciPy."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_AXES = 2048
"""most features for principal axes; with more, or more than half as many as rows, they cost more than they save"""
NEWTON_STEPS = 50
CONJUGATE_STEPS = 200
HALVINGS = 30
LOOK_S = 1.0
SUFFICIENT = 1e-4  # share of the promised decrease with which a step is accepted (Armijo)
CURVATURE = 1e-6
"""least curvature of a logit, and least variance relative to the largest, in the preconditioner"""

Coefficients = NDArray[np.float64]  # [features + 1, Q * K]: the last row has the intercepts
Watch = Callable[[], None]  # called in every round of a search, which it ends by an exception


class Stopped(Exception):
    """Raised by a `Watch` when a stop is requested."""


def unwatched() -> None:
    """Never end a search."""


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


class Minimum(NamedTuple):
    """The point at which a search ended, near enough to the minimum or not."""

    at: Coefficients
    rounds: int
    converged: bool


@dataclass(eq=False)
class Problems:
    """Q regressions of K logits: each minimises sum of share * cross-entropy + l2 / 2 * |coefficients|^2.

    Newton's method, with steps by conjugate gradients (truncated Newton: Nocedal and Wright, Numerical Optimization,
    section 7.1). A network's features are so differently scaled that L-BFGS, or plain conjugate gradients, take
    hundreds of rounds. Here the conjugate gradients are preconditioned by the principal axes of the rows. The
    intercepts are not penalized. For two classes there is one logit, for the second. Coefficients apply to
    (rows - mean) / spread, which is 0 for an infinite spread.
    """

    rows: NDArray[Any]  # [rows, features], float32 or float64: the type of the large products
    labels: NDArray[np.int32]  # [rows], from 0 on
    share: NDArray[Any]  # [rows, Q]: the weight of each row in each problem
    mean: NDArray[Any]  # [features, Q]
    spread: NDArray[Any]  # [features, Q]
    watch: Watch = unwatched
    num_logits: int = field(init=False)
    _axes: tuple[NDArray[Any], NDArray[Any]] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        classes = int(self.labels.max()) + 1
        self.num_logits = 1 if classes <= 2 else classes

    @property
    def start(self) -> Coefficients:
        """Return coefficients of 0."""
        return np.zeros((self.rows.shape[1] + 1, self.share.shape[1] * self.num_logits))

    def minimum(self, l2: float, start: Coefficients, tolerance: float) -> Minimum:
        """Search from `start` for the coefficients at which no entry of the gradient is above `tolerance`."""
        from scipy.sparse.linalg import LinearOperator, cg

        at, rounds, rounding = start, 0, 8 * float(np.finfo(self.rows.dtype).eps)
        loss, gradient, probabilities = self.loss(at, l2)
        for _ in range(NEWTON_STEPS):
            steepest = _largest(gradient)
            if steepest <= tolerance:
                return Minimum(at, rounds, converged=True)

            def times_hessian(
                flat: NDArray[Any], probabilities: NDArray[Any] = probabilities
            ) -> NDArray[Any]:
                nonlocal rounds
                rounds += 1
                self.watch()
                return self._times_hessian(flat.reshape(start.shape), probabilities, l2).ravel()

            size = (start.size, start.size)
            step, _ = cg(
                LinearOperator(size, times_hessian, dtype=np.float64),
                -gradient.ravel(),
                rtol=min(0.1, steepest**0.5),
                maxiter=CONJUGATE_STEPS,
                M=LinearOperator(size, self._preconditioner(probabilities, l2), dtype=np.float64),
            )
            step = step.reshape(start.shape)
            promised = float((step * gradient).sum())
            for halving in range(HALVINGS):
                next_at = at + step / 2**halving
                evaluation = self.loss(next_at, l2)
                enough = loss + SUFFICIENT * promised / 2**halving
                if evaluation[0] <= enough or (
                    -promised < rounding * loss and _largest(evaluation[1]) < steepest
                ):
                    break  # the second condition: where the loss only rounds, the gradient still tells
            else:
                break  # rounding is all that is left
            at, (loss, gradient, probabilities) = next_at, evaluation
        return Minimum(at, rounds, converged=_largest(gradient) <= tolerance)

    def loss(self, at: Coefficients, l2: float) -> tuple[float, Coefficients, NDArray[Any]]:
        """Return the loss summed over the problems, its gradient, and the probabilities [rows, Q, K], all at `at`."""
        logits = self._logits(at)
        rows = np.arange(len(logits))
        if self.num_logits == 1:
            truth = self.labels[:, None, None]
            losses = (np.logaddexp(0, logits) - truth * logits)[..., 0]
            probabilities = 1 / (1 + np.exp(-np.clip(logits, -80, 80)))
            error = (probabilities - truth) * self.share[:, :, None]
        else:
            logits -= logits.max(axis=-1, keepdims=True)
            losses = -logits[rows, :, self.labels]
            probabilities = np.exp(logits, out=logits)
            sums = probabilities.sum(axis=-1)
            losses += np.log(sums)
            probabilities /= sums[:, :, None]
            error = probabilities * self.share[:, :, None]
            error[rows, :, self.labels] -= self.share
        total = float((losses * self.share).sum(dtype=np.float64)) + l2 / 2 * float((at[:-1] ** 2).sum())
        return total, self._gradient(error, at, l2), probabilities

    def _times_hessian(self, direction: Coefficients, probabilities: NDArray[Any], l2: float) -> Coefficients:
        change = self._logits(direction)
        if self.num_logits == 1:
            change *= probabilities * (1 - probabilities)
        else:
            change -= (probabilities * change).sum(axis=-1, keepdims=True)
            change *= probabilities
        change *= self.share[:, :, None]
        return self._gradient(change, direction, l2)

    def _logits(self, at: Coefficients) -> NDArray[Any]:
        """Return the logits [rows, Q, K], a linear map of the coefficients."""
        kernel, bias = self.map(at)
        logits = self.rows @ kernel.reshape(len(kernel), -1)
        logits += bias.reshape(-1)
        return logits.reshape(len(logits), *bias.shape)

    def map(self, at: Coefficients) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the map from unscaled rows to logits, in their type: kernel [features, Q, K] and bias [Q, K]."""
        both = at.reshape(len(at), -1, self.num_logits)
        kernel = (both[:-1] / self.spread[:, :, None]).astype(self.rows.dtype)
        bias = both[-1] - (self.mean[:, :, None] * kernel).sum(axis=0)
        return kernel, bias.astype(self.rows.dtype)

    def _gradient(self, error: NDArray[Any], at: Coefficients, l2: float) -> Coefficients:
        """Return the gradient by the coefficients, penalty included, from `error`, the gradient by the logits."""
        slope = (self.rows.T @ error.reshape(len(error), -1)).reshape(-1, *error.shape[1:])
        total = error.sum(axis=0)
        slope = (slope - self.mean[:, :, None] * total) / self.spread[:, :, None]
        gradient = np.concatenate([slope, total[None]]).reshape(at.shape).astype(np.float64)
        gradient[:-1] += l2 * at[:-1]
        return gradient

    def _preconditioner(
        self, probabilities: NDArray[Any], l2: float
    ) -> Callable[[NDArray[Any]], NDArray[Any]]:
        """Return about the inverse of the Hessian, as if confidence did not depend on where a row lies."""
        spread = probabilities * (1 - probabilities) * self.share[:, :, None]
        curvature = np.maximum(spread.sum(axis=0, dtype=np.float64).reshape(-1), CURVATURE)
        variances, axes = self._principal_axes() or (np.ones(1), None)
        # With an l2 of 0 nothing else bounds the inverse along axes without variance.
        variances = np.maximum(variances, CURVATURE * variances[-1])
        along = 1 / (np.outer(variances, curvature) + l2)

        def apply(flat: NDArray[Any]) -> NDArray[Any]:
            gradient = flat.reshape(-1, len(curvature))
            slope = gradient[:-1]
            solution = slope * along if axes is None else axes @ (along * (axes.T @ slope))
            return np.concatenate([solution, gradient[-1:] / curvature]).ravel()

        return apply

    def _principal_axes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Return variances, ascending, and axes [features, features] of the rows, scaled about as in the problems."""
        num, width = self.rows.shape
        if width > min(MOST_AXES, num // 2):
            return None
        if self._axes is None:
            scale = 1 / np.where(np.isfinite(self.spread), self.spread, np.inf).min(axis=1)
            rows = (self.rows - self.rows.mean(axis=0)) * scale.astype(self.rows.dtype)
            variances, axes = np.linalg.eigh((rows.T @ rows).astype(np.float64) / num)
            self._axes = np.maximum(variances, 0), axes
        return self._axes


def _largest(gradient: Coefficients) -> float:
    return float(np.abs(gradient).max())
