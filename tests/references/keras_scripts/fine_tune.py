"""Transfer learning in plain Keras, in the two steps of its guide: python fine_tune.py WEIGHTS FOLDER [FOLDER ...]

First a new head on the frozen network, run in inference mode; then block 5 thawed, compiled again, at a tenth of the
rate. FOLDER holds train/CLASS/IMAGE and test/CLASS/IMAGE. Prints the test accuracies so far as JSON, one for each
folder, each with the seed of its place. Imports nothing of tl_dist.
"""

import argparse
import json

import keras
from vgg16 import vgg16

BATCH = 32


def compiled(net: keras.Model, learning_rate: float) -> keras.Model:
    net.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return net


def accuracy(folder: str, seed: int, asked: argparse.Namespace) -> float:
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    read = keras.utils.image_dataset_from_directory
    options = {"image_size": (asked.size, asked.size), "batch_size": BATCH, "verbose": False}
    train = read(f"{folder}/train", shuffle=True, seed=seed, **options)
    test = read(f"{folder}/test", shuffle=False, **options)
    num_classes = len(train.class_names)

    base = vgg16(asked.weights, asked.size)
    base.trainable = False
    inputs = keras.Input((asked.size, asked.size, 3))
    x = base(keras.applications.vgg16.preprocess_input(inputs), training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(0.2)(x)
    net = keras.Model(inputs, keras.layers.Dense(num_classes, dtype="float32")(x))
    compiled(net, 1e-3).fit(train.prefetch(2), epochs=asked.head_epochs, verbose=0)

    base.trainable = True
    for layer in base.layers:
        layer.trainable = layer.name.startswith("block5")
    compiled(net, 1e-4).fit(train.prefetch(2), epochs=asked.epochs, verbose=0)
    return float(net.evaluate(test.prefetch(2), verbose=0, return_dict=True)["accuracy"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("weights")
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--head-epochs", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--policy", default="float32")
    asked = parser.parse_args()
    keras.config.set_dtype_policy(asked.policy)
    accuracies: list[float] = []
    for seed, folder in enumerate(asked.folders):
        accuracies.append(accuracy(folder, seed, asked))
        print(json.dumps(accuracies), flush=True)  # the last line has all of them
