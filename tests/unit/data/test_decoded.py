"""Decoded once: the same pixels as without, whatever is divided how, and no image is opened a second time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.doubles import memory_source
from tests.official_layouts import digits_32px, write_image_folder
from tl_dist.config import DataConfig, registry
from tl_dist.data import decoded
from tl_dist.data.order import Order
from tl_dist.data.pipeline import augmented, plain, train_batches
from tl_dist.datasets import Splits, pool_of, strata_of
from tl_dist.datasets.arrays import ArrayStore

NAMES = [f"digit {k}" for k in range(10)]


@pytest.fixture
def splits(tmp_path: Path) -> Splits:
    return open_folder(write_image_folder(tmp_path / "images", digits_32px(61), NAMES))


def open_folder(root: Path) -> Splits:
    found: Splits = registry.DATASETS["image_folder"].open(
        DataConfig(name="image_folder", path=str(root), test_fraction=0.3)
    )
    return found


def batches(source: Any) -> list[Any]:
    read = augmented(source, ("pad_crop", "flip"), 3, 24)
    order = Order(3, source.num_examples, 3)  # a graph of three rows is soon traced
    return list(train_batches(read, order, rows=range(3), steps=range(14)).as_numpy_iterator())


def test_training_sees_the_same_batches(splits: Splits) -> None:
    kept = decoded.in_memory(splits, 24, 2)
    for name, source in splits.items():
        assert kept[name].fingerprint == source.fingerprint and list(kept[name].ids) == list(source.ids)
        np.testing.assert_array_equal(strata_of(kept[name]), strata_of(source))
        for ours, theirs in zip(batches(kept[name]), batches(source), strict=True):
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(a, b)


def test_no_file_is_opened_a_second_time(splits: Splits, tmp_path: Path) -> None:
    kept = decoded.in_memory(splits, 24, 2)
    for file in (tmp_path / "images").rglob("*.png"):
        file.unlink()
    assert len(batches(kept["train"])) == 14


def test_the_pixels_are_held_once(splits: Splits) -> None:
    pool, _ = pool_of(decoded.in_memory(splits, 24, 2)["train"])
    assert isinstance(pool.store, ArrayStore)
    assert np.shares_memory(np.asarray(memoryview(pool.store.tensor)), pool.store.images)


def test_only_what_a_split_uses_is_decoded(splits: Splits) -> None:
    pool, rows = pool_of(decoded.in_memory({"test": splits["test"]}, 24, 2)["test"])
    assert isinstance(pool.store, ArrayStore)
    empty = [k for k, image in enumerate(pool.store.images) if not image.any()]
    assert empty == sorted(set(range(61)) - set(rows.tolist()))


def test_a_source_in_memory_is_only_resized() -> None:
    source = memory_source(11, size=16)
    (kept,) = decoded.in_memory({"train": source}, 8, 1).values()
    images, labels = kept.read(tf.range(11, dtype=tf.int64))
    np.testing.assert_array_equal(images, plain(source, 8)(*[tf.range(11, dtype=tf.int64)] * 2).images)
    np.testing.assert_array_equal(labels, source.labels)
