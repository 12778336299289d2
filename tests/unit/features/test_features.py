"""The frozen part is computed once: the same examples as without the cache, complete or absent, for one key only."""

import errno
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tensorflow as tf

from tests.doubles import FEATURE_SOURCE, PREFIX, compute_features, extract, memory_source
from tl_dist.config import AugmentConfig
from tl_dist.data.augment import augment
from tl_dist.data.order import Order
from tl_dist.data.pipeline import train_batches
from tl_dist.features import extraction
from tl_dist.features import stored as feature_set
from tl_dist.features import views as feature_views
from tl_dist.features.classifiers import Stopped
from tl_dist.features.manifest import MANIFEST
from tl_dist.features.stored import FeatureSet
from tl_dist.files.failpoint import failpoint
from tl_dist.refusal import ExitCode, Refusal


class Calls:
    """Counts the batches that were computed."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, images: Any) -> Any:
        def count(rows: np.ndarray) -> np.ndarray:
            self.count += 1
            return rows

        counted = tf.numpy_function(count, [images], tf.uint8)
        return compute_features(tf.ensure_shape(counted, images.shape))


@pytest.mark.parametrize("views", [(), ("flip",), ("dihedral",), ("flip", "dihedral")])
def test_a_position_reads_the_features_of_its_augmented_image(tmp_path: Path, views: tuple[str, ...]) -> None:
    features, _ = extract(tmp_path, views)
    read = feature_views.reader(features, FEATURE_SOURCE, views, seed=3)
    positions = tf.range(40, dtype=tf.int64)
    indices = positions % FEATURE_SOURCE.num_examples
    got, labels = read.rows(indices, positions)
    images = augment(tf.gather(FEATURE_SOURCE.store.images, indices), views, AugmentConfig(), 3, positions)
    np.testing.assert_array_equal(got, compute_features(images))
    np.testing.assert_array_equal(labels, FEATURE_SOURCE.labels[indices])


def test_rows_of_several_files_come_in_the_order_asked_for(tmp_path: Path) -> None:
    features, _ = extract(tmp_path, ("flip",), prefix=WIDE)
    expected = features.array()
    divided = in_two_shards(features, 7)
    for examples in ([10, 0, 3, 3, 5, 4], [0, 1], [10, 9, 8], []):
        for view in (0, 1):
            rows = divided.rows(tf.constant(examples, tf.int64), tf.constant(view))
            np.testing.assert_array_equal(rows, expected[np.array(examples, int), view])


def held_bytes() -> int:
    """What this process alone takes: pages of files that it has mapped do not count."""
    info = psutil.Process().memory_info()
    return int(info.rss - info.shared)


def test_reading_a_set_copies_only_the_rows_that_are_read(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 1 << 14, (512, 1 << 18), dtype=np.uint16).view(np.float16)
    (tmp_path / "temporary").mkdir()
    (tmp_path / "temporary" / "owner.json").write_text("{}")
    shard = feature_set.write_shard(tmp_path / "temporary" / "shard-0000.npy", iter([rows]), len(rows))
    feature_set.commit(tmp_path / "temporary", tmp_path / "set", [shard], {})
    read = feature_views.reader(FeatureSet.open(tmp_path / "set", 1), memory_source(len(rows)), (), seed=0)
    order = Order(num_examples=len(rows), global_batch=4, seed=0)
    before = held_bytes()
    for batch in train_batches(read, order, rows=range(4), steps=range(20)):
        np.testing.assert_array_equal(batch.images, rows[order.index(batch.positions)])
    assert held_bytes() - before < rows.nbytes / 4


def test_a_second_run_computes_nothing(tmp_path: Path) -> None:
    first, again = Calls(), Calls()
    extract(tmp_path, prefix=replace(PREFIX, compute=first))
    extract(tmp_path, prefix=replace(PREFIX, compute=again))
    assert (first.count, again.count) == (1, 0)


CHANGES: dict[str, dict[str, Any]] = {
    "weights": {"prefix": replace(PREFIX, facts={**PREFIX.facts, "frozen_sha256": "other"})},
    "layer": {"prefix": replace(PREFIX, facts={**PREFIX.facts, "cut": "block4_conv1"})},
    "precision": {"prefix": replace(PREFIX, facts={**PREFIX.facts, "precision": "mixed_bfloat16"})},
    "number format": {"prefix": replace(PREFIX, dtype="float32")},
    "image size": {"prefix": replace(PREFIX, image_size=16)},
    "views": {"views": ("flip",)},
    "data": {"source": memory_source(12, size=8)},
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_whatever_determines_the_features_gives_another_key(tmp_path: Path, change: str) -> None:
    first, _ = extract(tmp_path)
    other, _ = extract(tmp_path, **CHANGES[change])
    assert first.directory != other.directory


def test_another_schema_of_the_code_gives_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = extract(tmp_path)
    monkeypatch.setattr(extraction, "SCHEMA", extraction.SCHEMA + 1)
    assert extract(tmp_path)[0].directory != first.directory


WIDE = extraction.Prefix(lambda images: tf.cast(images, tf.float32) * 0.37 - 20.0, 8, PREFIX.facts)


def num_bytes(features: Any) -> int:
    return sum((features.directory / shard.file).stat().st_size for shard in features.manifest.shards)


@pytest.mark.parametrize(("dtype", "bits"), [("bfloat16", 8), ("float16", 11)])
def test_features_kept_in_16_bits_take_half_and_stay_in_bounds(tmp_path: Path, dtype: str, bits: int) -> None:
    whole, _ = extract(tmp_path, ("flip",), WIDE)
    features, _ = extract(tmp_path, ("flip",), replace(WIDE, dtype=dtype))
    assert features.directory != whole.directory
    header = 128  # bytes of a .npy file
    assert num_bytes(features) - header == (num_bytes(whole) - header) / 2
    assert (features.array() != whole.array()).any()
    np.testing.assert_allclose(features.array(), whole.array(), rtol=2.0**-bits)
    rows = features.rows(tf.range(11, dtype=tf.int64), tf.ones(11, tf.int32))
    assert rows.dtype == tf.float32  # as computed: what is trained on them need not know
    np.testing.assert_array_equal(rows, features.array()[:, 1])


def test_a_damaged_set_in_another_number_format_is_named_and_repaired_in_it(tmp_path: Path) -> None:
    prefix = replace(WIDE, dtype="bfloat16")
    features = in_two_shards(extract(tmp_path, ("flip",), prefix)[0], 12)
    expected, size = features.array(), num_bytes(features)
    (features.directory / "shard-0001.npy").unlink()
    again, records = extract(tmp_path, ("flip",), prefix)
    assert "shard-0001.npy" in records[0]["text"]
    np.testing.assert_array_equal(again.array(), expected)
    assert num_bytes(again) == size


def test_what_a_number_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    prefix = replace(WIDE, compute=lambda images: tf.cast(images, tf.float32) * 1000.0)
    with pytest.raises(Refusal, match="no place in float16") as caught:
        extract(tmp_path, prefix=replace(prefix, dtype="float16"))
    assert caught.value.code == ExitCode.DATA and "bfloat16" in str(caught.value)
    assert extract(tmp_path, prefix=replace(prefix, dtype="bfloat16"))[0] is not None


@pytest.mark.parametrize("damage", ["changed", "missing", "manifest"])
def test_a_damaged_set_is_named_and_computed_again(tmp_path: Path, damage: str) -> None:
    features, _ = extract(tmp_path)
    shard = features.directory / "shard-0000.npy"
    whole = shard.read_bytes()
    if damage == "changed":
        shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "missing":
        shard.unlink()
    else:
        (features.directory / "manifest.json").write_text("{")
    calls = Calls()
    _, records = extract(tmp_path, prefix=replace(PREFIX, compute=calls))
    name = "manifest.json" if damage == "manifest" else shard.name
    assert any(name in record.get("text", "") for record in records)
    assert calls.count == 1
    again, _ = extract(tmp_path)
    assert (again.directory / again.manifest.shards[0].file).read_bytes() == whole


def in_two_shards(features: FeatureSet, first: int) -> FeatureSet:
    """The same set as two workers would have left it, the first with so many rows."""
    rows = np.load(features.directory / "shard-0000.npy")
    shards = []
    for k, part in enumerate((rows[:first], rows[first:])):
        file = features.directory / f"shard-{k:04d}.npy"
        np.save(file, part)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        shards.append({"file": file.name, "rows": len(part), "sha256": digest})
    manifest = json.loads((features.directory / MANIFEST).read_text())
    (features.directory / MANIFEST).write_text(json.dumps({**manifest, "shards": shards}))
    return FeatureSet.open(features.directory, features.num_views)


def test_only_the_damaged_shard_is_computed_again(tmp_path: Path) -> None:
    features = in_two_shards(extract(tmp_path, ("flip",))[0], 12)
    expected = features.array()
    whole, damaged = (features.directory / shard.file for shard in features.manifest.shards)
    damaged.write_bytes(damaged.read_bytes()[:-8])
    before = whole.stat()
    computed: list[int] = []

    def counted(images: Any) -> Any:
        def count(rows: np.ndarray) -> np.ndarray:
            computed.append(len(rows))
            return rows

        return compute_features(tf.ensure_shape(tf.numpy_function(count, [images], tf.uint8), images.shape))

    again, records = extract(tmp_path, ("flip",), replace(PREFIX, compute=counted))
    assert computed == [10]  # 5 examples in 2 views
    texts = [record["text"] for record in records if record["event"] == "note"]
    assert len(texts) == 1 and damaged.name in texts[0] and whole.name not in texts[0]
    np.testing.assert_array_equal(again.array(), expected)
    assert (whole.stat().st_ino, whole.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not feature_set.damaged_shards(again.directory, again.manifest, again.manifest.shards)


def test_a_repair_that_was_killed_or_stopped_leaves_the_rest_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = in_two_shards(extract(tmp_path)[0], 6)
    expected = features.array()
    (features.directory / "shard-0001.npy").unlink()
    manifest = (features.directory / MANIFEST).read_bytes()

    def die(name: str, path: Path | None = None) -> None:
        if name == "features.before_rename":
            raise ZeroDivisionError

    monkeypatch.setattr(feature_set, "failpoint", die)
    with pytest.raises(ZeroDivisionError):
        extract(tmp_path)
    with pytest.raises(Stopped):
        extract(tmp_path, stop_requested=lambda: True)
    assert (features.directory / MANIFEST).read_bytes() == manifest
    monkeypatch.setattr(feature_set, "failpoint", failpoint)
    np.testing.assert_array_equal(extract(tmp_path)[0].array(), expected)


def test_a_stop_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        extract(tmp_path, stop_requested=lambda: True)
    assert list(tmp_path.iterdir()) == []


def test_a_stop_is_noticed_at_the_next_agreement_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "ROWS_AT_ONCE", 1)
    monkeypatch.setattr(extraction, "AGREE_S", 0.0)  # in every round
    asked = iter([False, False, True])
    with pytest.raises(Stopped):
        extract(tmp_path, stop_requested=lambda: next(asked))
    assert list(tmp_path.iterdir()) == []


def test_workers_agree_by_time_and_report_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "ROWS_AT_ONCE", 1)
    monkeypatch.setattr(extraction, "AGREE_S", 3600.0)
    _, records = extract(tmp_path)
    assert [record["done"] for record in records] == [
        1,
        11,
    ]  # after the first round, which is the measure, and the last


def test_rows_are_written_while_others_are_still_to_come(tmp_path: Path) -> None:
    sizes = []

    def pieces() -> Iterator[np.ndarray]:
        for _ in range(3):
            sizes.append(path.stat().st_size if path.exists() else 0)
            yield np.zeros((2, 1000), np.float32)

    path = tmp_path / "shard.npy"
    feature_set.write_shard(path, pieces(), 6)
    assert sizes[0] == 0 and sizes[2] > sizes[1] + 7999 - 128  # one piece, and the header before it
    assert np.load(path).shape == (6, 1000)


def test_a_shard_with_rows_missing_is_never_called_whole(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="2 rows of features where 3 were to come"):
        feature_set.write_shard(tmp_path / "shard.npy", iter([np.zeros((2, 4), np.float32)]), 3)


def test_a_disk_that_is_full_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, pieces: Any) -> None:
        list(pieces)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(feature_set, "write_file", full)
    with pytest.raises(Refusal, match=r"features cannot be kept in .* \(No space left on device\)\. Fix: free space"):
        extract(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["features.extracted", "features.before_rename"])
def test_a_set_that_was_not_finished_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    class Died(Exception):
        pass

    def die(name: str, path: Path | None = None) -> None:
        if name == place:
            raise Died

    monkeypatch.setattr(feature_set, "failpoint", die)
    with pytest.raises(Died):
        extract(tmp_path)
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".tmp-")]
    monkeypatch.setattr(feature_set, "failpoint", failpoint)
    features, _ = extract(tmp_path)
    assert json.loads((features.directory / "manifest.json").read_text())["shards"][0]["rows"] == 11


@pytest.mark.parametrize(("gpus", "rows"), [([], 32), (["gpu"], 256)])
def test_rows_at_once_and_decoders_are_those_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: list[str], rows: int
) -> None:
    own_map, own_batch = tf.data.Dataset.map, tf.data.Dataset.batch
    decoders, batches = [], []

    def noted_map(images: Any, function: Any, **settings: Any) -> Any:
        decoders.append(settings.get("num_parallel_calls"))
        return own_map(images, function, **settings)

    def noted_batch(images: Any, size: int) -> Any:
        batches.append(size)
        return own_batch(images, size)

    monkeypatch.setattr(tf.data.Dataset, "map", noted_map)
    monkeypatch.setattr(tf.data.Dataset, "batch", noted_batch)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: gpus)
    extract(tmp_path, threads=7)
    assert decoders[0] == 7 and batches == [rows]
