"""Examples given in Python, in whatever form, are one packed data set; what is no image or no label is refused."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tl_dist.config import DataConfig
from tl_dist.datasets.formats.packed import open_packed
from tl_dist.datasets.given import packed
from tl_dist.refusal import Refusal

NUM = 23
RNG = np.random.default_rng(5)
IMAGES = RNG.integers(0, 256, (NUM, 8, 8, 3), np.uint8)
LABELS = (np.arange(NUM) % 3).astype(np.int64)


class Pairs(keras.utils.PyDataset):  # type: ignore[misc]
    def __len__(self) -> int:
        return 5

    def __getitem__(self, k: int) -> tuple[Any, Any]:
        rows = slice(k * 5, min(k * 5 + 5, NUM))
        return IMAGES[rows].astype(np.float32), keras.utils.to_categorical(LABELS[rows], 3)


FORMS = {
    "arrays": (IMAGES, LABELS),
    "floats": (IMAGES.astype(np.float32), LABELS[:, None].astype(np.float32)),
    "tf.data, batched": tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(4),
    "tf.data, single": tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)),
    "PyDataset": Pairs(),
    "function": (lambda k: (IMAGES[k], LABELS[k]), NUM),
    "sequence": [(IMAGES[k], LABELS[k]) for k in range(NUM)],
}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("form", FORMS)
def test_every_form_keeps_every_pixel_and_label(tmp_path: Path, form: str) -> None:
    directory, side = packed({"train": FORMS[form], "test": (IMAGES[:3], LABELS[:3])}, tmp_path, of_classes=True)
    assert side == 8
    assert not list(tmp_path.glob(".tmp-*"))
    splits = open_packed(DataConfig(name="packed", path=str(directory)))
    assert {name: source.num_examples for name, source in splits.items()} == {"train": NUM, "test": 3}
    train = splits["train"]
    assert train.ids[0] == "train:0" and list(train.class_names) == ["0", "1", "2"]
    assert np.array_equal(train.labels, LABELS)
    assert all(np.array_equal(train.read(tf.constant(k, tf.int64))[0], IMAGES[k]) for k in range(NUM))
    again, _ = packed({"train": FORMS[form], "test": (IMAGES[:3], LABELS[:3])}, tmp_path, of_classes=True)
    assert again == directory
    other = {"train": (IMAGES, LABELS[::-1]), "test": (IMAGES[:3], LABELS[:3])}
    assert packed(other, tmp_path, of_classes=True)[0] != directory


def test_grey_images_and_targets(tmp_path: Path) -> None:
    targets = RNG.normal(size=(NUM, 2)).astype(np.float32)
    directory, _ = packed((IMAGES[..., 0], targets), tmp_path, of_classes=False)
    (train, *_) = open_packed(DataConfig(name="packed", path=str(directory), test_fraction=0.0)).values()
    assert np.array_equal(train.truth, targets)
    image = train.read(tf.constant(2, tf.int64))[0].numpy()
    assert np.array_equal(image, np.repeat(IMAGES[2, ..., :1], 3, axis=-1))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ((IMAGES / 255.0, LABELS), "images of train hold float64 numbers scaled to 0..1"),
        ((IMAGES, LABELS[:5]), "train has 23 images and 5 labels"),
        ((IMAGES[..., :2], LABELS), r"images of train have shape \(23, 8, 8, 2\)"),
        ((IMAGES, RNG.normal(size=(NUM, 2))), "are no class numbers from 0"),
        ({"train": (IMAGES, LABELS), "val": (IMAGES, LABELS)}, "data has a split 'val'"),
        ({"test": (IMAGES, LABELS)}, "data has no split 'train'"),
        (iter([]), "train is a list_iterator, not arrays"),
        (tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).repeat(), "repeats without end"),
        ([(IMAGES[0], 1, 0.5)], "an element of train has 3 parts"),
        ([], "train has no images"),
    ],
)
def test_what_is_no_data_is_refused(tmp_path: Path, data: Any, said: str) -> None:
    with pytest.raises(Refusal, match=said) as refused:
        packed(data, tmp_path, of_classes=True)
    assert str(refused.value).count("\n") == 0 and "Fix:" in str(refused.value)
    assert not list(tmp_path.glob(".tmp-*"))
