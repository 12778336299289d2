"""Describe what a stage trains and reads: images, or features, the frozen part's outputs."""

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
    """the rows of the split in the set; None: all"""

    def values(self) -> np.ndarray:
        """Return them as float32 [examples, views, features]."""
        return self.found.array() if self.rows is None else self.found.array()[self.rows]


@dataclass(frozen=True)
class StageInput:
    """The model that a stage trains, and the readers of its input: images, or features computed from them."""

    stage: Stage
    model: Classifier
    read_train: pipeline.Read
    read: Mapping[str, pipeline.Read]
    """how evaluation reads each split"""
    features: TrainFeatures | None = None
    """where features are read instead of images"""
    look_up: pipeline.LookUp | None = None
    """the teacher's logits of training examples, where they are computed once"""
    teacher: Callable[[Any], Any] | None = None
    """images -> logits, where the teacher is computed in each step"""


def from_images(setup: Setup, stage: Stage) -> StageInput:
    """Return the input of a stage that reads images; training images are augmented."""
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
