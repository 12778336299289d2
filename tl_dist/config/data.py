"""The base class of a config's sections, types of their keys, and the sections about images."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) in (int, float) else value)]
"""a class as the data set writes it, which YAML may read as a number"""
PositiveFraction = Annotated[float, Field(gt=0, le=1)]


FUNCTION = r"^.+:[A-Za-z_]\w*$"
Function = Annotated[str, Field(pattern=FUNCTION)]
"""a function of the user: package.module:NAME, or FILE.py:NAME, a file beside the config; a run keeps a copy"""


def _plain(value: Any) -> Any:
    """Return plain values with lists as tuples; ValueError for any that a config file cannot hold."""
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(f"{value!r} cannot be written into a config")


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def with_answers(data: Mapping[str, Any], task: str) -> Mapping[str, Any]:
    """Return a `data` section with what task multilabel or regression reads where the section does not say."""
    if task == "regression":
        return {"target": "probability" if data.get("name") == "elpv" else "label", **data}
    if task == "multilabel" and not data.get("label_columns"):
        return {"separator": ";", **data}
    return data


Options = Annotated[dict[str, Any], AfterValidator(_plain)]
"""a section whose keys are defined elsewhere"""

Interpolation = Literal["bilinear", "bicubic"]
RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Section(BaseModel):
    """Part of a config: immutable, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Square(NamedTuple):
    """How whole images become squares."""

    crop_fraction: float | None = None
    """fraction of the shorter side that the middle square has; None: the image is stretched"""
    interpolation: Interpolation = "bilinear"

    def changes(self) -> dict[str, Any]:
        """Return what differs from the defaults, for keys and manifests."""
        return {key: value for key, value in self._asdict().items() if value != self._field_defaults[key]}


STRETCHED = Square()


class AugmentConfig(Section):
    """How strong the augmentations of `data.augment` are."""

    crop_area: tuple[PositiveFraction, PositiveFraction] = (0.08, 1.0)
    """random_resized_crop: smallest and largest fraction of the image's area"""
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.4
    """colour_jitter: brightness, contrast and saturation are each multiplied by a factor within 1 +- this"""
    jitter_hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """colour_jitter: the hue is shifted by up to +- this, as a fraction of a full turn"""
    rand_augment_num: PositiveInt = 2
    """rand_augment: operations per image"""
    rand_augment_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """rand_augment: strength of the operations, at most 30"""
    erase_probability: PositiveFraction = 0.25
    """random_erasing: probability that a rectangle of an image is erased"""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """alpha of the Beta distribution from which the mixing ratio of two images and their labels is drawn (arXiv
    1710.09412); 0: never"""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """alpha for pasting a part of another image (arXiv 1905.04899); 0: never; with mixup, each is applied to half of
    the pairs"""

    @property
    def mixes(self) -> bool:
        """Return whether pairs of examples are mixed."""
        return self.mixup > 0 or self.cutmix > 0


class DataConfig(Section):
    """Which images, how they are split and how they are augmented."""

    name: str
    """dataset: cifar10, cifar100, digits, csv, elpv, image_folder, imagenet, packed, synthetic, tfds, tfrecord; or
    a dataset of another package: the name of its entry point, or package.module:NAME"""
    path: str | None = None
    """directory of the files (csv: the table); cifar10, cifar100 and elpv are downloaded if none is given"""
    image_size: PositiveInt | None = None
    """images are resized to this square; default: the backbone's own input size"""
    resize: Literal["stretch", "crop"] = "stretch"
    """how an image is made square: stretch changes its aspect ratio; crop keeps it and takes the middle"""
    crop_fraction: PositiveFraction | None = None
    """crop only: the shorter side is resized to image_size / crop_fraction, and the middle square is kept; default:
    0.875 (256 for 224)"""
    interpolation: Interpolation = "bilinear"
    """filter, with antialiasing, by which whole images are resized; random_resized_crop is bilinear. If the config has
    neither resize nor crop_fraction, or no interpolation, a description beside weights of hf:// or in a file decides"""
    validation_fraction: Fraction = 0.0
    """fraction of all examples outside an official test split, stratified by class (and by type if the dataset has
    types)"""
    test_fraction: Fraction = 0.25
    """fraction of all examples, for datasets without an official test split"""
    folds: Annotated[int, Field(ge=2)] | None = None
    """divide the examples into this many stratified folds instead of by test_fraction; see fold"""
    fold: Annotated[int, Field(ge=0)] | None = None
    """number, from 0, of the fold that is held out, of `folds` or of a split manifest with folds: it is the test split,
    or the validation split if the dataset has an official test split"""
    split_seed: int = 0
    split: str | None = None
    """split manifest written by `tl-dist data split`: divides the examples instead of the fractions"""
    labels: Literal["fine", "coarse"] = "fine"
    """cifar100 only"""
    grades: tuple[Name, ...] = ()
    """task 'ordinal': the classes from the lowest to the highest, such as [none, mild, severe]; default: if their names
    are numbers, these decide. elpv has four of them: [0, 0.33, 0.67, 1]"""
    target: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    """task 'regression': the columns of numbers, or the keys of TFRecord files; default: label; of elpv: probability,
    that the cell is defective"""
    separator: Annotated[str, Field(pattern=r"^[;|,/ ]$")] | None = None
    """task 'multilabel': between the labels of an image in column label, such as cat;furry; default: ;. TFRecord files
    have lists"""
    label_columns: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    """task 'multilabel': columns of 0 and 1, each a label, instead of column label"""
    first_label: Literal[0, 1] | None = None
    """tfrecord and imagenet: the lowest class number in the records; default: 0 if a record has it, else 1"""
    augment: tuple[
        Literal[
            "random_resized_crop", "pad_crop", "flip", "dihedral", "brightness", "colour_jitter", "rand_augment",
            "random_erasing",
        ]
        | Function,
        ...,
    ] = ()  # fmt: skip
    """applied in this order; random numbers are drawn by (seed, position). A function of your own, FILE.py:NAME, gets
    an image uint8 [size, size, 3] and a seed int32 [2] for TensorFlow's stateless operations, and returns an image"""
    augmentation: AugmentConfig = AugmentConfig()
    shuffle: Literal["full", "blocks"] = "full"
    """blocks: neighbours stay together, for storage with slow random access; how well classes are mixed is shown at the
    start"""
    shuffle_block: PositiveInt = 1024
    """blocks only: neighbouring examples that stay together"""
    shuffle_window: PositiveInt = 16
    """blocks only: blocks whose examples are mixed with each other"""
    balance: bool = False
    """draw the classes equally often in training: examples of a rare class are seen more than once per epoch, others
    less; how often is noted at the start"""
    soft_labels: bool = False
    """elpv only: train on the experts' defect probabilities; evaluation keeps the hard labels"""
    max_bad: Annotated[int, Field(ge=0)] | None = None
    """training continues without examples that cannot be decoded, up to this many; default: the larger of 100 and
    0.01 % of all"""
    options: Options = Field(default={})
    """keys of its own that a dataset of another package defines"""
    num_examples: PositiveInt = 1024
    """synthetic only"""
    num_classes: Annotated[int, Field(ge=2)] = 10
    """synthetic only"""

    @property
    def square(self) -> Square:
        """Return how whole images become squares."""
        return Square(None if self.resize == "stretch" else self.crop_fraction or 0.875, self.interpolation)
