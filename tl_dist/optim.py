"""Update rule, schedule and dynamic loss scale, applied to gradients that have already been reduced.

The rules are those of Keras (a test compares 20 steps of each), on TensorFlow's fused update kernels. They are not
Keras's optimizer classes, since those clip and test for finiteness before MirroredStrategy reduces: an Inf on one
replica then reaches the weights of all. Here every replica sees the same reduced gradient, decides the same, and
updates its own copy, so no optimizer ever communicates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tl_dist.config import OptimizerConfig, ScheduleConfig

INITIAL_LOSS_SCALE = 2.0**15
GROW_AFTER = 2000  # finite steps in a row, then the scale doubles (Micikevicius et al., arXiv 1710.03740)


def learning_rate(config: OptimizerConfig, step: Any, *, steps_per_epoch: float, total_steps: int) -> Any:
    """The rate of `step` (int64 tensor), float32: linear warm-up from 0, then constant, cosine or steps down."""
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


class Optimizer:
    """State and update of all trainable variables; create it inside the strategy's scope.

    `variables` holds the slots, the number of applied updates and the loss scale by path, for checkpoints.
    """

    def __init__(self, config: OptimizerConfig, trainable: Mapping[str, Any], *, scale_loss: bool) -> None:
        self._config = config
        self._trainable = dict(trainable)
        slots: tuple[str, ...] = ("m", "v")
        if config.name == "sgd":
            slots = ("momentum",) if config.momentum else ()
        self._slots = {
            slot: {
                path: tf.Variable(tf.zeros(v.shape, v.dtype), trainable=False, name=f"{slot}_{k}")
                for k, (path, v) in enumerate(self._trainable.items())
            }
            for slot in slots
        }
        self._scale_loss = scale_loss
        # Steps skipped by overflow are no updates: Adam's bias correction counts these, not the steps.
        self._updates = tf.Variable(0, dtype=tf.int64, trainable=False, name="updates")
        self._loss_scale = tf.Variable(
            INITIAL_LOSS_SCALE if scale_loss else 1.0, trainable=False, name="loss_scale"
        )
        self._finite_in_a_row = tf.Variable(0, dtype=tf.int64, trainable=False, name="finite_in_a_row")
        self.variables: dict[str, Any] = {
            "optimizer/updates": self._updates,
            "optimizer/loss_scale": self._loss_scale,
            "optimizer/finite_in_a_row": self._finite_in_a_row,
            **{
                f"optimizer/{slot}/{path}": v
                for slot, table in self._slots.items()
                for path, v in table.items()
            },
        }

    def scale(self) -> Any:
        """The factor on the loss before the backward pass; 1 without loss scaling."""
        return _read(self._loss_scale)

    def apply(self, grads: Sequence[Any], rate: Any) -> tuple[Any, Any]:
        """Inside a replica: check, unscale, clip, decay, update. Returns (1.0 if the step was skipped, norm).

        `grads` are the reduced gradients of the scaled loss, in the order of the trainable variables; all
        replicas hold the same ones. A step whose global norm is not finite changes nothing but the loss scale.
        """
        if self._scale_loss:
            inverse = 1.0 / self.scale()
            grads = [g * inverse for g in grads]
        norm = tf.linalg.global_norm(grads)
        finite = tf.math.is_finite(norm)
        skipped = tf.cond(finite, lambda: self._update(grads, norm, rate), self._skip)
        return skipped, norm

    def _update(self, grads: Sequence[Any], norm: Any, rate: Any) -> Any:
        config = self._config
        if config.clip_norm:
            factor = config.clip_norm / tf.maximum(norm, config.clip_norm)
            grads = [g * factor for g in grads]
        tf.raw_ops.AssignAddVariableOp(resource=self._updates.handle, value=tf.constant(1, tf.int64))
        updates = tf.cast(_read(self._updates), tf.float32)
        for (path, variable), grad in zip(self._trainable.items(), grads, strict=True):
            if config.weight_decay and len(variable.shape) > 1:
                decay = _read(variable) * (rate * config.weight_decay)
                tf.raw_ops.AssignSubVariableOp(resource=variable.handle, value=decay)
            self._update_one(path, variable, grad, rate, updates)
        if self._scale_loss:
            self._grow()
        return tf.constant(0.0)

    def _update_one(self, path: str, variable: Any, grad: Any, rate: Any, updates: Any) -> None:
        config = self._config
        if config.name == "sgd" and not config.momentum:
            tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=grad)
        elif config.name == "sgd":
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
                beta1_power=config.beta_1**updates,
                beta2_power=config.beta_2**updates,
                lr=rate,
                beta1=config.beta_1,
                beta2=config.beta_2,
                epsilon=config.epsilon,
                grad=grad,
            )

    def _grow(self) -> None:
        in_a_row = _read(self._finite_in_a_row) + 1
        full = in_a_row >= GROW_AFTER
        _assign(self._finite_in_a_row, tf.where(full, tf.zeros_like(in_a_row), in_a_row))
        _assign(self._loss_scale, tf.where(full, self.scale() * 2.0, self.scale()))

    def _skip(self) -> Any:
        if self._scale_loss:
            _assign(self._finite_in_a_row, tf.constant(0, tf.int64))
            _assign(self._loss_scale, tf.maximum(self.scale() * 0.5, 1.0))
        return tf.constant(1.0)


# Inside a replica a variable is reached by its handle: that is this replica's own copy, and writing it starts no
# communication, as MirroredVariable.assign would.


def _read(variable: Any) -> Any:
    return tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)


def _assign(variable: Any, value: Any) -> None:
    tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)
