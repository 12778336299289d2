"""Load the trained model of a run from its directory alone, which is only read: no data set is opened.

`loaded` gives it to all workers, as the evaluation computes it; `restored` gives one process a Keras model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tl_dist.config import Config, registry
from tl_dist.config import file as config_file
from tl_dist.datasets.decoding import VERSION
from tl_dist.models.classifier import Classifier
from tl_dist.models.network import assemble
from tl_dist.parallel import DataParallel, started
from tl_dist.runs.checkpoint_format import Checkpoint
from tl_dist.runs.directory import RunDir
from tl_dist.runs.identity import decoding_of, identity_of
from tl_dist.scores import calibration
from tl_dist.scores.calibration import Calibration
from tl_dist.trainer import init_from
from tl_dist.trainer.setup import process_as_it_was, start_tensorflow


@dataclass(frozen=True)
class Loaded:
    """A trained model and all that its evaluation depends on; the same on every worker."""

    run: RunDir
    cfg: Config
    parallel: DataParallel
    threads: int
    model: Classifier
    """with the weights that the run evaluates: their averages, where it keeps these"""
    class_names: Sequence[str]
    step: int
    decoding: int
    """the version of the rule by which images are decoded"""
    sha256: str = ""
    """of the checkpoint"""
    calibration: Calibration | None = None
    """of this checkpoint, where the run was calibrated: probabilities are computed with its temperature"""
    moving_statistics: bool = False
    """whether batch norm uses moving averages that the end of the run would have recomputed"""

    @property
    def temperature(self) -> float:
        """The number by which logits are divided; 1 for a run that was not calibrated."""
        return 1.0 if self.calibration is None else self.calibration.temperature

    @property
    def image_size(self) -> int:
        """The side in pixels of the square images that the model takes."""
        return init_from.image_size_of(self.cfg)


def loaded(
    run: RunDir,
    at: str = "",
    *,
    cores: int | None,
    overrides: Sequence[str] = (),
    precision: str | None = None,
) -> Loaded:
    """Load the model of a checkpoint, `at` as in `checkpoint.find`, on all workers; `cores` as for `setup`.

    It computes in `precision`, by default the run's own. Rank 0 reads the checkpoint, so that all workers have the same
    one even while the run is being trained. Refuses what `init_from.restore` refuses.
    """
    cfg, identity = config_file.load(run.config_file, overrides), identity_of(run)
    threads = start_tensorflow(cfg, cores)
    parallel = started(registry.strategy(cfg.strategy).start(cfg), cfg.strategy)
    with parallel.scope():
        built = init_from.network_of(run, cfg, precision or identity["precision"])
        variables = {**built.moving, **built.frozen}
        facts: tuple[int, str] | None = None
        if parallel.rank == 0:
            saved = init_from.restore(run, cfg, built.network, variables, at)
            facts = saved.step, saved.sha256
    parallel.broadcast(list(variables.values()))
    step, sha256 = json.loads(parallel.gather(json.dumps(facts).encode())[0])
    model = built.trained_from(cfg.parts[-1])
    unsettled = bool(model.statistics) and (run.done is None or at.isdecimal())
    return Loaded(
        run,
        cfg,
        parallel,
        threads,
        model,
        identity["class_names"],
        step,
        decoding_of(run, new=VERSION),
        sha256,
        calibration.of_checkpoint(run.path, sha256, cfg.evaluation.views),
        unsettled,
    )


@dataclass(frozen=True)
class Restored:
    """A trained model of one process, and what is known of it."""

    model: Any
    """uint8 images [batch, size, size, 3] -> probabilities [batch, classes]"""
    config: Config
    class_names: Sequence[str]
    checkpoint: Checkpoint
    decoding: int
    """the version of the rule by which images are decoded"""
    precision: str
    trained_in: str
    """the precision of the run"""
    temperature: float | None
    """by which the logits of a calibrated checkpoint are divided"""

    @property
    def step(self) -> int:
        """The step of the checkpoint."""
        return self.checkpoint.step


def restored(
    run: RunDir,
    at: str = "",
    *,
    precision: str | None = None,
    dense_head: bool = True,
    calibrated: bool = True,
) -> Restored:
    """Restore the model of a checkpoint, `at` as in `checkpoint.find`, in `precision`, by default the run's own.

    `dense_head` as for `assemble`. With `calibrated=False` the caller has to apply the temperature. Refuses what
    `init_from.restore` refuses.
    """
    cfg, identity = config_file.load(run.config_file), identity_of(run)
    class_names, precision = identity["class_names"], precision or identity["precision"]
    with process_as_it_was():
        built = init_from.network_of(run, cfg, precision)
        variables = {**built.moving, **built.frozen}
        saved = init_from.restore(run, cfg, built.network, variables, at)
        fit = calibration.of_checkpoint(run.path, saved.sha256)
        temperature = None if fit is None else fit.temperature
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
