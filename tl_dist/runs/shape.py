"""Validate the JSON of a run: the type of each value that is used. Unknown and missing keys are no damage."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from tl_dist.config.model_selection import FIGURES
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


def _shape(name: str, **kinds: Any) -> Any:
    """Return the model of a JSON object: the kind of each value, with a default if the key may be missing."""
    fields = {key: kind if isinstance(kind, tuple) else (kind, ...) for key, kind in kinds.items()}
    return create_model(name, __config__=ConfigDict(strict=True), **fields)  # type: ignore[call-overload]


Identity = _shape(
    "Identity",
    class_names=(Annotated[list[_Text], Field(min_length=1), AfterValidator(_distinct)], []),
    precision=(Literal["float32", "mixed_bfloat16", "mixed_float16"], "float32"),
    data=(_Facts, {}),
    weights_sha256=(_Digest | None, None),
    order=(_Step, 0),
    decoding=(_Step, 0),
    teacher_sha256=(_Digest, ""),
    trajectory=(_Facts, {}),
    extensions=(_Facts, {}),
)
"""the facts that a run's workers have agreed on"""

_Figures = _shape(
    "Figures",
    interval=(_Pair | None, None),
    **dict.fromkeys(("top5", *FIGURES), (float | None, None)),
)
_CrossValidation = _shape(
    "CrossValidation",
    folds=_Step,
    seeds=_Step,
    **dict.fromkeys(FIGURES, (float | None, None)),
    interval=_Pair,
    left_out=(dict[_Text, Any], {}),
)


def _crossed(value: dict[str, Any]) -> dict[str, Any]:
    return value and _CrossValidation.model_validate(value).model_dump()


Done = _shape(
    "Done",
    step=(_Step, 0),
    figures=(dict[_Text, _Figures], {}),  # type: ignore[valid-type]
    cross_validation=(Annotated[dict[str, Any], AfterValidator(_crossed)], {}),
)
"""the result of a run"""

_Seen = _shape("Seen", accuracy=float, step=int)
_Watched = _shape("Watched", best=float | None, step=int, waited=int)
_Monitor = _shape(
    "Monitor",
    stage=int,
    step=int,
    best=list[_Pair],
    stopping=_Watched,
    plateau=_Watched,
    factor=float,
    stopped=bool,
)
History = _shape("History", best_validation=(_Seen | None, None), monitor=(_Monitor | None, None))
"""the history of a run, in a checkpoint"""

Attempt = _shape("Attempt", host=(_Text, ""), began=(_Moment | None, None), ended=(_Moment | None, None))

_SHARES = ("step_s", "examples_per_s", "data_wait_share", "reduction_share")
_Layer = _shape("Layer", layer=_Text, trainable=bool, mode=_Text, statistics_moved=bool, spread=float)
_RECORDS: Mapping[Any, type[BaseModel]] = {
    "train": _shape(
        "Train",
        step=_Step,
        epoch=float,
        loss=float,
        accuracy=float | None,
        workers=(_Step, 1),
        **dict.fromkeys(_SHARES, (float, 0.0)),
    ),
    "evaluation": _shape("Evaluation", step=_Step, split=_Text, accuracy=float | None, loss=float),
    "batch_norm": _shape("BatchNorm", policy=_Text, layers=list[_Layer]),  # type: ignore[valid-type]
}
"""the shapes of the events in metrics.jsonl that are used"""


def fault(value: Mapping[str, Any], shape: type[BaseModel]) -> str | None:
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
