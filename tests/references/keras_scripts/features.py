"""Features of a frozen VGG16 and a logistic regression on them, as users of Keras and scikit-learn write it.

    python features.py WEIGHTS IMAGES FOLDS.npz --size N --l2 X

FOLDS.npz holds the names of files in the directory IMAGES (`ids`), their `labels`, and the fold of each, `fold`
[divisions, files]. Prints the accuracy of each held-out fold as JSON, [divisions][folds]. Imports nothing of tl_dist.
"""

import argparse
import json
from pathlib import Path

import keras
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from vgg16 import vgg16


def features(weights: str, images: str, size: int) -> dict[str, np.ndarray]:
    """Averages and maxima over the last convolution of blocks 3, 4 and 5, by the name of the file."""
    base = vgg16(weights, size)
    outputs = [base.get_layer(f"block{block}_conv3").output for block in (3, 4, 5)]
    pooled = [
        pool()(x) for x in outputs for pool in (keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D)
    ]
    net = keras.Model(base.input, keras.layers.Concatenate(dtype="float32")(pooled))
    data = keras.utils.image_dataset_from_directory(
        images, labels=None, shuffle=False, image_size=(size, size), batch_size=32, verbose=False
    )
    names = [Path(path).name for path in data.file_paths]
    rows = net.predict(data.map(keras.applications.vgg16.preprocess_input).prefetch(2), verbose=0)
    return dict(zip(names, rows, strict=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("weights")
    parser.add_argument("images")
    parser.add_argument("folds")
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--l2", type=float, required=True)
    parser.add_argument("--policy", default="float32")
    asked = parser.parse_args()
    keras.config.set_dtype_policy(asked.policy)
    with np.load(asked.folds, allow_pickle=False) as kept:
        ids, labels, folds = kept["ids"], kept["labels"], kept["fold"]
    known = features(asked.weights, asked.images, asked.size)
    x = np.stack([known[Path(name).name] for name in ids])
    accuracies = []
    for fold in folds:
        accuracies.append([])
        for k in range(fold.max() + 1):
            seen, held_out = fold != k, fold == k
            classifier = LogisticRegression(C=1 / (asked.l2 * seen.sum()), max_iter=5000)
            fitted = make_pipeline(StandardScaler(), classifier).fit(x[seen], labels[seen])
            accuracies[-1].append(float(fitted.score(x[held_out], labels[held_out])))
    print(json.dumps(accuracies))
