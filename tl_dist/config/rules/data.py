"""The rules about images: which, and how they are divided, cropped and labelled."""

from collections.abc import Iterator

from tl_dist.config import Config, registry
from tl_dist.config.problems import Broken, shown
from tl_dist.files import limits


def data(cfg: Config) -> Iterator[Broken]:
    """Yield broken rules about `data` and the views that are evaluated."""
    data, needs = cfg.data, registry.dataset(cfg.data.name)
    if needs.needs_path and data.path is None:
        fix = "add 'path: DIRECTORY' below 'data:', or 'data.path=DIRECTORY' on the command line."
        yield Broken(("data", "path"), f"dataset '{data.name}' needs data.path.", fix)
    if data.labels == "coarse" and "labels" not in needs.keys:
        what = "only cifar100 has coarse labels."
        yield Broken(("data", "labels"), what, "remove 'labels' or use 'name: cifar100'.")
    for key, task in (("target", "regression"), ("separator", "multilabel"), ("label_columns", "multilabel")):
        if getattr(data, key) and cfg.task != task:
            yield Broken(("data", key), f"data.{key} has no effect with task '{cfg.task}'.", f"write 'task: {task}'.")
        elif getattr(data, key) and key not in needs.keys and data.name in registry.DATASETS:
            what = f"dataset '{data.name}' has one class for each image, and task '{task}' needs more."
            yield Broken(("data", "name"), what, "list the images in a table, and write 'name: csv'.")
    if data.separator and data.label_columns:
        what = "data.label_columns has the labels already, so data.separator has no effect."
        yield Broken(("data", "separator"), what, "remove one of them.")
    if data.soft_labels and data.grades:
        what = "soft labels are of two classes, and data.grades makes each probability a class."
        yield Broken(("data", "soft_labels"), what, "remove it, or 'grades'.")
    if data.soft_labels:
        yield from _soft_labels(cfg)
    test, name = data.test_fraction, f"test_fraction {data.test_fraction}"
    if data.folds is not None:
        test, name = 1 / data.folds, f"one of {data.folds} folds"
    if not needs.official_test and data.validation_fraction + test >= 1:
        what = f"validation_fraction {data.validation_fraction} and {name} leave nothing to train on."
        yield Broken(("data", "validation_fraction"), what, "make their sum less than 1.")
    if data.folds is not None and data.split is not None:
        what = "data.split divides the examples already."
        yield Broken(("data", "folds"), what, "remove 'folds' or 'split'.")
    elif data.split is None and ((data.folds is None) != (data.fold is None) or (data.fold or 0) >= (data.folds or 1)):
        yield Broken(
            ("data", "fold"),
            f"data.folds {shown(data.folds)} and data.fold {shown(data.fold)} do not say which fold is held out.",
            "give both, with fold from 0 to folds - 1, or neither (or 'split: FILE' and fold).",
        )
    if len(set(cfg.evaluation.views)) < len(cfg.evaluation.views):
        what = "evaluation.views has the same view twice."
        yield Broken(("evaluation", "views"), what, "keep one of them.")
    twice = [name for name in data.augment if data.augment.count(name) > 1]
    if twice:
        yield Broken(("data", "augment"), f"data.augment has '{twice[0]}' twice.", "keep one of them.")
    yield from _crops(cfg)
    size = data.image_size or 1
    if size > limits.IMAGE_SIDE or cfg.global_batch * size**2 > limits.BATCH_PIXELS:
        what = f"{cfg.global_batch} images of {size} x {size} pixels are more than a step can hold"
        fix = f"at most {limits.IMAGE_SIDE} for image_size, and {limits.BATCH_PIXELS:,} pixels with global_batch."
        yield Broken(("data", "image_size"), f"{what}.", f"write {fix}")


def _crops(cfg: Config) -> Iterator[Broken]:
    data = cfg.data
    if data.crop_fraction is not None and data.resize == "stretch":
        what = "crop_fraction has no effect with resize 'stretch'."
        yield Broken(("data", "crop_fraction"), what, "write 'resize: crop' below 'data:', or remove it.")
    if cfg.runtime.decoded_images != "off" and "random_resized_crop" in data.augment:
        what = "random_resized_crop cuts from the original photograph, but decoded_images keeps resized ones."
        yield Broken(("runtime", "decoded_images"), what, "write 'decoded_images: off', or use pad_crop.")
    if "random_resized_crop" in data.augment[1:]:
        what = "random_resized_crop comes after another augmentation, but only the crop is decoded."
        yield Broken(("data", "augment"), what, "write it first.")
    first, last = data.augmentation.crop_area
    if first > last:
        what = f"crop_area goes from {first:g} down to {last:g}."
        yield Broken(("data", "augmentation", "crop_area"), what, "write the smaller fraction first.")


def _soft_labels(cfg: Config) -> Iterator[Broken]:
    path = ("data", "soft_labels")
    if "soft_labels" not in registry.dataset(cfg.data.name).keys:
        what = f"dataset '{cfg.data.name}' has no soft labels."
        yield Broken(path, what, "remove it, or use 'name: elpv'.")
    if cfg.classifier.computed:
        what = f"classifier '{cfg.classifier.name}' is computed from hard labels."
        yield Broken(path, what, "write 'name: head' below 'classifier:', or remove 'soft_labels'.")
    if cfg.data.augmentation.mixes:
        what = "soft labels cannot be mixed, because an example has room for two classes only."
        yield Broken(path, what, "remove mixup and cutmix, or 'soft_labels'.")
