"""Images in one folder for each class: the layout that ImageNet is kept in, and most people's own images."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tl_dist.config import DataConfig
from tl_dist.datasets import Source, Splits, directory_cache
from tl_dist.datasets.files import Folders, count_folders, directory_of, file_source, unusable
from tl_dist.datasets.split import beside_official, divide
from tl_dist.files import limits
from tl_dist.refusal import Refusal

READABLE = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
UNREADABLE = frozenset({".avif", ".heic", ".heif", ".jxl", ".jp2", ".ppm", ".pgm"})
"""Images that cannot be decoded here. They are refused: to leave them out would change the data unnoticed."""

_CLUTTER = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "lost+found"})
"""What systems and archives leave beside people's files: as little to be read as hidden files are."""

_FOLDERS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_EXPECTED = "train/CLASS/IMAGE (and validation, test beside train), or with CLASS/IMAGE"

_log = logging.getLogger(__name__)


def open_image_folder(data: DataConfig) -> Splits:
    """The images below `data.path` in a folder for each class, or in `train`, `validation`, `test` with such.

    Classes are numbered in the order of their names; images may lie deeper in a class folder. With a `train`
    folder its neighbours are the splits: no test split is made where there is none, and validation_fraction
    is taken from `train`. Without it the fractions decide. Hidden files and what systems leave (Thumbs.db) are
    ignored; others that are no images are left out and counted in the log. A folder to which several links of a class
    lead counts once. Refuses (65) image formats that cannot be decoded, a class without images, links by which one
    folder is of two classes or splits, holds itself, or is gone, and splits with different classes.
    """
    root = directory_of(data, _EXPECTED)
    folders, met = _folders(root), Folders()
    if _FOLDERS.keys().isdisjoint(folders) or _is_class(root, folders):
        return divide(_source(root, root, met), data)
    official = {
        split: _source(root, root / name, met) for name, split in _split_folders(root, folders).items()
    }
    train = official["train"]
    for name, source in official.items():
        if source.class_names != train.class_names:
            different = sorted(set(source.class_names) ^ set(train.class_names))
            raise unusable(
                f"{root}: train and {name} have different classes ({_few(different)})",
                "make the class folders of all splits agree",
            )
    return beside_official(official, data, f"{root} has a validation folder", "or remove the folder")


def is_image_folder(path: Path, names: Set[str]) -> bool:
    """Whether there are folders or images: of what else it may be, nothing is asked."""
    return any(os.path.isdir(path / name) or _suffix(name) in READABLE for name in names)


def _is_class(root: Path, folders: list[str]) -> bool:
    """Whether `train` is a class such as the vehicle: no folder is in it, and no other split beside it."""
    return {"train"} == _FOLDERS.keys() & set(folders) and not _folders(root / "train")


def _split_folders(root: Path, folders: list[str]) -> dict[str, str]:
    """Split by folder name; refuses a folder that is no split, one split twice, and a missing `train`."""
    splits = {name: _FOLDERS[name] for name in folders if name in _FOLDERS}
    if others := [name for name in folders if name not in splits]:
        raise unusable(
            f"{root} holds {_few(others)} beside {_few(sorted(splits))}: are these splits or classes?",
            "keep only the folders train, validation and test there, or only class folders",
        )
    if len(set(splits.values())) < len(splits):
        raise unusable(f"{root} holds both val and validation", "keep one of them")
    if "train" not in splits:
        raise unusable(f"there is no {root / 'train'}", "add the folder, or correct data.path")
    return splits


def _folders(path: Path) -> list[str]:
    return sorted(name for name, kind, _ in _visible(path) if kind == directory_cache.FOLDER)


def _visible(path: Path) -> list[tuple[str, int, int]]:
    return _of_people(_listed(path))


def _of_people(listed: directory_cache.Folder) -> list[tuple[str, int, int]]:
    """(name, kind, size) of what is there because somebody wants it there."""
    return [e for e in listed.entries() if not e[0].startswith(".") and e[0].lower() not in _CLUTTER]


def _listed(path: Path) -> directory_cache.Folder:
    try:
        return directory_cache.folder(path)
    except OSError as error:
        raise unusable(
            f"{path} cannot be listed: {error.strerror}", "permit it, or correct the path"
        ) from error


class _Image(NamedTuple):
    id: str  # path below the root, which sorts
    size: int


def _source(root: Path, folder: Path, met: Folders) -> Source:
    """The images of the class folders of `folder`, ordered by class and path; `met` grows by those folders."""
    classes = _folders(folder)
    if len(classes) < 2:
        raise _too_few(folder, classes)
    prefix = "" if folder == root else f"{folder.name}/"
    left_out: dict[str, list[str]] = {}
    for name, kind, _ in _visible(folder):
        if kind != directory_cache.FOLDER:
            _check_link(folder / name, kind)
            left_out.setdefault(_suffix(name), []).append(prefix + name)
    directory_cache.look_at([folder / name for name in classes])
    images: list[_Image] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        of_class: Folders = {}
        found = sorted(images_below(folder / name, prefix + name, left_out, of_class))
        images += found
        labels += [label] * len(found)
        count_folders(root, met, of_class, len(images))
    _report(folder, left_out)
    if empty := sorted(set(range(len(classes))) - set(labels)):
        names = _few([classes[label] for label in empty])
        raise unusable(f"{folder} has class folders without an image: {names}", "add images or delete them")
    ids, sizes = zip(*images, strict=True)
    return file_source(root, ids, np.array(sizes, np.int64), np.array(labels, np.int32), tuple(classes))


def images_below(
    folder: Path,
    prefix: str,
    left_out: dict[str, list[str]],
    met: Folders,
    above: Set[tuple[int, int]] = frozenset(),
) -> Iterator[_Image]:
    """The images at any depth below `folder`; what is none goes to `left_out`, by suffix.

    What is in `met` by another path is passed by: thirty folders with two links each to the next have 2**30 paths.
    """
    listed = _listed(folder)
    if listed.identity in above:
        raise unusable(f"{folder} is a link to a folder that holds it", "delete the link")
    if met.setdefault(listed.identity, prefix) != prefix:
        return
    count_folders(folder, met, {})
    if len(above) >= limits.FOLDER_DEPTH:
        raise unusable(
            f"{prefix} lies deeper than {limits.FOLDER_DEPTH} folders", "keep images nearer to their class"
        )
    folders: list[str] = []
    for entry, kind, size in _of_people(listed):
        name = f"{prefix}/{entry}"
        suffix = _suffix(entry)
        if kind == directory_cache.FOLDER:
            folders.append(entry)
        elif suffix in READABLE:
            yield _Image(name, size)
        else:
            _check_link(folder / entry, kind)
            left_out.setdefault(suffix, []).append(name)
    for entry in sorted(folders):  # so that the path by which one is met first is the same for every worker
        yield from images_below(folder / entry, f"{prefix}/{entry}", left_out, met, above | {listed.identity})


def _too_few(folder: Path, classes: list[str]) -> Refusal:
    """Why this folder is no data set, from what people do with their own photographs."""
    if classes and len(inside := _folders(folder / classes[0])) > 1:
        what = f"{folder} holds the one folder {classes[0]}, and that holds {_few(inside)}"
        return unusable(what, f"set data.path to {folder / classes[0]}, if those are the classes")
    num = sum(_suffix(name) in READABLE for name, _, _ in _visible(folder))
    what = f"{folder} holds one class folder ({classes[0]})" if classes else f"{folder} holds no class folder"
    what += f" and {num} images beside it" if num and classes else f" but {num} images" if num else ""
    fix = "put the images into a folder for each class, or list them in a CSV file with path and label"
    return unusable(f"{what}: it takes two classes", fix if num else f"arrange it as {_EXPECTED}")


def _check_link(path: Path, kind: int) -> None:
    """Refuse a link that leads nowhere where it may have led to a folder of images."""
    if kind == directory_cache.GONE:
        raise unusable(f"{path} is a link that leads nowhere", "restore what it led to, or delete it")


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _report(folder: Path, left_out: dict[str, list[str]]) -> None:
    """Refuse what should have been read, and say in one line of the log what was left out for good reason."""
    kinds = [f"{len(left_out[k])} {k or 'without suffix'} ({min(left_out[k])})" for k in sorted(left_out)]
    if not UNREADABLE.isdisjoint(left_out):
        raise unusable(f"{folder} holds images that cannot be read: {_few(kinds)}", "convert them to PNG")
    if kinds:
        _log.warning("%s: files that are in no class or no images were left out: %s", folder, _few(kinds))


def _few(words: list[str]) -> str:
    return ", ".join(words[:8]) + (f" and {len(words) - 8} more" if len(words) > 8 else "")
