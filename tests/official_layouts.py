"""Writers of real images in the layouts that datasets are published in, to the byte and the pickle's opcode.

The images are scikit-learn's digits and cells of ELPV: the formats are the official ones, not the pictures.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from tl_dist.datasets.example_proto import serialize
from tl_dist.datasets.shard_index import framed

CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_COARSE_NAMES = tuple(f"numbers_from_{5 * k}" for k in range(20))
CIFAR100_FINE_NAMES = tuple(f"number_{k}" for k in range(100))


class Labelled(NamedTuple):
    """images uint8 [n, 32, 32, 3], labels int [n]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def part(self, start: int, stop: int) -> Labelled:
        return Labelled(self.images[start:stop], self.labels[start:stop])


def digits_32px(num: int, *, start: int = 0) -> Labelled:
    """Digits of scikit-learn in 32 x 32 RGB, class 0 to 9."""
    bunch = load_digits()
    rows = np.arange(start, start + num) % len(bunch.images)
    return Labelled(_tinted(np.kron(bunch.images[rows], np.ones((4, 4)))), bunch.target[rows])


def numbers_32px(num: int, *, start: int = 0) -> Labelled:
    """Two digits side by side in 32 x 32 RGB, class 0 to 99; each class is there equally often."""
    bunch = load_digits()
    labels = np.arange(start, start + num) % 100
    by_digit = [bunch.images[bunch.target == digit] for digit in range(10)]
    halves = [
        np.stack([by_digit[d][(start + k) % len(by_digit[d])] for k, d in enumerate(digits)])
        for digits in (labels // 10, labels % 10)
    ]
    return Labelled(_tinted(np.kron(np.concatenate(halves, axis=2), np.ones((4, 2)))), labels)


def cells_32px(elpv: Path, num: int) -> Labelled:
    """Cells of ELPV (`elpv` holds labels.csv) in 32 x 32 RGB.

    The class, 0 to 7, is four times the type plus three times the defect probability.
    """
    rows = [line.split() for line in (elpv / "labels.csv").read_text().splitlines()[:: 2624 // num]][:num]
    cells = [Image.open(elpv / path).convert("RGB").resize((32, 32)) for path, _, _ in rows]
    labels = [4 * (kind == "poly") + round(3 * float(probability)) for _, probability, kind in rows]
    return Labelled(np.stack([np.asarray(cell) for cell in cells]), np.array(labels))


def _tinted(grey: NDArray[Any]) -> NDArray[np.uint8]:
    """0..16 as RGB whose channels differ, so that a mistaken order of channels shows."""
    tinted: NDArray[np.uint8] = np.rint(grey[..., np.newaxis] * np.array([15, 11, 6])).astype(np.uint8)
    return tinted


def write_cifar10_python(parent: Path, train: Labelled, test: Labelled) -> Path:
    """`cifar-10-batches-py` as cifar-10-python.tar.gz unpacks it."""
    root = parent / "cifar-10-batches-py"
    root.mkdir(parents=True)
    names = [name.encode() for name in CIFAR10_NAMES]
    meta = {b"num_cases_per_batch": len(train.labels) // 5, b"label_names": names, b"num_vis": 3072}
    write_python2_pickle(root / "batches.meta", meta)
    for k, part in enumerate(_batches(train), start=1):
        write_python2_pickle(root / f"data_batch_{k}", _cifar10_batch(part, b"training batch %d of 5" % k))
    write_python2_pickle(root / "test_batch", _cifar10_batch(test, b"testing batch 1 of 1"))
    (root / "readme.html").write_text("<html></html>")
    return root


def write_cifar10_binary(parent: Path, train: Labelled, test: Labelled) -> Path:
    """`cifar-10-batches-bin` as cifar-10-binary.tar.gz unpacks it."""
    root = parent / "cifar-10-batches-bin"
    root.mkdir(parents=True)
    (root / "batches.meta.txt").write_text("\n".join(CIFAR10_NAMES) + "\n\n")
    parts = {f"data_batch_{k}.bin": part for k, part in enumerate(_batches(train), start=1)}
    for name, part in {**parts, "test_batch.bin": test}.items():
        _records(part.images, part.labels).tofile(root / name)
    (root / "readme.html").write_text("<html></html>")
    return root


def write_cifar100_python(parent: Path, train: Labelled, test: Labelled) -> Path:
    """`cifar-100-python` as cifar-100-python.tar.gz unpacks it; labels are fine, 5 to a coarse class."""
    root = parent / "cifar-100-python"
    root.mkdir(parents=True)
    coarse, fine = ([name.encode() for name in names] for names in (CIFAR100_COARSE_NAMES, CIFAR100_FINE_NAMES))
    write_python2_pickle(root / "meta", {b"fine_label_names": fine, b"coarse_label_names": coarse})
    for name, part in (("train", train), ("test", test)):
        batch = _cifar10_batch(part, b"training batch 1 of 1")
        batch[b"fine_labels"] = batch.pop(b"labels")
        batch[b"coarse_labels"] = [label // 5 for label in batch[b"fine_labels"]]
        write_python2_pickle(root / name, batch)
    (root / "file.txt~").write_text("")
    return root


def write_cifar100_binary(parent: Path, train: Labelled, test: Labelled) -> Path:
    """`cifar-100-binary` as cifar-100-binary.tar.gz unpacks it."""
    root = parent / "cifar-100-binary"
    root.mkdir(parents=True)
    (root / "coarse_label_names.txt").write_text("\n".join(CIFAR100_COARSE_NAMES) + "\n")
    (root / "fine_label_names.txt").write_text("\n".join(CIFAR100_FINE_NAMES) + "\n")
    for name, part in (("train.bin", train), ("test.bin", test)):
        _records(part.images, part.labels // 5, part.labels).tofile(root / name)
    return root


def published(parent: Path) -> dict[str, str]:
    """The digests of all files, as `cifar.PUBLISHED` has them of the official ones."""
    files = [file for file in parent.rglob("*") if file.is_file()]
    return {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in files}


def write_elpv(root: Path, examples: Labelled) -> Path:
    """labels.csv and images/ as in the package; cells are grey examples of each type and probability."""
    (root / "images").mkdir(parents=True)
    rows = []
    for k, image in enumerate(examples.images):
        Image.fromarray(image).convert("L").resize((300, 300)).save(root / "images" / f"cell{k + 1:04}.png")
        kind, probability = ("mono", "poly")[k // 4 % 2], (0.0, 1 / 3, 2 / 3, 1.0)[k % 4]
        rows.append(f"images/cell{k + 1:04}.png  {probability!s:<18}  {kind}\n")
    (root / "labels.csv").write_text("".join(rows))
    return root


def write_image_folder(root: Path, examples: Labelled, class_names: Sequence[str], suffix: str = ".png") -> Path:
    """`root/CLASS/NUMBER.suffix`, as torchvision's ImageFolder and Keras read it."""
    for k, (image, label) in enumerate(zip(examples.images, examples.labels, strict=True)):
        folder = root / class_names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{k:05}{suffix}")
    return root


def write_python2_pickle(path: Path, content: Any) -> None:
    """`content` in the opcodes that Python 2 used: bytes as its str, arrays as NumPy 1 wrote them."""
    with path.open("wb") as file:
        _Python2Pickler(file, protocol=2).dump(content)


class _Python2Pickler(pickle._Pickler):
    save: Any  # the stub of this private class leaves these out
    write: Any
    memoize: Any
    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)

    def save_python2_str(self, value: bytes) -> None:
        short = len(value) < 256
        size = bytes([len(value)]) if short else len(value).to_bytes(4, "little")
        self.write((pickle.SHORT_BINSTRING if short else pickle.BINSTRING) + size + value)
        self.memoize(value)

    def save_array(self, array: NDArray[Any]) -> None:
        self.write(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n")
        self.save((0,))
        self.save(b"b")
        self.write(pickle.TUPLE3 + pickle.REDUCE + pickle.MARK)
        self.save(1)
        self.save(array.shape)
        self.write(b"cnumpy\ndtype\n")
        self.save((array.dtype.str[1:].encode(), 0, 1))
        self.write(pickle.REDUCE)
        self.save((3, b"|", None, None, None, -1, -1, 0))
        self.write(pickle.BUILD)
        self.save(False)
        self.save(array.tobytes())
        self.write(pickle.TUPLE + pickle.BUILD)

    dispatch[bytes] = save_python2_str
    dispatch[np.ndarray] = save_array


def _batches(examples: Labelled) -> list[Labelled]:
    bounds = np.linspace(0, len(examples.labels), 6).astype(int)
    return [examples.part(start, stop) for start, stop in pairwise(bounds)]


def _cifar10_batch(part: Labelled, name: bytes) -> dict[bytes, Any]:
    return {
        b"batch_label": name,
        b"labels": part.labels.tolist(),
        b"data": _channels_first(part.images),
        b"filenames": [b"digit_s_%06d.png" % k for k in range(len(part.labels))],
    }


def _records(images: NDArray[np.uint8], *labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    return np.concatenate([np.stack(labels, axis=1).astype(np.uint8), _channels_first(images)], axis=1)


def _channels_first(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def varint(value: int) -> bytes:
    """A protocol buffer's integer; negative ones take ten bytes."""
    value %= 1 << 64
    content = bytearray()
    while value >= 0x80:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*content, value])


def write_tfrecords(root: Path, split: str, records: Sequence[dict[str, Any]], num_shards: int) -> list[Path]:
    """`split-00000-of-NNNNN` as build_imagenet_data.py writes them, by TensorFlow itself."""
    import tensorflow as tf

    root.mkdir(parents=True, exist_ok=True)
    paths = [root / f"{split}-{k:05}-of-{num_shards:05}" for k in range(num_shards)]
    for k, path in enumerate(paths):
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in records[k * len(records) // num_shards : (k + 1) * len(records) // num_shards]:
                writer.write(example_of(record))
    return paths


def masked_crc32c(data: bytes) -> int:
    """The checksum of the TFRecord format."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def example_of(record: dict[str, Any]) -> bytes:
    """A tf.train.Example: integers, floats, and text or bytes, one of each or a list."""
    import tensorflow as tf

    def feature(value: Any) -> Any:
        values = value if isinstance(value, list) else [value]
        if values and isinstance(values[0], int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        if values and isinstance(values[0], float):
            return tf.train.Feature(float_list=tf.train.FloatList(value=values))
        encoded = [v.encode() if isinstance(v, str) else v for v in values]
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=encoded))

    features = tf.train.Features(feature={key: feature(value) for key, value in record.items()})
    return tf.train.Example(features=features).SerializeToString()


def imagenet_record(image: bytes, label: int, synset: str, name: str, size: tuple[int, int]) -> dict[str, Any]:
    """The keys of the TensorFlow scripts' ImageNet, with two bounding boxes."""
    box = {f"image/object/bbox/{side}": [0.1, 0.2] for side in ("xmin", "xmax", "ymin", "ymax")}
    return {
        "image/height": size[1],
        "image/width": size[0],
        "image/colorspace": "RGB",
        "image/channels": 3,
        "image/class/label": label,
        "image/class/synset": synset,
        "image/class/text": f"thing {synset}, object",
        **box,
        "image/object/bbox/label": [label, label],
        "image/format": "JPEG",
        "image/filename": name,
        "image/encoded": image,
    }


def photographs(num: int, size: tuple[int, int] = (64, 48)) -> list[bytes]:
    """Crops of two real photographs as JPEG of quality 90."""
    import io

    from sklearn.datasets import load_sample_image

    whole = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    encoded = []
    for k in range(num):
        x, y = (37 * k) % (640 - size[0]), (23 * k) % (427 - size[1])
        target = io.BytesIO()
        whole[k % 2].crop((x, y, x + size[0], y + size[1])).save(target, "JPEG", quality=90)
        encoded.append(target.getvalue())
    return encoded


def write_packed(root: Path, facts: Any, manifest: Any) -> None:
    """A packed set of two records, what is beside them (bytes or JSON), and a manifest that may name its digest."""
    root.mkdir(exist_ok=True)
    content = facts if isinstance(facts, bytes) else json.dumps(facts).encode()
    (root / f"{PACKED_SHARD}.tfrecord").write_bytes(_PACKED_RECORDS)
    (root / f"{PACKED_SHARD}.json").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    (root / "manifest.json").write_text(json.dumps(manifest).replace('"right"', f'"{digest}"'))


PACKED_SHARD = "train-00000-of-00001"
_PACKED_RECORDS = b"".join(
    framed(serialize({"image/encoded": b"x", "image/class/label": k, "image/filename": name}))
    for k, name in enumerate((b"a", b"b"))
)


def packed_manifest() -> dict[str, Any]:
    return {
        "format": "tl_dist packed 1",
        "class_names": ["a", "b"],
        "splits": {"train": {PACKED_SHARD: "right"}},
    }


def packed_facts(**annotations: Any) -> dict[str, Any]:
    return {"size": len(_PACKED_RECORDS), "ids": ["a", "b"], **annotations}
