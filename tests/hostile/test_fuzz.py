"""Every parser of a foreign file ends with a value or its own error, soon and in bounded memory, whatever it gets.

The suite plays the same few hundred inputs each time, --full some ten thousand. For longer:
`python -m tests.hostile.test_fuzz TARGET SECONDS` (of the CPU), from another seed each time.
"""

import functools
import hashlib
import io
import json
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from tests.image_kinds import exif
from tests.official_layouts import (
    masked_crc32c,
    packed_facts,
    packed_manifest,
    varint,
    write_packed,
)
from tl_dist.config import DataConfig, registry, yaml_text
from tl_dist.datasets.curation import images as curated
from tl_dist.datasets.division import open_splits, read_manifest
from tl_dist.datasets.example_proto import parse
from tl_dist.datasets.formats.csv_file import open_csv
from tl_dist.datasets.formats.packed import open_packed
from tl_dist.datasets.formats.tfds import open_tfds
from tl_dist.datasets.headers import checked, fault
from tl_dist.datasets.preprocess import FORMATS, exif_orientation, jpeg_orientation
from tl_dist.datasets.shard_index import read_shard
from tl_dist.datasets.store import Location
from tl_dist.models.weights import hdf5, sources, torch_files
from tl_dist.models.weights import keras_files as readers
from tl_dist.refusal import Refusal

MEMORY = 1 << 30  # bytes that a parser may add to those of the process
DEADLINE = timedelta(seconds=10)  # of one input, on a machine that others use too
EXAMPLES = {False: 40, True: 2_000}  # of each target; with --full


class Target(NamedTuple):
    inputs: st.SearchStrategy[Any]
    play: Callable[[Any, Path], object]
    """parses one input, in an empty directory; raises what the parser must not raise"""
    found: list[Any]
    """inputs that once broke it"""


TARGETS: dict[str, Target] = {}


Play = Callable[[Any, Path], object]


def target(name: str, inputs: st.SearchStrategy[Any], found: list[Any]) -> Callable[[Play], None]:
    return lambda play: TARGETS.update({name: Target(inputs, play, found)})


# ------------------------------------------------------------------------------------------- inputs


@st.composite
def damaged(draw: st.DrawFn, whole: Callable[[], list[bytes]]) -> bytes:
    """One of these files after a few edits, or anything."""
    data = bytearray(draw(st.sampled_from(whole())))
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    for _ in range(draw(st.integers(0, 5))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["set", "number", "insert", "delete", "repeat"])):
            case "set":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "number":
                form = draw(st.sampled_from(["<I", ">I", "<Q", ">Q", "<H", ">H"]))
                number = draw(st.sampled_from([0, 1, 0x7F, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**63, 2**64 - 1]))
                packed = struct.pack(form, number % 2 ** (8 * struct.calcsize(form)))
                data[at : at + len(packed)] = packed
            case "insert":
                data[at:at] = draw(st.binary(max_size=20))
            case "delete":
                del data[at : at + draw(st.integers(1, 50))]
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 30))] * draw(st.integers(1, 200))
    return bytes(data)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([10**400, 2**62, -1, "", "..", "/", "\0", "x" * 300]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=6,
)


@st.composite
def mangled(draw: st.DrawFn, whole: Callable[[], Any]) -> Any:
    """A JSON value in which a few places hold another one."""
    content = whole()
    for _ in range(draw(st.integers(1, 3))):
        place = content
        while isinstance(place, dict | list) and place:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if not isinstance(place[key], dict | list) or draw(st.integers(0, 2)) == 0:
                place[key] = draw(VALUES)
                break
            place = place[key]
    return content


# ------------------------------------------------------------------------------------------- targets


@functools.cache
def images() -> list[bytes]:
    picture = Image.radial_gradient("L").resize((21, 17))
    made = []
    for kind, mode in (
        ("PNG", "RGB"),
        ("JPEG", "RGB"),
        ("GIF", "P"),
        ("BMP", "P"),
        ("WEBP", "RGB"),
        ("PNG", "I;16"),
        ("PNG", "RGBA"),
        ("TIFF", "RGB"),
    ):
        target_file = io.BytesIO()
        takes_exif = (kind, mode) in (("JPEG", "RGB"), ("PNG", "RGBA"), ("WEBP", "RGB"))
        more = {"exif": b"Exif\0\0" + exif(6)} if takes_exif else {}
        picture.convert(mode).save(target_file, kind, **more)
        made.append(target_file.getvalue())
    frames = io.BytesIO()
    picture.save(frames, "GIF", save_all=True, append_images=[picture.rotate(90)], comment=b"c" * 300)
    return [*made, frames.getvalue()]


@target("image headers", damaged(images), [])
def _(data: bytes, folder: Path) -> None:
    (folder / "image").write_bytes(data)
    found = fault(Location(folder / "image"))
    if found is None:
        assert checked(data).width
        with warnings.catch_warnings(), suppress(*curated.ERRORS):
            warnings.simplefilter("ignore")
            curated.traits(Image.open(io.BytesIO(data), formats=FORMATS))
    assert 1 <= jpeg_orientation(data) <= 8 and 1 <= exif_orientation(data) <= 8


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def record(image: bytes, label: int) -> bytes:
    features = {
        b"image/encoded": field(1, field(1, image)),
        b"image/class/label": field(3, field(1, varint(label))),
        b"image/class/text": field(1, field(1, b"cat")),
    }
    return field(1, b"".join(field(1, field(1, key) + field(2, value)) for key, value in features.items()))


RECORDS = damaged(lambda: [record(b"\xff\xd8" * 40, 3), record(b"P", -1), record(b"x" * 300, 2**40)])


OF_65_BITS = record(b"P", -1).replace(varint(-1), b"\xff" * 9 + b"\x03")


@target("example_proto", RECORDS, [OF_65_BITS])
def _(data: bytes, folder: Path) -> None:
    with suppress(ValueError):
        example = parse(data)
        assert -(2**63) <= example.label < 2**63
        assert 0 <= example.offset <= example.offset + example.size <= len(data)


SHARDS = st.tuples(
    st.lists(
        st.tuples(RECORDS, st.booleans(), st.integers(0, 9), st.sampled_from([0, 2**28, 2**31 - 1, 2**63])),
        max_size=5,
    ),
    st.integers(0, 40),
)


@target("shard index", SHARDS, [([(OF_65_BITS, True, 1, 0)], 0)])
def _(shard: tuple[list[tuple[bytes, bool, int, int]], int], folder: Path) -> None:
    content = b""
    for data, right, lies, length in shard[0]:
        size = struct.pack("<Q", len(data) if lies else length)
        content += size + struct.pack("<I", masked_crc32c(size)) + data
        content += struct.pack("<I", masked_crc32c(data) if right else 0)
    (folder / "x.tfrecord").write_bytes(content[: len(content) - shard[1] if shard[1] < 20 else None])
    found = read_shard(folder / "x.tfrecord")
    assert len(found.labels) + len(found.bad) <= len(shard[0]) + 1


CONFIG = """\
%YAML 1.2
---
name: x   # a comment
data: &d {name: digits, "path": "a\\x41\\u0041\\U00000041", augment: [flip, 1e-4, .5, ~]}
model:
  backbone: tiny
  more: *d
  text: >-
    folded
    lines
steps: 10
"""
SIGNS = r"""
{ } [ ] , ' " # | + - ~ a: b: ? |- >- &a *a !!str !x <<: ... --- %YAML %TAG 1. null true 1e 0x .inf
9999999999 \ \x \u \U FFFF 0000 \e \_ \N
"""
TOKENS = [*SIGNS.split(), *"    \n\n\t\r\0\x85\u2028\ufeff\U0001f600é"]
YAML_TEXT = st.lists(st.sampled_from(TOKENS), max_size=30).map("".join)
CONFIGS = damaged(lambda: [CONFIG.encode()]).map(lambda data: data.decode("utf-8", "replace"))


@target("YAML text", CONFIGS | YAML_TEXT, [])
def _(text: str, folder: Path) -> None:
    with suppress(Refusal):
        yaml_text.parse(text, "a.yaml")


def packed() -> Any:
    annotations = {
        "weights": [1.0, 2.0],
        "groups": ["g", "h"],
        "types": ["t", "t"],
        "soft": [[1, 0], [0.5, 1.0]],
    }
    manifest = packed_manifest()
    manifest["splits"]["test"] = dict(manifest["splits"]["train"])
    return {"facts": packed_facts(**annotations), "manifest": manifest}


@target("packed set", mangled(packed), [])
def _(content: Any, folder: Path) -> None:
    facts, manifest = (content.get(key) if isinstance(content, dict) else content for key in ("facts", "manifest"))
    write_packed(folder, facts, manifest)
    with suppress(Refusal):
        for source in open_packed(data(folder, "packed")).values():
            assert set(source.labels.tolist()) <= set(range(source.num_classes))
            assert len(source.ids) == source.num_examples and source.fingerprint


def data(path: Path, name: str, **more: Any) -> DataConfig:
    return DataConfig(name=name, path=str(path), test_fraction=0.0, validation_fraction=0.0, **more)


def info() -> Any:
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    split = {"name": "train", "shardLengths": ["2"], "filepathTemplate": template}
    described = {"name": "x", "fileFormat": "tfrecord", "splits": [split]}
    classes = {"image": {"image": {"dtype": "uint8"}}, "label": {"classLabel": {"numClasses": "2"}}}
    return {"info": described, "features": {"featuresDict": {"features": classes}}}


@target("tfds", mangled(info), [])
def _(content: Any, folder: Path) -> None:
    (folder / "dataset_info.json").write_text(json.dumps(content["info"] if isinstance(content, dict) else content))
    (folder / "features.json").write_text(json.dumps(content["features"] if isinstance(content, dict) else content))
    payload = record(b"\xff\xd8x", 1)
    size = struct.pack("<Q", len(payload))
    parts = (size, struct.pack("<I", masked_crc32c(size)), payload, struct.pack("<I", masked_crc32c(payload)))
    (folder / "x-train.tfrecord-00000-of-00001").write_bytes(b"".join(parts) * 2)
    with suppress(Refusal):
        open_tfds(data(folder, "tfds"))


def division() -> Any:
    return {
        "schema": 1,
        "seed": 0,
        "group": None,
        "splits": {"train": ["a/1", "b/1"], "test": ["a/2", "b/2"]},
    }


def folds() -> Any:
    return {"schema": 1, "seed": 0, "group": "^([^/]*)/", "folds": [["a/1", "b/1"], ["a/2", "b/2"]]}


@target("split manifest", mangled(division) | mangled(folds), [])
def _(content: Any, folder: Path) -> None:
    if isinstance(content, dict):
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        content = {"digest": digest, **content}
    (folder / "split.json").write_text(json.dumps(content))
    (folder / "t.csv").write_text("path,label\na/1,a\na/2,a\nb/1,b\nb/2,b\n")
    for name in ("a/1", "a/2", "b/1", "b/2"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    with suppress(Refusal):
        folded = "folds" in read_manifest(folder / "split.json")
        open_splits(data(folder / "t.csv", "csv", split=str(folder / "split.json"), fold=0 if folded else None))


@target("CSV table", damaged(lambda: [b'path,label,weight,split,group\nx,1,0.5,train,g\n"y",2,,test,\n']), [])
def _(content: bytes, folder: Path) -> None:
    for name in ("x", "y"):
        (folder / name).write_bytes(b"x")
    (folder / "t.csv").write_bytes(content)
    with suppress(Refusal):
        open_csv(data(folder / "t.csv", "csv"))


KERNEL = SimpleNamespace(path="a/kernel", shape=(3, 2), dtype="float32")
LAYER = SimpleNamespace(weights=[KERNEL], trainable_weights=[KERNEL], non_trainable_weights=[])
NETWORK: Any = SimpleNamespace(name="tiny", weights=[KERNEL], layers=[LAYER])


@functools.cache
def weights() -> list[bytes]:
    return [safetensors.numpy.save({"a/kernel": np.ones((3, 2), kind)}) for kind in (np.float32, np.float16, np.int8)]


@target("safetensors", damaged(weights), [])
def _(content: bytes, folder: Path) -> None:
    (folder / "x.safetensors").write_bytes(content)
    with suppress(Refusal):
        sources.safetensors_of(folder / "x.safetensors", folder / "x.safetensors", NETWORK, registry.backbone("tiny"))


@functools.cache
def torch_saves() -> list[bytes]:
    files = []
    for as_zip in (True, False):
        file, tensors = io.BytesIO(), {"w": torch.ones(3, 2), "h": torch.ones(2).half()}
        torch.save({"model": tensors}, file, _use_new_zipfile_serialization=as_zip)
        files.append(file.getvalue())
    return files


LONG_MEMO = b"\x80\x02Nr" + b"\xff" * 4 + b"."
LONG_TEXT = b"\x80\x05\x96" + b"\xff" * 5 + b"\0\0\0abc."


@target("torch.save", damaged(torch_saves), [LONG_MEMO, LONG_TEXT])
def _(content: bytes, folder: Path) -> None:
    (folder / "x.pth").write_bytes(content)
    with suppress(Refusal):
        torch_files.read(folder / "x.pth")


@functools.cache
def keras_files() -> list[bytes]:
    target_file = io.BytesIO()
    with h5py.File(target_file, "w") as file:
        file.create_dataset("layers/dense/vars/0", data=np.ones((3, 2), np.float32))
        file.attrs["layer_names"] = [b"dense"]
        file["dense/kernel"] = np.ones(3)
    return [target_file.getvalue()]


def in_a_process(read: Callable[[], object], *errors: type[Exception]) -> None:
    """Files that HDF5's library never returns from end the process that reads them: here a fork, and sooner."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        hdf5.limits.HDF5_CPU_S = 2
        try:
            with suppress(Refusal, *errors):
                read()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] in (0, signal.SIGVTALRM)


def one_name() -> bytes:
    """A file whose list of names is a text by itself."""
    target_file = io.BytesIO()
    with h5py.File(target_file, "w") as file:
        file.attrs["layer_names"] = "dense"
    return target_file.getvalue()


# Names of an attribute and of a group that are no text.
NO_TEXT = [keras_files()[0].replace(name, b"\xff" + name[1:]) for name in (b"layer_names", b"kernel")]


@target("HDF5", damaged(keras_files), [*NO_TEXT, one_name()])
def _(content: bytes, folder: Path) -> None:
    (folder / "x.h5").write_bytes(content)
    in_a_process(lambda: hdf5.read(folder / "x.h5"))


@functools.cache
def keras_archives() -> list[bytes]:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", keras_files()[0])
    return [file.getvalue()]


@target(".keras file", damaged(keras_archives), [])
def _(content: bytes, folder: Path) -> None:
    path = folder / "x.keras"
    path.write_bytes(content)
    in_a_process(lambda: readers.of_archive(path, NETWORK), ValueError)
    assert os.listdir(folder) == ["x.keras"]


# ------------------------------------------------------------------------------------------- play


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Past MEMORY an allocation fails, which no parser may answer with anything but its own error."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData")]
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(line.split()[1]) * 1024 + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def play(name: str, *, examples: int, begin: int | None = None) -> None:
    """Some inputs of one target; always the same ones unless `begin` is given."""

    @settings(
        max_examples=examples,
        derandomize=begin is None,
        deadline=DEADLINE,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(TARGETS[name].inputs)
    def check(content: Any) -> None:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            TARGETS[name].play(content, Path(folder))

    with bounded_memory():
        (check if begin is None else seed(begin)(check))()


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_ends_with_a_value_or_its_own_error(
    name: str, pytestconfig: pytest.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for k, content in enumerate(TARGETS[name].found):
        (tmp_path / f"found{k}").mkdir()
        TARGETS[name].play(content, tmp_path / f"found{k}")
    play(name, examples=EXAMPLES[pytestconfig.option.full])


if __name__ == "__main__":
    _end, _rounds = sum(os.times()[:4]) + float(sys.argv[2]), 0  # of this process and its forks
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="fuzz-cache-")
    while sum(os.times()[:4]) < _end:
        play(sys.argv[1], examples=500, begin=random.randrange(2**32))
        _rounds += 1
    print(f"{sys.argv[1]}: {500 * _rounds:,} inputs, and nothing found")
