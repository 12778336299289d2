"""Fill in, once and on the login node, what the data set or the weights decide; the config then holds the choices."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from statistics import median
from typing import TYPE_CHECKING, Any, get_args

from tl_dist.config import Config, DataConfig, ModelConfig, auto, registry
from tl_dist.config import file as config_file
from tl_dist.config.data import Interpolation
from tl_dist.config.training import ScalingConfig
from tl_dist.models import weights
from tl_dist.models.weights import descriptions
from tl_dist.refusal import ExitCode, Refusal

if TYPE_CHECKING:
    from tl_dist.datasets import Source

_NUM_SAMPLED = 64


def values_for(data: DataConfig, written: Mapping[str, Any]) -> dict[str, Any]:
    """Choose values, by `auto.auto`, for the keys that a config leaves out."""
    from tl_dist.datasets.division import open_splits

    train = open_splits(data)[0]["train"]
    model = ModelConfig.model_validate(config_file.tuples(config_file.section(written, "model")), strict=True)
    backbone = registry.backbone(model.network(data.image_size))
    return auto.auto(written, train.num_examples, _typical_area(train), backbone.input_size)


def with_authors_images(cfg: Config, *, imports: bool = True) -> Config:
    """Return the config with what the description beside the weights says of images, for the keys that it leaves out.

    Without `imports`, a description that is still on the hub is left out, as is that for a network of other code.
    """
    model, known = cfg.model, cfg.model.backbone in registry.BACKBONES
    images = weights.images_of(model.weights, cfg.network, fetch=imports) if imports or known else None
    if images is None:
        return cfg
    changes: dict[str, Any] = {"data": _squared(cfg.data, images)}
    if cfg.source is not None and cfg.source.data is not None:
        changes["source"] = cfg.source.model_copy(update={"data": _squared(cfg.source.data, images)})
    own = registry.backbone(cfg.network).preprocessing if known and model.preprocessing is None else None
    if own not in (None, "inside") and (theirs := descriptions.scaling_if_other(own, images)):
        scaling = ScalingConfig(mean=theirs.mean, std=theirs.std)
        changes["model"] = model.model_copy(update={"preprocessing": scaling})
    return cfg.model_copy(update=changes)


def _squared(data: DataConfig, images: descriptions.Images) -> DataConfig:
    """Return a section with the authors' way to make squares, as far as it leaves that open and we have it."""
    written, keys = data.model_fields_set, ["resize", "crop_fraction"]
    if written & {*keys}:
        keys = []
    if "interpolation" not in written and images.get("interpolation") in get_args(Interpolation):
        keys.append("interpolation")
    return data.model_copy(update={key: images[key] for key in keys if key in images})


def line(cfg: Config) -> str:
    """Summarise the config that `recipe: auto` has chosen, in one line."""
    optimizer, data = cfg.optimizer, cfg.data
    augment = f"augment {' '.join(data.augment) or 'none'}"
    if cfg.classifier.computed:
        return f"recipe auto: {cfg.classifier.name} of images of {data.image_size} px, {augment}"
    length = f"{cfg.steps:,} steps" if cfg.steps else f"{cfg.epochs or 0:g} epochs"
    schedule = optimizer.schedule
    drops = f", a tenth after {', '.join(f'{e:g}' for e in schedule.drop_at_epochs)} epochs"
    return (
        f"recipe auto: {length} of {cfg.global_batch} images of {data.image_size} px, "
        f"train_from {cfg.model.train_from}, "
        f"{optimizer.name} at {optimizer.learning_rate:.3g}{drops if schedule.drop_at_epochs else ''}, "
        f"{augment}, mixup {data.augmentation.mixup:g}"
    )


def _typical_area(train: Source) -> float:
    """Return the median number of pixels of images spread evenly over the set: the first may all be of one class."""
    from tl_dist.datasets.headers import checked
    from tl_dist.datasets.store import PixelStore

    if isinstance(train.store, PixelStore):
        height, width = train.store.size
        return float(height * width)
    num_sampled = min(_NUM_SAMPLED, train.num_examples)
    areas = []
    for k in range(num_sampled):
        with suppress(OSError, ValueError):  # training will leave it out, and log that
            header = checked(train.encoded_bytes(k * train.num_examples // num_sampled))
            areas.append(header.width * header.height)
    if areas:
        return float(median(areas))
    what = f"recipe: auto looked at {num_sampled} images, and none can be read, as {train.ids[0]}."
    raise Refusal(what, fix="see what 'tl-dist data verify' says of them.", code=ExitCode.DATA)
