"""The schema of a run's config, by sections. Strict: a typo is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from tl_dist.config.data import RUN_NAME, DataConfig, PositiveInt, Section, with_answers
from tl_dist.config.data import AugmentConfig as AugmentConfig
from tl_dist.config.execution import (
    CheckpointConfig,
    EvaluationConfig,
    ReportConfig,
    RuntimeConfig,
    SafetyConfig,
)
from tl_dist.config.training import (
    LOSSES,
    ClassifierConfig,
    DistillConfig,
    EarlyStoppingConfig,
    FeaturesConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    SourceConfig,
    StageConfig,
)
from tl_dist.config.training import ScheduleConfig as ScheduleConfig

GIVEN = "given"
"""name of the data set and the backbone of a config that leaves them to `tl_dist.train`"""
_OPTIMIZER = {"name": "adam", "learning_rate": 0.001}
_HEADS = {"multilabel": "binary_cross_entropy", "regression": "squared_error"}


class Config(Section):
    """One run. The same file means the same mathematics on any number of workers; only rounding differs."""

    name: Annotated[str, Field(pattern=RUN_NAME)]
    """name of the run directory below runs/; default: the name of the file"""
    task: Literal["classification", "multilabel", "ordinal", "regression"] = "classification"
    """what is said of an image: classification: one class; multilabel: any number of labels; ordinal: a grade, where a
    mistake by two is worse than one by one; regression: numbers"""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    strategy: str = "single"
    """single | mirrored (one process, several devices) | horovod or collective (several processes, connected by Horovod
    or by TensorFlow) | a strategy of another package | auto: single for one worker, mirrored for several GPUs of one
    host, else horovod if it is installed, else collective; decided each time workers are started"""
    workers: PositiveInt | None = None
    """processes under horovod and collective, replicas under mirrored; default: one for each visible GPU, or 1 if there
    is none"""
    global_batch: PositiveInt = 32
    accumulate: PositiveInt = 1
    """micro-batches per step and replica: gives the same update with less memory"""
    recipe: Literal["auto"] | None = None
    """auto: the number and size of the images set all keys that are left out (Big Transfer, arXiv 1912.11370)"""
    epochs: Annotated[float, Field(gt=0)] | None = None
    steps: PositiveInt | None = None
    """give exactly one of epochs and steps"""
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = "auto"
    data: DataConfig
    model: ModelConfig
    classifier: ClassifierConfig = ClassifierConfig()
    features: FeaturesConfig = FeaturesConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig
    stages: tuple[StageConfig, ...] = ()
    """consecutive parts of the run, such as the head alone and then the whole network (LP-FT, arXiv 2202.10054),
    instead of epochs, steps and model.train_from; optimizer state is kept from stage to stage"""
    early_stopping: EarlyStoppingConfig | None = None
    """end the run, or the current stage, once a figure of the validation split has stopped improving"""
    source: SourceConfig | None = None
    """the task whose trained backbone this run starts from"""
    distill: DistillConfig | None = None
    """the run that is the teacher of this one"""
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    report: ReportConfig = ReportConfig()
    safety: SafetyConfig = SafetyConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, data: Any, info: ValidationInfo) -> Any:
        """Fill in what the task implies; for a classifier that is computed, an optimizer and a duration.

        Such a classifier minimizes the cross-entropy, of grades as of classes. Outside of a file, data and model may be
        left to `tl_dist.train`, and the optimizer is Keras's default.
        """
        if not isinstance(data, Mapping):
            return data
        if not (info.context or {}).get("file"):
            for key, own in (("data", {"name": GIVEN}), ("model", {"backbone": GIVEN}), ("optimizer", _OPTIMIZER)):
                if isinstance(data.get(key, {}), Mapping):
                    data = {**data, key: {**own, **data.get(key, {})}}
        classifier, loss, task = data.get("classifier"), data.get("loss", {}), data.get("task")
        computed = isinstance(classifier, Mapping) and classifier.get("name", "head") != "head"
        usual = LOSSES.get(str(task), ("cross_entropy",))
        if computed and "cross_entropy" in usual:
            usual = ("cross_entropy",)
        if isinstance(loss, Mapping) and usual[0] != "cross_entropy":
            data = {**data, "loss": {"name": usual[0], **loss}}
        if isinstance(data.get("data"), Mapping):
            data = {**data, "data": with_answers(data["data"], str(task))}
        if not computed:
            return data
        duration = {} if data.keys() & {"steps", "epochs"} else {"steps": 1}
        return {"optimizer": {"learning_rate": 1.0}, **duration, **data}

    @model_validator(mode="after")
    def _rules(self) -> Config:
        if self.stages:
            self._rules_of_stages()
        elif (self.epochs is None) == (self.steps is None):
            if self.epochs is None:
                raise _broken("give exactly one of epochs and steps; neither is given.", "add 'epochs: 10'.")
            raise _broken("give exactly one of epochs and steps; both are given.", "remove one of them.", "steps")
        return self

    def _rules_of_stages(self) -> None:
        for key in ("epochs", "steps"):
            if getattr(self, key) is not None:
                what = f"each stage has its own duration, so {key} has no effect."
                raise _broken(what, f"remove '{key}'.", key)
        for number, stage in enumerate(self.stages):
            if (stage.epochs is None) == (stage.steps is None):
                state = "neither is given" if stage.epochs is None else "both are given"
                what = f"stage {number + 1} needs exactly one of epochs and steps; {state}."
                fix = "add 'epochs: 3' to it." if stage.epochs is None else "remove one of them."
                raise _broken(what, fix, "stages", str(number))

    @property
    def evaluation_batch(self) -> int:
        """Return the examples in a batch of evaluation, over all workers."""
        return self.evaluation.batch or self.global_batch

    @property
    def kind_of_head(self) -> str:
        """Return the name of the loss that decides what the last layer gives; with a loss of the user, that of most."""
        return self.loss.name if ":" not in self.loss.name else _HEADS.get(self.task, "cross_entropy")

    @property
    def network(self) -> str:
        """Return what `registry.backbone` takes."""
        return self.model.network(self.data.image_size)

    @property
    def random_start(self) -> bool:
        """Return whether the whole backbone starts from random weights."""
        return self.model.weights == "random" and self.source is None

    @property
    def parts(self) -> tuple[str, ...]:
        """Return `train_from` of each stage; a config without stages has one."""
        return tuple(stage.train_from for stage in self.stages) or (self.model.train_from,)


def _broken(what: str, fix: str, *path: str) -> PydanticCustomError:
    """Return an error that `problems.refusal` shows as it is; `path` is the key to look at."""
    return PydanticCustomError("rule", "{what}", {"what": what, "fix": fix, "path": path})
