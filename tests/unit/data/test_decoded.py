"""Decoded once: the same pixels as without, whatever is divided how, and no image is opened a second time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.doubles import MemorySource
from tests.official_layouts import digits_32px, write_image_folder
from tl_dist import registry
from tl_dist.config import DataConfig
from tl_dist.data import decoded
from tl_dist.data.order import Order
from tl_dist.data.pipeline import augmented, plain, train_batches
from tl_dist.datasets import Splits, pool_of, strata_of
from tl_dist.refusal import ExitCode, Refusal

NAMES = [f"digit {k}" for k in range(10)]


@pytest.fixture
def splits(tmp_path: Path) -> Splits:
    root = write_image_folder(tmp_path / "images", digits_32px(60), NAMES)
    found: Splits = registry.lookup(registry.DATASETS, "image_folder")(
        DataConfig(name="image_folder", path=str(root), test_fraction=0.3)
    )
    return found


def made(where: str, splits: Splits, folder: Path, *, first: bool = True) -> Splits:
    if where == "memory":
        return decoded.in_memory(splits, 24, 2)
    return decoded.on_disk(splits, 24, 2, directory=folder / "decoded", first=first, wait=lambda: None)


def batches(source: Any) -> list[Any]:
    read = augmented(source, ("pad_crop", "flip"), 3, 24)
    order = Order(3, source.num_examples, 8)
    return list(train_batches(read, order, rows=range(8), from_step=0, to_step=6).as_numpy_iterator())


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_training_sees_the_same_batches(where: str, splits: Splits, tmp_path: Path) -> None:
    kept = made(where, splits, tmp_path)
    for name, source in splits.items():
        assert kept[name].fingerprint == source.fingerprint and list(kept[name].ids) == list(source.ids)
        np.testing.assert_array_equal(strata_of(kept[name]), strata_of(source))
        for ours, theirs in zip(batches(kept[name]), batches(source), strict=True):
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_no_file_is_opened_a_second_time(where: str, splits: Splits, tmp_path: Path) -> None:
    kept = made(where, splits, tmp_path)
    for file in (tmp_path / "images").rglob("*.png"):
        file.unlink()
    assert len(batches(kept["train"])) == 6


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_the_pixels_are_held_once(where: str, splits: Splits, tmp_path: Path) -> None:
    pool, _ = pool_of(made(where, splits, tmp_path)["train"])
    assert np.shares_memory(np.asarray(memoryview(pool._tensors[0])), pool.images)


def test_a_second_run_and_other_workers_decode_nothing(splits: Splits, tmp_path: Path) -> None:
    expected = batches(made("disk", splits, tmp_path)["train"])
    for file in (tmp_path / "images").rglob("*.png"):
        file.unlink()
    for first in (True, False):
        again = batches(made("disk", splits, tmp_path, first=first)["train"])
        np.testing.assert_array_equal(again[0].images, expected[0].images)
    assert len(list((tmp_path / "decoded").iterdir())) == 1


def test_a_source_in_memory_is_only_resized() -> None:
    source = MemorySource(11, size=16)
    (kept,) = decoded.in_memory({"train": source}, 8, 1).values()
    images, labels = kept.read(tf.range(11, dtype=tf.int64))
    rows = plain(source, 8).rows
    assert rows is not None
    np.testing.assert_array_equal(images, rows(tf.range(11, dtype=tf.int64), None)[0])
    np.testing.assert_array_equal(labels, source.labels)


def test_a_place_that_cannot_be_written_is_refused(splits: Splits, tmp_path: Path) -> None:
    (tmp_path / "decoded").write_text("a file")
    with pytest.raises(Refusal, match="decoded images cannot be kept") as refused:
        made("disk", splits, tmp_path)
    assert refused.value.code == ExitCode.STORAGE
    assert refused.value.fix
