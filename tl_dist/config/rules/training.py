"""The rules about the optimizer, its schedules, outputs that are computed once, and what figures decide."""

from collections.abc import Collection, Iterator

from tl_dist.config import Config, LossConfig, OptimizerConfig, ScheduleConfig, code, registry
from tl_dist.config.model_selection import FIGURES, OF_TASK, RESERVED, SPLIT, figure_of, metrics_of
from tl_dist.config.problems import Broken
from tl_dist.config.registry import nearest
from tl_dist.config.training import CLASSIFIERS, LOSSES, PLATEAU

FEW_VIEWS = ("flip", "dihedral")
"""augmentations with few outcomes: the keys of `VIEWS` in tl_dist/data/augment.py, which imports TensorFlow"""


def optimizer(cfg: Config) -> Iterator[Broken]:
    """Yield broken rules about keys of training that have no effect, or work against each other."""
    optimizer = cfg.optimizer
    for section, key, is_set in (
        ("optimizer", "layer_decay", optimizer.layer_decay < 1),
        ("model", "adapt", cfg.model.adapt != "all"),
        ("model", "batch_norm", cfg.model.batch_norm in ("train", "sync")),
        ("model", "drop_path", cfg.model.drop_path > 0),
        ("runtime", "recompute", cfg.runtime.recompute),
    ):
        if is_set and all(part == "head" for part in cfg.parts):
            what = f"{key} has no effect with train_from 'head', which trains no layer below the head."
            yield Broken((section, key), what, "remove it, or write 'train_from: all' or a stage below 'model:'.")
    if optimizer.l2_sp and optimizer.weight_decay:
        yield Broken(
            ("optimizer", "l2_sp"),
            "l2_sp pulls the backbone to its pretrained weights, and weight_decay pulls it to 0.",
            f"write 'head_weight_decay: {optimizer.weight_decay:g}' instead of 'weight_decay', or remove l2_sp.",
        )
    if optimizer.l2_sp and cfg.random_start and not registry.dataset(cfg.data.name).made_up:
        what = "l2_sp pulls toward pretrained weights, but the weights are 'random'."
        fix = "write 'weights: imagenet' below 'model:', or weight_decay instead of l2_sp."
        yield Broken(("optimizer", "l2_sp"), what, fix)
    default = OptimizerConfig.model_fields["trust_coefficient"].default
    if optimizer.name != "lars" and optimizer.trust_coefficient != default:
        what = f"trust_coefficient has no effect with optimizer '{optimizer.name}'."
        yield Broken(("optimizer", "trust_coefficient"), what, "write 'name: lars', or remove it.")


def loss(cfg: Config) -> Iterator[Broken]:
    """Yield broken rules about variants of the loss, and about two ways to balance classes at once."""
    loss, fields, computed = cfg.loss, LossConfig.model_fields, cfg.classifier.computed
    for key, needed in (
        ("gamma", "name: focal"),
        ("tau", "name: logit_adjusted"),
        ("beta", "class_weights: effective"),
        *((key, "name: asymmetric") for key in ("gamma_positive", "gamma_negative", "clip")),
        ("delta", "name: huber"),
        ("pos_weight", "name: binary_cross_entropy"),
    ):
        key_needed, value = needed.split(": ")
        if getattr(loss, key_needed) != value and getattr(loss, key) != fields[key].default:
            yield Broken(("loss", key), f"loss.{key} has no effect without '{needed}'.", "add that, or remove it.")
    yield from _of_another_task(cfg)
    plain = "cross_entropy" if "cross_entropy" in LOSSES[cfg.task] else LOSSES[cfg.task][0]
    for path, is_set in (
        (("loss", "name"), loss.name != plain),
        (("loss", "pos_weight"), loss.pos_weight is not None),
        (("data", "balance"), cfg.data.balance),
    ):
        if is_set and computed:
            what = f"classifier '{cfg.classifier.name}' minimizes the {plain} of each example once."
            what, also = what.replace("cross_entropy", "cross-entropy"), ""
            if plain == "cross_entropy":
                also = " (class_weights work there)"
            yield Broken(path, what, f"remove it{also}, or write 'name: head' below 'classifier:'.")
    if loss.name == "coral" and loss.label_smoothing:
        what = "label_smoothing has no effect with loss 'coral', which knows no classes, only grades to exceed."
        yield Broken(("loss", "label_smoothing"), what, "remove it, or write 'name: corn'.")
    balancing = {
        ("loss", "name"): loss.name == "logit_adjusted",
        ("loss", "class_weights"): loss.class_weights is not None,
        ("data", "balance"): cfg.data.balance,
    }
    used = [path for path, is_set in balancing.items() if is_set]
    if len(used) > 1:
        both = " and ".join(".".join(path) for path in used)
        yield Broken(used[-1], f"{both} each make up for rare classes.", "keep one of them.")
    if cfg.data.balance and cfg.data.shuffle == "blocks":
        what = "balance draws from everywhere in the storage, which shuffle 'blocks' avoids."
        yield Broken(("data", "balance"), what, "write 'shuffle: full', or class_weights below 'loss:' instead.")


def _of_another_task(cfg: Config) -> Iterator[Broken]:
    """Yield what belongs to another task: the loss, the classifier, and keys that need one class for each image."""
    name, task = cfg.loss.name, cfg.task
    if code.is_function(name):
        if cfg.loss.label_smoothing:
            what = f"label_smoothing has no effect on loss '{name}', which gets class numbers."
            yield Broken(("loss", "label_smoothing"), what, "remove it, and smooth in the function.")
    elif name not in LOSSES[task]:
        others = [other for other, names in LOSSES.items() if name in names]
        fix = f"write 'task: {others[0]}', or use {' or '.join(LOSSES[task])}."
        yield Broken(("loss", "name"), f"loss '{name}' does not belong to task '{task}'.", fix)
    if cfg.classifier.computed and cfg.classifier.name not in CLASSIFIERS[task]:
        what = f"classifier '{cfg.classifier.name}' does not belong to task '{task}'."
        yield Broken(("classifier", "name"), what, f"write 'name: {CLASSIFIERS[task][0]}', or 'name: head'.")
    of_classes = {
        ("loss", "label_smoothing"): cfg.loss.label_smoothing > 0,
        ("loss", "class_weights"): cfg.loss.class_weights is not None,
        ("data", "balance"): cfg.data.balance,
        ("data", "soft_labels"): cfg.data.soft_labels,
        ("data", "grades"): bool(cfg.data.grades),
        ("distill",): cfg.distill is not None,
    }
    if "cross_entropy" not in LOSSES[task]:
        for path in (path for path, is_set in of_classes.items() if is_set):
            what = f"{'.'.join(path)} needs one class for each image, which task '{task}' has not."
            also = " (loss.pos_weight weighs labels)" if path[-1] == "class_weights" and task == "multilabel" else ""
            yield Broken(path, what, f"remove it{also}.")


def schedule(cfg: Config) -> Iterator[Broken]:
    """Yield broken rules about the schedules of the run and of each stage."""
    rate = cfg.optimizer.learning_rate
    yield from _one_schedule(cfg.optimizer.schedule, ("optimizer", "schedule"), rate)
    for number, stage in enumerate(cfg.stages):
        if stage.schedule is not None:
            place = ("stages", str(number), "schedule")
            yield from _one_schedule(stage.schedule, place, stage.learning_rate or rate)


def _one_schedule(schedule: ScheduleConfig, section: tuple[str, ...], rate: float) -> Iterator[Broken]:
    drops = schedule.drop_at_epochs
    path = (*section, "drop_at_epochs")
    idle = f"has no effect with schedule '{schedule.name}'."
    if drops and schedule.name != "step":
        yield Broken(path, f"drop_at_epochs {idle}", "write 'name: step'.")
    if schedule.name == "step" and not drops:
        yield Broken(path, "schedule 'step' needs drop_at_epochs.", "add 'drop_at_epochs: [30, 60, 80]'.")
    if any(later <= earlier for earlier, later in zip((0.0, *drops), drops, strict=False)):
        what = f"drop_at_epochs {list(drops)} must increase, and begin above 0."
        yield Broken(path, what, "sort the epochs, and remove duplicates and 0.")
    if schedule.final_fraction > 0 and schedule.name != "cosine":
        what = f"final_fraction {idle}"
        yield Broken((*section, "final_fraction"), what, "write 'name: cosine' or remove it.")
    if schedule.name != "plateau":
        fields = ScheduleConfig.model_fields
        for key in (key for key in PLATEAU if getattr(schedule, key) != fields[key].default):
            yield Broken((*section, key), f"{key} {idle}", "write 'name: plateau' or remove it.")
    if schedule.name == "plateau" and schedule.metric is None:
        yield Broken(path[:-1], "schedule 'plateau' needs a metric.", "add 'metric: validation.log_loss'.")
    if schedule.min_rate >= rate:
        least = schedule.min_rate
        what = f"min_rate {least:g} is not below the learning rate {rate:g}, which would never drop."
        yield Broken((*section, "min_rate"), what, "write a lower one, or remove it.")


def endless_augmentations(cfg: Config) -> list[str]:
    """Return the augmentations that make more variants of an image than could be cached."""
    return [name for name in cfg.data.augment if name not in FEW_VIEWS]


def prefix_cache(cfg: Config) -> Iterator[Broken]:
    """Yield broken rules about settings that leave the frozen part nothing, or too much, to cache."""
    path = ("data", "augment") if cfg.classifier.computed else ("runtime", "prefix_cache")
    if cfg.runtime.prefix_cache != "on" and not cfg.classifier.computed:
        return
    if all(part == "all" for part in cfg.parts):
        yield Broken(path, "train_from 'all' leaves no frozen part to cache.", "write 'prefix_cache: off'.")
    if cfg.data.augmentation.mixes:
        what = "mixup and cutmix make images that cannot be cached."
        yield Broken(path, what, "write 'prefix_cache: off', or remove them.")
    endless = endless_augmentations(cfg)
    if endless:
        what = f"augmentation '{endless[0]}' makes endless variants of each image, which cannot be cached."
        yield Broken(path, what, f"use only {' and '.join(FEW_VIEWS)}, or write 'prefix_cache: off'.")


def taught_in_steps(cfg: Config) -> bool:
    """Return whether the teacher runs in each step, because the images cannot be known in advance."""
    return bool(endless_augmentations(cfg)) or cfg.data.augmentation.mixes


def distill(cfg: Config) -> Iterator[Broken]:
    """Yield broken rules about a teacher that no step would use, and about labels that no loss would use."""
    if cfg.distill is None:
        return
    if cfg.classifier.computed:
        what = f"classifier '{cfg.classifier.name}' is computed from labels, so a teacher has no effect."
        yield Broken(("distill",), what, "write 'name: head' below 'classifier:', or remove 'distill'.")
    idle = {
        ("loss", "name"): cfg.loss.name != "cross_entropy",
        ("loss", "label_smoothing"): cfg.loss.label_smoothing > 0,
        ("loss", "class_weights"): cfg.loss.class_weights is not None,
        ("data", "soft_labels"): cfg.data.soft_labels,
    }
    for path in (path for path, is_set in idle.items() if is_set and cfg.distill.weight == 1):
        what = f"{path[1]} has no effect with distill.weight 1, which leaves no weight to the labels."
        yield Broken(path, what, "remove it, or lower distill.weight.")


def deciding(cfg: Config) -> Iterator[Broken]:
    """Yield broken rules about metrics that decide; whether there is a validation split is known later."""
    metrics = metrics_of(cfg)
    own = cfg.evaluation.metrics
    for name in own.keys() & {*FIGURES, *RESERVED}:
        what = f"evaluation.metrics: '{name}' is a figure of every evaluation."
        yield Broken(("evaluation", "metrics", name), what, "give yours another name.")
    for path, metric in metrics.items():
        yield from _metric(path, metric, own)
        if figure_of(metric) in FIGURES and figure_of(metric) not in OF_TASK[cfg.task]:
            what = f"{figure_of(metric)} is no figure of task '{cfg.task}'."
            theirs = next(task for task, names in OF_TASK.items() if figure_of(metric) in names)
            yield Broken(path, what, f"write 'task: {theirs}', or use one of {', '.join(OF_TASK[cfg.task])}.")
    best = cfg.checkpoint.best
    if best is None and cfg.checkpoint.average is not None:
        what = "checkpoint.average needs checkpoint.best, which says which weights are best."
        fix = "write 'best: {metric: validation.accuracy}' below 'checkpoint:', or remove 'average'."
        yield Broken(("checkpoint", "average"), what, fix)
    if best is not None and best.mode not in ("auto", FIGURES.get(figure_of(best.metric), best.mode)):
        what = f"mode '{best.mode}' would keep the weights with the worst {best.metric}."
        yield Broken(("checkpoint", "best", "mode"), what, "write 'mode: auto'.")
    if cfg.classifier.computed and metrics:
        path = next(iter(metrics))
        yield Broken(
            path[:-1],
            f"classifier '{cfg.classifier.name}' is computed in one step: {'.'.join(path[:-1])} has nothing to decide.",
            f"remove '{path[-2]}', or write 'name: head' below 'classifier:'.",
        )


def _metric(path: tuple[str, ...], metric: str, own: Collection[str]) -> Iterator[Broken]:
    split, dot, figure = metric.rpartition(".")
    if dot and split != SPLIT:
        why = "the test split must not decide" if split == "test" else f"only the {SPLIT} split decides"
        what = f"{'.'.join(path)} is '{metric}', but {why}."
        yield Broken(path, what, f"write 'metric: {SPLIT}.{figure}'.")
    elif figure not in FIGURES and figure not in own:
        guess = "log_loss" if figure == "loss" else nearest(figure, [*FIGURES, *own])
        fix = f"write 'metric: {SPLIT}.{guess}'." if guess else f"use one of {', '.join(FIGURES)}."
        yield Broken(path, f"{'.'.join(path)} '{metric}' is not a figure of an evaluation.", fix)
