"""A data set is recognised, described and proven whole without TensorFlow."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from tests import official_layouts as layouts
from tests.damaged_images import damage
from tests.official_layouts import digits_32px, write_image_folder
from tl_dist.cli.main import main
from tl_dist.datasets.curation.layout import opened, opened_whole, recognise
from tl_dist.datasets.curation.verification import near_pairs, verify
from tl_dist.datasets.formats import cifar as cifar_files
from tl_dist.datasets.packing import pack
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.tools.curate.inspect import inspect

NAMES = [f"digit {k}" for k in range(10)]


def cifar(write: str, inside: bool) -> Any:
    numbers = layouts.numbers_32px if "100" in write else digits_32px

    def make(parent: Path) -> Path:
        root: Path = getattr(layouts, write)(parent, numbers(200), numbers(100))
        return root if inside else parent

    return make


LAYOUTS: dict[str, tuple[str, Any]] = {
    **{
        f"{write} {place}": (write.split("_")[1], cifar(write, place == "itself"))
        for write in (
            "write_cifar10_python",
            "write_cifar10_binary",
            "write_cifar100_python",
            "write_cifar100_binary",
        )
        for place in ("itself", "parent")
    },
    "elpv": ("elpv", lambda parent: layouts.write_elpv(parent / "elpv", digits_32px(64))),
    "class folders": ("image_folder", lambda parent: write_image_folder(parent, digits_32px(40), NAMES)),
    "splits": (
        "image_folder",
        lambda parent: write_image_folder(parent / "train", digits_32px(40), NAMES).parent,
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_recognised_and_opens(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, make = LAYOUTS[name]
    path = make(tmp_path / "data")
    monkeypatch.setattr(cifar_files, "PUBLISHED", layouts.published(path))
    assert recognise(path).name == kind
    data, splits = opened(path)
    assert data.path == str(path) and splits["train"].num_examples >= 40


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    for path, said in ((tmp_path, "no data set"), (tmp_path / "gone", "nothing at")):
        with pytest.raises(Refusal, match=said) as refused:
            recognise(path)
        assert refused.value.code == ExitCode.DATA


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    write_image_folder(root / "train", digits_32px(100), NAMES)
    write_image_folder(root / "val", digits_32px(40, start=100), NAMES, ".jpg")
    return root


def test_inspection_counts_and_measures(splits: Path, tmp_path: Path) -> None:
    extra = splits / "train" / "digit 3" / "large.png"
    Image.new("L", (300, 200)).save(extra)
    damage(next((splits / "train" / "digit 4").iterdir()), "text")
    facts = inspect(splits, tmp_path / "sheet.png")
    train = facts["splits"]["train"]
    counts = np.bincount(digits_32px(100).labels)
    counts[3] += 1
    assert list(train["counts"].values()) == counts.tolist()
    assert train["imbalance"] == counts.max() / counts.min()
    assert train["sizes"] == {"min": [32, 32], "median": [32, 32], "max": [300, 200]}
    assert (train["modes"], train["formats"], train["unreadable"]) == ({"RGB": 99, "L": 1}, {"PNG": 100}, 1)
    assert train["bytes"] == sum(f.stat().st_size for f in splits.glob("train/*/*")) - 29
    assert facts["splits"]["validation"]["formats"] == {"JPEG": 40}
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * 96, 10 * 110)
        colours = np.asarray(sheet)[14:110, :96]
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) > 10


def check(path: Path, **options: Any) -> dict[str, Any]:
    return verify(path, **{"workers": 2, "distance": 3, "advance": lambda done, total: None, **options})


def photographs(root: Path) -> None:
    """Crops that are nothing like each other, in two splits of two classes."""
    whole = Image.fromarray(load_sample_image("china.jpg"))
    for k in range(16):
        split, label = ("train", "train", "train", "val")[k % 4], "ab"[k // 4 % 2]
        folder = root / split / label
        folder.mkdir(parents=True, exist_ok=True)
        left, top = 150 * (k % 4), 100 * (k // 4)
        whole.crop((left, top, left + 150, top + 100)).save(folder / f"{k}.jpg", quality=95)


def test_verification_names_what_is_bad_and_what_leaks(tmp_path: Path) -> None:
    root = tmp_path / "data"
    photographs(root)
    assert check(root)["ok"]
    damage(root / "train" / "a" / "0.jpg", "cut off")
    damage(root / "train" / "b" / "4.jpg", "wrong checksum")
    damage(root / "val" / "a" / "3.jpg", "huge")
    found = check(root)
    assert {bad["id"]: bad["reason"][:20] for bad in found["bad"]} == {
        "train/a/0.jpg": "JPEG is cut off: its",
        "train/b/4.jpg": "cannot be decoded: u",
        "val/a/3.jpg": "PNG of 60000 x 60000",
    }
    assert found["bad"][0]["offset"] == (root / "train" / "a" / "0.jpg").stat().st_size
    assert (found["leaks"], found["ok"]) == (0, False)


def test_duplicates_are_found_also_when_encoded_again(tmp_path: Path) -> None:
    root = tmp_path / "data"
    photographs(root)
    image = root / "train" / "a" / "1.jpg"
    Image.open(image).save(root / "train" / "b" / "same.png")
    found = check(root)
    assert found["equal"] == [["train: train/a/1.jpg", "train: train/b/same.png"]] and found["ok"]
    Image.open(image).resize((120, 80)).save(root / "val" / "a" / "near.jpg", quality=70)
    found = check(root)
    assert found["near"] == [["train: train/a/1.jpg", "validation: val/a/near.jpg"]]
    assert (found["leaks"], found["ok"]) == (1, False)
    assert check(root, distance=-1)["ok"]


def test_images_in_memory_are_verified_too(tmp_path: Path) -> None:
    layouts.write_cifar10_binary(tmp_path, digits_32px(50), digits_32px(20))
    found = check(tmp_path, distance=-1)
    assert (found["num_examples"], found["bad"], len(found["equal"]), found["leaks"]) == (70, [], 20, 20)


@pytest.mark.parametrize("distance", [0, 1, 3, 6])
def test_no_near_pair_is_missed(distance: int) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 300, dtype=np.uint64)
    for k in range(0, 300, 3):  # neighbours of neighbours
        hashes[k] = hashes[k + 1] ^ np.bitwise_or.reduce(np.uint64(1) << rng.integers(0, 64, 4).astype(np.uint64))
    bits = np.bitwise_count(hashes[:, None] ^ hashes[None])
    expected = np.argwhere(np.triu((bits <= distance) & (bits > 0), 1))
    assert near_pairs(hashes, distance).tolist() == expected.tolist()
    assert distance < 4 or len(expected) > 50
    assert near_pairs(np.array([5, 9, 5, 5], np.uint64), 0).tolist() == [[0, 2], [0, 3]]
    assert near_pairs(np.zeros(0, np.uint64), distance).shape == (0, 2)


def test_the_commands_answer_in_json_and_by_exit_code(splits: Path, tmp_path: Path, capsys: Any) -> None:
    sheet = str(tmp_path / "sheet.png")
    assert main(["data", "inspect", str(splits), "--json", "--sheet", sheet]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "image_folder"
    assert main(["data", "inspect", str(splits), "--sheet", sheet]) == 0
    assert "100 examples" in capsys.readouterr().out
    damage(next((splits / "val" / "digit 4").iterdir()), "empty")
    assert main(["data", "verify", str(splits), "--json", "--distance=-1"]) == ExitCode.DATA
    assert [bad["reason"] for bad in json.loads(capsys.readouterr().out)["bad"]] == ["is empty"]
    assert main(["data", "verify", str(splits), "--distance=-1"]) == ExitCode.DATA
    assert "1 bad" in capsys.readouterr().out


def test_a_changed_byte_of_a_packed_set_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the image would still decode: packed sets and records are not passed over."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_image_folder(tmp_path / "src", digits_32px(40), NAMES)
    pack(opened_whole(tmp_path / "src"), tmp_path / "packed")
    found = verify(tmp_path / "packed", workers=1, distance=-1, advance=lambda done, total: None)
    assert (found["num_examples"], found["bad"], found["ok"]) == (40, [], True)
    (data,) = (tmp_path / "packed").glob("*.tfrecord")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(bytes(content))
    found = verify(tmp_path / "packed", workers=1, distance=-1, advance=lambda done, total: None)
    assert len(found["bad"]) == 1 and not found["ok"]


def test_records_that_were_left_out_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = [cv2.imencode(".png", image)[1].tobytes() for image in digits_32px(40).images]
    records = [{"image": png, "label": k % 2} for k, png in enumerate(images)]
    (file,) = layouts.write_tfrecords(tmp_path / "tf", "train", records, 1)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # the checksum of the last record
    file.write_bytes(bytes(content))
    found = verify(tmp_path / "tf", workers=1, distance=-1, advance=lambda done, total: None)
    assert found["num_examples"] == 39 and not found["ok"]
    assert len(found["bad"]) == 1 and "checksum" in found["bad"][0]["reason"]


def deep(root: Path, bits: int, number: int = 6) -> None:
    """Different PNGs of 16 bits a pixel that use `bits` of them, in two classes."""
    random = np.random.default_rng(bits)
    for k in range(number):
        folder = root / "ab"[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{bits}-{k}.png"), random.integers(0, 1 << bits, (32, 32), dtype=np.uint16))


def test_images_of_16_bits_are_told_apart_and_seen(tmp_path: Path) -> None:
    deep(tmp_path / "data", 16)
    found = check(tmp_path / "data")
    assert (found["equal"], found["ok"]) == ([], True)
    assert [(remark["kind"], remark["count"]) for remark in found["remarks"]] == [("16 bits", 6)]
    inspect(tmp_path / "data", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        tile = np.asarray(sheet)[16:108, 2:94]
    assert 118 < tile.mean() < 138 and tile.std() > 60


def test_what_training_does_to_unusual_images_is_named(tmp_path: Path, capsys: Any) -> None:
    root = tmp_path / "data"
    deep(root, 16)
    deep(root, 12, 4)
    photo = Image.fromarray(load_sample_image("flower.jpg")).resize((40, 30))
    turned, straight = Image.Exif(), Image.Exif()
    turned[274], straight[274] = 6, 1
    photo.save(root / "a" / "turned.jpg", exif=turned)
    photo.rotate(90).save(root / "a" / "straight.jpg", exif=straight)
    photo.rotate(180).save(root / "a" / "odd.png", exif=b"Exif\0\0no such thing")
    photo.convert("L").convert("RGBA").save(root / "b" / "alpha.png")
    photo.convert("CMYK").save(root / "b" / "print.jpg")
    expected = {
        "narrow": (4, 10, "a/12-0.png"),
        "orientation": (1, 15, "a/turned.jpg"),
        "alpha": (1, 15, "b/alpha.png"),
        "16 bits": (10, 15, "a/12-0.png"),
        "cmyk": (1, 15, "b/print.jpg"),
    }
    verified, inspected = check(root, distance=-1), inspect(root, None)["splits"]["train"]
    assert verified["ok"]
    for remarks in (verified["remarks"], inspected["remarks"]):
        assert {r["kind"]: (r["count"], r["of"], r["example"]) for r in remarks} == expected
    assert main(["data", "verify", str(root), "--distance=-1"]) == ExitCode.DONE
    assert "1 of 15 images may be transparent: they are composited on white" in capsys.readouterr().out
    assert main(["data", "inspect", str(root), "--sheet", str(tmp_path / "sheet.png")]) == ExitCode.DONE
    assert "4 of 10 images of 16 bits use only the lower 14" in capsys.readouterr().out
