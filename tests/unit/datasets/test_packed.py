"""Packed sets: the same examples as the source, whole or absent, and every changed byte is noticed."""

import hashlib
import io
import json
import signal
import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests import forks
from tests.official_layouts import (
    digits_32px,
    photographs,
    write_cifar10_binary,
    write_elpv,
    write_image_folder,
)  # fmt: skip
from tl_dist.cli.main import main
from tl_dist.config import DataConfig
from tl_dist.datasets import Source, Splits, packing, strata_of
from tl_dist.datasets.curation.layout import opened_whole
from tl_dist.datasets.example_proto import serialize
from tl_dist.datasets.formats.csv_file import open_csv
from tl_dist.datasets.formats.elpv import open_elpv
from tl_dist.datasets.formats.packed import open_packed
from tl_dist.datasets.formats.tfrecord import open_tfrecord
from tl_dist.datasets.packing import pack
from tl_dist.datasets.shard_index import framed
from tl_dist.refusal import ExitCode, Refusal

NAMES = [f"digit {k}" for k in range(10)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_image_folder(tmp_path / "src" / "train", digits_32px(100), NAMES)
    write_image_folder(tmp_path / "src" / "val", digits_32px(40, start=100), NAMES)
    return tmp_path / "src"


def packed(path: Path, **options: Any) -> Splits:
    return open_packed(DataConfig(name="packed", path=str(path), **options))


def assert_same_examples(a: Source, b: Source, *, pixels: bool = False) -> None:
    """Byte for byte, or as a worker reads them, for which a graph with its decoders is traced."""
    assert list(a.ids) == list(b.ids) and list(a.class_names) == list(b.class_names)
    assert a.labels.tolist() == b.labels.tolist()
    if not pixels:
        assert all(a.encoded_bytes(k) == b.encoded_bytes(k) for k in range(a.num_examples))
        return
    both = (tf.data.Dataset.range(s.num_examples).map(s.read).as_numpy_iterator() for s in (a, b))
    for (x, j), (y, k) in zip(*both, strict=True):
        np.testing.assert_array_equal(x, y)
        assert j == k


@pytest.mark.parametrize("workers", [1, 2])
def test_a_packed_set_holds_the_bytes_of_its_source(workers: int, folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    pack(
        opened_whole(folder),
        tmp_path / "dst",
        rows=16,
        workers=workers,
        progress=lambda done, total: seen.append((done, total)),
    )
    source = opened_whole(folder)
    found = packed(tmp_path / "dst")
    assert list(found) == ["train", "validation"]
    for split in source:
        assert_same_examples(source[split], found[split])
    assert_same_examples(source["validation"], found["validation"], pixels=True)
    assert seen[0] == (0, 140) and seen[-1] == (140, 140)
    assert len(list((tmp_path / "dst").glob("*.tfrecord"))) == 10
    assert not list((tmp_path / "dst").glob(".tmp-*"))
    files = [path for path in (tmp_path / "dst").iterdir() if path.name != "job.json"]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o644}  # others may read them


def test_a_shard_is_durable_before_it_is_said_to_be_whole(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def recorded(name: str) -> None:
        call = getattr(packing, name)

        def record(path: Path, *rest: Any, **more: Any) -> Any:
            done.append(path.name if path.suffix else name)
            return call(path, *rest, **more)

        monkeypatch.setattr(packing, name, record)

    for name in ("write_file", "fsync_directory", "write_atomically"):
        recorded(name)
    pack({"train": opened_whole(folder)["train"]}, tmp_path / "dst")
    shard = "train-00000-of-00001"
    assert done[1].startswith(f".tmp-{shard}.tfrecord-")
    assert [done[0], *done[2:]] == ["job.json", "fsync_directory", f"{shard}.json", "manifest.json"]


def test_others_can_read_the_records(folder: Path, tmp_path: Path) -> None:
    """By TensorFlow's own reader and parser, and as TFRecord files of any origin."""
    source = opened_whole(folder)["validation"]
    pack(opened_whole(folder), tmp_path / "dst", rows=16)
    kinds = {"image/encoded": tf.string, "image/class/label": tf.int64} | dict.fromkeys(
        ("image/class/text", "image/filename"), tf.string
    )
    features = {key: tf.io.FixedLenFeature([], kind) for key, kind in kinds.items()}
    files = [str(path) for path in sorted((tmp_path / "dst").glob("validation-*.tfrecord"))]
    records = [tf.io.parse_single_example(r, features) for r in tf.data.TFRecordDataset(files)]
    assert len(records) == source.num_examples == 40
    for k, record in enumerate(records):
        label = int(source.labels[k])
        assert record["image/encoded"].numpy() == source.encoded_bytes(k)
        assert record["image/filename"].numpy().decode() == source.ids[k]
        assert (record["image/class/label"], record["image/class/text"]) == (label, source.class_names[label])
    found = open_tfrecord(DataConfig(name="tfrecord", path=str(tmp_path / "dst")))["validation"]
    assert found.labels.tolist() == source.labels.tolist() and list(found.class_names) == NAMES
    assert [found.encoded_bytes(k) for k in range(40)] == [source.encoded_bytes(k) for k in range(40)]


def test_two_validation_splits_are_refused(folder: Path, tmp_path: Path) -> None:
    pack(opened_whole(folder), tmp_path / "dst")
    with pytest.raises(Refusal, match=r"a validation split, and data\.validation_fraction is 0\.2") as refused:
        packed(tmp_path / "dst", validation_fraction=0.2)
    assert refused.value.code == ExitCode.USAGE


def test_a_packed_set_can_be_packed_and_recognised(folder: Path, tmp_path: Path) -> None:
    pack(opened_whole(folder), tmp_path / "one", rows=16)
    pack(opened_whole(tmp_path / "one"), tmp_path / "two")
    one, two = packed(tmp_path / "one"), packed(tmp_path / "two")
    assert {name: s.fingerprint for name, s in one.items()} == {name: s.fingerprint for name, s in two.items()}


def test_images_in_memory_become_png(tmp_path: Path) -> None:
    write_cifar10_binary(tmp_path / "src", digits_32px(50), digits_32px(10, start=50))
    pack(opened_whole(tmp_path / "src"), tmp_path / "dst")
    source = opened_whole(tmp_path / "src")
    assert_same_examples(source["train"], packed(tmp_path / "dst")["train"], pixels=True)
    assert_same_examples(source["test"], packed(tmp_path / "dst")["test"], pixels=True)


def test_large_images_are_scaled_and_small_ones_kept(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "src" / label).mkdir(parents=True)
    large, small = photographs(1, (300, 200))[0], photographs(1, (100, 40))[0]
    (tmp_path / "src" / "a" / "large.jpg").write_bytes(large)
    (tmp_path / "src" / "a" / "small.jpg").write_bytes(small)
    exact = photographs(1, (90, 64))[0]
    (tmp_path / "src" / "a" / "exact.jpg").write_bytes(exact)
    Image.open(io.BytesIO(large)).convert("RGBA").save(tmp_path / "src" / "b" / "alpha.png")
    Image.open(io.BytesIO(large)).convert("CMYK").save(tmp_path / "src" / "b" / "cmyk.jpg")
    pack(opened_whole(tmp_path / "src"), tmp_path / "dst", size=64, quality=90)
    source = packed(tmp_path / "dst", test_fraction=0.0)["train"]
    contents = {name: source.encoded_bytes(k) for k, name in enumerate(source.ids)}
    assert contents.pop("a/small.jpg") == small
    assert contents.pop("a/exact.jpg") == exact
    expected = np.asarray(Image.open(io.BytesIO(large)).resize((96, 64), Image.Resampling.LANCZOS)).astype(int)
    for name, content in contents.items():
        image = Image.open(io.BytesIO(content))
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (96, 64)), name
        assert np.abs(np.asarray(image) - expected).mean() < 5, name


def test_a_stopped_command_goes_on_with_what_is_missing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    write = packing._write_shard

    def stops_at_the_third(job: Any, shard: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        write(job, shard)
        written.append(shard.name)

    with monkeypatch.context() as patch:
        patch.setattr(packing, "_write_shard", stops_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            pack(opened_whole(folder), tmp_path / "dst", rows=16)
    with pytest.raises(Refusal, match="manifest"):
        packed(tmp_path / "dst")
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "dst").glob("train-0000[01]*")}
    assert len(kept) == 4
    seen: list[tuple[int, int]] = []
    pack(
        opened_whole(folder),
        tmp_path / "dst",
        rows=16,
        workers=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[0] == (32, 140) and seen[-1] == (140, 140)
    assert kept == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "dst").glob("train-0000[01]*")}
    assert_same_examples(opened_whole(folder)["train"], packed(tmp_path / "dst")["train"])


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def start(source: Path, target: Path, part: int = 0, parts: int = 1, **env: str) -> subprocess.Popen[bytes]:
    arguments = (str(source), str(target), str(part), str(parts))
    return subprocess.Popen(**forks.of_module("tests.unit.datasets.pack_part", *arguments, **env))


def test_two_commands_at_once_write_the_bytes_of_one(folder: Path, tmp_path: Path) -> None:
    pack(opened_whole(folder), tmp_path / "alone", rows=16)
    # Each waits a little at every image: neither can have packed all before the other began.
    slow = {"TL_FAILPOINT": "pack.image=sleep=0.02", "TL_ALLOW_FAILPOINTS": "1"}
    both = [start(folder, tmp_path / "both", part, 2, **slow) for part in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert contents(tmp_path / "both") == contents(tmp_path / "alone")


def test_a_command_that_was_killed_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    pack(opened_whole(folder), tmp_path / "alone", rows=16)
    for nth in (20, 40):  # in the second shard, and again two further
        dies = {"TL_FAILPOINT": f"pack.image:{nth}=kill", "TL_ALLOW_FAILPOINTS": "1"}
        assert start(folder, tmp_path / "dst", **dies).wait() == -signal.SIGKILL
    found = contents(tmp_path / "dst")
    assert "manifest.json" not in found and sum(name.startswith("train-") for name in found) == 6
    assert sum(name.startswith(".tmp-train") and not name.endswith(".lock") for name in found) == 2
    survivor = start(folder, tmp_path / "dst")
    assert survivor.wait() == 0
    assert contents(tmp_path / "dst") == contents(tmp_path / "alone")


def test_a_hidden_file_of_a_person_stays(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "dst").mkdir()
    (tmp_path / "dst" / ".tmp-notes").write_text("mine")
    pack(opened_whole(folder), tmp_path / "dst", rows=16)
    assert [path.name for path in (tmp_path / "dst").glob(".tmp-*")] == [".tmp-notes"]


def test_a_shard_that_another_packs_is_waited_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command begins at its own part, and does at the end what others have not."""
    order: list[str] = []
    write = packing._write_shard
    monkeypatch.setattr(packing, "_write_shard", lambda job, shard: order.append(shard.name) or write(job, shard))
    seen: list[tuple[int, int]] = []
    pack(opened_whole(folder), tmp_path / "dst", rows=16, part=(1, 2), progress=lambda *now: seen.append(now))
    assert order[0].startswith("train-00005") and order[-1].startswith("train-00004") and len(order) == 10
    assert seen[0] == (0, 140) and seen[-1] == (140, 140)


def test_without_locks_a_shard_may_be_packed_by_two(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system where flock does nothing: another command ends while this one writes, and sweeps up."""
    pack(opened_whole(folder), tmp_path / "alone", rows=16)
    ended: list[str] = []

    def another_ends(name: str, path: Path) -> None:
        if not ended:
            ended.append(name)
            pack(opened_whole(folder), tmp_path / "dst", rows=16)

    monkeypatch.setattr(packing, "failpoint", another_ends)
    monkeypatch.setattr(packing, "locked", lambda path, wait=True: nullcontext(True))
    pack(opened_whole(folder), tmp_path / "dst", rows=16)
    assert contents(tmp_path / "dst") == contents(tmp_path / "alone")


@pytest.mark.parametrize("split", ["", ",split"])
def test_a_packed_table_divides_and_weighs_as_the_table(split: str, tmp_path: Path) -> None:
    digits = digits_32px(60)
    lines = [f"path,label,weight,group{split}"]
    for k, image in enumerate(digits.images):
        Image.fromarray(image).save(tmp_path / f"{k:02}.png")
        part = ",test" if split and k >= 40 else ",train" if split else ""
        lines.append(f"{k:02}.png,{k % 3},{0.5 + k % 4},patient {k // 4}{part}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    pack(opened_whole(tmp_path / "table.csv"), tmp_path / "dst", rows=16)
    options = {"validation_fraction": 0.25, **({} if split else {"test_fraction": 0.2})}
    table = open_csv(DataConfig(name="csv", path=str(tmp_path / "table.csv"), **options))
    found = packed(tmp_path / "dst", **options)
    assert {"train", "validation", "test"} == set(table) == set(found)
    for name, source in table.items():
        assert_same_examples(source, found[name])
        for column in ("weights", "groups"):
            values = list(getattr(found[name].annotations, column))
            assert values == list(getattr(source.annotations, column)) and len(set(values)) > 1
    (tmp_path / "table.csv").write_text("\n".join(lines).replace("patient 13", "patient 12") + "\n")
    with pytest.raises(Refusal, match="annotations, sources differ"):
        pack(opened_whole(tmp_path / "table.csv"), tmp_path / "dst", rows=16)


def test_types_and_soft_labels_are_packed(tmp_path: Path) -> None:
    root = write_elpv(tmp_path / "elpv", digits_32px(64))
    elpv = open_elpv(DataConfig(name="elpv", path=str(root), soft_labels=True, test_fraction=0.0))
    pack(elpv, tmp_path / "dst", rows=10)
    pack(open_elpv(DataConfig(name="elpv", path=str(root), test_fraction=0.0)), tmp_path / "plain", rows=10)
    found = packed(tmp_path / "dst", test_fraction=0.0)["train"]
    ours, theirs = found.annotations, elpv["train"].annotations
    assert ours.types == theirs.types and set(ours.types) == {"mono", "poly"}
    assert ours.soft is not None and theirs.soft is not None
    np.testing.assert_array_equal(ours.soft, theirs.soft)
    np.testing.assert_array_equal(strata_of(found), strata_of(elpv["train"]))
    plain = packed(tmp_path / "plain", test_fraction=0.0)["train"]
    assert plain.annotations.soft is None and plain.fingerprint != found.fingerprint


def test_another_set_in_the_same_directory_is_refused(folder: Path, tmp_path: Path) -> None:
    pack(opened_whole(folder), tmp_path / "dst")
    for options in ({"size": 16}, {"rows": 7}):
        with pytest.raises(Refusal, match="differ") as refused:
            pack(opened_whole(folder), tmp_path / "dst", **options)  # type: ignore[arg-type]
        assert refused.value.code == ExitCode.USAGE
    with pytest.raises(Refusal, match="holds train"):
        pack(opened_whole(folder), folder)


def test_a_damaged_image_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "train" / "digit 3" / "00003.png").write_bytes(b"<html>")
    for workers in (1, 2):
        with pytest.raises(Refusal, match=r"train/digit 3/00003\.png cannot be packed") as refused:
            pack(opened_whole(folder), tmp_path / f"dst{workers}", size=8, rows=16, workers=workers)
        assert refused.value.code == ExitCode.DATA


def changed(file: Path, at: int) -> bytes:
    """What it held before."""
    before = file.read_bytes()
    file.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
    return before


def test_a_changed_byte_is_noticed(folder: Path, tmp_path: Path) -> None:
    pack(opened_whole(folder), tmp_path / "dst")
    (records,) = (tmp_path / "dst").glob("train-*.tfrecord")
    source = packed(tmp_path / "dst")["train"]
    content = changed(records, 100)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"train/digit 0/00000\.png: the checksum"):
        next(iter(tf.data.Dataset.range(1).map(source.read)))
    again = packed(tmp_path / "dst")["train"]
    assert again.bad == ((f"{records.name}:0", 0, "the checksum of the data is wrong"),)
    assert list(again.ids) == list(source.ids)[1:]
    with pytest.raises(Refusal, match="1 of 100 records are bad"):
        packed(tmp_path / "dst", max_bad=0)
    records.write_bytes(content[:-1])
    with pytest.raises(Refusal, match="bytes instead of") as refused:
        packed(tmp_path / "dst")
    assert refused.value.code == ExitCode.DATA
    records.write_bytes(content)
    (facts,) = (tmp_path / "dst").glob("train-*.json")
    changed(facts, -2)
    with pytest.raises(Refusal, match="sha256 differs"):
        packed(tmp_path / "dst")


def test_what_is_said_of_an_example_stays_with_it_if_another_is_lost(tmp_path: Path) -> None:
    root = write_elpv(tmp_path / "elpv", digits_32px(64))
    elpv = open_elpv(DataConfig(name="elpv", path=str(root), soft_labels=True, test_fraction=0.0))
    pack(elpv, tmp_path / "dst", rows=10)
    changed(tmp_path / "dst" / "train-00002-of-00007.tfrecord", 100)
    found = packed(tmp_path / "dst", test_fraction=0.0)["train"]
    rows = np.array([k for k in range(64) if k != 20])
    expected = elpv["train"].subset(rows)
    assert_same_examples(found, expected)
    assert found.annotations.types == expected.annotations.types
    np.testing.assert_array_equal(found.annotations.soft, expected.annotations.soft)


def test_records_of_another_set_are_refused(folder: Path, tmp_path: Path) -> None:
    pack(opened_whole(folder), tmp_path / "dst", rows=10)
    one, another = (tmp_path / "dst" / f"train-0000{k}-of-00010.tfrecord" for k in (0, 1))
    other = {"image/encoded": b"x", "image/class/label": 0, "image/filename": b"other.png"}
    for records, says in (
        (framed(serialize(other)), "1 records instead of 10"),
        (another.read_bytes(), "not those that were packed"),
    ):
        one.write_bytes(records)
        facts = json.loads(one.with_suffix(".json").read_bytes())
        signed(one.with_suffix(".json"), facts | {"size": one.stat().st_size})
        with pytest.raises(Refusal, match=says):
            packed(tmp_path / "dst")


def signed(file: Path, facts: dict[str, Any]) -> None:
    """Write these facts of a shard, and their digest into the manifest."""
    old = hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_text(json.dumps(facts))
    manifest = file.with_name("manifest.json")
    manifest.write_text(manifest.read_text().replace(old, hashlib.sha256(file.read_bytes()).hexdigest()))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "tl_dist packed 2"}'])
def test_what_is_no_manifest_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(Refusal, match="no manifest of a packed set"):
        packed(tmp_path)


def test_the_command_packs_a_config(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "x.yaml"
    config.write_text(
        f"steps: 1\ndata: {{name: image_folder, path: {json.dumps(str(folder / 'train'))}, validation_fraction: 0.2}}\n"
        "model: {backbone: tiny, weights: random, train_from: all}\noptimizer: {learning_rate: 0.1}\n"
    )
    assert main(["data", "pack", str(config), str(tmp_path / "dst"), "--workers", "1", "--size", "16"]) == 0
    assert "100 images" in capsys.readouterr().out
    assert packed(tmp_path / "dst", test_fraction=0.0)["train"].num_examples == 100
    assert main(["data", "pack", str(tmp_path / "nowhere"), str(tmp_path / "dst2")]) == ExitCode.DATA
