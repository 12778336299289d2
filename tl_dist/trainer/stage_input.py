"""What a stage of a run trains and what it reads: images, or what the frozen part made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tl_dist.config.stages import Stage
from tl_dist.data import pipeline
from tl_dist.features import views as feature_views
from tl_dist.features.stored import FeatureSet
from tl_dist.models.classifier import Classifier
from tl_dist.trainer.setup import Setup


@dataclass(frozen=True)
class TrainFeatures:
    """The features of the training split."""

    found: FeatureSet
    rows: np.ndarray | None
    """which of the set's examples they are; None: all"""

    def values(self) -> np.ndarray:
        """float32 [examples, views, features]"""
        return self.found.array() if self.rows is None else self.found.array()[self.rows]


@dataclass(frozen=True)
class StageInput:
    """What a stage trains, and what it reads: images, or what the frozen part made of them."""

    stage: Stage
    model: Classifier
    read_train: pipeline.Read
    read: Mapping[str, pipeline.Read]
    """how evaluation reads each split"""
    features: TrainFeatures | None = None
    """where they are read in place of images"""
    look_up: pipeline.LookUp | None = None
    """what a teacher said of the training examples, where that is kept"""
    teacher: Callable[[Any], Any] | None = None
    """images -> logits, of a teacher that sees the images of each step"""


def from_images(setup: Setup, stage: Stage) -> StageInput:
    """The input of a stage as the data set has it; training images are augmented."""
    cfg, size = setup.cfg, setup.built.image_size
    data, crop = cfg.data, cfg.data.kept_fraction
    return StageInput(
        stage,
        setup.model.trained_from(stage.train_from),
        pipeline.augmented(setup.splits["train"], data.augment, cfg.seed, size, data.augmentation, crop),
        {
            name: feature_views.in_views(pipeline.plain(source, size, crop), cfg.evaluation.views)
            for name, source in setup.splits.items()
        },
    )
