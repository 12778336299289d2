"""CIFAR: either official format gives the same examples, and a pickle can do nothing but hold arrays."""

from __future__ import annotations

import os
import pickle
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.official_layouts import (
    CIFAR10_NAMES,
    CIFAR100_COARSE_NAMES,
    CIFAR100_FINE_NAMES,
    Labelled,
    digits_32px,
    numbers_32px,
    write_cifar10_binary,
    write_cifar10_python,
    write_cifar100_binary,
    write_cifar100_python,
    write_python2_pickle,
)
from tl_dist.config import DataConfig
from tl_dist.datasets import Source, Splits, manifest
from tl_dist.datasets.array_pickle import load_array_pickle
from tl_dist.datasets.formats.cifar import open_cifar10, open_cifar100
from tl_dist.refusal import ExitCode, Refusal


def cifar10(path: Path, **options: Any) -> Splits:
    return open_cifar10(DataConfig(name="cifar10", path=str(path), **options))


def cifar100(path: Path, **options: Any) -> Splits:
    return open_cifar100(DataConfig(name="cifar100", path=str(path), **options))


def all_examples(source: Source) -> Labelled:
    pairs = tf.data.Dataset.range(source.num_examples).map(source.read).as_numpy_iterator()
    images, labels = zip(*pairs, strict=True)
    return Labelled(np.stack(images), np.array(labels))


@pytest.fixture(scope="module")
def digits() -> tuple[Labelled, Labelled]:
    return digits_32px(150), digits_32px(40, start=150)


@pytest.fixture(scope="module")
def numbers() -> tuple[Labelled, Labelled]:
    return numbers_32px(400), numbers_32px(200, start=400)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, digits: Any, numbers: Any) -> dict[str, Path]:
    """A parent directory for each format, so that neither is found in place of the other."""
    parents = {kind: tmp_path_factory.mktemp(kind) for kind in ("python", "binary")}
    write_cifar10_python(parents["python"], *digits)
    write_cifar10_binary(parents["binary"], *digits)
    write_cifar100_python(parents["python"], *numbers)
    write_cifar100_binary(parents["binary"], *numbers)
    return parents


@pytest.mark.parametrize("kind", ["python", "binary"])
def test_cifar10_reads_the_pixels_and_labels_that_were_written(kind: str, files: Any, digits: Any) -> None:
    splits = cifar10(files[kind])
    assert set(splits) == {"train", "test"}
    for source, written in zip((splits["train"], splits["test"]), digits, strict=True):
        read = all_examples(source)
        np.testing.assert_array_equal(read.images, written.images)
        np.testing.assert_array_equal(read.labels, written.labels)
        np.testing.assert_array_equal(source.labels, written.labels)
        assert tuple(source.class_names) == CIFAR10_NAMES


@pytest.mark.parametrize("kind", ["python", "binary"])
@pytest.mark.parametrize(
    ("labels", "names"), [("fine", CIFAR100_FINE_NAMES), ("coarse", CIFAR100_COARSE_NAMES)]
)
def test_cifar100_reads_either_kind_of_label(
    kind: str, labels: str, names: Any, files: Any, numbers: Any
) -> None:
    splits = cifar100(files[kind], labels=labels)
    for source, written in zip((splits["train"], splits["test"]), numbers, strict=True):
        read = all_examples(source)
        np.testing.assert_array_equal(read.images, written.images)
        np.testing.assert_array_equal(read.labels, written.labels // (5 if labels == "coarse" else 1))
        assert (source.num_classes, tuple(source.class_names)) == (len(names), names)


@pytest.mark.parametrize("open_it", [cifar10, cifar100])
def test_both_formats_are_one_dataset(open_it: Any, files: Any) -> None:
    python, binary = (
        manifest(open_it(files[kind], validation_fraction=0.25)) for kind in ("python", "binary")
    )
    assert python == binary


def test_fine_and_coarse_labels_share_one_split(files: Any) -> None:
    fine, coarse = (cifar100(files["binary"], labels=k, validation_fraction=0.25) for k in ("fine", "coarse"))
    assert fine["validation"].ids == coarse["validation"].ids
    assert set(np.bincount(fine["validation"].labels, minlength=100)) == {1}
    assert set(np.bincount(coarse["validation"].labels, minlength=20)) == {5}


def test_the_directory_itself_is_found_too(files: Any) -> None:
    assert cifar10(files["python"] / "cifar-10-batches-py")["train"].num_examples == 150
    assert cifar100(files["binary"] / "cifar-100-binary")["test"].num_examples == 200


def test_the_graph_does_not_hold_the_images(files: Any) -> None:
    read = tf.function(cifar10(files["binary"])["train"].read).get_concrete_function(
        tf.TensorSpec([], tf.int64)
    )
    assert read.graph.as_graph_def().ByteSize() < 10_000 < 150 * 3072
    assert len(read.captured_inputs) == 2


def test_a_pickle_of_python_3_is_read_as_well(tmp_path: Path, digits: Any) -> None:
    root = write_cifar10_python(tmp_path, *digits)
    expected = cifar10(tmp_path)["train"].fingerprint
    for file in [*root.glob("data_batch_*"), root / "test_batch", root / "batches.meta"]:
        content = {key: value for key, value in load_array_pickle(file).items() if key != "filenames"}
        for protocol in (2, 4):
            file.write_bytes(pickle.dumps(content, protocol=protocol))
            assert cifar10(tmp_path)["train"].fingerprint == expected


@pytest.mark.parametrize("protocol", [0, 2, 3, 4])
def test_ten_thousand_names_in_bytes_are_read_whatever_wrote_them(protocol: int, tmp_path: Path) -> None:
    names = [b"digit_s_%06d.png" % k for k in range(10_000)]
    arrays = {b"labels": np.arange(10), b"more": np.arange(10)}  # of one type, which is there once
    (tmp_path / "batch").write_bytes(pickle.dumps({b"filenames": names, **arrays}, protocol=protocol))
    found = load_array_pickle(tmp_path / "batch")
    assert found["filenames"] == names
    assert found["more"].tolist() == list(range(10))


@pytest.mark.parametrize("kind", ["python", "binary"])
def test_the_fingerprint_follows_pixels_labels_and_order(kind: str, tmp_path: Path, digits: Any) -> None:
    train, test = digits
    write = write_cifar10_python if kind == "python" else write_cifar10_binary
    one_label, one_pixel = train.labels.copy(), train.images.copy()
    one_label[7] = (one_label[7] + 1) % 10
    one_pixel[7, 3, 3, 1] ^= 1
    swapped = np.arange(len(train.labels))
    swapped[[3, 4]] = [4, 3]
    variants = [
        train,
        Labelled(train.images, one_label),
        Labelled(one_pixel, train.labels),
        Labelled(train.images[swapped], train.labels[swapped]),
    ]
    fingerprints = set()
    for k, variant in enumerate(variants):
        write(tmp_path / str(k), variant, test)
        fingerprints.add(cifar10(tmp_path / str(k))["train"].fingerprint)
    assert len(fingerprints) == len(variants)


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        *(("binary", name) for name in ("data_batch_3.bin", "test_batch.bin", "batches.meta.txt")),
        *(("python", name) for name in ("data_batch_3", "test_batch", "batches.meta")),
    ],
)
def test_a_missing_file_is_named(kind: str, file: str, tmp_path: Path, digits: Any) -> None:
    root = (write_cifar10_python if kind == "python" else write_cifar10_binary)(tmp_path, *digits)
    (root / file).unlink()
    with pytest.raises(Refusal) as refused:
        cifar10(tmp_path)
    assert str(root / file) in refused.value.what
    assert refused.value.code == ExitCode.DATA


def test_without_any_file_both_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refused:
        cifar100(tmp_path)
    assert str(tmp_path / "cifar-100-binary" / "train.bin") in str(refused.value)
    assert str(tmp_path / "cifar-100-python" / "train") in str(refused.value)
    assert "cs.toronto.edu" in refused.value.fix


def test_a_label_out_of_range_is_refused_with_file_and_record(tmp_path: Path, digits: Any) -> None:
    train, test = digits
    labels = train.labels.copy()
    labels[31] = 10
    for write in (write_cifar10_binary, write_cifar10_python):
        root = write(tmp_path / write.__name__, Labelled(train.images, labels), test)
        with pytest.raises(Refusal, match=r"data_batch_2.*record 1 .*label 10") as refused:
            cifar10(root)
        assert refused.value.code == ExitCode.DATA


def test_a_cut_off_file_is_refused(tmp_path: Path, digits: Any) -> None:
    file = write_cifar10_binary(tmp_path, *digits) / "data_batch_1.bin"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(Refusal, match=r"data_batch_1\.bin.*cut off"):
        cifar10(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        {b"labels": [0]},
        {b"labels": [0], b"data": np.zeros((1, 10), np.uint8)},
        {b"labels": [0, 1], b"data": np.zeros((1, 3072), np.uint8)},
        {b"labels": [0.5], b"data": np.zeros((1, 3072), np.uint8)},
        {b"labels": b"0", b"data": np.zeros((1, 3072), np.uint8)},
        {b"labels": [2**40], b"data": np.zeros((1, 3072), np.uint8)},
        [1, 2],
    ],
)
def test_a_pickle_of_another_shape_is_refused(content: Any, tmp_path: Path, digits: Any) -> None:
    file = write_cifar10_python(tmp_path, *digits) / "data_batch_4"
    write_python2_pickle(file, content)
    with pytest.raises(Refusal, match="data_batch_4") as refused:
        cifar10(tmp_path)
    assert refused.value.code == ExitCode.DATA


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
HOSTILE = {
    "a command": pickle.dumps({b"data": Calls(os.system, "touch $MARK")}, protocol=2),
    "a command, nested": pickle.dumps([[{1: (Calls(os.system, "touch $MARK"),)}]], protocol=5),
    "eval": pickle.dumps(Calls(eval, "1")),
    "getattr": pickle.dumps(Calls(getattr, 1, "real")),
    "import": b"cimportlib\nimport_module\n(U\x02ostR.",
    "the old opcode of an instance": b"(U\x01xios\nsystem\n.",
    "array of objects": b"cnumpy\ndtype\n(U\x01OK\x00K\x01tR.",
    "array of records": b"cnumpy\ndtype\n(U\x02V8K\x00K\x01tR.",
    "codec": b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.",
    "numpy loader": b"cnumpy\nload\n(U\x01xtR.",
    "array of another class": b"cnumpy.core.multiarray\n_reconstruct\n(K\x01(K\x00tU\x01btR.",
    "object elsewhere": b"Pelsewhere\n.",
    "text that grows": b"](c_codecs\nencode\nq\x00(X\xff\x00\x00\x00"
    + b"x" * 255
    + b"q\x01X\x06\x00\x00\x00latin1q\x02tR"
    + b"h\x00(h\x01h\x02tR" * 1000
    + b"e.",
}
BROKEN = {
    "empty file": b"",
    "cut off": pickle.dumps({b"data": [1, 2, 3]})[:-5],
    "no pickle": b"<html>",
    "array called": b"cnumpy\nndarray\n((J\x00\x00\x00\x7ftU\x01OtR.",
    "attribute set on a name": b"cnumpy.core.multiarray\n_reconstruct\n(N}U\x08__func__K\x01stb.",
    "attribute set on a class": b"cnumpy\nndarray\n(N}U\x01xK\x01stb.",
    "array that claims too much": ARRAY
    + b"(K\x01(J\xff\xff\xff\x7ftcnumpy\ndtype\n(U\x02u1K\x00K\x01tRI00\nU\x01atb.",
    "array of negative size": ARRAY
    + b"(K\x01(J\xff\xff\xff\xfftcnumpy\ndtype\n(U\x02u1K\x00K\x01tRI00\nU\x01atb.",
    "list": pickle.dumps([1]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "mark"
    monkeypatch.setenv("MARK", str(mark))
    (tmp_path / "batch").write_bytes(HOSTILE[name])
    with pytest.raises(Refusal, match="batch is a pickle that asks for") as refused:
        load_array_pickle(tmp_path / "batch")
    assert refused.value.code == ExitCode.UNSAFE
    assert not mark.exists()


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_pickle_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "batch").write_bytes(BROKEN[name])
    with pytest.raises(Refusal, match="batch cannot be read") as refused:
        load_array_pickle(tmp_path / "batch")
    assert refused.value.code == ExitCode.DATA


def test_a_pickle_cannot_change_what_its_names_stand_for(tmp_path: Path) -> None:
    # State for the shared object that stands for uint8: NumPy must ignore it.
    state = b"(K\x03U\x01>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb"
    (tmp_path / "batch").write_bytes(b"}U\x04typecnumpy\ndtype\n(U\x02u1K\x00K\x01tR" + state + b"s.")
    load_array_pickle(tmp_path / "batch")
    assert (np.dtype("u1").byteorder, np.dtype("u1").itemsize, np.dtype("u1").hasobject) == ("|", 1, False)


def test_a_damaged_pickle_is_read_or_refused_and_nothing_else(tmp_path: Path, digits: Any) -> None:
    original = (write_cifar10_python(tmp_path, *digits) / "batches.meta").read_bytes()
    draw = random.Random(0)
    file = tmp_path / "damaged"
    for _ in range(500):
        content = bytearray(original)
        for _ in range(draw.randint(1, 3)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        file.write_bytes(content)
        with suppress(Refusal):
            load_array_pickle(file)
