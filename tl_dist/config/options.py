"""`data.options`: keys that belong to one data set, checked by the section that its record names."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ValidationError, create_model

from tl_dist.config import Config, DataConfig, problems, registry
from tl_dist.config.section import Section
from tl_dist.refusal import ExitCode, Refusal


def refuse_wrong(cfg: Config, where: Mapping[str, str], *, imports: bool) -> None:
    """Refuse options that their data set does not take. Without `imports`, those of other packages are not looked at.

    `where` is that of `problems.refusal`.
    """
    source = cfg.source.data if cfg.source is not None else None
    for path, data in ((("data", "options"), cfg.data), (("source", "data", "options"), source)):
        if data is not None and (imports or data.name in registry.DATASETS):
            _refuse_wrong(data, path, where)


def _refuse_wrong(data: DataConfig, path: problems.Path, where: Mapping[str, str]) -> None:
    section = registry.dataset(data.name).options
    if section is None:
        if data.options:
            what = f"{problems.place(path, where)}: dataset '{data.name}' has no options."
            raise Refusal(what, fix="remove 'options'.", code=ExitCode.USAGE)
        return
    # Below sections of the same names, so that a problem is told with its whole path.
    whole: type[BaseModel] = section
    values = data.options
    for key in reversed(path):
        whole = create_model("Holder", __base__=Section, **{key: (whole, ...)})  # type: ignore[call-overload]
        values = {key: values}
    try:
        whole.model_validate(values, strict=True)
    except ValidationError as error:
        raise problems.refusal(error, whole, values, where) from None
