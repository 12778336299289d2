"""Tables from a name in the config to the code behind it, as strings: nothing is imported until `lookup`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from tl_dist.refusal import ExitCode, Refusal

STRATEGIES: Mapping[str, str] = {
    "single": "tl_dist.parallel.single:SingleDevice",
    "mirrored": "tl_dist.parallel.mirrored:Mirrored",
    "horovod": "tl_dist.parallel.horovod:Horovod",
}

DATASETS: Mapping[str, str] = {
    "cifar10": "tl_dist.datasets.formats.cifar:open_cifar10",
    "cifar100": "tl_dist.datasets.formats.cifar:open_cifar100",
    "csv": "tl_dist.datasets.formats.csv_file:open_csv",
    "digits": "tl_dist.datasets.formats.digits:open_digits",
    "elpv": "tl_dist.datasets.formats.elpv:open_elpv",
    "image_folder": "tl_dist.datasets.formats.image_folder:open_image_folder",
    "imagenet": "tl_dist.datasets.formats.imagenet:open_imagenet",
    "packed": "tl_dist.datasets.formats.packed:open_packed",
    "synthetic": "tl_dist.datasets.formats.synthetic:open_synthetic",
    "tfds": "tl_dist.datasets.formats.tfds:open_tfds",
    "tfrecord": "tl_dist.datasets.formats.tfrecord:open_tfrecord",
}

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


def lookup(table: Mapping[str, str], name: str) -> Any:
    """The object that `table` names; refuses an unknown name with the nearest valid one."""
    if name not in table:
        guess = nearest(name, table)
        raise Refusal(
            f"unknown name '{name}'.",
            fix=f"use '{guess}'." if guess else f"use one of {', '.join(sorted(table))}.",
            code=ExitCode.USAGE,
        )
    module, attribute = table[name].split(":")
    return getattr(import_module(module), attribute)
