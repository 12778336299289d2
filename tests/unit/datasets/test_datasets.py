"""Sources and splits: what every dataset promises, whatever its format."""

import json
import pickle
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.doubles import array_source
from tests.official_layouts import digits_32px, write_elpv
from tl_dist.config import DataConfig, registry
from tl_dist.datasets import Source, Splits, manifest, pool_of
from tl_dist.datasets.division import pooled
from tl_dist.datasets.split import divide, hold_out
from tl_dist.datasets.store import PixelStore
from tl_dist.refusal import ExitCode, Refusal


def splits_of(name: str, **options: Any) -> Splits:
    splits: Splits = registry.DATASETS[name].open(DataConfig(name=name, **options))
    return splits


def examples_of(source: Source) -> list[tuple[np.ndarray, int]]:
    return list(tf.data.Dataset.range(source.num_examples).map(source.read).as_numpy_iterator())


# Parts


def test_a_subset_reads_its_rows_in_order() -> None:
    source = array_source()
    subset = source.subset(np.array([5, 2, 59, 2]))
    assert subset.ids == ["row:5", "row:2", "row:59", "row:2"]
    assert subset.labels.tolist() == [2, 2, 2, 2]
    for (image, label), k in zip(examples_of(subset), pool_of(subset)[1], strict=True):
        np.testing.assert_array_equal(image, source.store.images[k])
        assert label == source.labels[k]


def test_a_subset_of_a_subset_is_a_subset_of_the_source() -> None:
    source = array_source()
    twice = source.subset(np.arange(50, 10, -2)).subset(np.array([3, 0, 7]))
    once = source.subset(np.array([44, 50, 36]))
    assert pool_of(twice)[0] is source
    assert (twice.ids, twice.fingerprint) == (once.ids, once.fingerprint)
    assert [label for _, label in examples_of(twice)] == once.labels.tolist()


@pytest.mark.parametrize("indices", [[-1], [60], [0, 61]])
def test_a_subset_stays_inside_its_source(indices: list[int]) -> None:
    with pytest.raises(ValueError, match="outside"):
        array_source().subset(np.array(indices))


def test_an_empty_subset_is_allowed() -> None:
    assert array_source().subset(np.array([], np.int64)).num_examples == 0


def test_the_fingerprint_of_a_subset_follows_rows_order_and_source() -> None:
    source = array_source()
    other = replace(source, labels=(source.labels + 1) % 3)
    subsets = [(source, [1, 2, 3]), (source, [1, 3, 2]), (source, [1, 2]), (other, [1, 2, 3])]
    assert len({s.subset(np.array(rows)).fingerprint for s, rows in subsets}) == 4


def test_a_subset_is_read_in_a_graph_without_copying_it_there() -> None:
    subset = array_source(6000).subset(np.arange(5999, -1, -1))
    read = tf.function(subset.read).get_concrete_function(tf.TensorSpec([], tf.int64))
    assert read.graph.as_graph_def().ByteSize() < 10_000


def test_a_source_is_sent_without_its_tensors() -> None:
    """To the processes that pack, which are not to import TensorFlow for them."""
    part = array_source().subset(np.array([5, 2]))
    examples = examples_of(part)
    sent = pickle.loads(pickle.dumps(part))
    for held in (sent, sent.store, pool_of(sent)[0]):
        assert set(vars(held)) == {field.name for field in fields(held)}
    assert sent.fingerprint == part.fingerprint
    for (ours, _), (theirs, _) in zip(examples_of(sent), examples, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_images_in_memory_that_are_put_together_are_still_at_hand() -> None:
    """Those of CIFAR's two splits, which data.split divides again: they can be packed, and have a size."""
    parts = {"train": array_source(), "test": array_source(10).subset(np.array([7, 1]))}
    pool = pooled(parts)
    assert isinstance(pool.store, PixelStore) and pool.store.size == (4, 5)
    for k, (image, label) in enumerate(examples_of(pool)):
        np.testing.assert_array_equal(pool.store.kept(k), image)
        assert label == pool.labels[k]
    np.testing.assert_array_equal(pool.store.kept(60), parts["test"].read(0)[0])


# Splitting


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("test_fraction", "validation_fraction"), [(0.25, 0.0), (0.0, 0.1), (0.2, 0.2), (0.0, 0.0)])
def test_splits_are_disjoint_complete_and_stratified(
    seed: int, test_fraction: float, validation_fraction: float
) -> None:
    strata = np.repeat(np.arange(4), [301, 50, 99, 17]).astype(np.int32)
    pool = array_source(len(strata))
    data = DataConfig(
        name="digits", split_seed=seed, test_fraction=test_fraction, validation_fraction=validation_fraction
    )
    splits = divide(pool, data, strata=strata)
    ids = [name for source in splits.values() for name in source.ids]
    assert sorted(ids) == sorted(pool.ids)
    num_test = round(len(strata) * test_fraction)
    sizes = {"test": num_test, "validation": round(len(strata) * validation_fraction)}
    assert {name: s.num_examples for name, s in splits.items() if name != "train"} == {
        name: size for name, size in sizes.items() if size
    }
    for name in set(splits) - {"train"}:
        source = splits[name]
        indices = pool_of(source)[1]
        before = len(strata) - (num_test if name == "validation" else 0)
        share = source.num_examples / before
        counts = np.bincount(strata[indices], minlength=4)
        # The pool of the validation split has itself been shared out, to within one.
        assert np.all(np.abs(counts - np.bincount(strata) * share * before / len(strata)) <= 1 + share)
        assert np.all(np.diff(indices) > 0)


def test_a_split_depends_on_the_seed_and_on_nothing_else() -> None:
    strata = np.arange(200, dtype=np.int32) % 5

    def held_out(seed: int) -> list[int]:
        return list(hold_out(np.arange(200), strata, 0.3, seed=seed, key="k")[1])

    first = held_out(0)
    np.random.seed(123)
    tf.random.set_seed(123)
    assert held_out(0) == first
    assert held_out(1) != first
    renamed = hold_out(np.arange(200), strata * 7 + 3, 0.3, seed=0, key="k")[1].tolist()
    assert renamed == first
    # A golden value: another scikit-learn must not move examples between the splits of a running study.
    assert first[:6] == [0, 1, 4, 13, 14, 15]


@pytest.mark.parametrize(
    ("fraction", "strata"),
    [(0.01, [0, 1] * 20), (0.5, [0] * 9 + [1]), (0.001, [0, 1] * 20), (0.1, [*range(20)] * 2)],
)
def test_what_cannot_be_shared_out_is_refused(fraction: float, strata: list[int]) -> None:
    with pytest.raises(Refusal, match=r"data\.test_fraction") as refused:
        hold_out(np.arange(len(strata)), np.array(strata), fraction, seed=0, key="data.test_fraction")
    assert refused.value.code == ExitCode.DATA


def test_the_manifest_is_json_and_its_digest_covers_it() -> None:
    first = json.loads(json.dumps(manifest(splits_of("digits", validation_fraction=0.1))))
    assert first == manifest(splits_of("digits", validation_fraction=0.1))
    assert {k: len(v["ids"]) for k, v in first["splits"].items()} == {
        "train": 1168,
        "validation": 180,
        "test": 449,
    }
    assert len({name for split in first["splits"].values() for name in split["ids"]}) == 1797
    assert manifest(splits_of("digits", validation_fraction=0.1, split_seed=1))["digest"] != first["digest"]


# Digits and synthetic


def test_digits_are_scikit_learns_digits() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    splits = splits_of("digits")
    assert {name: s.num_examples for name, s in splits.items()} == {"train": 1348, "test": 449}
    image, label = examples_of(splits["test"])[17]
    k = int(splits["test"].ids[17].split(":")[1])
    assert (image.shape, image.dtype.name, label) == ((8, 8, 3), "uint8", bunch.target[k])
    for channel in range(3):
        np.testing.assert_allclose(image[:, :, channel], bunch.images[k] * 255 / 16, atol=0.5)


def test_synthetic_examples_are_a_function_of_their_index() -> None:
    splits = splits_of("synthetic", num_examples=40, num_classes=4, image_size=16)
    assert {name: s.num_examples for name, s in splits.items()} == {"train": 40, "test": 10}
    assert np.bincount(splits["train"].labels).tolist() == [10] * 4
    train, test = examples_of(splits["train"]), examples_of(splits["test"])
    assert train[0][0].shape == (16, 16, 3)
    assert [label for _, label in train] == splits["train"].labels.tolist()
    alone, _ = splits["train"].read(tf.constant(7, tf.int64))
    np.testing.assert_array_equal(alone.numpy(), train[7][0])
    assert all((a != b).any() for (a, _), (b, _) in [*pairwise(train), *zip(train, test, strict=False)])
    assert splits["train"].fingerprint != splits["test"].fingerprint
    assert splits_of("synthetic", num_classes=5)["train"].fingerprint != splits_of("synthetic")["train"].fingerprint


def test_synthetic_classes_can_be_told_apart() -> None:
    splits = splits_of("synthetic", num_examples=200)
    colours = {n: np.stack([image.mean((0, 1)) for image, _ in examples_of(s)]) for n, s in splits.items()}
    labels = splits["train"].labels
    centres = np.stack([colours["train"][labels == k].mean(0) for k in range(10)])
    nearest = np.linalg.norm(colours["test"][:, None] - centres, axis=-1).argmin(1)
    assert np.mean(nearest == splits["test"].labels) > 0.95


# Refusals


@pytest.mark.parametrize("name", ["csv", "image_folder", "imagenet", "packed", "tfrecord"])
def test_a_dataset_of_files_asks_for_its_directory(name: str) -> None:
    with pytest.raises(Refusal) as refused:
        splits_of(name)
    assert refused.value.code == ExitCode.USAGE
    assert "data.path" in refused.value.fix


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "elpv", "image_folder", "imagenet", "packed", "tfrecord"])
@pytest.mark.parametrize("place", ["nowhere", "file", "empty"])
def test_a_missing_file_is_named_with_a_fix(name: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refusal) as refused:
        splits_of(name, path=str(tmp_path / place))
    assert str(tmp_path / place) in refused.value.what
    assert refused.value.code == ExitCode.DATA
    sentences = str(refused.value).split(" Fix: ")
    assert len(sentences) == 2
    assert all(sentence.endswith(".") for sentence in sentences)
    assert "\n" not in str(refused.value)


def test_a_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_elpv(tmp_path / "elpv", digits_32px(64))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert splits_of("elpv", path="~/elpv")["train"].num_examples == 48
