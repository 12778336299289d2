"""Corrupt input is found, named, and replaced in a way that no worker count can see."""

import io
import os
import re
import struct
import threading
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.damaged_images import (
    BOMBS,
    BY_HEADER,
    chunk,
    damage,
    jpeg_parts,
    photograph,
    png,
    scans,
    wrong_checksum,
)
from tests.doubles import memory_source
from tests.official_layouts import digits_32px, write_image_folder
from tl_dist.config import DataConfig
from tl_dist.data.order import Order
from tl_dist.data.pipeline import augmented, train_batches
from tl_dist.data.undecodable import undecodable
from tl_dist.datasets import Splits, decoding_cost, headers, quarantine
from tl_dist.datasets.decoding import decode_rgb
from tl_dist.datasets.formats.image_folder import open_image_folder
from tl_dist.datasets.headers import Fault, checked, fault
from tl_dist.datasets.quarantine import Bad
from tl_dist.datasets.store import Location
from tl_dist.parallel import rows_of
from tl_dist.refusal import ExitCode, Refusal

NAMES = [f"digit {k}" for k in range(10)]
DECODED = tf.function(decode_rgb)  # of bytes, however many: traced once


class Ranks:
    """`gather` among threads, one for each rank."""

    def __init__(self, world_size: int) -> None:
        self._parts: list[bytes] = [b""] * world_size
        self._barrier = threading.Barrier(world_size)

    def gather(self, rank: int, text: bytes) -> list[bytes]:
        self._parts[rank] = text
        self._barrier.wait(20)
        everyone = list(self._parts)
        self._barrier.wait(20)
        return everyone


def screen(splits: Splits, cache: Path, world_size: int = 1) -> list[list[Bad]]:
    """What each of `world_size` ranks finds."""
    ranks, found = Ranks(world_size), [[Bad("", "", 0, "nothing")]] * world_size

    def look(rank: int) -> None:
        parallel: Any = SimpleNamespace(rank=rank, world_size=world_size, gather=partial(ranks.gather, rank))
        found[rank] = quarantine.screen(splits, cache=cache, parallel=parallel)

    threads = [threading.Thread(target=look, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Train and val, with three bad images in one and one in the other."""
    root = tmp_path / "data"
    write_image_folder(root / "train", digits_32px(60), NAMES)
    write_image_folder(root / "val", digits_32px(30, start=60), NAMES)
    damage(root / "train" / "digit 0" / "00000.png", "cut off")
    damage(root / "train" / "digit 3" / "00013.png", "text")
    damage(root / "train" / "digit 9" / "00039.png", "empty")
    damage(root / "val" / "digit 5" / "00011.png", "huge")
    return root


def folder(path: Path) -> Splits:
    return open_image_folder(DataConfig(name="image_folder", path=str(path)))


@pytest.mark.parametrize("kind", BY_HEADER)
def test_a_header_tells_what_is_wrong_and_where(kind: str, tmp_path: Path) -> None:
    suffix, content, reason = BY_HEADER[kind]
    file = tmp_path / f"photo{suffix}"
    file.write_bytes(content())
    found = fault(Location(file))
    assert found is not None and found.reason.startswith(reason)
    cut_off = "cut off" in found.reason
    assert found.offset == (file.stat().st_size if cut_off else 0)
    with pytest.raises(tf.errors.OpError):
        DECODED(tf.constant(content()))
    inside = tmp_path / "shard"
    inside.write_bytes(b"before" + content() + photograph("JPEG"))
    assert fault(Location(inside, 6, len(content()))) == (6 + found.offset, found.reason)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_whole_images_pass_with_their_size(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"exif": b"Exif\0\0" + b"x" * 60_000} if kind == "JPEG" else {}
    for size in ((60, 40), (1, 1), (301, 7)):
        content = photograph(kind, size, **options)
        file = tmp_path / "photo"
        file.write_bytes(content)
        assert fault(Location(file)) is None
        assert checked(content)[1:] == size
        assert decode_rgb(tf.constant(content)).shape == (size[1], size[0], 3)
    if kind in ("PNG", "JPEG"):
        for chunk in (1 << 20, 7):  # the end lies across two of them, sooner or later
            monkeypatch.setattr(headers, "_CHUNK_BYTES", chunk)
            for appended in (b"appended by an editor", bytes(chunk + 5)):
                file.write_bytes(content + appended)
                assert fault(Location(file)) is None


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "1"])
def test_progressive_lossless_and_other_modes_pass(mode: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (33, 21), (200, 100, 50)).convert(mode)
    made: list[tuple[str, dict[str, Any]]] = [("PNG", {}), ("BMP", {}), ("JPEG", {"progressive": True})]
    made += [("WEBP", {"lossless": True}), ("WEBP", {})]
    for kind, options in made:
        unable = {"PNG": ("CMYK",), "BMP": ("CMYK",), "JPEG": ("RGBA", "1"), "WEBP": ("CMYK", "L", "1")}
        if mode not in unable[kind]:
            image.save(tmp_path / kind, kind, **options)
            assert fault(Location(tmp_path / kind)) is None
            assert checked((tmp_path / kind).read_bytes())[1:] == (33, 21)


@pytest.mark.parametrize("what", BOMBS)
@pytest.mark.parametrize("thorough", [True, False])
def test_what_would_take_minutes_is_refused_undecoded(what: str, thorough: bool, tmp_path: Path) -> None:
    suffix, content, reason = BOMBS[what]
    file = tmp_path / f"image{suffix}"
    file.write_bytes(content())
    found = fault(Location(file), thorough=thorough)
    assert isinstance(found, Fault) and reason in found.reason and found.offset == 0
    with pytest.raises(ValueError, match=re.escape(found.reason)):
        checked(file.read_bytes())
    inside = tmp_path / "shard"
    inside.write_bytes(b"before" + file.read_bytes() + photograph("JPEG"))
    assert fault(Location(inside, 6, file.stat().st_size), thorough=thorough) == (6, found.reason)


def test_what_merely_is_large_or_fine_grained_passes(tmp_path: Path) -> None:
    """Progressive photographs, optimizers' scripts, thumbnails and movies beside the image, profiles, small chunks."""
    large = (3000, 2000)
    progressive = photograph("JPEG", large, progressive=True, quality=95)
    assert sum(marker == 0xDA for marker, _ in jpeg_parts(progressive)) == 10
    movie = bytes(range(256)) * 4000 + b"\xff\xda\0\x08" * 500 + b"\xff\xd9"
    thumbnail = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + photograph("JPEG", (160, 120), progressive=True)
    pixels = photograph("PNG", (900, 700))
    at = pixels.index(b"IDAT") - 4
    size = struct.unpack_from(">I", pixels, at)[0]
    pieces = [pixels[k : min(k + 300, at + 8 + size)] for k in range(at + 8, at + 8 + size, 300)]
    fine_grained = pixels[:at] + b"".join(chunk(b"IDAT", piece) for piece in pieces) + pixels[at + 12 + size :]
    profiles = b"".join(chunk(b"zTXt", b"Raw profile\0\0" + zlib.compress(os.urandom(40_000))) for _ in range(4))
    tiff = io.BytesIO()
    Image.fromarray(np.zeros((2000, 30, 3), np.uint8)).save(tiff, "TIFF", tiffinfo={278: 1})  # each row a strip
    for content in (
        progressive,
        progressive + movie,
        scans(2000, 58),
        photograph("JPEG", (400, 300), progressive=True, exif=thumbnail),
        photograph("PNG", large),
        png(6000, zlib.compress(bytes(6000 * (3 * 6000 + 1)), 1)),  # a third of a megabyte
        fine_grained,
        pixels[:at] + profiles + pixels[at:],
        tiff.getvalue(),
    ):
        file = tmp_path / "image"
        file.write_bytes(content)
        assert [fault(Location(file)), checked(content)][0] is None
        assert fault(Location(file), thorough=False) is None


def test_scans_are_counted_alike_in_pieces_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    content = photograph("JPEG", (300, 200), progressive=True)
    first = content.index(b"\xff\xda")
    expected = [data[4:] for marker, data in jpeg_parts(content) if marker == 0xDA]
    for size in (64, 97, 1000, 1 << 20):
        monkeypatch.setattr(decoding_cost, "_CHUNK_BYTES", size)
        counted = list(decoding_cost._scans(lambda at, num: content[at : at + num], first))
        assert [scan[:10] for scan in counted] == [data[:10] for data in expected]


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("gone")
    reasons = [fault(Location(tmp_path / name)) for name in ("missing", "link", "pipe", ".")]
    assert [found.reason for found in reasons if found] == [
        "cannot be read: No such file or directory",
        "cannot be read: No such file or directory",
        "is no regular file",
        "is no regular file",
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_all_ranks_find_the_same(world_size: int, damaged: Path, tmp_path: Path) -> None:
    for found in screen(folder(damaged), tmp_path / "cache", world_size):
        assert [(bad.split, bad.id) for bad in found] == [
            ("train", "train/digit 0/00000.png"),
            ("train", "train/digit 3/00013.png"),
            ("train", "train/digit 9/00039.png"),
            ("validation", "val/digit 5/00011.png"),
        ]
        assert found[1].reason.startswith("is no image")


def test_a_second_start_looks_at_no_image(damaged: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (first,) = screen(folder(damaged), tmp_path / "cache")
    looked_at: list[Location] = []
    monkeypatch.setattr(quarantine, "fault", lambda location, **_: looked_at.append(location) or Fault(0, ""))
    assert screen(folder(damaged), tmp_path / "cache", 2) == [first, first]
    assert looked_at == []
    whole = damaged / "train" / "digit 0" / "00010.png"
    os.utime(whole, (1, 1))
    screen(folder(damaged), tmp_path / "cache")
    assert len(looked_at) == 90


def test_a_set_without_a_fault_is_kept_as_such(tmp_path: Path, monkeypatch: Any) -> None:
    write_image_folder(tmp_path / "data" / "train", digits_32px(40), NAMES)
    assert screen(folder(tmp_path / "data"), tmp_path / "cache") == [[]]
    monkeypatch.setattr(quarantine, "fault", lambda location, **_: pytest.fail("looked again"))
    assert screen(folder(tmp_path / "data"), tmp_path / "cache") == [[]]


def test_images_in_memory_need_no_look(tmp_path: Path) -> None:
    assert screen({"train": memory_source(7)}, tmp_path / "cache") == [[]]
    assert not (tmp_path / "cache").exists()


def test_a_position_has_the_same_pixels_on_any_worker_count(damaged: Path, tmp_path: Path) -> None:
    """Three workers: shares of two sizes."""
    splits = folder(damaged)
    (found, *_) = screen(splits, tmp_path / "cache", 3)
    train = quarantine.without(splits, found)["train"]
    order = Order(seed=3, num_examples=60, global_batch=5)

    def pixels(rows: range) -> list[Any]:
        read = augmented(train, ("dihedral", "pad_crop"), 3, 32)
        return list(train_batches(read, order, rows=rows, steps=range(12)).as_numpy_iterator())

    whole = pixels(range(5))
    shares = [pixels(rows_of(rank, 3, 5)) for rank in range(3)]
    for step, batch in enumerate(whole):
        for field in ("images", "labels", "positions"):
            together = np.concatenate([getattr(share[step], field) for share in shares])
            np.testing.assert_array_equal(together, getattr(batch, field))


def test_all_but_the_bad_examples_stay_where_they_were(damaged: Path, tmp_path: Path) -> None:
    splits = folder(damaged)
    (found,) = screen(splits, tmp_path / "cache")
    usable = quarantine.without(splits, found)
    before, after = splits["train"].ids, usable["train"].ids
    assert {k: after[k] for k in range(60) if after[k] != before[k]} == {
        0: before[1],
        before.index("train/digit 3/00013.png"): before[before.index("train/digit 3/00013.png") + 1],
        59: before[1],  # around the end, past another bad one
    }
    assert len(usable["train"].labels) == 60
    validation = usable["validation"].ids
    assert validation == [name for name in splits["validation"].ids if name != "val/digit 5/00011.png"]


def test_substitutes_are_the_next_good_ones() -> None:
    good = np.array([True, False, False, True, False])
    assert quarantine.substitutes(good).tolist() == [0, 3, 3, 3, 0]


def test_splits_without_a_fault_are_left_alone() -> None:
    splits = {"train": memory_source(7), "test": memory_source(5)}
    assert quarantine.without(splits, []) == splits


@pytest.mark.parametrize(("split", "lost"), [("train", "class 'class 1'"), ("test", "split 'test'")])
def test_what_has_no_good_example_left_is_refused(split: str, lost: str) -> None:
    splits: Splits = {"train": memory_source(7), "test": memory_source(2)}
    names: Sequence[str] = ["1", "4"] if split == "train" else ["0", "1"]
    bad = [Bad(split, name, 0, "is empty") for name in names]
    with pytest.raises(Refusal, match=lost) as refused:
        quarantine.without(splits, bad)
    assert refused.value.code == ExitCode.DATA


def test_beyond_the_budget_the_first_are_listed() -> None:
    found = [Bad("train", f"image {k}.jpg", 0, "is empty") for k in range(12)]
    quarantine.refuse_beyond(12, found)
    with pytest.raises(Refusal, match=r"12 examples .* data\.max_bad = 11: image 0\.jpg is empty") as refused:
        quarantine.refuse_beyond(11, found)
    assert refused.value.code == ExitCode.DATA
    assert "image 9.jpg" in refused.value.what and "and 2 more" in refused.value.what


def test_the_default_budget_grows_with_the_set() -> None:
    small = memory_source(10)
    assert quarantine.budget(None, {"train": small}) == 100
    rows = np.zeros(3_000_000, np.int64)
    assert quarantine.budget(None, {"train": small.subset(rows), "test": small}) == 300
    assert quarantine.budget(7, {"train": small}) == 7


def test_the_file_holds_what_was_written(tmp_path: Path) -> None:
    found = [Bad("train", "caf\udce9.jpg", 7, "is empty"), Bad("test", "b.jpg", 0, "JPEG is cut off")]
    quarantine.write(tmp_path / "quarantine.jsonl", found)
    assert quarantine.read(tmp_path / "quarantine.jsonl") == found
    assert quarantine.read(tmp_path / "none.jsonl") == []
    later = Bad("train", "c.jpg", 0, "is empty")
    assert quarantine.merged(found, [found[1]._replace(reason="other"), later]) == [*found, later]
    (tmp_path / "quarantine.jsonl").write_text('{"split": 1}\n')
    with pytest.raises(Refusal, match=r"quarantine\.jsonl is not"):
        quarantine.read(tmp_path / "quarantine.jsonl")


def test_what_only_decoding_finds_is_named(damaged: Path) -> None:
    splits = folder(damaged)
    train = splits["train"]
    victim = train.ids.index("train/digit 4/00014.png")
    (damaged / train.ids[victim]).write_bytes(wrong_checksum())
    assert fault(Location(damaged / train.ids[victim])) is None
    good = [k for k in range(60) if "digit 4" in train.ids[k]]
    found = undecodable(train, good, threads=2)
    assert list(found) == [victim]
    assert found[victim].reason.startswith("cannot be decoded: Invalid PNG")
    (damaged / train.ids[victim]).unlink()
    (again,) = undecodable(train.subset(np.array([victim])), [0], threads=1).values()
    assert "No such file" in again.reason
