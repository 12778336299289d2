"""Packed sets: the same examples as the source, whole or absent, and every changed byte is noticed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.unit.official_layouts import digits_32px, photographs, write_cifar10_binary, write_image_folder
from tl_dist.config import DataConfig
from tl_dist.curation.layout import opened_whole
from tl_dist.datasets import Source, Splits, packing
from tl_dist.datasets.packed import open_packed
from tl_dist.datasets.packing import pack
from tl_dist.launch.cli import main
from tl_dist.refusal import ExitCode, Refusal

NAMES = [f"digit {k}" for k in range(10)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_image_folder(tmp_path / "src" / "train", digits_32px(100), NAMES)
    write_image_folder(tmp_path / "src" / "val", digits_32px(40, start=100), NAMES)
    return tmp_path / "src"


def packed(path: Path, **options: Any) -> Splits:
    return open_packed(DataConfig(name="packed", path=str(path), **options))


def assert_same_examples(a: Source, b: Source) -> None:
    assert list(a.ids) == list(b.ids) and list(a.class_names) == list(b.class_names)
    assert a.labels.tolist() == b.labels.tolist()
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
        for k in range(source[split].num_examples):
            assert found[split].encoded_bytes(k) == source[split].encoded_bytes(k)  # type: ignore[attr-defined]
    assert seen[0] == (0, 140) and seen[-1] == (140, 140)
    assert len(list((tmp_path / "dst").glob("*.images"))) == 10
    assert not list((tmp_path / "dst").glob(".tmp-*"))
    files = [path for path in (tmp_path / "dst").iterdir() if path.suffix in (".images", ".npz")]
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

    for name in ("_put", "fsync_directory", "write_atomically"):
        recorded(name)
    pack({"train": opened_whole(folder)["train"]}, tmp_path / "dst")
    shard = "train-00000-of-00001"
    expected = [f"{shard}.images", f"{shard}.npz", "fsync_directory", f"{shard}.json", "manifest.json"]
    assert done == ["job.json", *expected]


def test_two_validation_splits_are_refused(folder: Path, tmp_path: Path) -> None:
    pack(opened_whole(folder), tmp_path / "dst")
    with pytest.raises(
        Refusal, match=r"a validation split, and data\.validation_fraction is 0\.2"
    ) as refused:
        packed(tmp_path / "dst", validation_fraction=0.2)
    assert refused.value.code == ExitCode.USAGE


def test_a_packed_set_can_be_packed_and_recognised(folder: Path, tmp_path: Path) -> None:
    pack(opened_whole(folder), tmp_path / "one", rows=16)
    pack(opened_whole(tmp_path / "one"), tmp_path / "two")
    one, two = packed(tmp_path / "one"), packed(tmp_path / "two")
    assert {name: s.fingerprint for name, s in one.items()} == {
        name: s.fingerprint for name, s in two.items()
    }


def test_images_in_memory_become_png(tmp_path: Path) -> None:
    write_cifar10_binary(tmp_path / "src", digits_32px(50), digits_32px(10, start=50))
    pack(opened_whole(tmp_path / "src"), tmp_path / "dst")
    source = opened_whole(tmp_path / "src")
    assert_same_examples(source["train"], packed(tmp_path / "dst")["train"])
    assert_same_examples(source["test"], packed(tmp_path / "dst")["test"])


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
    contents = {name: source.encoded_bytes(k) for k, name in enumerate(source.ids)}  # type: ignore[attr-defined]
    assert contents.pop("a/small.jpg") == small
    assert contents.pop("a/exact.jpg") == exact
    expected = np.asarray(Image.open(io.BytesIO(large)).resize((96, 64), Image.Resampling.LANCZOS)).astype(
        int
    )
    for name, content in contents.items():
        image = Image.open(io.BytesIO(content))
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (96, 64)), name
        assert np.abs(np.asarray(image) - expected).mean() < 5, name


def test_a_stopped_command_goes_on_with_what_is_missing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    write = packing._write_shard

    def stops_at_the_third(source: Any, directory: Path, shard: Any, *rest: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        write(source, directory, shard, *rest)
        written.append(shard.name)

    with monkeypatch.context() as patch:
        patch.setattr(packing, "_write_shard", stops_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            pack(opened_whole(folder), tmp_path / "dst", rows=16)
    with pytest.raises(Refusal, match="manifest"):
        packed(tmp_path / "dst")
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "dst").glob("train-0000[01]*")}
    assert len(kept) == 6
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


def test_a_changed_byte_is_noticed(folder: Path, tmp_path: Path) -> None:
    pack(opened_whole(folder), tmp_path / "dst")
    (images,) = (tmp_path / "dst").glob("train-*.images")
    content = bytearray(images.read_bytes())
    content[10] ^= 1
    images.write_bytes(content)
    source = packed(tmp_path / "dst")["train"]
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"train/digit 0/00000\.png: the checksum"):
        next(iter(tf.data.Dataset.range(1).map(source.read)))
    images.write_bytes(content[:-1])
    with pytest.raises(Refusal, match="bytes instead of") as refused:
        packed(tmp_path / "dst")
    assert refused.value.code == ExitCode.DATA
    images.write_bytes(content)
    (index,) = (tmp_path / "dst").glob("train-*.npz")
    index.write_bytes(index.read_bytes()[:-1] + b"x")
    with pytest.raises(Refusal, match="sha256 differs"):
        packed(tmp_path / "dst")


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
