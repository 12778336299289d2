"""A model, a loss and data as somebody has them who trains with Keras's `fit`."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from sklearn.datasets import load_digits

import tl_dist as tl

STEPS, BATCH = 20, 48
SMALL = {"report": {"tensorboard": False, "every_steps": 1}, "runtime": {"threads": 1}, "precision": "float32"}


def digits() -> tuple[Any, Any]:
    bunch = load_digits()
    grey = np.kron(np.rint(bunch.images * (255 / 16)), np.ones((4, 4))).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1), bunch.target.astype(np.int32)


IMAGES, LABELS = digits()


def build(input_shape: Any = (32, 32, 3), ends: str = "softmax") -> Any:
    """The form of Keras's guide on transfer learning: a model in a model, pooled, with a dense layer on top."""
    base = keras.Sequential(
        [keras.Input(input_shape), layers.Conv2D(16, 4, strides=4, activation="relu"), layers.Conv2D(32, 3)],
        name="base",
    )
    inputs = keras.Input(input_shape)
    x = base(layers.Rescaling(1 / 127.5, offset=-1)(inputs), training=False)
    x = layers.GlobalMaxPooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, activation=ends)(x))


def squared(targets: Any, outputs: Any) -> Any:
    """Brier's score, of probabilities."""
    return tf.reduce_sum(tf.square(tf.one_hot(tf.cast(targets, tf.int32), 10) - outputs), axis=-1)


def config(name: str, **more: Any) -> Any:
    optimizer = {"name": "adam", "learning_rate": 0.005}
    values = {"name": name, "steps": STEPS, "global_batch": BATCH, "optimizer": optimizer, **SMALL, **more}
    return tl.Config.model_validate(values)
