"""Keras 3's own optimizer under MirroredStrategy, with an infinite gradient on replica 1 alone.

python keras_mirrored_overflow.py OUTPUT
"""

import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def main() -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
        optimizer.build(net.trainable_variables)

    @tf.function
    def step() -> Any:
        def replica() -> Any:
            here = tf.distribute.get_replica_context().replica_id_in_sync_group
            value = tf.where(tf.equal(here, 1), np.inf, 1.0)
            grads = [tf.fill(v.shape, value) for v in net.trainable_variables]
            optimizer.apply(grads, net.trainable_variables)
            return tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g in grads])

        return strategy.run(replica)

    finite = strategy.experimental_local_results(step())
    weights = [variable.numpy() for variable in net.trainable_variables]
    found = {
        "replica_0_gradient_finite": bool(finite[0]),
        "weights_finite": all(bool(np.isfinite(w).all()) for w in weights),
    }
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
