"""Names in a config and the code behind them: tables of strings, and what other packages offer (`extensions`).

Nothing is imported until it is asked for.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel

from tl_dist.config import extensions
from tl_dist.config.extensions import Offer
from tl_dist.refusal import ExitCode, Refusal

if TYPE_CHECKING:
    from tl_dist.config import Config


class Strategy(NamedTuple):
    """A strategy: its code, and what has to be known to start its workers, before that code is imported."""

    implementation: str
    """class that makes a `DataParallel` of the config; its module may import any framework"""
    workers: Literal["one", "replicas", "processes"] = "one"
    """what the config's `workers` counts: nothing, replicas in one process, or processes"""
    package: str | None = None
    """module that has to be installed besides"""

    def start(self, config: Config) -> Any:
        """The `DataParallel` of this process."""
        return load(self.implementation)(config)


class Dataset(NamedTuple):
    """A data set: its code, and what a config of it needs, which is known without importing that code."""

    opener: str
    """function from the `data` section to the splits; where there are `options`, from both"""
    recognise: str | None = None
    """function from a path, and the visible names in it (none of a file), to whether such a data set lies there"""
    needs_path: bool = True
    package: str | None = None
    """constant: the package that its files come from where a config gives no path"""
    archive: str | None = None
    """constant: the `files.downloads.Archive` that they come from there"""
    official_test: bool = False
    """whether its test split is never taken from the fractions"""
    made_up: bool = False
    """random images, to measure speed on: sensible with any weights"""
    keys: tuple[str, ...] = ()
    """of `data`, which few data sets have: labels, soft_labels"""
    options: type[BaseModel] | None = None
    """the `Section` that `data.options` is checked by: keys that no other data set has"""

    def open(self, data: Any) -> Any:
        """The splits of a `data` section."""
        opener = load(self.opener)
        if self.options is None:
            return opener(data)
        return opener(data, self.options.model_validate(data.options, strict=True))


AUTO = "auto"
"""the strategy that becomes another one where the workers are started (`launcher.command.resolved`)"""

STRATEGIES: Mapping[str, Strategy] = {
    "single": Strategy("tl_dist.parallel.single:SingleDevice"),
    "mirrored": Strategy("tl_dist.parallel.mirrored:Mirrored", workers="replicas"),
    "horovod": Strategy("tl_dist.parallel.horovod:Horovod", workers="processes", package="horovod"),
    AUTO: Strategy("tl_dist.parallel:unresolved", workers="replicas"),
    "collective": Strategy("tl_dist.parallel.collective:Collective", workers="processes"),
}


class Tracker(NamedTuple):
    """What keeps copies of runs: `tools.track.to_NAME`."""

    title: str
    packages: tuple[str, ...]
    """that have to be installed"""


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


class Kind(NamedTuple):
    """What a key of the config names."""

    what: str
    key: str
    """of the config, the last part"""
    own: Mapping[str, Any]
    """records, or references to them"""
    group: str
    """entry points of other packages"""
    record: str
    """reference to the type of a record"""


DATASET = Kind("dataset", "name", DATASETS, "tl_dist.datasets", f"{__name__}:Dataset")
BACKBONE = Kind("backbone", "backbone", BACKBONES, "tl_dist.backbones", "tl_dist.models.backbones:Backbone")
STRATEGY = Kind("strategy", "strategy", STRATEGIES, "tl_dist.strategies", f"{__name__}:Strategy")
KINDS = (DATASET, BACKBONE, STRATEGY)


def dataset(name: str) -> Dataset:
    """The record of a data set; refuses an unknown name, and what `extensions.record` refuses. As the next two."""
    return _record(DATASET, name)


def backbone(name: str) -> Any:
    """The `Backbone` of a name. Its module imports no framework."""
    return _record(BACKBONE, name)


def strategy(name: str) -> Strategy:
    """The record of a strategy."""
    return _record(STRATEGY, name)


def _record(kind: Kind, name: str) -> Any:
    if name in kind.own:
        own = kind.own[name]
        return load(own) if isinstance(own, str) else own
    return extensions.record(_offer(kind, name), load(kind.record), f"{kind.what} '{name}'")


def _offer(kind: Kind, name: str) -> Offer:
    offers = extensions.offers(kind.group)
    if name in offers:
        return offers[name][0]
    if extensions.is_reference(name):
        return Offer(name)
    known = [*kind.own, *offers]
    guess = nearest(name, known)
    raise Refusal(
        f"{kind.what} '{name}' is not known.",
        fix=f"write '{kind.key}: {guess}'." if guess else f"use one of {', '.join(known)}.",
        code=ExitCode.USAGE,
    )


def check(kind: Kind, name: str, *, imports: bool) -> None:
    """Refuses a name that leads nowhere or to several places; with `imports` also a record that cannot be had.

    Without, nothing is imported, and of a name of ours nothing is looked up.
    """
    own = name in kind.own
    if own and not imports:
        return
    packages = [
        offer.distribution or offer.reference for offer in extensions.offers(kind.group).get(name, ())
    ]
    if own + len(packages) > 1:
        raise Refusal(
            f"{kind.what} '{name}' is offered by {' and by '.join(['tl_dist'] * own + packages)}.",
            fix="uninstall the other package." if own else "uninstall one, or write package.module:NAME.",
            code=ExitCode.USAGE,
        )
    if imports:
        _record(kind, name)
    elif not own:
        _offer(kind, name)


def named(cfg: Config) -> Iterator[tuple[Kind, tuple[str, ...], str]]:
    """What a config names: the kind, the path of the key, and the name."""
    yield DATASET, ("data", "name"), cfg.data.name
    yield BACKBONE, ("model", "backbone"), cfg.model.backbone
    yield STRATEGY, ("strategy",), cfg.strategy


def names_others(cfg: Config) -> bool:
    """Whether a config names anything of another package."""
    return any(name not in kind.own for kind, _, name in named(cfg))


def code_of(kind: Kind, name: str) -> dict[str, str]:
    """Distribution, and digest of the code, of what another package has under a name."""
    _record(kind, name)  # which imports it
    return extensions.identity(_offer(kind, name))


def code_of_others(cfg: Config) -> dict[str, dict[str, str]]:
    """The same of what a config names of other packages and a run is bound to: not the strategy, which may change."""
    return {
        kind.what: code_of(kind, name)
        for kind, _, name in named(cfg)
        if kind is not STRATEGY and name not in kind.own
    }


def nearest(name: str, names: Mapping[str, Any] | list[str]) -> str | None:
    """The valid name that a typo most likely meant, or None."""
    close = difflib.get_close_matches(name.lower(), list(names), n=1, cutoff=0.5)
    return close[0] if close else None


def load(reference: str) -> Any:
    """The object behind "module:attribute"; of another package, refused where it cannot be had."""
    module, attribute = reference.split(":")
    if not module.startswith("tl_dist."):
        return extensions.imported(reference, f"'{reference}'")
    return getattr(import_module(module), attribute)
