"""The model of a run, from its directory alone: no data set is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras

from tl_dist.config import Config, registry
from tl_dist.config import file as config_file
from tl_dist.models import classifier
from tl_dist.models.keras_model import assemble
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.worker import origin
from tl_dist.worker.setup import process_as_it_was, refuse_changed_code


@dataclass(frozen=True)
class Restored:
    """A run's model, and what is known of it."""

    model: Any
    """uint8 images [batch, size, size, 3] -> probabilities [batch, classes]"""
    config: Config
    class_names: Sequence[str]
    step: int
    precision: str
    trained_in: str
    """the precision of the run"""


def restored(run: RunDir, at: str = "", *, precision: str | None = None) -> Restored:
    """The model of a checkpoint, `at` as in `checkpoint.find`; `precision` in place of the run's own.

    Refuses a run that has none, and what `origin.restore` refuses.
    """
    cfg, identity = config_file.load(run.config_file), run.read_identity()
    if identity is None:
        raise Refusal(
            f"{run.path} has not begun.", fix="train it first: tl-dist train CONFIG.", code=ExitCode.USAGE
        )
    refuse_changed_code(run, cfg)
    backbone = registry.backbone(cfg.model.backbone)
    class_names = identity["class_names"]
    precision = precision or identity["precision"]
    with process_as_it_was():
        keras.config.set_dtype_policy(precision)
        built = classifier.build(
            backbone,
            cfg.model,
            image_size=cfg.data.image_size or backbone.input_size,
            num_classes=len(class_names),
            seed=cfg.seed,
            carried=cfg.source is not None,
        )
        variables = {**built.moving, **built.frozen}
        step = origin.restore(run, cfg, built.network, variables, at)
        head = {path: v.numpy() for path, v in variables.items() if path.startswith("head/")}
        model = assemble(backbone, cfg, head, built.network, len(class_names))
    return Restored(model, cfg, class_names, step, precision, identity["precision"])
