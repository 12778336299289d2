"""A small network on a folder of classes in plain Keras: python from_scratch.py FOLDER [FOLDER ...] --epochs N

FOLDER holds train/CLASS/IMAGE and test/CLASS/IMAGE. As Keras's guide "Image classification from scratch" teaches:
`image_dataset_from_directory` with its own shuffle, `compile`, `fit`. Prints the test accuracies as JSON, one for each
folder, each with the seed of its place. Imports nothing of tl_dist.
"""

import argparse
import json

import keras

SIZE, BATCH = (32, 32), 32


def datasets(folder: str, seed: int) -> tuple:
    read = keras.utils.image_dataset_from_directory
    options = {"image_size": SIZE, "batch_size": BATCH, "verbose": False}
    train = read(f"{folder}/train", shuffle=True, seed=seed, **options)
    test = read(f"{folder}/test", shuffle=False, **options)
    return train.prefetch(2), test.prefetch(2), len(train.class_names)


def network(num_classes: int) -> keras.Model:
    inputs = keras.Input((*SIZE, 3))
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    for filters in (16, 32, 64):
        x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = keras.layers.MaxPooling2D(2)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(num_classes)(x))


def accuracy(folder: str, seed: int, epochs: int, learning_rate: float) -> float:
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    train, test, num_classes = datasets(folder, seed)
    net = network(num_classes)
    net.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    net.fit(train, epochs=epochs, verbose=0)
    return float(net.evaluate(test, verbose=0, return_dict=True)["accuracy"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    asked = parser.parse_args()
    print(json.dumps([accuracy(f, s, asked.epochs, asked.learning_rate) for s, f in enumerate(asked.folders)]))
