"""The model of a run, from its directory alone: no data set is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tl_dist.config import Config, registry
from tl_dist.config import file as config_file
from tl_dist.datasets.decoding import VERSION
from tl_dist.models.keras_model import assemble
from tl_dist.runs.checkpoint_format import Checkpoint
from tl_dist.runs.directory import RunDir
from tl_dist.runs.identity import decoding_of, identity_of
from tl_dist.scores import calibration
from tl_dist.trainer import init_from
from tl_dist.trainer.networks import network_of
from tl_dist.trainer.setup import process_as_it_was


@dataclass(frozen=True)
class Restored:
    """A run's model, and what is known of it."""

    model: Any
    """uint8 images [batch, size, size, 3] -> probabilities [batch, classes]"""
    config: Config
    class_names: Sequence[str]
    checkpoint: Checkpoint
    decoding: int
    """the version of the rule by which it reads images"""
    precision: str
    trained_in: str
    """the precision of the run"""
    temperature: float | None
    """by which the logits of a calibrated checkpoint are to be divided"""

    @property
    def step(self) -> int:
        """Of the checkpoint."""
        return self.checkpoint.step


def restored(
    run: RunDir,
    at: str = "",
    *,
    precision: str | None = None,
    dense_head: bool = True,
    calibrated: bool = True,
) -> Restored:
    """The model of a checkpoint, `at` as in `checkpoint.find`; `precision` in place of the run's own.

    `dense_head` as `assemble` has it. Unless `calibrated`, the temperature is left to the caller.

    Refuses a run that has none, and what `init_from.restore` refuses.
    """
    cfg, identity = config_file.load(run.config_file), identity_of(run)
    class_names, precision = identity["class_names"], precision or identity["precision"]
    with process_as_it_was():
        built = network_of(run, cfg, precision)
        variables = {**built.moving, **built.frozen}
        saved = init_from.restore(run, cfg, built.network, variables, at)
        found = calibration.of_checkpoint(run.path, saved.sha256)
        temperature = None if found is None else found.temperature
        head = {path: v.numpy() for path, v in variables.items() if path.startswith("head/")}
        backbone = registry.backbone(cfg.model.backbone)
        model = assemble(
            backbone,
            cfg,
            head,
            built.network,
            len(class_names),
            dense_head=dense_head,
            temperature=temperature if calibrated else None,
        )
    decoding = decoding_of(run, new=VERSION)
    return Restored(model, cfg, class_names, saved, decoding, precision, identity["precision"], temperature)
