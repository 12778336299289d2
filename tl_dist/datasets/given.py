"""Keep examples that `tl_dist.train` is given as a packed data set: order and resuming need any of them at any time.

A split is a pair of arrays (images, labels), a `tf.data.Dataset` of such pairs, batched or not, a
`keras.utils.PyDataset` or any other sequence of them, or a pair (read, length) of a function of an index.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import cv2
import google_crc32c
import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets import Source
from tl_dist.datasets.annotations import Annotations
from tl_dist.datasets.arrays import ArrayStore
from tl_dist.datasets.files import unusable
from tl_dist.datasets.formats.packed import MANIFEST
from tl_dist.datasets.packing import pack
from tl_dist.datasets.records import RecordStore
from tl_dist.datasets.store import EncodedStore, PixelStore
from tl_dist.refusal import ExitCode, Refusal

SPLITS = ("train", "validation", "test")
_FORMS = "arrays (images, labels), a tf.data.Dataset, a keras.utils.PyDataset, or a function and a length (read, n)"
Show = Callable[[str], None]


def packed(
    given: Any, cache: Path, *, of_classes: bool, class_names: Sequence[str] = (), show: Show = lambda text: None
) -> tuple[Path, int | None]:
    """Write splits, or one for training, to a directory of `cache` named by their content, unless it is there.

    Returns the directory, and the side of the first image if it is square. `of_classes`: labels are classes, else
    targets. Images are uint8 0..255 [h, w], [h, w, 1] or [h, w, 3]. Refuses (65) any others, and (64) what is no split.
    """
    splits = dict(given) if isinstance(given, Mapping) else {"train": given}
    if wrong := [name for name in splits if name not in SPLITS] or [name for name in SPLITS[:1] if name not in splits]:
        what = f"data has {'no' if 'train' not in splits else 'a'} split {wrong[0]!r}."
        raise Refusal(what, fix=f"name the splits {', '.join(SPLITS)}; 'train' is needed.", code=ExitCode.USAGE)
    spool = cache / f".tmp-{uuid4().hex}"
    spool.parent.mkdir(parents=True, exist_ok=True)
    try:
        stores = {name: _store(split, spool, name, show) for name, split in splits.items()}
        names = list(class_names) or _class_names(
            splits["train"], [labels for _, labels, _ in stores.values()], of_classes
        )
        sources = {
            name: _source(store, labels, names, name, of_classes=of_classes)
            for name, (store, labels, _) in stores.items()
        }
        facts = {name: [source.fingerprint, source.annotations.digest] for name, source in sources.items()}
        directory = cache / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        if not (directory / MANIFEST).exists():
            pack(sources, directory, progress=lambda done, total: show(f"keeping images {done:,}/{total:,}"))
        return directory, stores["train"][2]
    finally:
        for file in spool.parent.glob(f"{spool.name}*"):
            file.unlink(missing_ok=True)


def _store(
    given: Any, spool: Path, split: str, show: Show
) -> tuple[PixelStore | EncodedStore, NDArray[Any], int | None]:
    """Return the images of a split, its labels, and the side of the first image if it is square."""
    if isinstance(given, list | tuple) and len(given) == 2 and all(hasattr(part, "__array__") for part in given):
        images, labels = _rgb(np.asarray(given[0]), split, rows=True), np.asarray(given[1])
        if len(images) != len(labels):
            raise unusable(
                f"data: {split} has {len(images):,} images and {len(labels):,} labels", "give one for each image"
            )
        return ArrayStore(images), labels, images.shape[1] if images.shape[1] == images.shape[2] else None
    sizes: list[int] = []
    checks: list[int] = []
    answers: list[Any] = []
    offsets, side = [0], None
    file = spool.with_name(f"{spool.name}-{split}")
    with file.open("wb") as target:
        for image, label in _pairs(given, split):
            pixels = _rgb(image, split, rows=False)
            side = (pixels.shape[0] if pixels.shape[0] == pixels.shape[1] else None) if not sizes else side
            content = cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
            target.write(content)
            answers.append(np.asarray(label))
            sizes.append(len(content))
            offsets.append(offsets[-1] + len(content))
            checks.append(google_crc32c.value(content))
            if len(sizes) % 100 == 0:
                show(f"reading {split}: {len(sizes):,} images")
    if not sizes:
        raise unusable(f"data: {split} has no images", "give at least one for each class")
    store = RecordStore(
        root=file.parent,
        files=[file.name],
        shards=np.zeros(len(sizes), np.int32),
        offsets=np.array(offsets[:-1], np.int64),
        sizes=np.array(sizes, np.int64),
        checks=np.array(checks, np.uint32),
        names=[f"{split}:{k}" for k in range(len(sizes))],
    )
    return store, np.stack(answers), side


def _pairs(given: Any, split: str) -> Iterator[tuple[Any, Any]]:
    """Yield each image with its label."""
    if isinstance(given, tuple) and len(given) == 2 and callable(given[0]) and isinstance(given[1], int):
        items: Any = map(given[0], range(given[1]))
    elif hasattr(given, "element_spec"):  # tf.data
        if int(given.cardinality()) == -1:
            raise unusable(f"data: {split} repeats without end", "leave out .repeat(): epochs are the config's")
        items = given.as_numpy_iterator()
    elif hasattr(given, "__getitem__") and hasattr(given, "__len__") and not isinstance(given, str | tuple | dict):
        items = (given[k] for k in range(len(given)))
    else:
        what = f"data: {split} is a {type(given).__name__}, not {_FORMS}."
        raise Refusal(what, fix="give one of these.", code=ExitCode.USAGE)
    for item in items:
        if not isinstance(item, list | tuple) or len(item) != 2:
            count = len(item) if isinstance(item, list | tuple) else "not several"
            raise unusable(
                f"data: an element of {split} has {count} parts", "give pairs of image and label, without weights"
            )
        images, labels = np.asarray(item[0]), np.asarray(item[1])
        yield from zip(images, labels, strict=True) if images.ndim == 4 else [(images, labels)]


def _rgb(images: NDArray[Any], split: str, *, rows: bool) -> NDArray[np.uint8]:
    """Return images uint8 [..., h, w, 3]; refuse (65) those that have no numbers 0 to 255."""
    array = images[..., None] if images.ndim == 2 + rows else images
    if array.ndim != 3 + rows or array.shape[-1] not in (1, 3):
        raise unusable(
            f"data: images of {split} have shape {images.shape}", "give [height, width, 3] or [height, width]"
        )
    if array.dtype != np.uint8:
        numbers = np.asarray(array, np.float64)
        if not ((numbers >= 0) & (numbers <= 255) & (numbers == np.rint(numbers))).all():
            scaled = " scaled to 0..1" if numbers.min() >= 0 and numbers.max() <= 1 else ""
            what = f"data: images of {split} hold {array.dtype} numbers{scaled} that are not whole from 0 to 255"
            raise unusable(what, "give uint8, and scale in the model or by 'preprocessing' below 'model:'")
        array = numbers.astype(np.uint8)
    return np.ascontiguousarray(np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array)


def _class_names(given: Any, labels: Sequence[NDArray[Any]], of_classes: bool) -> list[str]:
    own = getattr(given, "class_names", None)
    if own:
        return [str(name) for name in own]
    if not of_classes:
        return [f"target{k}" for k in range(labels[0].shape[1] if labels[0].ndim > 1 else 1)]
    return [str(k) for k in range(max(int(_classes(part).max()) for part in labels) + 1)]


def _classes(labels: NDArray[Any]) -> NDArray[np.int32]:
    """Return class numbers of class numbers [n] or [n, 1], or of rows that are 1 for one class and 0 for all others."""
    if (
        labels.ndim == 2
        and labels.shape[1] > 1
        and ((labels == 0) | (labels == 1)).all()
        and (labels.sum(1) == 1).all()
    ):
        return labels.argmax(1).astype(np.int32)
    flat = labels.reshape(len(labels), -1)
    whole = flat.dtype.kind in "iufb" and (flat == np.rint(flat)).all() and (flat >= 0).all()
    if flat.shape[1] != 1 or not whole:
        what = f"data: labels {labels.dtype} of shape {labels.shape} are no class numbers from 0"
        raise unusable(what, "give one whole number for each image, or write 'task: regression' or multilabel")
    return flat[:, 0].astype(np.int32)


def _source(
    store: PixelStore | EncodedStore, labels: NDArray[Any], names: Sequence[str], split: str, *, of_classes: bool
) -> Source:
    ids = [f"{split}:{k}" for k in range(len(labels))]
    if not of_classes:
        targets = labels.reshape(len(labels), -1).astype(np.float32)
        if targets.shape[1] != len(names) or not np.isfinite(targets).all():
            what = f"data: targets of {split} have shape {labels.shape}, or are not finite"
            raise unusable(what, f"give {len(names)} number(s) for each image")
        return Source(store, np.zeros(len(ids), np.int32), ids, names, Annotations(targets=targets))
    classes = _classes(labels)
    if classes.max() >= len(names):
        what = f"data: {split} has class {classes.max()}, and there are {len(names)} class names"
        raise unusable(what, "name every class in 'classes'")
    return Source(store, classes, ids, names)
