"""How tests/data/tiny_digits was made: a data set of tensorflow_datasets, by that library itself.

    python prepare_tiny_digits.py DIR        (tensorflow_datasets 4.9.10, TensorFlow 2.21)

The library brings 330 MB of packages with it, so its files are kept here instead of made in every test.
"""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


class TinyDigits(tfds.core.GeneratorBasedBuilder):
    """Digits of scikit-learn: usual features in `plain`, other names in `named`; another file format in `array`."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("plain", "named", "array")]  # noqa: RUF012

    def _info(self) -> Any:
        if self.builder_config.name == "named":
            features = {
                "id": tf.int64,
                "scan": {"picture": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")},
                "digit": tfds.features.ClassLabel(names=NAMES),
                "ink": tf.float32,
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))
        features = {
            "image": tfds.features.Image(shape=(16, 16, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=NAMES),
            "file_name": tfds.features.Text(),
        }
        keys = ("image", "label")
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=keys)

    def _split_generators(self, dl_manager: Any) -> Any:
        if self.builder_config.name == "plain":
            return {"train": self._some(0, 30), "test": self._some(30, 40), "unlabelled": self._some(40, 44)}
        return {"train": self._some(0, 20)}

    def _generate_examples(self) -> Any:
        """Never called: the base class demands it, and the splits above come with their examples."""
        raise NotImplementedError

    def _some(self, first: int, last: int) -> Iterator[tuple[int, dict[str, Any]]]:
        digits = load_digits()
        for k in range(first, last):
            grey = np.kron(digits.images[k], np.ones((2, 2)))
            image = np.rint(grey[..., np.newaxis] * np.array([15, 11, 6])).astype(np.uint8)
            label = -1 if first == 40 else int(digits.target[k])
            if self.builder_config.name == "named":
                yield k, {"id": k, "scan": {"picture": image}, "digit": label, "ink": float(grey.mean())}
            else:
                yield k, {"image": image, "label": label, "file_name": f"digit{k:03}.png"}


if __name__ == "__main__":
    for config, file_format, shards in (
        ("plain", "tfrecord", 2),
        ("named", "tfrecord", 1),
        ("array", "array_record", 1),
    ):
        builder = TinyDigits(data_dir=sys.argv[1], config=config, file_format=file_format)
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=shards))
