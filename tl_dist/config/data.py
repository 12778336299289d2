"""The sections of a config on images: which, how they are split, how they are augmented."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tl_dist.config.section import Fraction, Options, PositiveFraction, PositiveInt, Section


class AugmentConfig(Section):
    """How strong the augmentations of `data.augment` are."""

    crop_area: tuple[PositiveFraction, PositiveFraction] = (0.08, 1.0)
    """random_resized_crop: least and largest part of the area"""
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.4
    """colour_jitter: brightness, contrast and saturation are multiplied by 1 +- this"""
    jitter_hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """colour_jitter: part of a full turn of the hue"""
    rand_augment_num: PositiveInt = 2
    """rand_augment: operations for each image"""
    rand_augment_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """rand_augment: strength, of 30"""
    erase_probability: PositiveFraction = 0.25
    """random_erasing"""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """alpha of the Beta distribution by which two images and their labels are mixed (arXiv 1710.09412); 0: never"""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """alpha for pasting a part of another image (arXiv 1905.04899); with mixup, each has half of the pairs"""

    @property
    def mixes(self) -> bool:
        """Whether examples are mixtures of two."""
        return self.mixup > 0 or self.cutmix > 0


class DataConfig(Section):
    """Which images, how they are split and how they are augmented."""

    name: str
    """dataset: cifar10, cifar100, digits, csv, elpv, image_folder, imagenet, packed, synthetic, tfds, tfrecord; or
    one of another package: the name of its entry point, or package.module:NAME"""
    path: str | None = None
    """directory of the files (csv: the table); cifar10, cifar100 and elpv are downloaded where there is none"""
    image_size: PositiveInt | None = None
    """images are resized to this square; default: the backbone's own input size"""
    resize: Literal["stretch", "crop"] = "stretch"
    """how an image becomes the square: stretch changes its aspect; crop keeps it, and takes the middle"""
    crop_fraction: PositiveFraction | None = None
    """crop only: the shorter side is resized to image_size / crop_fraction, and the middle square is kept; default:
    0.875 (256 for 224)"""
    validation_fraction: Fraction = 0.0
    """part of all examples but those of an official test split, stratified by class (and by type where the dataset
    has one)"""
    test_fraction: Fraction = 0.25
    """part of all examples, for datasets without an official test split"""
    folds: Annotated[int, Field(ge=2)] | None = None
    """divide the examples into this many stratified folds, in place of test_fraction; see fold"""
    fold: Annotated[int, Field(ge=0)] | None = None
    """the fold that is held out, from 0: as the test split, or as validation where the test split is official; of
    `folds`, or of a manifest with folds"""
    split_seed: int = 0
    split: str | None = None
    """manifest that `tl-dist data split` wrote: divides the examples instead of the fractions"""
    labels: Literal["fine", "coarse"] = "fine"
    """cifar100 only"""
    first_label: Literal[0, 1] | None = None
    """tfrecord and imagenet: the number of the first class in the records; default: 0 if there is one, else 1"""
    augment: tuple[
        Literal[
            "random_resized_crop", "pad_crop", "flip", "dihedral", "brightness", "colour_jitter", "rand_augment",
            "random_erasing",
        ],
        ...,
    ] = ()  # fmt: skip
    """applied in this order, seeded by (seed, position)"""
    augmentation: AugmentConfig = AugmentConfig()
    shuffle: Literal["full", "blocks"] = "full"
    """blocks: for storage that is slow at random, neighbours stay together; how well it mixes is said at the start"""
    shuffle_block: PositiveInt = 1024
    """blocks only: neighbours that are moved together"""
    shuffle_window: PositiveInt = 16
    """blocks only: so many blocks are mixed with each other"""
    soft_labels: bool = False
    """elpv only: train toward the experts' defect probability; evaluation keeps the hard label"""
    max_bad: Annotated[int, Field(ge=0)] | None = None
    """examples that cannot be decoded, up to which training continues without them; default: the larger of 100 and
    0.01 % of all"""
    options: Options = Field(default={})
    """of a data set of another package: its own keys"""
    num_examples: PositiveInt = 1024
    """synthetic only"""
    num_classes: Annotated[int, Field(ge=2)] = 10
    """synthetic only"""

    @property
    def kept_fraction(self) -> float | None:
        """Which part of the shorter side `resize: crop` keeps; None where images are stretched."""
        return None if self.resize == "stretch" else self.crop_fraction or 0.875
