"""Images in one folder for each class: the layout of ImageNet, and of most users' own images."""

import logging
import os
from collections.abc import Iterator, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tl_dist.config import DataConfig
from tl_dist.datasets import Source, Splits, directory_cache
from tl_dist.datasets.files import FileStore, Folders, count_folders, directory_of, unusable
from tl_dist.datasets.split import completed
from tl_dist.files import limits
from tl_dist.refusal import Refusal

READABLE = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
UNREADABLE = frozenset({".avif", ".heic", ".heif", ".jxl", ".jp2", ".ppm", ".pgm"})
"""suffixes of images that cannot be decoded; they are refused, since skipping them would silently change the data"""

_CLUTTER = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "lost+found"})
"""names that systems and archives leave beside the user's files; they are ignored like hidden files"""

_FOLDERS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_EXPECTED = "train/CLASS/IMAGE (and validation, test beside train), or with CLASS/IMAGE"

_log = logging.getLogger(__name__)


def open_image_folder(data: DataConfig) -> Splits:
    """Open the images below `data.path` in class folders, or in `train`, `validation` and `test` with class folders.

    Classes are numbered in the order of their names; images may lie deeper. Without a `train` folder the fractions
    divide all images. Hidden and system files are ignored; others that are no images are counted in the log. Refuses
    (65) image formats that cannot be decoded, a class without images, broken links, links that put a folder into itself
    or into two classes or splits, and splits with different classes.
    """
    root = directory_of(data, _EXPECTED)
    folders, met = folders_in(root), Folders()
    if _FOLDERS.keys().isdisjoint(folders) or _is_class(root, folders):
        return completed({"": _source(root, root, met)}, data)
    official = {split: _source(root, root / name, met) for name, split in _split_folders(root, folders).items()}
    names = official["train"].class_names
    for name, source in official.items():
        if source.class_names != names:
            different = sorted(set(source.class_names) ^ set(names))
            raise unusable(
                f"{root}: train and {name} have different classes ({_few(different)})",
                "make the class folders of all splits agree",
            )
    return completed(official, data, f"{root} has a validation folder", "or remove the folder")


def is_image_folder(path: Path, names: Set[str]) -> bool:
    """Tell if there are folders or images; it does not exclude other formats."""
    return any(os.path.isdir(path / name) or _suffix(name) in READABLE for name in names)


def _is_class(root: Path, folders: list[str]) -> bool:
    """Tell if `train` is a class, such as the vehicle: it holds no folder and has no other split beside it."""
    return {"train"} == _FOLDERS.keys() & set(folders) and not folders_in(root / "train")


def _split_folders(root: Path, folders: list[str]) -> dict[str, str]:
    """Map folder names to splits; refuses a folder that is no split, one split twice, and a missing `train`."""
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


def folders_in(path: Path) -> list[str]:
    """List the names of the folders in a folder, sorted; raises as `visible`."""
    return sorted(name for name, kind, _ in visible(path)[1] if kind == directory_cache.FOLDER)


def visible(path: Path) -> tuple[tuple[int, int], list[tuple[str, int, int]]]:
    """Return a folder's identity, and (name, kind, size) of its entries other than hidden and system files.

    Refuses (65) one that cannot be listed.
    """
    try:
        listed = directory_cache.folder(path)
    except OSError as error:
        raise unusable(f"{path} cannot be listed: {error.strerror}", "permit it, or correct the path") from error
    shown = [e for e in listed.entries() if not e[0].startswith(".") and e[0].lower() not in _CLUTTER]
    return listed.identity, shown


class _Image(NamedTuple):
    id: str  # path below the root, which sorts
    size: int


def _source(root: Path, folder: Path, met: Folders) -> Source:
    """Make a source of the class folders in `folder`, ordered by class and path; adds their folders to `met`."""
    classes = folders_in(folder)
    if len(classes) < 2:
        raise _too_few(folder, classes)
    prefix = "" if folder == root else f"{folder.name}/"
    left_out: dict[str, list[str]] = {}
    for name, kind, _ in visible(folder)[1]:
        if kind != directory_cache.FOLDER:
            _check_link(folder / name, kind)
            left_out.setdefault(_suffix(name), []).append(prefix + name)
    directory_cache.look_at([folder / name for name in classes])
    images: list[_Image] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        of_class: Folders = {}
        images += sorted(images_below(folder / name, prefix + name, left_out, of_class))
        labels += [label] * (len(images) - len(labels))
        count_folders(root, met, of_class, len(images))
    _report(folder, left_out)
    if empty := sorted(set(range(len(classes))) - set(labels)):
        names = _few([classes[label] for label in empty])
        raise unusable(f"{folder} has class folders without an image: {names}", "add images or delete them")
    ids, sizes = zip(*images, strict=True)
    store = FileStore(root, ids, np.array(sizes, np.int64))
    return Source(store, np.array(labels, np.int32), ids, tuple(classes))


def images_below(
    folder: Path,
    prefix: str,
    left_out: dict[str, list[str]],
    met: Folders,
    above: Set[tuple[int, int]] = frozenset(),
) -> Iterator[_Image]:
    """Yield the images at any depth below `folder`; adds other files to `left_out`, by suffix.

    Skips a folder in `met` by another path: thirty folders with two links each to the next have 2**30 paths.
    """
    identity, entries = visible(folder)
    if identity in above:
        raise unusable(f"{folder} is a link to a folder that holds it", "delete the link")
    if met.setdefault(identity, prefix) != prefix:
        return
    count_folders(folder, met, {})
    if len(above) >= limits.FOLDER_DEPTH:
        raise unusable(f"{prefix} lies deeper than {limits.FOLDER_DEPTH} folders", "keep images nearer to their class")
    folders: list[str] = []
    for entry, kind, size in entries:
        name = f"{prefix}/{entry}"
        suffix = _suffix(entry)
        if kind == directory_cache.FOLDER:
            folders.append(entry)
        elif suffix in READABLE:
            yield _Image(name, size)
        else:
            _check_link(folder / entry, kind)
            left_out.setdefault(suffix, []).append(name)
    for entry in sorted(folders):  # sorted, so that every worker meets a folder first by the same path
        yield from images_below(folder / entry, f"{prefix}/{entry}", left_out, met, above | {identity})


def _too_few(folder: Path, classes: list[str]) -> Refusal:
    """Make the refusal of a folder without two classes, with a fix for common layouts of photographs."""
    if classes and len(inside := folders_in(folder / classes[0])) > 1:
        what = f"{folder} holds the one folder {classes[0]}, and that holds {_few(inside)}"
        return unusable(what, f"set data.path to {folder / classes[0]}, if those are the classes")
    num = sum(_suffix(name) in READABLE for name, _, _ in visible(folder)[1])
    what = f"{folder} holds one class folder ({classes[0]})" if classes else f"{folder} holds no class folder"
    what += f" and {num} images beside it" if num and classes else f" but {num} images" if num else ""
    fix = "put the images into a folder for each class, or list them in a CSV file with path and label"
    return unusable(f"{what}: it takes two classes", fix if num else f"arrange it as {_EXPECTED}")


def _check_link(path: Path, kind: int) -> None:
    """Refuse a broken link: it may have led to a folder of images."""
    if kind == directory_cache.GONE:
        raise unusable(f"{path} is a link that leads nowhere", "restore what it led to, or delete it")


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _report(folder: Path, left_out: dict[str, list[str]]) -> None:
    """Refuse images that cannot be decoded, and log what else was skipped in one line."""
    kinds = [f"{len(left_out[k])} {k or 'without suffix'} ({min(left_out[k])})" for k in sorted(left_out)]
    if not UNREADABLE.isdisjoint(left_out):
        raise unusable(f"{folder} holds images that cannot be read: {_few(kinds)}", "convert them to PNG")
    if kinds:
        _log.warning("%s: files that are in no class or no images were left out: %s", folder, _few(kinds))


def _few(words: list[str]) -> str:
    return ", ".join(words[:8]) + (f" and {len(words) - 8} more" if len(words) > 8 else "")
