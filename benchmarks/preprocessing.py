"""VGG16 at 32 px with the preprocessing that its weights were trained with, against dividing by 255.

The classic head of configs/vgg16_cifar10_features.yaml (Dense(128, relu), softmax; SGD 1e-4, momentum 0.9, batch 32, 10
epochs) on the frozen network, over 5 folds of real images: handwritten digits and solar cells. The two sides differ in
nothing but what goes into the network: BGR minus the mean of ImageNet, 0 to 255, or RGB from 0 to 1.
"""

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.comparison import Comparison

SIZE, FOLDS, EPOCHS, BATCH, HIDDEN = 32, 5, 10, 32, 128
BARS = {"digits": 1.5, "elpv": 1.05}


def comparisons() -> Iterator[Comparison]:
    import numpy as np

    from tl_dist.config import DataConfig, registry

    for name, bar in BARS.items():
        source = registry.DATASETS[name].open(DataConfig(name=name, test_fraction=0.0))["train"]
        labels = np.asarray(source.labels)
        right, divided = (accuracies(found, labels) for found in features(source))
        majority = float((labels == np.bincount(labels).argmax()).mean())
        difference = np.subtract(right, divided)
        yield Comparison(
            f"preprocessing[{name}]", "(accuracy)", float(np.mean(right)), "divided by 255", float(np.mean(divided)),
            bar=bar,
            note=f"{len(labels):,} images, {FOLDS} folds; the larger class alone {majority:.3f}; "
            f"difference by fold {difference.min():+.3f} to {difference.max():+.3f}",
        )  # fmt: skip


def features(source: Any) -> tuple[Any, Any]:
    """Of the frozen network for every image, float32 [examples, 512]: preprocessed rightly, and divided by 255."""
    import numpy as np
    import tensorflow as tf

    from benchmarks.cells import WEIGHTS
    from tl_dist.config import registry
    from tl_dist.data.resize import resize
    from tl_dist.models import weights
    from tl_dist.models.backbones import preprocess

    record = registry.backbone("vgg16")
    network = record.build((SIZE, SIZE, 3))
    file = weights.resolve(WEIGHTS, "vgg16")
    if file is None:
        raise RuntimeError(f"no weights {WEIGHTS}")
    weights.load(network, file)
    images = tf.data.Dataset.range(source.num_examples).map(lambda k: resize(source.read(k)[0], SIZE))

    def through(prepare: Callable[[Any], Any]) -> Any:
        run = tf.function(lambda batch: tf.reshape(network(prepare(batch), training=False), [-1, 512]))
        return np.concatenate([run(batch).numpy() for batch in images.batch(64)])

    return (
        through(lambda batch: preprocess(record.preprocessing, batch)),
        through(lambda batch: tf.cast(batch, tf.float32) / 255.0),
    )


def accuracies(values: Any, labels: Any) -> list[float]:
    """Of the classic head on each fold, trained on the others."""
    from tl_dist.datasets.split import folds_of

    fold = folds_of(labels, FOLDS, 0)
    folds = [fold == k for k in range(FOLDS)]
    return [
        accuracy((values[~inside], labels[~inside]), (values[inside], labels[inside]), seed)
        for seed, inside in enumerate(folds)
    ]


def accuracy(train: tuple[Any, Any], test: tuple[Any, Any], seed: int) -> float:
    """Of the classic head, trained on some features and labels, on others."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    layers = [
        keras.layers.Dense(HIDDEN, activation="relu"),
        keras.layers.Dense(int(train[1].max()) + 1, activation="softmax"),
    ]
    head = keras.Sequential([keras.Input(train[0].shape[1:]), *layers])
    optimizer = keras.optimizers.SGD(1e-4, momentum=0.9)
    head.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy")
    batches = tf.data.Dataset.from_tensor_slices(train).shuffle(len(train[1]), seed=seed).batch(BATCH)
    head.fit(batches, epochs=EPOCHS, shuffle=False, verbose=0)
    return float((head(test[0]).numpy().argmax(axis=1) == test[1]).mean())
