"""The whole schema of a run, by sections. Strict: a typo is refused.

`file` reads a file into it, `rules` holds the rules between fields, `problems` words what is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from tl_dist.config.data import AugmentConfig, DataConfig
from tl_dist.config.execution import (
    BestConfig,
    CheckpointConfig,
    EvaluationConfig,
    ReportConfig,
    RuntimeConfig,
    SafetyConfig,
)
from tl_dist.config.model import ClassifierConfig, FeaturesConfig, LossConfig, ModelConfig
from tl_dist.config.section import RUN_NAME, PositiveInt, Section
from tl_dist.config.training import (
    DistillConfig,
    EarlyStoppingConfig,
    OptimizerConfig,
    ScheduleConfig,
    SourceConfig,
    StageConfig,
)

__all__ = [
    "RUN_NAME",
    "AugmentConfig",
    "BestConfig",
    "CheckpointConfig",
    "ClassifierConfig",
    "Config",
    "DataConfig",
    "DistillConfig",
    "EarlyStoppingConfig",
    "EvaluationConfig",
    "FeaturesConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ReportConfig",
    "RuntimeConfig",
    "SafetyConfig",
    "ScheduleConfig",
    "Section",
    "SourceConfig",
    "StageConfig",
]


class Config(Section):
    """One run. The same file means the same mathematics on any number of workers, whose rounding alone differs."""

    name: Annotated[str, Field(pattern=RUN_NAME)]
    """name of the run directory below runs/; default: the file's name"""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    strategy: str = "single"
    """single | mirrored (one process, several devices) | horovod or collective (several processes, joined by Horovod
    or by TensorFlow) | one of another package | auto: single for one worker, mirrored for several GPUs of one host,
    else horovod where it is installed, else collective; settled whenever workers are started"""
    workers: PositiveInt | None = None
    """processes under horovod and collective, replicas under mirrored; default: one for each visible GPU, else 1"""
    global_batch: PositiveInt = 32
    accumulate: PositiveInt = 1
    """micro-batches per step and replica: the same update with less memory"""
    recipe: Literal["auto"] | None = None
    """auto: keys that are left out are set by the number and size of the images (Big Transfer, arXiv 1912.11370)"""
    epochs: Annotated[float, Field(gt=0)] | None = None
    steps: PositiveInt | None = None
    """exactly one of epochs and steps"""
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = "auto"
    data: DataConfig
    model: ModelConfig
    classifier: ClassifierConfig = ClassifierConfig()
    features: FeaturesConfig = FeaturesConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig
    stages: tuple[StageConfig, ...] = ()
    """parts of the run one after another, such as the head alone and then the whole (LP-FT, arXiv 2202.10054), in place
    of epochs, steps and model.train_from; the optimizer's state of a variable is kept from stage to stage"""
    early_stopping: EarlyStoppingConfig | None = None
    """end once a figure of the validation split has stopped improving; of several stages the one that it happens in"""
    source: SourceConfig | None = None
    """the task that the backbone is carried over from"""
    distill: DistillConfig | None = None
    """the run that teaches this one"""
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    report: ReportConfig = ReportConfig()
    safety: SafetyConfig = SafetyConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="before")
    @classmethod
    def _computed_in_one_step(cls, data: Any) -> Any:
        """A classifier that is computed needs neither an optimizer nor a duration: they are filled in."""
        classifier = data.get("classifier") if isinstance(data, Mapping) else None
        if not isinstance(classifier, Mapping) or classifier.get("name", "head") == "head":
            return data
        duration = {} if data.keys() & {"steps", "epochs"} else {"steps": 1}
        return {"optimizer": {"learning_rate": 1.0}, **duration, **data}

    @model_validator(mode="after")
    def _rules(self) -> Config:
        if self.stages:
            self._rules_of_stages()
        elif (self.epochs is None) == (self.steps is None):
            found = "neither is given" if self.epochs is None else "both are given"
            fix = "add 'epochs: 10'." if self.epochs is None else "remove one of them."
            what = f"give exactly one of epochs and steps; {found}."
            path = () if self.epochs is None else ("steps",)
            raise PydanticCustomError("rule", "{what}", {"what": what, "fix": fix, "path": path})
        return self

    def _rules_of_stages(self) -> None:
        for key in ("epochs", "steps"):
            if getattr(self, key) is not None:
                what, fix = f"the stages have their own durations, so {key} has no use.", f"remove '{key}'."
                raise PydanticCustomError("rule", "{what}", {"what": what, "fix": fix, "path": (key,)})
        for number, stage in enumerate(self.stages):
            if (stage.epochs is None) == (stage.steps is None):
                found = "neither is given" if stage.epochs is None else "both are given"
                what = f"stage {number + 1} needs exactly one of epochs and steps; {found}."
                fix = "add 'epochs: 3' to it." if stage.epochs is None else "remove one of them."
                raise PydanticCustomError(
                    "rule", "{what}", {"what": what, "fix": fix, "path": ("stages", str(number))}
                )

    @property
    def evaluation_batch(self) -> int:
        """Examples of a batch of evaluation, over all workers."""
        return self.evaluation.batch or self.global_batch

    @property
    def random_start(self) -> bool:
        """Whether the whole backbone starts from random weights."""
        return self.model.weights == "random" and self.source is None

    @property
    def parts(self) -> tuple[str, ...]:
        """What is trained in each stage, as `train_from` says it; one stage where the config names none."""
        return tuple(stage.train_from for stage in self.stages) or (self.model.train_from,)
