"""The model of a run, from its directory alone: no data set is opened."""

from __future__ import annotations

from typing import Any

import keras

from tl_dist.config import file as config_file
from tl_dist.config.registry import BACKBONES, lookup
from tl_dist.models import classifier
from tl_dist.models import keras_model as assembly
from tl_dist.models.backbones import weights
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs import checkpoint
from tl_dist.runs.directory import RunDir
from tl_dist.worker import origin


def keras_model(run: RunDir) -> Any:
    """uint8 images [batch, size, size, 3] -> probabilities [batch, classes], of the newest valid checkpoint.

    Averages are taken where the run kept them, as in its evaluation. Refuses a run without a checkpoint, and one whose
    frozen weights are not to be had as they were.
    """
    cfg, identity = config_file.load(run.config_file), run.read_identity()
    restored = checkpoint.restore(run)
    if restored is None or identity is None:
        raise Refusal(
            f"{run.path} has no checkpoint.", fix="train it first: tl-dist train CONFIG.", code=ExitCode.USAGE
        )
    backbone = lookup(BACKBONES, cfg.model.backbone)
    num_classes = len(identity["class_names"])
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(identity["precision"])
    try:
        built = classifier.build(
            backbone,
            cfg.model,
            image_size=cfg.data.image_size or backbone.input_size,
            num_classes=num_classes,
            seed=cfg.seed,
            carried=cfg.source is not None,
        )
        variables = {**built.moving, **built.frozen}
        if cfg.source is not None:
            origin.carry(
                built.network, {k: v for k, v in variables.items() if k.startswith("backbone/")}, cfg
            )
        else:
            file = weights.resolve(cfg.model.weights, cfg.model.backbone, sha256=cfg.model.weights_sha256)
            if file is not None:
                with built.keeping_new():
                    weights.load(built.network, file)
        for path, variable in variables.items():
            value = restored.arrays.get(f"optimizer/ema/{path}", restored.arrays.get(path))
            if value is not None:
                variable.assign(value)
        frozen = {path: v.numpy() for path, v in variables.items() if path not in restored.arrays}
        if classifier.digest(frozen) != identity["frozen_sha256"]:
            raise Refusal(
                f"{run.path} kept weights frozen that are not those of '{cfg.model.weights}' here.",
                fix="bring back the file of its weights.",
                code=ExitCode.UNSAFE,
            )
        head = {path: v.numpy() for path, v in variables.items() if path.startswith("head/")}
        return assembly.assemble(backbone, cfg, head, built.network, num_classes)
    finally:
        keras.config.set_dtype_policy(before)
