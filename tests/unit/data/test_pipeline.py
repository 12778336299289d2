"""Batches depend on position alone: not on the worker count, not on where the run was resumed."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.doubles import HeldFiles, memory_source
from tl_dist.config import AugmentConfig
from tl_dist.data.augment import OPERATIONS, augment
from tl_dist.data.order import Order
from tl_dist.data.pipeline import (
    Read,
    augmented,
    dropout_masks,
    evaluation_batches,
    example_weights,
    one_by_one,
    part_of,
    plain,
    soft_labels,
    train_batches,
)
from tl_dist.datasets import Source
from tl_dist.datasets.annotations import SoftLabels
from tl_dist.parallel import rows_of
from tl_dist.training.losses import Objective

SOURCE = memory_source(23)
ORDER = Order(seed=5, num_examples=23, global_batch=5)


def batches(rows: range = range(5), from_step: int = 0, to_step: int = 8, **changes: Any) -> list[Any]:
    names, mix = changes.get("augmentations", tuple(OPERATIONS)), changes.get("mix", AugmentConfig())
    read = augmented(changes.get("source", SOURCE), names, ORDER.seed, 8, mix)
    transforms = [dropout_masks(ORDER, changes.get("mask_features", 5) * [changes.get("dropout", 0.5)])]
    if "weights" in changes:
        transforms.append(example_weights(ORDER, changes["weights"]))
    steps = range(from_step, to_step)
    made = train_batches(read, ORDER, rows=rows, steps=steps, transforms=transforms, threads=2)
    return list(made.as_numpy_iterator())


def files(pngs: range) -> Source:
    """Encoded images: JPEG, but for these."""
    images = tf.image.resize(SOURCE.store.images, [21, 30], method="nearest")
    contents = [
        (tf.io.encode_png(i) if k in pngs else tf.io.encode_jpeg(i, quality=100)).numpy() for k, i in enumerate(images)
    ]
    return replace(SOURCE, store=HeldFiles(contents))


FILES = files(pngs=range(3, 23, 5))
CROP = ("random_resized_crop", "flip")
WAYS: dict[str, dict[str, Any]] = {
    "in memory": {"mix": AugmentConfig(mixup=0.4)},  # every operation; from files, the crop is another
    "files, no crop": {"source": FILES, "augmentations": ("flip",)},
    "both mixed": {"mix": AugmentConfig(mixup=0.4, cutmix=1.0), "source": FILES, "augmentations": CROP},
}


@cache
def whole(way: str) -> list[Any]:
    return batches(**WAYS[way])


@pytest.mark.parametrize("way", list(WAYS))
def test_shares_put_together_are_the_batches_of_one_worker(way: str) -> None:
    """Shares of two sizes: three, of which one is in the middle, or two."""
    num = 3 if way == "in memory" else 2
    shares = [batches(rows_of(rank, num, 5), **WAYS[way]) for rank in range(num)]
    for step, batch in enumerate(whole(way)):
        for field, value in zip(batch._fields, batch, strict=True):
            together = np.concatenate([getattr(share[step], field) for share in shares])
            np.testing.assert_array_equal(together, value, err_msg=field)


def test_after_a_crop_from_the_file_the_other_operations_are_still_done() -> None:
    positions = tf.range(5, dtype=tf.int64)  # a PNG among them
    for crop in (("random_resized_crop",), ("random_resized_crop", "flip")):
        read = augmented(FILES, crop, 5, 8)
        images = read.rows(positions, positions)[0]
        np.testing.assert_array_equal(read(positions, positions).images, images)
        done = augmented(FILES, (*crop, "dihedral"), 5, 8)(positions, positions).images
        np.testing.assert_array_equal(done, augment(images, ("dihedral",), AugmentConfig(), 5, positions))


def test_a_large_share_is_decoded_in_parts_that_are_put_together_in_order(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Of the parts of a batch one has a PNG, and is decoded image by image. Nothing is written to stderr."""
    assert part_of(18) == 9
    source = files(pngs=range(1))
    order, read = Order(5, 18, 18), augmented(source, ("random_resized_crop", "flip"), 5, 16)

    def batch(rows: range) -> Any:
        made = train_batches(read, order, rows=rows, steps=range(1), threads=2)
        return next(made.as_numpy_iterator())

    together = batch(range(18))
    for rows in (range(5), range(9, 13)):  # of each part
        for field, value in batch(rows)._asdict().items():
            np.testing.assert_array_equal(value, getattr(together, field)[rows.start : rows.stop], field)
    # TensorFlow complained of each slice that came to `rebatch` once more.
    assert "RefCount" not in capfd.readouterr().err


def test_parts_divide_the_share() -> None:
    assert all(rows % part_of(rows) == 0 for rows in range(1, 300))
    assert [part_of(rows) for rows in (64, 32, 60, 7, 61)] == [16, 16, 15, 7, 61]


def test_a_resumed_run_sees_the_same_batches() -> None:
    for resumed, original in zip(batches(from_step=5, **WAYS["in memory"]), whole("in memory")[5:], strict=True):
        for ours, theirs in zip(resumed, original, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_labels_belong_to_images() -> None:
    for batch in batches(augmentations=()):
        indices = ORDER.index(batch.positions).numpy()
        np.testing.assert_array_equal(batch.images, SOURCE.store.images[indices])
        np.testing.assert_array_equal(batch.labels, SOURCE.labels[indices])


def test_the_same_example_is_augmented_anew_in_each_epoch() -> None:
    drawn: dict[int, set[bytes]] = {}
    for batch in batches(to_step=32, augmentations=("dihedral", "pad_crop")):
        for image, index in zip(batch.images, ORDER.index(batch.positions).numpy(), strict=True):
            drawn.setdefault(int(index), set()).add(image.tobytes())
    assert np.mean([len(variants) for variants in drawn.values()]) > 5  # of 7 epochs


def test_masks_keep_their_share_of_features() -> None:
    masks = np.concatenate(
        [batch.masks for batch in batches(to_step=50, mask_features=64, dropout=0.25, augmentations=())]
    )
    assert masks.mean() == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_evaluation_sees_each_example_once(world_size: int) -> None:
    seen: list[int] = []
    for rank in range(world_size):
        rows = rows_of(rank, world_size, 7)
        made = evaluation_batches(plain(SOURCE, 8), SOURCE.num_examples, rows=rows, global_batch=7)
        for batch in made.as_numpy_iterator():
            assert len(batch.weights) == len(rows)
            seen += batch.positions[batch.weights > 0].tolist()
    assert sorted(seen) == list(range(23))


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_augmentation_is_a_function_of_its_seed(name: str) -> None:
    positions = tf.range(5, dtype=tf.int64)

    def images(*names: str) -> Any:
        return augmented(SOURCE, names, 5, 8, AugmentConfig(erase_probability=1.0))(positions, positions).images

    first = images(name)
    np.testing.assert_array_equal(first, images(name))
    assert first.shape == images().shape
    assert (first != images()).numpy().any()


def test_dihedral_reaches_all_eight_symmetries() -> None:
    source = memory_source(1)
    read = augmented(source, ("dihedral",), 0, 8)
    made = train_batches(read, Order(0, 1, 100), rows=range(100), steps=range(1))
    images = next(made.as_numpy_iterator()).images
    expected = {
        np.rot90(base, k).tobytes()
        for base in (source.store.images[0], source.store.images[0][:, ::-1])
        for k in range(4)
    }
    assert {image.tobytes() for image in images} == expected


@pytest.mark.parametrize("share_of_an_epoch", [0.01, 0.5, 0.99])
def test_resuming_reads_nothing_that_came_before(share_of_an_epoch: float) -> None:
    """The first batch costs the same number of reads anywhere in an epoch: there is no replay."""
    order = Order(seed=5, num_examples=100_000, global_batch=10)
    asked: list[int] = []

    def read(index: Any, position: Any) -> tuple[Any, Any]:
        def count(index: np.ndarray, position: np.ndarray) -> np.int32:
            asked.append(int(position))
            return np.int32(index % 3)

        label = tf.ensure_shape(tf.numpy_function(count, [index, position], tf.int32), [])
        return tf.zeros([8, 8, 3], tf.uint8), label

    step = int(share_of_an_epoch * 10_000)
    made = train_batches(Read(one_by_one(read), at_once=1), order, rows=range(10), steps=range(step, 10_000_000))
    batch = next(iter(made))
    assert batch.positions.numpy().tolist() == list(range(step * 10, step * 10 + 10))
    assert min(asked) == step * 10
    assert len(asked) <= 10 * 10  # this batch, and what is read ahead


def test_weights_belong_to_their_examples() -> None:
    weights = np.linspace(0.5, 2, 23).astype(np.float32)
    whole = batches(weights=weights, augmentations=())
    for batch in whole:
        np.testing.assert_array_equal(batch.weights, weights[ORDER.index(batch.positions).numpy()])
    second = batches(range(3, 5), weights=weights, augmentations=())
    np.testing.assert_array_equal(second[4].weights, whole[4].weights[3:])
    assert all((batch.weights == 1).all() for batch in batches(augmentations=()))


def test_soft_labels_belong_to_their_examples_and_make_the_loss_a_mixture() -> None:
    source = memory_source(12, size=8)
    others = ((source.labels + 1) % 3).astype(np.int32)
    shares = np.linspace(0.5, 1, 12, dtype=np.float32)
    order = Order(3, 12, 4)
    made = train_batches(
        plain(source, 8),
        order,
        rows=range(4),
        steps=range(6),
        transforms=[soft_labels(order, SoftLabels(others, shares))],
    )
    for batch in made:
        index = order.index(batch.positions).numpy()
        np.testing.assert_array_equal(batch.labels, source.labels[index])
        np.testing.assert_array_equal(batch.others, others[index])
        np.testing.assert_array_equal(batch.shares, shares[index])
        logits = tf.constant(np.random.default_rng(0).normal(size=(4, 3)), tf.float32)
        logs = tf.nn.log_softmax(logits).numpy()
        rows = np.arange(4)
        expected = -(shares[index] * logs[rows, batch.labels] + (1 - shares[index]) * logs[rows, batch.others])
        losses = Objective(3, 4, mixed=True).losses(logits, batch)
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
