"""No description of a data set hangs a command, takes the machine's memory or ends in a traceback: it is named."""

import hashlib
import json
import os
import pickle
import struct
import subprocess
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.arena import Arena, Case, Cases
from tests.official_layouts import (
    PACKED_SHARD,
    masked_crc32c,
    packed_facts,
    packed_manifest,
    write_packed,
)
from tests.peak_memory import taken_by
from tl_dist.config import DataConfig
from tl_dist.datasets.division import open_splits
from tl_dist.datasets.formats.packed import open_packed
from tl_dist.files.packages import unpack
from tl_dist.refusal import ExitCode, Refusal

CASES = Cases()
INSPECT = ("data", "inspect", "set")


def test_command(case: Case, arena: Arena) -> None:
    try:
        arena.check(case)
    finally:  # folders too deep, and files too long, for whoever clears up after the tests
        subprocess.run(["rm", "-rf", arena.folder], check=True)


def described(arena: Arena, data: str) -> Sequence[str]:
    """A look at the data set of a config."""
    more = "model: {backbone: vgg16}\noptimizer: {name: sgd, learning_rate: 0.1}\nsteps: 1\n"
    arena.file("a.yaml", f"data: {data}\n{more}")
    return "data", "inspect", "a.yaml"


# ------------------------------------------------------------------------------------------- packed sets

FACTS: dict[str, Any] = {
    "no JSON": b"x" * 100,
    "empty": b"",
    "a list": [1],
    "nested too deep": b"[" * 100_000,
    "no ids": {"size": packed_facts()["size"]},
    "an id missing": packed_facts() | {"ids": ["a"]},
    "an id too many": packed_facts() | {"ids": ["a", "b", "c"]},
    "an id twice": packed_facts() | {"ids": ["a", "a"]},
    "an id of another set": packed_facts() | {"ids": ["a", "c"]},
    "ids of another type": packed_facts() | {"ids": [1, 2]},
    "ids a text": packed_facts() | {"ids": "ab"},
    "a size that lies": packed_facts() | {"size": 2**62},
    "a weight missing": packed_facts(weights=[1.0]),
    "a weight that is no number": packed_facts(weights=[1.0, float("nan")]),
    "a negative weight": packed_facts(weights=[1.0, -1.0]),
    "an infinite weight": packed_facts(weights=[1.0, 1e300]),
    "weights of another type": packed_facts(weights=[{}, []]),
    "a weight of 5,000 digits": b'{"size": 1, "ids": [], "weights": [' + b"9" * 5000 + b"]}",
    "a group missing": packed_facts(groups=["a"]),
    "groups of another type": packed_facts(groups=[1, None]),
    "half of soft labels": packed_facts(soft=[[1, 0]]),
    "a soft label out of range": packed_facts(soft=[[1, 2], [0.5, 0.5]]),
    "a soft label of 2^62": packed_facts(soft=[[1, 2**62], [0.5, 0.5]]),
    "a negative share": packed_facts(soft=[[1, 0], [0.5, -0.5]]),
}
MANIFESTS: dict[str, dict[str, Any]] = {
    "splits a list": {"splits": [1]},
    "splits without shards": {"splits": {"train": {}}},
    "shards a list": {"splits": {"train": ["x"]}},
    "a digest that is a number": {"splits": {"train": {PACKED_SHARD: 5}}},
    "another digest": {"splits": {"train": {PACKED_SHARD: "0" * 64}}},
    "class_names a number": {"class_names": 5},
    "class_names of numbers": {"class_names": [1, 2]},
    "no class": {"class_names": []},
    "a file elsewhere": {"splits": {"train": {f"../{PACKED_SHARD}": "right"}}},
}


def packed(path: Path) -> Any:
    return open_packed(DataConfig(name="packed", path=str(path), test_fraction=0.0, validation_fraction=0.0))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.usefixtures("cache")
def test_the_packed_set_that_is_changed_here_is_whole(tmp_path: Path) -> None:
    whole = packed_facts(weights=[1, 2.5], groups=["g", "h"], types=["t", "t"], soft=[[1, 0], [0.5, 1]])
    write_packed(tmp_path / "set", whole, packed_manifest())
    assert packed(tmp_path / "set")["train"].num_examples == 2


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("kind", FACTS)
def test_what_is_beside_the_records_of_a_packed_set_is_named(kind: str, tmp_path: Path) -> None:
    write_packed(tmp_path / "set", FACTS[kind], packed_manifest())
    with pytest.raises(Refusal, match=PACKED_SHARD) as refused:
        packed(tmp_path / "set")
    assert refused.value.code == ExitCode.DATA


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("kind", MANIFESTS)
def test_the_manifest_of_a_packed_set_is_named(kind: str, tmp_path: Path) -> None:
    write_packed(tmp_path / "set", packed_facts(), packed_manifest() | MANIFESTS[kind])
    with pytest.raises(Refusal, match=f"manifest.json|{PACKED_SHARD}") as refused:
        packed(tmp_path / "set")
    assert refused.value.code == ExitCode.DATA


@CASES.add("a packed label out of range", code=65, says="1 of 2 records are bad: .*label 1 is not in 0 to 0")
def _(arena: Arena) -> Sequence[str]:
    write_packed(arena.folder / "set", packed_facts(), packed_manifest() | {"class_names": ["a"]})
    return described(arena, "{name: packed, path: set, max_bad: 0}")


# ------------------------------------------------------------------------------------------- tfds, TFRecord


def tfds(arena: Arena, *, split: Any = None, classes: Any = None) -> Sequence[str]:
    described = {"name": "x", "splits": [{"name": "train", "shardLengths": ["1"], **(split or {})}]}
    arena.file("set/dataset_info.json", json.dumps(described))
    label = {"classLabel": {"numClasses": classes or 2}}
    features = {"featuresDict": {"features": {"image": {"image": {}}, "label": label}}}
    arena.file("set/features.json", json.dumps(features))
    return INSPECT


@CASES.add("a template of 9 GB", code=65, says=r"dataset_info\.json cannot be read .*is no name of a file")
def _(arena: Arena) -> Sequence[str]:
    return tfds(arena, split={"filepathTemplate": "{DATASET:>9000000000}"})


@CASES.add("a template of attributes", code=65, says=r"is no name of a file", always=False)
def _(arena: Arena) -> Sequence[str]:
    return tfds(arena, split={"filepathTemplate": "{DATASET.nope}/{DATASET.__class__}"})


@CASES.add("a template of a field that is not there", code=65, says=r"KeyError", always=False)
def _(arena: Arena) -> Sequence[str]:
    return tfds(arena, split={"filepathTemplate": "{NOPE}"})


@CASES.add("a template that leads out of the set", code=65, says="is no name of a file", always=False)
def _(arena: Arena) -> Sequence[str]:
    return tfds(arena, split={"filepathTemplate": "../../outside/thesis.tex"})


@CASES.add("a split that is a number", code=65, says="has no split train, only 5", always=False)
def _(arena: Arena) -> Sequence[str]:
    return tfds(arena, split={"name": 5})


@CASES.add("a shard of infinitely many records", code=65, says=r"dataset_info\.json", always=False)
def _(arena: Arena) -> Sequence[str]:
    return tfds(arena, split={"shardLengths": [float("inf")]})


@CASES.add("900 million classes", code=65, says="numClasses is 900000000", always=False)
def _(arena: Arena) -> Sequence[str]:
    return tfds(arena, classes=900_000_000)


@CASES.add("a name that claims 10^11 shards", code=65, says="99999999998 of 99999999999 shards are missing")
def _(arena: Arena) -> Sequence[str]:
    arena.file("set/train-00000-of-99999999999.tfrecord", b"x")
    return INSPECT


@CASES.add("a record of two gigabytes", code=65, says="the length is 2147483647, and a record has at most")
def _(arena: Arena) -> Sequence[str]:
    size = struct.pack("<Q", 2**31 - 1)
    with arena.file("set/train.tfrecord", size + struct.pack("<I", masked_crc32c(size))).open("r+b") as file:
        file.truncate(2**31 + 100)
    return INSPECT


@CASES.add("names of classes without end", code=65, says=r"labels\.txt cannot be read: is larger than", always=False)
def _(arena: Arena) -> Sequence[str]:
    arena.file("set/train.tfrecord", b"x")
    with arena.file("set/labels.txt").open("wb") as file:
        file.truncate(9 << 30)
    return INSPECT


# ------------------------------------------------------------------------------------------- tables, folders


@CASES.add("a path with a NUL", code=65, says=r"set\.csv:2: this path is none: .*embedded null (byte|character)")
def _(arena: Arena) -> Sequence[str]:
    arena.file("set.csv", "path,label\na\0.png,1\nb.png,2\n")
    return "data", "inspect", "set.csv"


@CASES.add("a million columns", code=65, says=r"set\.csv:.* more than 1,048,576 characters", always=False)
def _(arena: Arena) -> Sequence[str]:
    arena.file("set.csv", ",".join(f"c{k}" for k in range(10**6)) + "\n1,2\n")
    return "data", "inspect", "set.csv"


@CASES.add("a thousand columns, none of a path", code=65, says="there is no column 'path'", always=False)
def _(arena: Arena) -> Sequence[str]:
    arena.file("set.csv", ",".join(f"column{k}" for k in range(1000)) + "\n1,2\n")
    return "data", "inspect", "set.csv"


@CASES.add("a line of three gigabytes", code=65, says=r"set\.csv:.* more than 1,048,576 characters")
def _(arena: Arena) -> Sequence[str]:
    with arena.file("set.csv", "path,label\n").open("r+b") as file:
        file.truncate(3 << 30)
    return "data", "inspect", "set.csv"


@CASES.add("a table that is a device", code=65, says=r"set\.csv is empty", always=False)
def _(arena: Arena) -> Sequence[str]:
    (arena.folder / "set").mkdir()
    (arena.folder / "set" / "set.csv").symlink_to("/dev/zero")
    return described(arena, "{name: csv, path: set}")


@CASES.add("1,500 nested folders", code=65, says="lies deeper than 64 folders")
def _(arena: Arena) -> Sequence[str]:
    for name in "ab":
        arena.file(f"set/{name}/x.png", b"x")
    at = os.open(arena.folder / "set" / "a", os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=at)
        inner = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(at)
    return INSPECT


# ------------------------------------------------------------------------------------------- split manifests

SPLITS: dict[str, dict[str, Any]] = {
    "no train": {"splits": {"test": ["a/0", "b/0"]}},
    "a list": {"splits": ["a/0", "b/0"]},
    "a number": {"splits": 5},
    "an id that is a dictionary": {"splits": {"train": [{}]}},
    "folds of numbers": {"folds": [[1], [2]]},
    "a fold that is a number": {"folds": [1, 2]},
    "a group that is a number": {"folds": [["a/0"], ["b/0"]], "group": 5},
    "both": {"folds": [["a/0"], ["b/0"]], "splits": {"train": ["a/0", "b/0"]}},
}


def write_division(folder: Path, content: dict[str, Any]) -> Path:
    content = {"schema": 1, "seed": 0, **content}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    file = folder / "split.json"
    file.write_text(json.dumps({"digest": digest, **content}))
    (folder / "t.csv").write_text("path,label\na/0,a\nb/0,b\n")
    for name in "ab":
        (folder / name).mkdir()
        (folder / name / "0").write_bytes(b"x")
    return file


@pytest.mark.parametrize("kind", SPLITS)
def test_a_manifest_of_splits_is_named(kind: str, tmp_path: Path) -> None:
    file = write_division(tmp_path, SPLITS[kind])
    fold = 0 if "folds" in SPLITS[kind] else None
    with pytest.raises(Refusal, match=r"split\.json") as refused:
        open_splits(DataConfig(name="csv", path=str(tmp_path / "t.csv"), split=str(file), fold=fold))
    assert refused.value.code == ExitCode.UNSAFE


@CASES.add("a manifest of splits without a train split", code=78, says=r"split\.json holds neither splits")
def _(arena: Arena) -> Sequence[str]:
    write_division(arena.folder, SPLITS["no train"])
    return described(arena, "{name: csv, path: t.csv, split: split.json}")


# ------------------------------------------------------------------------------------------- CIFAR


def cifar(arena: Arena, names: bytes) -> Sequence[str]:
    arena.file("set/batches.meta", names)
    arena.file("set/data_batch_1", b"x")
    return INSPECT


def pickled(name: str, content: bytes) -> None:
    says = "batches.meta is a pickle other than the published one"
    CASES.add(name, code=78, says=says, always=name == "a key of nested tuples")(lambda arena: cifar(arena, content))


TWICE = b"".join(b"q%ch%c\x86" % (k, k) for k in range(60))
NESTED = b"".join(b"]q%c" % k + (b"(h%ch%ce" % (k - 1, k - 1) if k else b"") for k in range(34))
pickled("a key of nested tuples", b"\x80\x02})" + b"N\x85" + TWICE + b"K\1s.")
pickled("a name of nested lists", b"\x80\x02}U\x0blabel_names](" + NESTED + b"es.")
pickled("tuples 100,000 deep", b"\x80\x02})" + b"\x85" * 100_000 + b"K\1s.")
pickled("a key of 3,000 bytes of integer", pickle.dumps({1 << 24_000: 1}, protocol=2))
pickled("16 million lists", b"\x80\x02(" + b"]" * (16 << 20) + b"l.")
pickled("a memory of 2^32 places", b"\x80\x02}r\xff\xff\xff\xff.")


@CASES.add("a pickle without end", code=65, says="batches.meta cannot be read: is larger than", always=False)
def _(arena: Arena) -> Sequence[str]:
    arguments = cifar(arena, b"")
    with (arena.folder / "set" / "batches.meta").open("r+b") as file:
        file.truncate(9 << 30)
    return arguments


# ------------------------------------------------------------------------------------------- packages, weights


def wheel(target: Path, name: str, method: int = zipfile.ZIP_STORED) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", method) as archive:
        archive.writestr(name, b"content " * 100)


def damaged_bz2(target: Path) -> None:
    wheel(target, "x", zipfile.ZIP_BZIP2)
    data = bytearray(target.read_bytes())
    data[45:50] = bytes(5)
    target.write_bytes(data)


WHEELS: dict[str, Callable[[Path], None]] = {
    "a name of 400 characters": lambda target: wheel(target, "n" * 400),
    "a path of 2,000 characters": lambda target: wheel(target, "nnn/" * 500 + "x"),
    "damaged bz2": damaged_bz2,
    "LZMA": lambda target: wheel(target, "x", zipfile.ZIP_LZMA),
}


@pytest.mark.parametrize("kind", WHEELS)
def test_a_wheel_is_named_and_nothing_written(kind: str, tmp_path: Path) -> None:
    WHEELS[kind](tmp_path / "x.whl")
    with pytest.raises(Refusal, match=r"x\.whl is not unpacked") as refused:
        unpack(tmp_path / "x.whl", tmp_path / "to")
    assert refused.value.code == ExitCode.UNSAFE
    assert not (tmp_path / "to").exists()


@CASES.add("a wheel with a name of 400 characters", code=78, says="has a longer name than a file can have")
def _(arena: Arena) -> Sequence[str]:
    packages = arena.home / "cache" / "tl_dist" / "packages"
    WHEELS["a name of 400 characters"](packages / "elpv_dataset-1.0.0.post1-py3-none-any.whl")
    return described(arena, "{name: elpv}")


def test_weights_are_not_read_before_their_shapes_are_right(tmp_path: Path) -> None:
    facts = {"a/kernel": {"dtype": "F32", "shape": [3 << 28], "data_offsets": [0, 3 << 30]}}
    header = json.dumps(facts).encode()
    with (tmp_path / "x.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + (3 << 30))
    setup = f"""
from pathlib import Path
from types import SimpleNamespace
from tl_dist.models.weights import sources
from tl_dist.refusal import Refusal
import safetensors, numpy
file = Path({str(tmp_path / "x.safetensors")!r})
network = SimpleNamespace(name="tiny", weights=[SimpleNamespace(path="a/kernel", shape=(3, 2), dtype="float32")])
"""
    measured = """
try:
    sources.safetensors_of(file, file, network, SimpleNamespace(of_torch=None))
except Refusal as refused:
    assert "does not hold the weights of tiny" in str(refused), refused
else:
    raise AssertionError
"""
    assert taken_by(measured, setup=setup).grown_mb < 100
