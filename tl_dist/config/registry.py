"""Names in a config and the code behind them, of tl_dist and of other packages, which is imported when it is used."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

from pydantic import BaseModel

from tl_dist.config import code, extensions
from tl_dist.config.extensions import Offer
from tl_dist.refusal import ExitCode, Refusal

if TYPE_CHECKING:
    from tl_dist.config import Config

T = TypeVar("T")


class Strategy(NamedTuple):
    """A strategy: its code, and what must be known to start its workers before that code is imported."""

    implementation: str
    """class that makes a `DataParallel` from the config; its module may import any framework"""
    workers: Literal["one", "replicas", "processes"] = "one"
    """what the config's `workers` counts: nothing, replicas in one process, or processes"""
    package: str | None = None
    """module that must be installed besides"""

    def start(self, config: Config) -> Any:
        """Return the `DataParallel` of this process."""
        return load(self.implementation)(config)


class Dataset(NamedTuple):
    """A data set: its code, and what its config needs, which is known without importing that code."""

    opener: str
    """function from the `data` section to the splits; with `options`, from both"""
    recognise: str | None = None
    """function that takes a path and the visible names in it (none for a file), and returns whether it is such a data
    set"""
    needs_path: bool = True
    package: str | None = None
    """constant: the package that its files come from if a config gives no path"""
    archive: str | None = None
    """constant: the `files.downloads.Archive` that they come from then"""
    official_test: bool = False
    """whether its test split never depends on the fractions"""
    made_up: bool = False
    """random images for measuring speed, which make sense with any weights"""
    keys: tuple[str, ...] = ()
    """keys of `data` that it reads and few others do: labels, soft_labels, target, separator, label_columns"""
    options: type[BaseModel] | None = None
    """the `Section` that checks `data.options`, the keys that no other data set has"""

    def open(self, data: Any) -> Any:
        """Return the splits of a `data` section."""
        opener = load(self.opener)
        if self.options is None:
            return opener(data)
        return opener(data, self.options.model_validate(data.options, strict=True))


AUTO = "auto"
"""the strategy that is replaced by another one when the workers are started (`launcher.command.resolved`)"""

STRATEGIES: Mapping[str, Strategy] = {
    "single": Strategy("tl_dist.parallel.single:SingleDevice"),
    "mirrored": Strategy("tl_dist.parallel.mirrored:Mirrored", workers="replicas"),
    "horovod": Strategy("tl_dist.parallel.horovod:Horovod", workers="processes", package="horovod"),
    AUTO: Strategy("tl_dist.parallel:unresolved", workers="replicas"),
    "collective": Strategy("tl_dist.parallel.collective:Collective", workers="processes"),
}


class Tracker(NamedTuple):
    """An experiment tracker, which `tools.track.to_NAME` copies runs to."""

    title: str
    packages: tuple[str, ...]
    """which must be installed"""


TRACKERS: Mapping[str, Tracker] = {
    "mlflow": Tracker("MLflow", ("mlflow", "sqlalchemy", "alembic")),
    "wandb": Tracker("Weights & Biases", ("wandb",)),
}

_FORMATS = "tl_dist.datasets.formats"

DATASETS: Mapping[str, Dataset] = {
    "cifar10": Dataset(
        f"{_FORMATS}.cifar:open_cifar10",
        f"{_FORMATS}.cifar:is_cifar10",
        needs_path=False,
        archive=f"{_FORMATS}.cifar:CIFAR10_ARCHIVE",
        official_test=True,
    ),
    "cifar100": Dataset(
        f"{_FORMATS}.cifar:open_cifar100",
        f"{_FORMATS}.cifar:is_cifar100",
        needs_path=False,
        archive=f"{_FORMATS}.cifar:CIFAR100_ARCHIVE",
        official_test=True,
        keys=("labels",),
    ),
    "csv": Dataset(
        f"{_FORMATS}.csv_file:open_csv",
        f"{_FORMATS}.csv_file:is_csv",
        keys=("target", "separator", "label_columns"),
    ),
    "digits": Dataset(f"{_FORMATS}.digits:open_digits", needs_path=False),
    "elpv": Dataset(
        f"{_FORMATS}.elpv:open_elpv",
        f"{_FORMATS}.elpv:is_elpv",
        needs_path=False,
        package=f"{_FORMATS}.elpv:PACKAGE",
        keys=("soft_labels", "target"),
    ),
    "imagenet": Dataset(f"{_FORMATS}.imagenet:open_imagenet"),
    "packed": Dataset(
        f"{_FORMATS}.packed:open_packed",
        f"{_FORMATS}.packed:is_packed",
        keys=("target", "separator", "label_columns"),
    ),
    "synthetic": Dataset(f"{_FORMATS}.synthetic:open_synthetic", needs_path=False, made_up=True),
    "tfds": Dataset(f"{_FORMATS}.tfds:open_tfds", f"{_FORMATS}.tfds:is_tfds"),
    "tfrecord": Dataset(
        f"{_FORMATS}.tfrecord:open_tfrecord", f"{_FORMATS}.tfrecord:is_tfrecord", keys=("target", "separator")
    ),
    "image_folder": Dataset(f"{_FORMATS}.image_folder:open_image_folder", f"{_FORMATS}.image_folder:is_image_folder"),
}
"""in the order in which they are tried: nearly any directory looks like an image folder, which is last"""

_FAMILIES: Mapping[str, tuple[str, ...]] = {
    "applications": (
        "tiny",
        "vgg16",
        "vgg19",
        *("resnet50", "resnet101", "resnet152", "resnet50v2", "resnet101v2", "resnet152v2"),
        *("mobilenetv2", "mobilenetv3small", "mobilenetv3large"),
        *(f"efficientnetb{k}" for k in range(8)),
        *(f"efficientnetv2{k}" for k in ("b0", "b1", "b2", "b3", "s", "m", "l")),
        *("densenet121", "densenet169", "densenet201"),
        *("inceptionv3", "inceptionresnetv2", "xception"),
        *(f"convnext{k}" for k in ("tiny", "small", "base", "large", "xlarge")),
    ),
    "efficientnet_lite": tuple(f"efficientnet_lite{k}" for k in range(5)),
    "vit": (
        *("vit_small", "vit_base", "vit_large", "deit_small", "deit_base"),
        *(f"dinov2_{kind}{size}" for kind in ("", "reg_") for size in ("small", "base", "large")),
        *("siglip_base", "siglip_large", "siglip_so400m", "clip_base16", "clip_base32", "clip_large14"),
    ),
}

BACKBONES: Mapping[str, str] = {
    name: f"tl_dist.models.backbones.{family}:{name.upper()}" for family, names in _FAMILIES.items() for name in names
}


@dataclass(frozen=True)
class Registry(Generic[T]):
    """The things of one kind that a config may name: tl_dist's own, and those of other packages."""

    what: str
    key: str
    """last part of the config key"""
    own: Mapping[str, T | str]
    """records of tl_dist, or references to them"""
    group: str
    """entry points of other packages"""
    type: str
    """reference to the type of a record"""

    def record(self, name: str) -> T:
        """Return the record of a name; refuses an unknown name, and whatever `extensions.record` refuses."""
        if name in self.own:
            own = self.own[name]
            return load(own) if isinstance(own, str) else own
        return extensions.record(self.offer(name), load(self.type), f"{self.what} '{name}'")

    def offer(self, name: str) -> Offer:
        """Return where another package has the record of a name. Imports nothing."""
        offers = extensions.offers(self.group)
        if name in offers:
            return offers[name][0]
        if extensions.is_reference(name):
            return Offer(name)
        known = [*self.own, *offers]
        guess = nearest(name, known)
        fix = f"write '{self.key}: {guess}'." if guess else f"use one of {', '.join(known)}."
        raise Refusal(f"{self.what} '{name}' is not known.", fix=fix, code=ExitCode.USAGE)

    def check(self, name: str, *, imports: bool) -> None:
        """Refuse a name that is unknown or offered twice; with `imports`, a record that cannot be imported as well."""
        own = name in self.own
        if own and not imports:
            return
        offers = extensions.offers(self.group).get(name, ())
        homes = ["tl_dist"] * own + [offer.distribution or offer.reference for offer in offers]
        if len(homes) > 1:
            what = f"{self.what} '{name}' is offered by {' and by '.join(homes)}."
            fix = "uninstall the other package." if own else "uninstall one, or write package.module:NAME."
            raise Refusal(what, fix=fix, code=ExitCode.USAGE)
        if imports:
            self.record(name)
        else:
            self.offer(name)


DATASET = Registry[Dataset]("dataset", "name", DATASETS, "tl_dist.datasets", f"{__name__}:Dataset")
BACKBONE = Registry[Any]("backbone", "backbone", BACKBONES, "tl_dist.backbones", "tl_dist.models.backbones:Backbone")
STRATEGY = Registry[Strategy]("strategy", "strategy", STRATEGIES, "tl_dist.strategies", f"{__name__}:Strategy")
dataset, strategy = DATASET.record, STRATEGY.record
KINDS: tuple[Registry[Any], ...] = (DATASET, BACKBONE, STRATEGY)


def backbone(network: str) -> Any:
    """Return the record of a network, as `Config.network` gives it; of a function, it is built once to see its blocks.

    Refuses what `Registry.record` refuses, and a function that returns anything but a network that can be trained here.
    """
    name, more = parts_of(network)
    if "arguments" in more:
        return load("tl_dist.models.backbones.functions:record")(network)
    record = BACKBONE.record(name)
    if not more:
        return record
    return replace(record, preprocessing=load("tl_dist.models.backbones:preprocessing_of")(more["preprocessing"]))


def parts_of(network: str) -> tuple[str, dict[str, Any]]:
    """Return the backbone's name, and what else `ModelConfig.network` says."""
    name, _, text = network.partition(f"{extensions.MORE}{{")
    return name, json.loads("{" + text) if text else {}


def without_folder(network: str) -> str:
    """Return a network, or a name, without the folder of its Python file: a run has a copy of its own."""
    name = parts_of(network)[0]
    return code.short(name) + network.removeprefix(name)


def code_of_network(network: str) -> dict[str, str]:
    """Return the distribution and the digest of the code of a network of another package or file; empty for ours."""
    name, more = parts_of(network)
    if name in BACKBONES:
        return {}
    if "arguments" in more:
        return {"code": extensions.code_digest(extensions.home(name))}
    return code_of(BACKBONE, name)


def named(cfg: Config) -> Iterator[tuple[Registry[Any], tuple[str, ...], str]]:
    """Yield everything that a config names: its registry, the path of the key, and the name."""
    yield DATASET, ("data", "name"), cfg.data.name
    yield BACKBONE, ("model", "backbone"), cfg.model.backbone
    yield STRATEGY, ("strategy",), cfg.strategy


def names_others(cfg: Config) -> bool:
    """Return whether a config names anything of another package."""
    return any(name not in kind.own for kind, _, name in named(cfg))


def code_of(kind: Registry[Any], name: str) -> dict[str, str]:
    """Return the distribution and the digest of the code behind a name of another package."""
    kind.record(name)  # which imports it
    return extensions.identity(kind.offer(name))


def code_of_others(cfg: Config) -> dict[str, dict[str, str]]:
    """Return `code_of` the data set and backbone, if of other packages, and that of every function of the user.

    A run is bound to them, not to its strategy.
    """
    used = {DATASET.what: code_of(DATASET, cfg.data.name) if cfg.data.name not in DATASET.own else {}}
    used[BACKBONE.what] = code_of_network(cfg.network)
    for path, name in code.beside_backbone(cfg):
        used[".".join(path)] = {"code": extensions.code_digest(extensions.home(name))}
    return {what: identity for what, identity in used.items() if identity}


def nearest(name: str, names: Mapping[str, Any] | list[str]) -> str | None:
    """Return the valid name that a typo or a part most likely means, or None where none is near."""
    close = difflib.get_close_matches(name.lower(), list(names), n=1, cutoff=0.75)
    return next(iter(close or (valid for valid in names if len(name) > 2 and name.lower() in valid)), None)


def load(reference: str) -> Any:
    """Return the object behind "module:attribute"; refuses one of another package that cannot be imported."""
    module, attribute = reference.split(":")
    if not module.startswith("tl_dist."):
        return extensions.imported(reference, f"'{reference}'")
    return getattr(import_module(module), attribute)
