"""Batches on their way to the device that computes, copied ahead of the steps that take them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow as tf


def gpu_of_process() -> str | None:
    """The GPU of a process with one replica: the first of those that TensorFlow was told to see; None without."""
    gpus = tf.config.list_logical_devices("GPU")
    return gpus[0].name if gpus else None


def fed(batches: Any, device: str | None) -> Iterator[Any]:
    """An iterator over `batches`, whose tensors lie on `device`, two batches ahead; None: where tf.data leaves them.

    Copied within the step a batch would wait for the step before, and the step for the copy. What fails in the
    pipeline fails with the same error in either.
    """
    if device is None:
        return iter(batches)
    copied = batches.apply(tf.data.experimental.copy_to_device(device))
    with tf.device(device):
        return iter(copied.prefetch(2))
