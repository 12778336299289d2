"""The network of a run as its directory describes it, with its random start: no data set is opened."""

from __future__ import annotations

import keras

from tl_dist.config import Config, registry
from tl_dist.models import classifier
from tl_dist.models.classifier import Classifier
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.differences import differences
from tl_dist.runs.directory import RunDir
from tl_dist.runs.identity import identity_of


def refuse_changed_code(run: RunDir, cfg: Config) -> None:
    """Refuse a run whose data set or backbone of another package is not the code that it began with."""
    identity = run.read_identity()
    used = registry.code_of_others(cfg)
    changes = differences(identity or {}, {"extensions": used} if used else {}, ("extensions",))
    if identity is not None and changes:
        raise Refusal(
            f"{run.identity_file}: code of other packages has changed since the run began: {'; '.join(changes)}.",
            fix="install the version that it began with, or start a new run with another name=NAME.",
            code=ExitCode.UNSAFE,
        )


def network_of(run: RunDir, cfg: Config, precision: str | None = None) -> Classifier:
    """The classifier of a run with its random start, in a precision that holds from now on; None: in that of now."""
    refuse_changed_code(run, cfg)
    if precision is not None:
        keras.config.set_dtype_policy(precision)
    return classifier.build(
        registry.backbone(cfg.model.backbone),
        cfg.model,
        image_size=image_size_of(cfg),
        num_classes=len(identity_of(run)["class_names"]),
        seed=cfg.seed,
        carried=cfg.source is not None,
    )


def image_size_of(cfg: Config) -> int:
    """The side of the squares that the network takes."""
    return cfg.data.image_size or int(registry.backbone(cfg.model.backbone).input_size)
