"""The model of a run, from its directory alone: no data set is opened."""

from __future__ import annotations

from typing import Any

import keras

from tl_dist.config import file as config_file
from tl_dist.config.registry import BACKBONES, lookup
from tl_dist.models import classifier
from tl_dist.models import keras_model as assembly
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.worker import origin
from tl_dist.worker.setup import process_as_it_was


def keras_model(run: RunDir) -> Any:
    """uint8 images [batch, size, size, 3] -> probabilities [batch, classes], of the newest valid checkpoint.

    Refuses a run that has none, and what `origin.restore` refuses.
    """
    cfg, identity = config_file.load(run.config_file), run.read_identity()
    if identity is None:
        raise Refusal(
            f"{run.path} has not begun.", fix="train it first: tl-dist train CONFIG.", code=ExitCode.USAGE
        )
    backbone = lookup(BACKBONES, cfg.model.backbone)
    num_classes = len(identity["class_names"])
    with process_as_it_was():
        keras.config.set_dtype_policy(identity["precision"])
        built = classifier.build(
            backbone,
            cfg.model,
            image_size=cfg.data.image_size or backbone.input_size,
            num_classes=num_classes,
            seed=cfg.seed,
            carried=cfg.source is not None,
        )
        variables = {**built.moving, **built.frozen}
        origin.restore(run, cfg, built.network, variables)
        head = {path: v.numpy() for path, v in variables.items() if path.startswith("head/")}
        return assembly.assemble(backbone, cfg, head, built.network, num_classes)
