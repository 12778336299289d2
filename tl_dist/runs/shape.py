"""Validate the JSON of a run: the type of each value that is used. Unknown and missing keys are no damage."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from tl_dist.files import limits

_MOST_STEPS = 10**18


def _text(value: str) -> str:
    """Return a name that a file system and a table can hold; ValueError for lone surrogates."""
    value.encode("utf-8", "surrogateescape")
    return value


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("names a class twice")
    return names


def _moment(value: str) -> str:
    if datetime.fromisoformat(value).tzinfo is None:
        raise ValueError("names no time zone")
    return value


def _shallow(value: dict[str, Any]) -> dict[str, Any]:
    """Return a mapping that recursive functions can walk; ValueError if it is nested too deeply."""
    level: list[Any] = [value]
    for _ in range(limits.CONFIG_DEPTH * 2):
        nested = [item for item in level if isinstance(item, dict | list)]
        level = [leaf for item in nested for leaf in (item.values() if isinstance(item, dict) else item)]
    if level:
        raise ValueError("is nested too deeply")
    return value


_Text = Annotated[str, AfterValidator(_text)]
_Digest = Annotated[str, Field(max_length=200)]
_Step = Annotated[int, Field(ge=0, le=_MOST_STEPS)]
_Pair = Annotated[list[float], Field(min_length=2, max_length=2)]
_Moment = Annotated[str, AfterValidator(_moment)]
_Facts = Annotated[dict[str, Any], AfterValidator(_shallow)]


class _Shape(BaseModel):
    model_config = ConfigDict(strict=True)


class Identity(_Shape):
    """The facts that a run's workers have agreed on."""

    class_names: Annotated[list[_Text], Field(min_length=1), AfterValidator(_distinct)] = Field(default=[])
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    data: _Facts = Field(default={})
    weights_sha256: _Digest | None = None
    order: _Step = 0
    decoding: _Step = 0
    teacher_sha256: _Digest = ""
    trajectory: _Facts = Field(default={})
    extensions: _Facts = Field(default={})


class _Figures(_Shape):
    accuracy: float
    interval: _Pair | None = None
    top5: float | None = None
    balanced_accuracy: float | None = None
    macro_f1: float | None = None
    weighted_f1: float | None = None
    mcc: float | None = None
    roc_auc: float | None = None
    log_loss: float | None = None
    ece: float | None = None


class _CrossValidation(_Shape):
    folds: _Step
    seeds: _Step
    accuracy: float
    interval: _Pair
    left_out: dict[_Text, Any] = Field(default={})


def _crossed(value: dict[str, Any]) -> dict[str, Any]:
    return value and _CrossValidation.model_validate(value).model_dump()


class Done(_Shape):
    """The result of a run."""

    step: _Step = 0
    figures: dict[_Text, _Figures] = Field(default={})
    cross_validation: Annotated[dict[str, Any], AfterValidator(_crossed)] = Field(default={})


class _Seen(_Shape):
    accuracy: float
    step: int


class _Watched(_Shape):
    best: float | None
    step: int
    waited: int


class _Monitor(_Shape):
    stage: int
    step: int
    best: list[_Pair]
    stopping: _Watched
    plateau: _Watched
    factor: float
    stopped: bool


class History(_Shape):
    """The history of a run, in a checkpoint."""

    best_validation: _Seen | None = None
    monitor: _Monitor | None = None


class Attempt(_Shape):
    """The record of an attempt."""

    host: _Text = ""
    began: _Moment | None = None
    ended: _Moment | None = None


class Train(_Shape):
    """The record of a chunk of steps."""

    step: _Step
    epoch: float
    loss: float
    accuracy: float
    step_s: float = 0.0
    examples_per_s: float = 0.0
    data_wait_share: float = 0.0
    reduction_share: float = 0.0
    workers: _Step = 1


class Evaluation(_Shape):
    """The record of a split's figures."""

    step: _Step
    split: _Text
    accuracy: float
    loss: float


class _Layer(_Shape):
    layer: _Text
    trainable: bool
    mode: _Text
    statistics_moved: bool
    spread: float


class BatchNorm(_Shape):
    """The record of batch norm layers after training."""

    policy: _Text
    layers: list[_Layer]


_RECORDS: Mapping[Any, type[_Shape]] = {"train": Train, "evaluation": Evaluation, "batch_norm": BatchNorm}


def fault(value: Mapping[str, Any], shape: type[_Shape]) -> str | None:
    """Return what is wrong with `value`, in words for a message; None if nothing is."""
    try:
        shape.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        return f"{where}: {first['msg']}"
    return None


def is_whole(record: Mapping[str, Any]) -> bool:
    """Return True if a record of metrics.jsonl has its event's shape; always, if no code uses that event."""
    event = record.get("event")
    return not isinstance(event, str) or event not in _RECORDS or fault(record, _RECORDS[event]) is None
