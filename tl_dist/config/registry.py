"""Tables from a name in the config to the code behind it, as strings: nothing is imported until `lookup`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

from tl_dist.refusal import ExitCode, Refusal

_Entry = TypeVar("_Entry")

STRATEGIES: Mapping[str, str] = {
    "single": "tl_dist.parallel.single:SingleDevice",
    "mirrored": "tl_dist.parallel.mirrored:Mirrored",
    "horovod": "tl_dist.parallel.horovod:Horovod",
}


class Dataset(NamedTuple):
    """A data set: its code, and what a config of it needs, which is known without importing that code."""

    opener: str
    """function from the `data` section to the splits"""
    recognise: str | None = None
    """function from a path, and the visible names in it (none of a file), to whether such a data set lies there"""
    needs_path: bool = True
    package: str | None = None
    """constant: the package that its files come from where a config gives no path"""
    official_test: bool = False
    """whether its test split is never taken from the fractions"""
    made_up: bool = False
    """random images, to measure speed on: sensible with any weights"""
    keys: tuple[str, ...] = ()
    """of `data`, which few data sets have: labels, soft_labels"""

    def open(self, data: Any) -> Any:
        """The splits of a `data` section."""
        return load(self.opener)(data)


_FORMATS = "tl_dist.datasets.formats"

DATASETS: Mapping[str, Dataset] = {
    "cifar10": Dataset(f"{_FORMATS}.cifar:open_cifar10", f"{_FORMATS}.cifar:is_cifar10", official_test=True),
    "cifar100": Dataset(
        f"{_FORMATS}.cifar:open_cifar100",
        f"{_FORMATS}.cifar:is_cifar100",
        official_test=True,
        keys=("labels",),
    ),
    "csv": Dataset(f"{_FORMATS}.csv_file:open_csv", f"{_FORMATS}.csv_file:is_csv"),
    "digits": Dataset(f"{_FORMATS}.digits:open_digits", needs_path=False),
    "elpv": Dataset(
        f"{_FORMATS}.elpv:open_elpv",
        f"{_FORMATS}.elpv:is_elpv",
        needs_path=False,
        package=f"{_FORMATS}.elpv:PACKAGE",
        keys=("soft_labels",),
    ),
    "imagenet": Dataset(f"{_FORMATS}.imagenet:open_imagenet"),
    "packed": Dataset(f"{_FORMATS}.packed:open_packed", f"{_FORMATS}.packed:is_packed"),
    "synthetic": Dataset(f"{_FORMATS}.synthetic:open_synthetic", needs_path=False, made_up=True),
    "tfds": Dataset(f"{_FORMATS}.tfds:open_tfds", f"{_FORMATS}.tfds:is_tfds"),
    "tfrecord": Dataset(f"{_FORMATS}.tfrecord:open_tfrecord", f"{_FORMATS}.tfrecord:is_tfrecord"),
    "image_folder": Dataset(
        f"{_FORMATS}.image_folder:open_image_folder", f"{_FORMATS}.image_folder:is_image_folder"
    ),
}
"""In the order in which they are recognised: nearly any directory looks like an image folder."""

_FAMILIES: Mapping[str, tuple[str, ...]] = {
    "tiny": ("tiny",),
    "vgg": ("vgg16", "vgg19"),
    "resnet": ("resnet50", "resnet101", "resnet152", "resnet50v2", "resnet101v2", "resnet152v2"),
    "mobilenet": ("mobilenetv2", "mobilenetv3small", "mobilenetv3large"),
    "efficientnet": (
        *(f"efficientnetb{k}" for k in range(8)),
        *(f"efficientnetv2{k}" for k in ("b0", "b1", "b2", "b3", "s", "m", "l")),
    ),
    "densenet": ("densenet121", "densenet169", "densenet201"),
    "inception": ("inceptionv3", "inceptionresnetv2", "xception"),
    "convnext": tuple(f"convnext{k}" for k in ("tiny", "small", "base", "large", "xlarge")),
}

BACKBONES: Mapping[str, str] = {
    name: f"tl_dist.models.backbones.{family}:{name.upper()}"
    for family, names in _FAMILIES.items()
    for name in names
}


def nearest(name: str, names: Mapping[str, Any] | list[str]) -> str | None:
    """The valid name that a typo most likely meant, or None."""
    close = difflib.get_close_matches(name.lower(), list(names), n=1, cutoff=0.5)
    return close[0] if close else None


def entry(table: Mapping[str, _Entry], name: str) -> _Entry:
    """What `table` has under a name; refuses an unknown one with the nearest valid one."""
    if name not in table:
        guess = nearest(name, table)
        raise Refusal(
            f"unknown name '{name}'.",
            fix=f"use '{guess}'." if guess else f"use one of {', '.join(sorted(table))}.",
            code=ExitCode.USAGE,
        )
    return table[name]


def lookup(table: Mapping[str, str], name: str) -> Any:
    """The object that `table` names; refuses an unknown name."""
    return load(entry(table, name))


def load(reference: str) -> Any:
    """The object behind "module:attribute"."""
    module, attribute = reference.split(":")
    return getattr(import_module(module), attribute)
