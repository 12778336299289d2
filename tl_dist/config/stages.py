"""A run as a sequence of stages: which part is trained, in which steps, with which settings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tl_dist.config import Config, OptimizerConfig, StageConfig


@dataclass(frozen=True)
class Stage:
    """Steps `first_step` to `end` (exclusive), which train everything from `train_from` on; restarts the schedule."""

    number: int
    train_from: str
    optimizer: OptimizerConfig
    first_step: int
    end: int


def plan(cfg: Config, steps_of: Callable[[float], int]) -> list[Stage]:
    """Return the stages of a run in order; `steps_of` converts epochs to whole steps."""
    if not cfg.stages:
        end = cfg.steps or steps_of(cfg.epochs or 1.0)
        return [Stage(0, cfg.model.train_from, cfg.optimizer, 0, end)]
    stages: list[Stage] = []
    for number, settings in enumerate(cfg.stages):
        first = stages[-1].end if stages else 0
        end = first + (settings.steps or steps_of(settings.epochs or 1.0))
        stages.append(Stage(number, settings.train_from, _optimizer(cfg.optimizer, settings), first, end))
    return stages


def at(stages: Sequence[Stage], step: int) -> Stage:
    """Return the stage of the last step done, if `step` steps are done; the first stage if none is."""
    return next((stage for stage in stages if step <= stage.end), stages[-1])


def _optimizer(common: OptimizerConfig, stage: StageConfig) -> OptimizerConfig:
    keys = ("learning_rate", "head_learning_rate", "schedule")
    changes = {key: getattr(stage, key) for key in keys if getattr(stage, key) is not None}
    if "learning_rate" in changes:  # of the head too, unless the stage says otherwise
        changes.setdefault("head_learning_rate", None)
    return common.model_copy(update=changes)
