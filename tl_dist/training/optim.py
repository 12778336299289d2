"""Apply update rule, schedule and dynamic loss scale to gradients that have already been reduced.

The updates are Keras's. Its optimizers clip and test before MirroredStrategy reduces: an Inf would reach all weights.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import tensorflow as tf

from tl_dist.config import OptimizerConfig, ScheduleConfig
from tl_dist.models.batch_norm import read as _read
from tl_dist.training.rules import Rule, rules

INITIAL_LOSS_SCALE = 2.0**15
GROW_AFTER = 2000  # finite steps in a row, then the scale doubles (Micikevicius et al., arXiv 1710.03740)


def learning_rate(config: OptimizerConfig, step: Any, *, steps_per_epoch: float, total_steps: int) -> Any:
    """Return the rate of `step` (int64 tensor) as float32: linear warm-up from 0, then constant, cosine or steps down.

    It is constant under 'plateau', which lowers it in `Optimizer.lowered`.
    """
    schedule: ScheduleConfig = config.schedule
    now = tf.cast(step, tf.float32)
    warmup = schedule.warmup_epochs * steps_per_epoch
    factor = tf.constant(1.0)
    if schedule.name == "cosine":
        done = tf.clip_by_value((now - warmup) / max(1.0, total_steps - warmup), 0.0, 1.0)
        final = schedule.final_fraction
        factor = final + (1.0 - final) * 0.5 * (1.0 + tf.cos(math.pi * done))
    elif schedule.name == "step":
        drops = tf.constant([epoch * steps_per_epoch for epoch in schedule.drop_at_epochs], tf.float32)
        factor = schedule.drop_factor ** tf.reduce_sum(tf.cast(now >= drops, tf.float32))
    if warmup > 0:
        factor *= tf.minimum(1.0, (now + 1.0) / warmup)
    return config.learning_rate * factor


class _Factors(NamedTuple):
    """Scalars of one step that depend on how many updates a variable has had."""

    toward_weights: Any  # how far the average moves toward the weight, 0 to 1
    beta_1_power: Any  # of Adam, as is beta_2_power
    beta_2_power: Any


class Optimizer:
    """Update all trainable variables. Create it inside the strategy's scope, once they have their initial values.

    `stages` has a table for each stage of the run: the rules of the variables that are trained in it (default: the
    config's rules for variables of equal depth). `variables` holds the slots, the averages, the number of applied
    updates and the loss scale by path, for checkpoints, but not the initial weights, which L2-SP needs.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        trainable: Mapping[str, Any],
        *,
        scale_loss: bool,
        stages: Sequence[Mapping[str, Rule]] | None = None,
    ) -> None:
        self._config = config
        self._trainable = dict(trainable)
        self._stages = [dict(s) for s in stages] if stages else [rules(config, trainable)]
        named = {path: (k, v) for k, (path, v) in enumerate(self._trainable.items())}
        slots: tuple[str, ...] = ("m", "v")
        if config.name in ("sgd", "lars"):
            slots = ("momentum",) if config.momentum else ()
        self._slots = {
            slot: {
                path: tf.Variable(tf.zeros(v.shape, v.dtype), trainable=False, name=f"{slot}_{k}")
                for path, (k, v) in named.items()
            }
            for slot in slots
        }
        self.averages: dict[str, Any] = {
            path: tf.Variable(v.numpy(), trainable=False, name=f"ema_{k}")
            for path, (k, v) in named.items()
            if config.ema
        }
        """moving averages of the weights by path; empty if none are kept"""
        self.start: dict[str, Any] = {
            path: tf.Variable(v.numpy(), trainable=False, name=f"start_{k}")
            for path, (k, v) in named.items()
            if any(path in stage and stage[path].toward_start for stage in self._stages)
        }
        """the initial weights that L2-SP pulls toward, by path: constants, pinned by the digest of the weights' file"""
        self._scale_loss = scale_loss
        # Adam's bias correction counts updates, not steps, of which overflow skips some; by stage, since a variable is
        # updated only in those stages in which it is trained.
        self._updates = [
            tf.Variable(0, dtype=tf.int64, trainable=False, name=f"updates_{k}") for k in range(len(self._stages))
        ]
        scale = INITIAL_LOSS_SCALE if scale_loss else 1.0
        self._loss_scale = tf.Variable(scale, trainable=False, name="loss_scale")
        self._finite_in_a_row = tf.Variable(0, dtype=tf.int64, trainable=False, name="finite_in_a_row")
        self._rate_factor = tf.Variable(1.0, trainable=False)  # not saved: comes from a checkpoint's history
        self.variables: dict[str, Any] = {
            f"optimizer/updates/{k}" if k else "optimizer/updates": v for k, v in enumerate(self._updates)
        }
        self.variables["optimizer/loss_scale"] = self._loss_scale
        self.variables["optimizer/finite_in_a_row"] = self._finite_in_a_row
        for slot, table in (*self._slots.items(), ("ema", self.averages)):
            self.variables |= {f"optimizer/{slot}/{path}": v for path, v in table.items()}

    def slowest(self, stage: int) -> tuple[str, float]:
        """Return the path of the variable with the lowest rate in a stage, and its factor on the learning rate."""
        path, rule = min(self._stages[stage].items(), key=lambda item: item[1].rate)
        return path, rule.rate

    def lower_rate(self, factor: float) -> None:
        """Set the rate of schedule 'plateau' to this fraction of the learning rate. Call it outside a graph."""
        self._rate_factor.assign(factor)

    def lowered(self, rate: Any) -> Any:
        """Return a rate times the factor of `lower_rate`. Call it inside a replica."""
        return rate * _read(self._rate_factor)

    def begin(self, stage: int) -> None:
        """Prepare the averages before the first step of a stage that follows another. Call it outside a graph.

        The average of a variable continues if both stages train it. Otherwise it is set to the weight, where it begins,
        and which is evaluated while no stage trains it. So the averages in a checkpoint are always the weights that
        `averaged` shows.
        """
        continued = self._stages[stage - 1].keys() & self._stages[stage].keys()
        for path, average in self.averages.items():
            if path not in continued:
                average.assign(tf.identity(self._trainable[path]))

    @contextmanager
    def averaged(self, stage: int = 0) -> Iterator[None]:
        """Let the variables of the stage hold their averages, if any, within the body. Call it outside a graph."""
        paths = [path for path in self._stages[stage] if path in self.averages]
        weights = {path: tf.identity(self._trainable[path]) for path in paths}
        for path in paths:
            self._trainable[path].assign(tf.identity(self.averages[path]))
        try:
            yield
        finally:
            for path, value in weights.items():
                self._trainable[path].assign(value)

    def scale(self) -> Any:
        """Return the factor on the loss before the backward pass; 1 without loss scaling."""
        return _read(self._loss_scale)

    def apply(self, grads: Sequence[Any], rate: Any, stage: int = 0, *, select: bool = False) -> tuple[Any, Any]:
        """Check, unscale, clip, decay, update, inside a replica. Returns (1.0 if the step was skipped, norm).

        `grads` are the reduced gradients of the scaled loss, in the order of the stage's variables; all replicas
        hold the same ones. A step whose global norm is not finite changes nothing but the loss scale.

        With `select` the update is always computed, and kept where the norm is finite. A branch would make the host
        wait for the GPU to decide it; XLA's code reads and writes each value once either way.
        """
        if self._scale_loss:
            inverse = 1.0 / self.scale()
            grads = [g * inverse for g in grads]
        norm = tf.linalg.global_norm(grads)
        finite = tf.math.is_finite(norm)
        if select:
            paths, tables = self._stages[stage], (*self._slots.values(), self.averages)
            slots = [table[path] for table in tables for path in paths if path in table]
            written = [self._updates[stage], *(self._trainable[path] for path in paths), *slots]
            before = [_read(variable) for variable in written]
            self._update(grads, norm, rate, stage)
            for variable, old in zip(written, before, strict=True):
                _assign(variable, tf.where(finite, _read(variable), old))
            skipped = 1.0 - tf.cast(finite, tf.float32)
        else:
            skipped = tf.cond(finite, lambda: self._update(grads, norm, rate, stage), lambda: tf.constant(1.0))
        if self._scale_loss:
            # Double it after enough finite steps in a row, halve it after one that is not.
            scale, in_a_row = self.scale(), _read(self._finite_in_a_row) + 1
            full = in_a_row >= GROW_AFTER
            grown = tf.where(full, scale * 2.0, scale)
            _assign(self._loss_scale, tf.where(finite, grown, tf.maximum(scale * 0.5, 1.0)))
            keeps_counting = finite & tf.logical_not(full)
            _assign(self._finite_in_a_row, tf.where(keeps_counting, in_a_row, tf.zeros_like(in_a_row)))
        return skipped, norm

    def _update(self, grads: Sequence[Any], norm: Any, rate: Any, stage: int) -> Any:
        config = self._config
        if config.clip_norm:
            factor = config.clip_norm / tf.maximum(norm, config.clip_norm)
            grads = [g * factor for g in grads]
        tf.raw_ops.AssignAddVariableOp(resource=self._updates[stage].handle, value=tf.constant(1, tf.int64))
        counts = [_read(variable) for variable in self._updates]
        # Scalars that variables share are computed once: each would be a kernel of its own on a GPU.
        rates = {rule.rate: rate * rule.rate for rule in self._stages[stage].values()}
        pulls = {(rule.rate, rule.decay): rates[rule.rate] * rule.decay for rule in self._stages[stage].values()}
        factors: dict[tuple[int, ...], _Factors] = {}  # by the stages that have trained the variable
        for (path, rule), grad in zip(self._stages[stage].items(), grads, strict=True):
            variable = self._trainable[path]
            within = tuple(k for k in range(stage + 1) if path in self._stages[k])
            if within not in factors:
                factors[within] = self._factors(tf.add_n([counts[k] for k in within]))
            by_layer = config.name in ("lars", "lamb") and len(variable.shape) > 1
            if rule.decay or by_layer:
                away = _read(variable) - _read(self.start[path]) if rule.toward_start else _read(variable)
                if config.name == "lars":
                    grad = _lars(_read(variable), grad, away, rule.decay, config.trust_coefficient)
                elif config.name == "lamb":
                    direction = self._adams_direction(path, grad, factors[within])
                    step = _lamb(_read(variable), direction, away, rule.decay) * rates[rule.rate]
                    tf.raw_ops.AssignSubVariableOp(resource=variable.handle, value=step)
                elif rule.toward_start and config.name == "sgd":  # after clipping, as weight decay in PyTorch
                    grad += away * rule.decay
                else:  # a pull within Adam would be divided by the size of past gradients
                    pull = away * pulls[rule.rate, rule.decay]
                    tf.raw_ops.AssignSubVariableOp(resource=variable.handle, value=pull)
            if not (by_layer and config.name == "lamb"):
                self._update_one(path, variable, grad, rates[rule.rate], factors[within])
            if path in self.averages:
                average = self.averages[path]
                step = (_read(average) - _read(variable)) * factors[within].toward_weights
                tf.raw_ops.AssignSubVariableOp(resource=average.handle, value=step)
        return tf.constant(0.0)

    def _factors(self, num_updates: Any) -> _Factors:
        """Compute the scalars of a step; after few updates averages move faster, to forget the start soon."""
        config, updates = self._config, tf.cast(num_updates, tf.float32)
        before = updates - 1.0
        decay = tf.minimum(config.ema, (1.0 + before) / (10.0 + before)) if config.ema else 0.0
        if config.name in ("sgd", "lars"):
            return _Factors(1.0 - decay, None, None)
        return _Factors(1.0 - decay, config.beta_1**updates, config.beta_2**updates)

    def _update_one(self, path: str, variable: Any, grad: Any, rate: Any, factors: _Factors) -> None:
        config = self._config
        if config.name in ("sgd", "lars") and not config.momentum:
            tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=grad)
        elif config.name in ("sgd", "lars"):
            tf.raw_ops.ResourceApplyKerasMomentum(
                var=variable.handle,
                accum=self._slots["momentum"][path].handle,
                lr=rate,
                grad=grad,
                momentum=config.momentum,
                use_nesterov=config.nesterov,
            )
        else:
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=self._slots["m"][path].handle,
                v=self._slots["v"][path].handle,
                beta1_power=factors.beta_1_power,
                beta2_power=factors.beta_2_power,
                lr=rate,
                beta1=config.beta_1,
                beta2=config.beta_2,
                epsilon=config.epsilon,
                grad=grad,
            )

    def _adams_direction(self, path: str, grad: Any, factors: _Factors) -> Any:
        """Move Adam's two averages; return the step that Adam would take at a rate of 1."""
        config = self._config
        m, v = self._slots["m"][path], self._slots["v"][path]
        mean = _read(m) + (grad - _read(m)) * (1.0 - config.beta_1)
        square = _read(v) + (tf.square(grad) - _read(v)) * (1.0 - config.beta_2)
        _assign(m, mean)
        _assign(v, square)
        unbiased = mean / (1.0 - factors.beta_1_power)
        return unbiased / (tf.sqrt(square / (1.0 - factors.beta_2_power)) + config.epsilon)


# LARS (You, Gitman and Ginsburg, arXiv 1708.03888) and LAMB (You et al., arXiv 1904.00962) scale updates to the norm of
# the weights, layer by layer, for large batches. A layer is a variable with two axes or more; as in the authors' code,
# biases and normalization are updated by plain SGD or Adam. `away` is what decays: the weight itself, or its distance
# from its start. Where a norm is 0 the update keeps its length: a weight of 0 could never grow otherwise.


def _lars(weight: Any, grad: Any, away: Any, decay: float, coefficient: float) -> Any:
    """Return the gradient for momentum: with the decay added, and scaled to `coefficient` times the weight's norm."""
    length, slope = tf.norm(weight), tf.norm(grad)
    ratio = coefficient * length / (slope + decay * tf.norm(away) + 1e-8)
    return (grad + decay * away) * tf.where((length > 0) & (slope > 0), ratio, 1.0)


def _lamb(weight: Any, direction: Any, away: Any, decay: float) -> Any:
    """Return the step at a rate of 1: Adam's `direction` with the decay added, scaled to the weight's norm."""
    direction += decay * away
    length, slope = tf.norm(weight), tf.norm(direction)
    return direction * tf.where((length > 0) & (slope > 0), tf.math.divide_no_nan(length, slope), 1.0)


# Inside a replica a variable's handle is the replica's own copy; writing it starts no communication, unlike
# MirroredVariable.assign.


def _assign(variable: Any, value: Any) -> None:
    tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)
