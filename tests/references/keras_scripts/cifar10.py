"""The classic settings on CIFAR-10 in plain Keras: python cifar10.py WEIGHTS FOLDER --epochs N

All of VGG16 at 32 x 32, Flatten, Dense(128, relu), softmax; SGD 1e-4, momentum 0.9, batch 32. FOLDER holds
train/CLASS/IMAGE and test/CLASS/IMAGE. Prints as JSON the CPU seconds of the fit and the test accuracy. Imports nothing
of tl_dist.
"""

import argparse
import json
import time

import keras
from vgg16 import vgg16

SIZE, BATCH = 32, 32


def main(asked: argparse.Namespace) -> None:
    keras.config.set_dtype_policy(asked.policy)
    keras.utils.set_random_seed(0)
    read = keras.utils.image_dataset_from_directory
    options = {"image_size": (SIZE, SIZE), "batch_size": BATCH, "verbose": False}
    train = read(f"{asked.folder}/train", shuffle=True, seed=0, **options)
    test = read(f"{asked.folder}/test", shuffle=False, **options)
    inputs = keras.Input((SIZE, SIZE, 3))
    x = vgg16(asked.weights, SIZE)(keras.applications.vgg16.preprocess_input(inputs))
    x = keras.layers.Dense(128, activation="relu")(keras.layers.Flatten()(x))
    net = keras.Model(inputs, keras.layers.Dense(len(train.class_names), activation="softmax", dtype="float32")(x))
    net.compile(
        optimizer=keras.optimizers.SGD(1e-4, momentum=0.9),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    start = time.process_time()
    net.fit(train.prefetch(2), epochs=asked.epochs, verbose=0)
    seconds = time.process_time() - start
    accuracy = net.evaluate(test.prefetch(2), verbose=0, return_dict=True)["accuracy"]
    print(json.dumps({"cpu_seconds": seconds, "accuracy": float(accuracy)}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("weights")
    parser.add_argument("folder")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--policy", default="float32")
    main(parser.parse_args())
