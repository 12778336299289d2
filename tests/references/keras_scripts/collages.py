"""A small network on a table of labels in plain Keras: python collages.py FOLDER [FOLDER ...] --epochs N

FOLDER holds collages.csv: path, split (train or test), and a column of 0 and 1 for each label. As Keras's guides teach
multi-label classification: sigmoid outputs, `BinaryCrossentropy`, `compile`, `fit`. Prints the mean average precision
of the test images as JSON, one for each folder, each with the seed of its place. Imports nothing of tl_dist.
"""

import argparse
import csv
import json

import keras
import numpy as np
from sklearn.metrics import average_precision_score

SIZE, BATCH = (64, 64), 32


def images(folder: str, split: str) -> tuple:
    with open(f"{folder}/collages.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    names = [name for name in rows[0] if name not in ("path", "split")]
    pixels = [keras.utils.img_to_array(keras.utils.load_img(f"{folder}/{row['path']}")) for row in rows]
    return np.stack(pixels), np.array([[float(row[name]) for name in names] for row in rows])


def network(num_labels: int) -> keras.Model:
    inputs = keras.Input((*SIZE, 3))
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    for filters in (16, 32, 64):
        x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = keras.layers.MaxPooling2D(2)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(num_labels, activation="sigmoid")(x))


def mean_average_precision(folder: str, seed: int, epochs: int, learning_rate: float) -> float:
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    (pixels, labels), (tested, truth) = (images(folder, split) for split in ("train", "test"))
    net = network(labels.shape[1])
    net.compile(optimizer=keras.optimizers.Adam(learning_rate), loss=keras.losses.BinaryCrossentropy())
    net.fit(pixels, labels, batch_size=BATCH, epochs=epochs, verbose=0)
    return float(average_precision_score(truth, net.predict(tested, verbose=0), average="macro"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    asked = parser.parse_args()
    found = [mean_average_precision(f, s, asked.epochs, asked.learning_rate) for s, f in enumerate(asked.folders)]
    print(json.dumps(found))
