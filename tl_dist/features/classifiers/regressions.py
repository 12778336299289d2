"""Logistic regressions on the same rows, solved together to their minimum. NumPy and SciPy.

Newton's method, whose steps are found by conjugate gradients (truncated Newton: Nocedal and Wright, Numerical
Optimization, section 7.1). A network's features are so unequal that L-BFGS, or conjugate gradients by themselves, take
hundreds of rounds. Here the gradients are preconditioned by the principal axes of the rows, along which the curvature
of the loss is known well enough.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_AXES = 2048
"""features of which the principal axes are found; of more, and of half as many rows, it costs more than it saves"""
NEWTON_STEPS = 50
CONJUGATE_STEPS = 200
HALVINGS = 30
LOOK_S = 1.0
SUFFICIENT = 1e-4
"""part of the promised decrease with which a step is taken (Armijo)"""
CURVATURE = 1e-6
"""least curvature of a logit, and variance beside the largest, that the preconditioner counts on"""

Coefficients = NDArray[np.float64]
"""[features + 1, Q * K]: the last row has the intercepts"""
Watch = Callable[[], None]
"""called in every round of a search; what it raises ends the search"""


class Stopped(Exception):
    """What a `Watch` raises when somebody has asked for an end."""


def unwatched() -> None:
    """Go on."""


def watching(stop_requested: Callable[[], bool]) -> Watch:
    """Looks whether to stop, every `LOOK_S` at most."""
    last_look = -LOOK_S

    def watch() -> None:
        nonlocal last_look
        if time.monotonic() - last_look >= LOOK_S:
            last_look = time.monotonic()
            if stop_requested():
                raise Stopped

    return watch


@dataclass(frozen=True)
class Minimum:
    """Where a search ended: near enough to the minimum, or not."""

    at: Coefficients
    rounds: int
    converged: bool


@dataclass(eq=False)
class Problems:
    """Q regressions of K logits: each minimises sum of share * cross-entropy + l2 / 2 * |coefficients|^2.

    The intercepts are free. Of two classes there is one logit, for the second.

    rows    [rows, features], float32 or float64, which is what the large products are computed in
    labels  [rows], from 0 on
    share   [rows, Q]: the weight of each row in each problem
    mean, spread  [features, Q]: the coefficients of a problem are those of (rows - mean) / spread; of an infinite
            spread, 0
    """

    rows: NDArray[Any]
    labels: NDArray[np.int32]
    share: NDArray[Any]
    mean: NDArray[Any]
    spread: NDArray[Any]
    watch: Watch = unwatched
    num_logits: int = field(init=False)
    _axes: tuple[NDArray[Any], NDArray[Any]] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        classes = int(self.labels.max()) + 1
        self.num_logits = 1 if classes <= 2 else classes

    @property
    def start(self) -> Coefficients:
        """Nothing known: zeros."""
        return np.zeros((self.rows.shape[1] + 1, self.share.shape[1] * self.num_logits))

    def minimum(self, l2: float, start: Coefficients, tolerance: float) -> Minimum:
        """The coefficients at which no entry of the gradient is above `tolerance`, searched from `start` on."""
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
                further = at + step / 2**halving
                found = self.loss(further, l2)
                enough = loss + SUFFICIENT * promised / 2**halving
                if found[0] <= enough or (-promised < rounding * loss and _largest(found[1]) < steepest):
                    break  # the second: where the loss can no longer tell, the gradient does
            else:
                break  # rounding is all that is left
            at, (loss, gradient, probabilities) = further, found
        return Minimum(at, rounds, converged=_largest(gradient) <= tolerance)

    def loss(self, at: Coefficients, l2: float) -> tuple[float, Coefficients, NDArray[Any]]:
        """Its sum over the problems, its gradient, and the probabilities [rows, Q, K] there."""
        logits = self._logits(at)
        rows = np.arange(len(logits))
        if self.num_logits == 1:
            truth = self.labels[:, None, None]
            each = (np.logaddexp(0, logits) - truth * logits)[..., 0]
            probabilities = 1 / (1 + np.exp(-np.clip(logits, -80, 80)))
            error = (probabilities - truth) * self.share[:, :, None]
        else:
            logits -= logits.max(axis=-1, keepdims=True)
            each = -logits[rows, :, self.labels]
            probabilities = np.exp(logits, out=logits)
            sums = probabilities.sum(axis=-1)
            each += np.log(sums)
            probabilities /= sums[:, :, None]
            error = probabilities * self.share[:, :, None]
            error[rows, :, self.labels] -= self.share
        total = float((each * self.share).sum(dtype=np.float64)) + l2 / 2 * float((at[:-1] ** 2).sum())
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
        """[rows, Q, K]: a linear map of the coefficients."""
        kernel, bias = self.map(at)
        found = self.rows @ kernel.reshape(len(kernel), -1)
        found += bias.reshape(-1)
        return found.reshape(len(found), *bias.shape)

    def map(self, at: Coefficients) -> tuple[NDArray[Any], NDArray[Any]]:
        """What gives the logits from rows as they are: kernel [features, Q, K] and bias [Q, K], of the rows' type."""
        both = at.reshape(len(at), -1, self.num_logits)
        kernel = (both[:-1] / self.spread[:, :, None]).astype(self.rows.dtype)
        bias = both[-1] - (self.mean[:, :, None] * kernel).sum(axis=0)
        return kernel, bias.astype(self.rows.dtype)

    def _gradient(self, error: NDArray[Any], at: Coefficients, l2: float) -> Coefficients:
        """By the coefficients, from the one by the logits: the transpose of `_logits`, and the penalty's."""
        slope = (self.rows.T @ error.reshape(len(error), -1)).reshape(-1, *error.shape[1:])
        total = error.sum(axis=0)
        slope = (slope - self.mean[:, :, None] * total) / self.spread[:, :, None]
        found = np.concatenate([slope, total[None]]).reshape(at.shape).astype(np.float64)
        found[:-1] += l2 * at[:-1]
        return found

    def _preconditioner(
        self, probabilities: NDArray[Any], l2: float
    ) -> Callable[[NDArray[Any]], NDArray[Any]]:
        """About the inverse of the Hessian: that of rows whose place says nothing of how sure they are."""
        spread = probabilities * (1 - probabilities) * self.share[:, :, None]
        curvature = np.maximum(spread.sum(axis=0, dtype=np.float64).reshape(-1), CURVATURE)
        variances, axes = self._principal_axes() or (np.ones(1), None)
        # Where l2 is 0, all that is known of the others.
        variances = np.maximum(variances, CURVATURE * variances[-1])
        along = 1 / (np.outer(variances, curvature) + l2)

        def apply(flat: NDArray[Any]) -> NDArray[Any]:
            gradient = flat.reshape(-1, len(curvature))
            slope = gradient[:-1]
            found = slope * along if axes is None else axes @ (along * (axes.T @ slope))
            return np.concatenate([found, gradient[-1:] / curvature]).ravel()

        return apply

    def _principal_axes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Variances, the least first, and axes [features, features] of the rows, scaled about as the problems do."""
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
