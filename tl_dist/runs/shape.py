"""What the JSON of a run holds: the type of each value that anything uses, of whoever wrote the file.

Keys that are not known here are no damage, nor are those that are not there: an older or newer tl_dist wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from tl_dist.files import limits

_MOST_STEPS = 10**18


def _text(value: str) -> str:
    """A name as a file system or a table can have it; ValueError for halves of characters."""
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
    """What can be walked through by functions that call themselves."""
    level: list[Any] = [value]
    for _ in range(limits.CONFIG_DEPTH * 2):
        nested = (
            one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)
        )
        level = [item for items in nested for item in items]
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
    """What workers have agreed on."""

    class_names: Annotated[list[_Text], Field(min_length=1), AfterValidator(_distinct)] = Field(default=[])
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    data: _Facts = Field(default={})
    weights_sha256: _Digest | None = None
    order: _Step = 1
    decoding: _Step = 1
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
    """What a run ended with."""

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
    """What a checkpoint says of the run before it."""

    best_validation: _Seen | None = None
    monitor: _Monitor | None = None


class Attempt(_Shape):
    """How an attempt went."""

    host: _Text = ""
    began: _Moment | None = None
    ended: _Moment | None = None


class Train(_Shape):
    """A chunk of steps, of which a record tells."""

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
    """Figures of a split, of which a record tells."""

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
    """What became of the layers, of which a record tells."""

    policy: _Text
    layers: list[_Layer]


_RECORDS: Mapping[Any, type[_Shape]] = {"train": Train, "evaluation": Evaluation, "batch_norm": BatchNorm}


def fault(value: Mapping[str, Any], shape: type[_Shape]) -> str | None:
    """What is wrong with it, in words for a message; None where nothing is."""
    try:
        shape.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        return f"{where}: {first['msg']}"
    return None


def is_whole(record: Mapping[str, Any]) -> bool:
    """Whether a record of metrics.jsonl holds what its event promises; of an event that nothing uses, always."""
    event = record.get("event")
    return not isinstance(event, str) or event not in _RECORDS or fault(record, _RECORDS[event]) is None
