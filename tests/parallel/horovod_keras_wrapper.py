"""Horovod's Keras optimizer wrapper on two ranks with different data: do their weights stay equal?

horovodrun -np 2 python horovod_keras_wrapper.py OUTPUT
"""

import json
import sys
from pathlib import Path

import horovod.tensorflow as raw
import horovod.tensorflow.keras as hvd
import keras
import numpy as np
import tensorflow as tf


def main() -> None:
    hvd.init()
    keras.utils.set_random_seed(0)  # the same start on both ranks
    net = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    net.compile(optimizer=hvd.DistributedOptimizer(keras.optimizers.SGD(0.1)), loss="mse")
    data = np.random.default_rng(hvd.rank())
    net.fit(data.normal(size=(64, 8)), data.normal(size=(64, 4)), batch_size=16, epochs=2, verbose=0)
    weights = np.concatenate([w.ravel() for w in net.get_weights()]).astype(np.float32)
    both = raw.allgather(tf.constant(weights[None])).numpy()
    total = raw.allreduce(tf.constant([1.0]), op=raw.Sum).numpy()
    if hvd.rank() == 0:
        found = {
            "raw_collective_works": float(total[0]) == 2.0,
            "largest_difference_between_ranks": float(np.abs(both[0] - both[1]).max()),
        }
        Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
