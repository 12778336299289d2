"""TFRecord files as TensorFlow writes them: every record is found, and every damaged one is named."""

import io
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.official_layouts import example_of, imagenet_record, masked_crc32c, photographs, write_tfrecords
from tl_dist.config import DataConfig, registry
from tl_dist.datasets import Source, Splits, pool_of, shard_index
from tl_dist.datasets.example_proto import KEYS, Keys, parse
from tl_dist.datasets.records import RecordStore
from tl_dist.datasets.shard_index import index_shards, read_shard
from tl_dist.refusal import ExitCode, Refusal

SYNSETS = ["n01440764", "n01443537", "n01484850", "n01491361"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def open_dataset(path: Path, name: str = "tfrecord", **options: Any) -> Splits:
    splits: Splits = registry.DATASETS[name].open(DataConfig(name=name, path=str(path), **options))
    return splits


def records(num: int, start: int = 0) -> list[dict[str, Any]]:
    images = photographs(start + num)[start:]
    return [
        imagenet_record(image, 1 + (start + k) % 4, SYNSETS[(start + k) % 4], f"photo_{start + k}.JPEG", (64, 48))
        for k, image in enumerate(images)
    ]


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    write_tfrecords(tmp_path / "data", "train", records(40), 3)
    write_tfrecords(tmp_path / "data", "validation", records(12, 40), 2)
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["tfrecord", "imagenet"])
def test_the_records_of_the_tensorflow_scripts(name: str, imagenet: Path) -> None:
    splits = open_dataset(imagenet, name)
    assert {split: s.num_examples for split, s in splits.items()} == {"train": 40, "validation": 12}
    for split, first in (("train", 0), ("validation", 40)):
        source = splits[split]
        assert source.is_encoded and list(source.class_names) == SYNSETS
        assert len(set(source.ids)) == source.num_examples
        written = records(source.num_examples, first)
        found = tf.data.Dataset.range(len(written)).batch(1).map(source.encoded_rows).unbatch()
        for k, (encoded, label) in enumerate(found.as_numpy_iterator()):
            assert encoded == written[k]["image/encoded"] == source.encoded_bytes(k)
            assert label == written[k]["image/class/label"] - 1 == source.labels[k]
        contents, labels = source.encoded_rows(tf.constant([9, 0, 4], tf.int64))
        assert contents.numpy().tolist() == [source.encoded_bytes(k) for k in (9, 0, 4)]
        assert labels.numpy().tolist() == [source.labels[k] for k in (9, 0, 4)]
    image, _ = splits["train"].read(tf.constant(7, tf.int64))
    np.testing.assert_array_equal(image, Image.open(io.BytesIO(records(1, 7)[0]["image/encoded"])))


@pytest.mark.parametrize("name", ["tfrecord", "imagenet"])
def test_two_validation_splits_are_refused(name: str, imagenet: Path) -> None:
    with pytest.raises(Refusal, match=r"a validation split, and data\.validation_fraction is 0\.2") as refused:
        open_dataset(imagenet, name, validation_fraction=0.2)
    assert refused.value.code == ExitCode.USAGE


def test_records_of_tensorflow_datasets(tmp_path: Path) -> None:
    images = photographs(20)
    rows = [{"image": image, "label": k % 2, "file_name": f"{k}.jpg"} for k, image in enumerate(images)]
    (path,) = write_tfrecords(tmp_path / "cats" / "1.0.0", "cats-train.tfrecord", rows, 1)
    (path.parent / "label.labels.txt").write_text("cat\ndog\nbird\n")
    splits = open_dataset(path.parent, validation_fraction=0.2)
    assert {split: s.num_examples for split, s in splits.items()} == {"train": 16, "validation": 4}
    assert list(splits["train"].class_names) == ["cat", "dog", "bird"]
    assert np.bincount(splits["train"].labels).tolist() == [8, 8]


def test_files_without_split_names_are_a_pool(tmp_path: Path) -> None:
    rows = [{"image/encoded": b"x" * (k + 1) + b"\0", "image/class/label": k % 3} for k in range(12)]
    path = write_tfrecords(tmp_path, "part", rows, 1)[0].rename(tmp_path / "my.tfrecord")
    splits = open_dataset(tmp_path)
    assert {split: s.num_examples for split, s in splits.items()} == {"train": 9, "test": 3}
    pool = pool_of(splits["train"])[0]
    assert [pool.encoded_bytes(k) for k in range(12)] == [row["image/encoded"] for row in rows]
    encoded, _ = pool.encoded_rows(tf.constant([3]))
    assert encoded.numpy().tolist() == [b"xxxx\0"]  # NumPy would drop the zero
    assert open_dataset(tmp_path, first_label=0)["train"].num_classes == 3
    assert path.exists()


def test_examples_are_parsed_whatever_the_order_and_form_of_their_features() -> None:
    image = b"\xff\xd8" + b"i" * 300
    for label in (0, 1, 127, 128, 1000, 2**40, -1):
        for keys in (("image/encoded", "image/class/label"), ("image/class/label", "image/encoded")):
            values = {"image/encoded": image, "image/class/label": label}
            data = example_of({key: values[key] for key in keys} | {"other": 1.5, "none": []})
            found = parse(data)
            assert data[found.offset : found.offset + found.size] == image
            assert found.label == label
    unpacked = b"\x0a\x11image/class/label\x12\x04\x1a\x02\x08\x07"
    encoded = b"\x0a\x0dimage/encoded\x12\x05\x0a\x03\x0a\x01i"
    body = b"".join(b"\x0a" + bytes([len(entry)]) + entry for entry in (unpacked, encoded))
    assert parse(b"\x0a" + bytes([len(body)]) + body).label == 7


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"image/encoded": b"i"}, "no image/class/label"),
        ({"image/class/label": 1}, "no image/encoded"),
        ({"image/encoded": b"", "image/class/label": 1}, "image/encoded is empty"),
        ({"image/encoded": b"i", "image/class/label": []}, "label is empty"),
        ({"image/encoded": b"i", "image/class/label": [1, 2]}, "more than one label"),
        ({"image/encoded": b"i", "image/class/label": 1.0}, "is no"),
    ],
)
def test_an_example_without_image_or_label_is_named(record: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse(example_of(record))


def test_a_record_of_a_million_labels_is_refused_at_the_second() -> None:
    data = example_of({"image/encoded": b"i", "image/class/label": [1] * 1_000_000})
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more than one label"):
            parse(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_parsing_any_bytes_ends_in_a_value_or_a_value_error() -> None:
    data = example_of({"image/encoded": b"i" * 50, "image/class/label": 5})
    for cut in range(len(data)):
        with pytest.raises(ValueError, match=r"^it"):
            parse(data[:cut])
    random = np.random.default_rng(0)
    for _ in range(2000):
        changed = bytearray(data)
        changed[random.integers(len(data))] = random.integers(256)
        try:
            found = parse(bytes(changed))
        except ValueError:
            continue
        assert 0 < found.offset < found.offset + found.size <= len(data)


def test_the_index_is_built_once_and_anew_for_a_changed_file(
    imagenet: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []

    def counted(file: Path, *keys: Any) -> Any:
        built.append(file.name)
        return read_shard(file, *keys)

    monkeypatch.setattr(shard_index, "read_shard", counted)
    first = open_dataset(imagenet)["train"].fingerprint
    assert len(built) == 5
    assert open_dataset(imagenet)["train"].fingerprint == first
    assert len(built) == 5
    changed = imagenet / "train-00001-of-00003"
    rows = records(13, 13)
    rows[3]["image/class/label"] = 4
    write_tfrecords(imagenet / "new", "train", rows, 1)[0].rename(changed)
    assert open_dataset(imagenet)["train"].fingerprint != first
    assert built[5:] == ["train-00001-of-00003"]
    assert {p.suffix for p in (cache / "tl_dist" / "tfrecord").iterdir() if not p.name.startswith(".")} == {".json"}


@pytest.mark.parametrize("keys", [KEYS, Keys((b"image/encoded",), (b"image/height",))])
def test_helper_processes_build_the_same_index(
    keys: Keys, imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(imagenet.iterdir())
    monkeypatch.setattr(shard_index, "_HELPER_BYTES", 0)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2})
    # This process builds nothing: what there is, the helpers have built.
    monkeypatch.setattr(shard_index, "build_missing", wait_for_files)
    helped = index_shards(files, tmp_path / "helped", keys)
    alone = [read_shard(file, keys) for file in files]
    assert (alone[0].labels == 48).all() == (keys != KEYS)  # the height of every photograph
    for a, b in zip(helped, alone, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_equal(x, y)


@pytest.mark.parametrize("chunk", [2, 700, 5000])
def test_records_that_span_reads_are_found_whole(chunk: int, imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = imagenet / "train-00001-of-00003"
    invert(shard, starts_of(shard)[4] + 500)
    whole = read_shard(shard)
    assert len(whole.offsets) == 12
    monkeypatch.setattr(shard_index, "_CHUNK", chunk)
    for x, y in zip(read_shard(shard), whole, strict=True):
        np.testing.assert_equal(x, y)


def wait_for_files(files: Any, kept: list[Path], keys: Any) -> None:
    import time

    deadline = time.monotonic() + 30
    while not all(path.exists() for path in kept) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(path.exists() for path in kept), "the helpers did not build them"


def test_a_damaged_index_is_built_again(imagenet: Path, cache: Path) -> None:
    first = open_dataset(imagenet)["train"].fingerprint
    for content in (b"", b"{}", b"[1, 2, 3, 4, 5]", None):
        for path in (cache / "tl_dist" / "tfrecord").glob("*.json"):
            path.write_bytes(path.read_bytes()[:-100] if content is None else content)
        assert open_dataset(imagenet)["train"].fingerprint == first


def damage(path: Path, offset: int, content: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[offset : offset + len(content)] = content
    path.write_bytes(data)


def invert(path: Path, offset: int) -> None:
    """Damage four bytes whatever they are: written over by constants, a table of a JPEG may already be these."""
    data = path.read_bytes()[offset : offset + 4]
    damage(path, offset, bytes(byte ^ 0xFF for byte in data))


def starts_of(path: Path) -> list[int]:
    return read_shard(path).starts.tolist()


def source_with(imagenet: Path) -> Source:
    return open_dataset(imagenet)["train"]


def test_the_fingerprint_is_over_what_the_examples_are_and_not_where_they_lie(imagenet: Path) -> None:
    source = source_with(imagenet)
    store = source.store
    assert isinstance(store, RecordStore)
    for column in ("sizes", "checks"):
        values = getattr(store, column).copy()
        values[7] += 1
        changed = replace(source, store=replace(store, **{column: values}))
        assert changed.fingerprint != source.fingerprint, column
    assert replace(source, labels=source.labels[::-1]).fingerprint != source.fingerprint
    renamed = replace(source, ids=["another", *source.ids[1:]])
    assert renamed.fingerprint != source.fingerprint
    assert replace(source, class_names=source.class_names[::-1]).fingerprint != source.fingerprint
    moved = replace(store, root=Path("/elsewhere"), files=store.files[::-1], offsets=store.offsets + 1)
    assert replace(source, store=moved).fingerprint == source.fingerprint


def test_a_record_with_a_wrong_checksum_is_left_out_and_named(imagenet: Path) -> None:
    shard = imagenet / "train-00001-of-00003"
    start = starts_of(shard)[4]
    invert(shard, start + 500)
    source = source_with(imagenet)
    assert source.num_examples == 39
    assert source.bad == ((f"{shard.name}:{start}", start, "the checksum of the data is wrong"),)
    assert f"{shard.name}:{start}" not in source.ids


def test_a_length_of_2_to_the_63_ends_the_file_there(imagenet: Path) -> None:
    shard = imagenet / "train-00001-of-00003"
    start = starts_of(shard)[4]
    length = struct.pack("<Q", 2**63)
    damage(shard, start, length + struct.pack("<I", masked_crc32c(length)))
    source = source_with(imagenet)
    ((name, offset, reason),) = source.bad
    assert (name, offset) == (f"{shard.name}:{start}", start) and "9223372036854775808" in reason
    assert source.num_examples == 40 - 13 + 4
    damage(shard, start, b"\1")
    ((_, _, reason),) = source_with(imagenet).bad
    assert "checksum of the length" in reason


@pytest.mark.parametrize("left", [5, 12, 400])
def test_a_file_that_is_cut_off_is_named(left: int, imagenet: Path) -> None:
    shard = imagenet / "train-00002-of-00003"
    start = starts_of(shard)[-1]
    shard.write_bytes(shard.read_bytes()[: start + left])
    source = source_with(imagenet)
    assert source.num_examples == 39
    assert [bad[:2] for bad in source.bad] == [(f"{shard.name}:{start}", start)]


def test_a_label_that_is_no_class_is_named(imagenet: Path) -> None:
    rows = records(13, 13)
    for k, label in enumerate((-5, 10**9)):
        rows[k]["image/class/label"] = label
    write_tfrecords(imagenet / "new", "train", rows, 1)[0].rename(imagenet / "train-00001-of-00003")
    source = source_with(imagenet)
    assert source.num_examples == 38
    assert [bad.reason for bad in source.bad] == [f"label {k} is not in 1 to 4" for k in (-5, 10**9)]


def test_damaged_records_and_what_is_lost_behind_a_wrong_length_are_counted(imagenet: Path) -> None:
    shard = imagenet / "train-00001-of-00003"
    starts = starts_of(shard)
    for k in (2, 5):
        invert(shard, starts[k] + 500)
    assert read_shard(shard).lost == 2
    assert open_dataset(imagenet, max_bad=2)["train"].num_examples == 38
    with pytest.raises(Refusal, match="2 of 40 records are bad"):
        open_dataset(imagenet, max_bad=1)
    damage(shard, starts[7], b"\1")
    lost = read_shard(shard).lost - 2
    assert abs(lost - (len(starts) - 7)) <= 2, lost  # an estimate, by the bytes of those before


def test_too_many_bad_records_are_refused(tmp_path: Path) -> None:
    rows = [{"image/encoded": b"i", "image/class/label": 1 if k % 2 else -1} for k in range(210)]
    write_tfrecords(tmp_path, "train", rows, 1)
    with pytest.raises(Refusal, match=r"105 of 210 records are bad: train-00000-of-00001:0: label -1") as refused:
        open_dataset(tmp_path)
    assert refused.value.code == ExitCode.DATA


@pytest.mark.parametrize("name", ["tfrecord", "imagenet"])
def test_missing_shards_are_refused(name: str, imagenet: Path) -> None:
    (imagenet / "train-00001-of-00003").unlink()
    with pytest.raises(Refusal, match=r"1 of 3 shards are missing, the first is train-00001-of-00003") as refused:
        open_dataset(imagenet, name)
    assert refused.value.code == ExitCode.DATA


def test_a_file_cut_off_after_the_index_was_built_is_an_error_of_the_graph(imagenet: Path) -> None:
    source = source_with(imagenet)
    (imagenet / "train-00000-of-00003").write_bytes(b"")
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"train-00000-of-00003:0: .* ends before"):
        next(iter(tf.data.Dataset.range(1).map(source.read)))
    with pytest.raises(OSError, match="ends before"):
        source.encoded_bytes(0)
