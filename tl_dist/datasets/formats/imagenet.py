"""ImageNet (ILSVRC 2012): JPEG files in folders by wnid, or the TFRecord files of the TensorFlow scripts."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tl_dist.config import DataConfig
from tl_dist.datasets import Source, Splits, directory_cache
from tl_dist.datasets.csv_columns import opened
from tl_dist.datasets.files import FileStore, Folders, count_folders, directory_of, size_of, text_in, unusable
from tl_dist.datasets.formats.image_folder import folders_in, visible
from tl_dist.datasets.formats.tfrecord import class_names, find_shards, shard_sources
from tl_dist.datasets.split import completed

_WNID = re.compile(r"n\d{8}")
_IMAGE = (".jpeg", ".jpg", ".png")  # one image of ILSVRC is a PNG named .JPEG
_PLACES = (".", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
_TRUTH = (
    "LOC_val_solution.csv",
    "ILSVRC2012_validation_ground_truth.txt",
    "imagenet_2012_validation_synset_labels.txt",
    "validation_synset_labels.txt",
)
_KIT = ("", "data", "ILSVRC2012_devkit_t12/data", "ILSVRC2012_devkit_t12")


def open_imagenet(data: DataConfig) -> Splits:
    """Open ILSVRC 2012 below `data.path`: train and val in a folder for each wnid, or TFRecord files.

    The validation images may lie flat, with a file of their labels: `LOC_val_solution.csv` from Kaggle, one wnid a
    line, or `ILSVRC2012_validation_ground_truth.txt` with ILSVRC2012_IDs, which only `meta.mat` of the same development
    kit maps to classes. Refuses (65) files that do not fit together, naming them.
    """
    root = directory_of(data, "train/WNID/*.JPEG and val, or train-00000-of-01024")
    shards = find_shards(root)
    if shards:
        names = class_names(root)
        names = names[-1000:] if names and len(names) == 1001 else names
        return completed(shard_sources(root, shards, data, names), data, f"{root} has a validation split")
    base = next((root / p for p in _PLACES if (root / p / "train").is_dir()), None)
    if base is None:
        raise unusable(f"there is neither {root / 'train'} nor {root / 'train-00000-of-01024'}", "correct data.path")
    wnids = [name for name in folders_in(base / "train") if _WNID.fullmatch(name)]
    if len(wnids) < 2:
        raise unusable(
            f"{base / 'train'} holds {len(wnids)} folders named by wnid (n01440764)",
            "unpack the class archives",
        )
    met = Folders()
    train = _by_folder(base, "train", wnids, met)
    folder = next((name for name in ("val", "validation") if (base / name).is_dir()), None)
    if folder is None:
        return completed({"train": train}, data)
    flat = _images(base / folder)
    validation = _flat(root, base, folder, flat, wnids) if flat else _by_folder(base, folder, wnids, met)
    official = {"train": train, "validation": validation}
    return completed(official, data, f"{base / folder} is a validation split")


def _by_folder(base: Path, split: str, wnids: list[str], met: Folders) -> Source:
    directory_cache.look_at([base / split / wnid for wnid in wnids])
    files: dict[str, int] = {}
    labels: list[int] = []
    for label, wnid in enumerate(wnids):
        images = _images(base / split / wnid)
        if not images:
            raise unusable(f"{base / split / wnid} holds no image", "restore it")
        identity = directory_cache.folder(base / split / wnid).identity
        count_folders(base, met, {identity: f"{split}/{wnid}"}, len(labels))
        files |= {f"{split}/{wnid}/{name}": size for name, size in images.items()}
        labels += [label] * len(images)
    return _source(base, files, labels, wnids)


def _flat(root: Path, base: Path, split: str, images: Mapping[str, int], wnids: list[str]) -> Source:
    file, number = _truth_file(root, base, split), {wnid: k for k, wnid in enumerate(wnids)}
    truth = _truth(root, file, base / split, list(images))
    for name in images:
        if (wnid := truth.get(name)) not in number:
            what = f"has no label in {file}" if wnid is None else f"is of class {wnid}"
            raise unusable(f"{base / split / name} {what}, which is no folder of train", "restore the files")
    labels = [number[truth[name]] for name in images]
    return _source(base, {f"{split}/{name}": size for name, size in images.items()}, labels, wnids)


def _images(folder: Path) -> dict[str, int]:
    """Return the size of each image by name, sorted."""
    return {name: size for name, _, size in sorted(visible(folder)[1]) if Path(name).suffix.lower() in _IMAGE}


def _source(base: Path, files: Mapping[str, int], labels: list[int], wnids: list[str]) -> Source:
    """Make a source of files, by path below `base` with their sizes."""
    sizes = np.fromiter(files.values(), np.int64)
    for name in (name for name, size in files.items() if not size):
        size_of(base / name)  # refuses it
    ids = tuple(files)
    return Source(FileStore(base, ids, sizes), np.array(labels, np.int32), ids, tuple(wnids))


def _truth_file(root: Path, base: Path, split: str) -> Path:
    for folder in (base / split, base, root, *(root / kit for kit in _KIT)):
        for name in _TRUTH:
            if (folder / name).is_file():
                return folder / name
    raise unusable(
        f"{base / split} holds images in no class folder, and no label file is beside them",
        f"put {_TRUTH[0]}, or {_TRUTH[1]} and meta.mat, into {root}",
    )


def _truth(root: Path, file: Path, folder: Path, names: list[str]) -> Mapping[str, str]:
    """Return the wnid of each validation image by file name."""
    if file.suffix == ".csv":
        with opened(file) as rows:
            if not {"imageid", "predictionstring"} <= {*(rows.fieldnames or ())}:
                raise unusable(f"{file} has no columns ImageId and PredictionString", "restore the file")
            pairs = [(row["imageid"], (row["predictionstring"] or "").split()) for row in rows]
        return {f"{image}.JPEG": words[0] for image, words in pairs if words}
    lines = text_in(file).split()
    if len(lines) != len(names):
        raise unusable(f"{file} has {len(lines)} lines for {len(names)} images in {folder}", "restore the files")
    if all(_WNID.fullmatch(line) for line in lines):
        return dict(zip(names, lines, strict=True))
    by_number = _synsets(root, file)
    for k, line in enumerate(lines, start=1):
        if line not in by_number:
            raise unusable(f"{file}:{k}: {line!r} is the ILSVRC2012_ID of no class in meta.mat", "restore the files")
    return {name: by_number[line] for name, line in zip(names, lines, strict=True)}


def _synsets(root: Path, truth: Path) -> Mapping[str, str]:
    """Read wnids by ILSVRC2012_ID from meta.mat of the development kit; the IDs are not in the order of wnids."""
    from scipy.io import loadmat

    places = [truth.parent / "meta.mat", *(root / kit / "meta.mat" for kit in _KIT)]
    meta = next((place for place in places if place.is_file()), None)
    if meta is None:
        raise unusable(
            f"{truth} numbers the classes in an order of its own, and {places[0]} is not there",
            "put meta.mat of the same development kit beside it, or use a file of one wnid a line",
        )
    try:
        table = np.atleast_1d(loadmat(meta, squeeze_me=True, struct_as_record=True)["synsets"])
        return {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in table}
    # A damaged file can raise nearly anything in SciPy's reader.
    except Exception as error:
        raise unusable(f"{meta} cannot be read: {error}", "obtain the development kit again") from error
