"""CIFAR: either official format gives the same examples, and no pickle is loaded but the published ones."""

import io
import os
import pickle
import re
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
    published,
    write_cifar10_binary,
    write_cifar10_python,
    write_cifar100_binary,
    write_cifar100_python,
)
from tl_dist.config import DataConfig
from tl_dist.datasets import Source, Splits, manifest
from tl_dist.datasets.formats import cifar
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
    """A parent directory for each format, so that neither is found instead of the other."""
    parents = {kind: tmp_path_factory.mktemp(kind) for kind in ("python", "binary")}
    write_cifar10_python(parents["python"], *digits)
    write_cifar10_binary(parents["binary"], *digits)
    write_cifar100_python(parents["python"], *numbers)
    write_cifar100_binary(parents["binary"], *numbers)
    return parents


@pytest.fixture(autouse=True)
def _published(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the pickles of the tests for those that were published."""
    monkeypatch.setattr(cifar, "PUBLISHED", published(files["python"]))


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
@pytest.mark.parametrize(("labels", "names"), [("fine", CIFAR100_FINE_NAMES), ("coarse", CIFAR100_COARSE_NAMES)])
def test_cifar100_reads_either_kind_of_label(kind: str, labels: str, names: Any, files: Any, numbers: Any) -> None:
    splits = cifar100(files[kind], labels=labels)
    for source, written in zip((splits["train"], splits["test"]), numbers, strict=True):
        read = all_examples(source)
        np.testing.assert_array_equal(read.images, written.images)
        np.testing.assert_array_equal(read.labels, written.labels // (5 if labels == "coarse" else 1))
        assert (source.num_classes, tuple(source.class_names)) == (len(names), names)


@pytest.mark.parametrize("open_it", [cifar10, cifar100])
def test_both_formats_are_one_dataset(open_it: Any, files: Any) -> None:
    python, binary = (manifest(open_it(files[kind], validation_fraction=0.25)) for kind in ("python", "binary"))
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
    read = tf.function(cifar10(files["binary"])["train"].read).get_concrete_function(tf.TensorSpec([], tf.int64))
    assert read.graph.as_graph_def().ByteSize() < 10_000 < 150 * 3072
    assert len(read.captured_inputs) == 2


@pytest.mark.parametrize("kind", ["python", "binary"])
def test_the_fingerprint_follows_pixels_labels_and_order(
    kind: str, tmp_path: Path, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        root = write(tmp_path / str(k), variant, test)
        monkeypatch.setattr(cifar, "PUBLISHED", published(root))
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
    root = write_cifar10_binary(tmp_path, Labelled(train.images, labels), test)
    with pytest.raises(Refusal, match=r"data_batch_2.*record 1 .*label 10") as refused:
        cifar10(root)
    assert refused.value.code == ExitCode.DATA


def test_a_cut_off_file_is_refused(tmp_path: Path, digits: Any) -> None:
    file = write_cifar10_binary(tmp_path, *digits) / "data_batch_1.bin"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(Refusal, match=r"data_batch_1\.bin.*cut off"):
        cifar10(tmp_path)


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


HOSTILE = {
    "a command": pickle.dumps({b"data": Calls(os.system, "touch $MARK")}, protocol=2),
    "a command, nested": pickle.dumps([[{1: (Calls(os.system, "touch $MARK"),)}]], protocol=5),
    "eval": pickle.dumps(Calls(eval, "1")),
    "getattr": pickle.dumps(Calls(getattr, 1, "real")),
    "import": b"cimportlib\nimport_module\n(U\x02ostR.",
    "the old opcode of an instance": b"(U\x01xios\nsystem\n.",
    "codec": b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.",
    "numpy loader": b"cnumpy\nload\n(U\x01xtR.",
    "object elsewhere": b"Pelsewhere\n.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_and_could_not_run_if_it_were_published(
    name: str, files: Any, tmp_path: Path, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    root = write_cifar10_python(tmp_path, *digits)
    (root / "data_batch_4").write_bytes(HOSTILE[name])
    with pytest.raises(Refusal, match="data_batch_4 is a pickle other than the published one") as refused:
        cifar10(tmp_path)
    assert refused.value.code == ExitCode.UNSAFE and "binary version" in refused.value.fix
    with pytest.raises(pickle.UnpicklingError, match=r"asks for|persistent"):
        cifar._Unpickler(io.BytesIO(HOSTILE[name])).load()
    assert not (tmp_path / "mark").exists()


def test_one_changed_byte_of_a_pickle_is_refused(tmp_path: Path, digits: Any) -> None:
    file = write_cifar10_python(tmp_path, *digits) / "batches.meta"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(Refusal, match=r"batches\.meta is a pickle other than the published one"):
        cifar10(tmp_path)


OFFICIAL = dict(cifar.PUBLISHED)


def test_each_file_that_is_read_as_a_pickle_has_a_digest() -> None:
    kinds = (cifar._CIFAR10, cifar._CIFAR100)
    assert OFFICIAL.keys() == {name for k in kinds for name in (*k.train, k.test, k.names)}
    assert all(re.fullmatch(r"[0-9a-f]{32}", digest) for digest in OFFICIAL.values())
