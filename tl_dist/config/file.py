"""Turn a file and the command line into a config, and a config into a file, a trajectory and a digest."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, create_model

from tl_dist.config import Config, DataConfig, Section, batch_norm, code, extensions, registry, yaml_text
from tl_dist.config import problems as config_problems
from tl_dist.config import rules as config_rules
from tl_dist.config.model_selection import metrics_of
from tl_dist.config.rules.model import WEIGHTS_FILES
from tl_dist.files import consent
from tl_dist.files.packages import example
from tl_dist.refusal import ExitCode, Refusal

_OTHERS = {
    "name", "recipe", "strategy", "workers", "accumulate",
    "early_stopping", "evaluation", "checkpoint", "report", "safety", "runtime",
}  # fmt: skip
TRAJECTORY = tuple(key for key in Config.model_fields if key not in _OTHERS)
"""keys that decide the weights: a run can be resumed only while these are unchanged

The others may change between attempts, except for `ROUNDING`, and `DECIDING` if figures of the validation split decide
something.
"""

ROUNDING = {"wire", "tf32"}
"""keys of `runtime` that decide how numbers are rounded"""

DECIDING = {
    "early_stopping": None,
    "checkpoint": {"best", "average"},
    "evaluation": {"every_epochs", "views", "metrics"},
}
"""sections that decide the weights if figures of the validation split decide something, and which of their keys do"""

_PATHS = (
    "data.path",
    "data.split",
    "source.run",
    "source.data.path",
    "source.data.split",
    "model.weights",
    "distill.teacher",
)

Choose = Callable[[DataConfig, Mapping[str, Any]], Mapping[str, Any]]
"""(data, values of a file) -> values, nested as in the file, for the keys that it leaves out"""


def load(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    choose: Choose | None = None,
    imports: bool = True,
    by_user: bool = False,
) -> Config:
    """Read the config in a YAML file and apply `overrides` such as "optimizer.learning_rate=1e-3".

    Any problem is one Refusal that names file and line, key, and fix. Relative paths are made absolute from the working
    directory. `choose` returns the values that `recipe: auto` fills in. Without `imports`, no code of other packages is
    imported, and the rules that would need it are left out. The functions of a config that is named `by_user` may run.
    """
    path = example(path)
    document = yaml_text.read(path)
    if document.data is None:
        raise _usage(f"{path} is empty.", "start from one of the files in configs/.")
    if not isinstance(document.data, dict):
        kind = "list" if isinstance(document.data, list) else "single value"
        raise _usage(f"{path}:1: the file is a {kind}, not keys with values.", "write 'key: value' lines.")
    where = {"": str(path)} | {key: f"{path}:{line}" for key, line in document.lines.items() if key}
    data = {"name": path.name.removesuffix(path.suffix)} | document.data
    return _checked(data, where, overrides, choose, imports=imports, by_user=by_user)


def changed(cfg: Config, overrides: Sequence[str], *, by_user: bool = False) -> Config:
    """Return `cfg` with `overrides` applied, checked like a config file; what it leaves open stays open."""
    values, where = cfg.model_dump(mode="json", exclude_unset=True), {"": f"the config of '{cfg.name}'"}
    return _checked(values, where, overrides, by_user=by_user)


def _checked(
    data: dict[str, Any],
    where: dict[str, str],
    overrides: Sequence[str],
    choose: Choose | None = None,
    *,
    imports: bool = True,
    by_user: bool = False,
) -> Config:
    for text in overrides:
        _override(data, where, text)
    for dotted in _PATHS:
        _absolute(data, dotted, where)
    data = code.with_whole_paths(data, where)
    if by_user and imports:
        consent.grant(code.files(data))
    if data.get("recipe") == "auto" and choose is not None:
        with suppress(ValidationError):  # of the data section: reported below, with all others
            dataset = DataConfig.model_validate(tuples(section(data, "data")), strict=True)
            if not imports and dataset.name not in registry.DATASETS:
                what = f"recipe 'auto' opens dataset '{dataset.name}', which would run its code here."
                fix = "look at runs/NAME/config.yaml of a run with this config, which has all values."
                raise _usage(f"{where['']}: {what}", fix)
            data = filled(data, choose(dataset, data))
    try:
        cfg = Config.model_validate(tuples(data), strict=True, context={"file": True})
    except ValidationError as error:
        raise config_problems.refusal(error, Config, where) from None
    for rule in config_rules.broken(cfg, imports=imports):
        raise _usage(f"{config_problems.place(rule.path, where)}: {rule.what}", rule.fix)
    _refuse_wrong_options(cfg, where, imports=imports)
    return cfg


def section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of an unchecked config; empty if it is missing or not a section."""
    value = values.get(name)
    return value if isinstance(value, Mapping) else {}


def _refuse_wrong_options(cfg: Config, where: Mapping[str, str], *, imports: bool) -> None:
    """Check `data.options` by the section that its data set's record names; without `imports`, only tl_dist's own."""
    source = cfg.source.data if cfg.source is not None else None
    for path, data in ((("data", "options"), cfg.data), (("source", "data", "options"), source)):
        if data is None or not (imports or data.name in registry.DATASETS):
            continue
        schema = registry.dataset(data.name).options
        if schema is None:
            if data.options:
                what = f"{config_problems.place(path, where)}: dataset '{data.name}' has no options."
                raise _usage(what, "remove 'options'.")
            continue
        # Below sections of the same names, so that an error names the whole path.
        whole: type[BaseModel] = schema
        values = data.options
        for key in reversed(path):
            whole = create_model("Holder", __base__=Section, **{key: (whole, ...)})  # type: ignore[call-overload]
            values = {key: values}
        try:
            whole.model_validate(values, strict=True)
        except ValidationError as error:
            raise config_problems.refusal(error, whole, where) from None


def filled(written: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `written` with the keys that it leaves out taken from `values`."""
    result = dict(written)
    for key, value in values.items():
        if isinstance(value, Mapping):
            result[key] = filled(section(result, key), value)
        else:
            result.setdefault(key, value)
    return result


def dump(cfg: Config) -> str:
    """Return the config as YAML with all defaults, which `load` reads back as `cfg`. Imports nothing."""
    text = yaml_text.dump(cfg.model_dump(mode="json"))
    if cfg.model.backbone not in registry.BACKBONES:
        return text
    return text.replace("  batch_norm: auto\n", f"  batch_norm: auto  # {batch_norm.explained(cfg)}\n", 1)


def in_run(cfg: Config, folder: str) -> str:
    """Return `dump(cfg)` for a run whose `folder` has the files of the functions that the config names."""
    values = cfg.model_dump(mode="json")
    if not code.files(values):
        return dump(cfg)

    def moved(name: str) -> str:
        return f"{folder}/{code.short(name)}" if extensions.code_file(name) else name

    return yaml_text.dump(code.with_code(values, moved))


def trajectory(cfg: Config) -> dict[str, Any]:
    """Return the values that decide the weights, as plain data; the paths of files are not among them."""
    values = cfg.model_dump(mode="json", include=set(TRAJECTORY))
    if metrics_of(cfg):
        values |= cfg.model_dump(mode="json", include={key: keys or True for key, keys in DECIDING.items()})
    values |= cfg.model_dump(mode="json", include={"runtime": ROUNDING})
    for key in ("path", "split", "max_bad"):
        del values["data"][key]
    values = code.with_code(values, code.short)
    if values["source"] is not None:
        # The run's identity has the digest of those weights.
        values["source"] = "run, refitted" if values["source"]["refit"] else "run"
    if values["distill"] is not None:
        values["distill"]["teacher"] = "run"  # as for the source
        del values["distill"]["allow_seen"]  # decides only what is refused
    return values


def completed(old: Mapping[str, Any], new: Mapping[str, Any], section: type[BaseModel] = Config) -> dict[str, Any]:
    """Return the trajectory `old` with the defaults of keys of `new` that an earlier version did not know."""
    known = dict(old)
    for key, field in section.model_fields.items():
        kind, value = field.annotation, new.get(key)
        if isinstance(value, Mapping) and isinstance(old.get(key), Mapping):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                known[key] = completed(old[key], value, kind)
        elif key in new and key not in old and not field.is_required():
            known[key] = field.get_default()
    return known


def flat(cfg: Config) -> dict[str, Any]:
    """Return every value of the config by its dotted key, as plain data."""
    return {dotted: value for dotted, value in _leaves(cfg.model_dump(mode="json")) if value != {}}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """List the changes below `keys`, as "optimizer.learning_rate: 0.1 -> 0.01", in the order of `keys`."""
    changes = []
    for key in keys:
        before, after = (dict(_leaves({key: values[key]})) if key in values else {} for values in (old, new))
        for dotted in before | after:
            was, is_ = ([leaves[dotted]] if dotted in leaves else [] for leaves in (before, after))
            if was != is_:
                changes.append(f"{dotted}: {_short(was)} -> {_short(is_)}")
    return changes


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, list(value) if isinstance(value, tuple) else value


def _short(value: list[Any]) -> str:
    """Format the value in the list, if there is one."""
    if not value:
        return "(none)"
    text = value[0] if isinstance(value[0], str) else json.dumps(value[0], default=str)
    return text if len(text) <= 40 else text[:37] + "..."


def digest(cfg: Config) -> str:
    """Return the sha256 of the canonical JSON of `trajectory(cfg)`."""
    text = json.dumps(trajectory(cfg), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def schema() -> dict[str, Any]:
    """Return the JSON schema of a config file, for editors."""
    document = Config.model_json_schema()
    document["required"].remove("name")  # default: the name of the file
    return document


def _usage(what: str, fix: str) -> Refusal:
    return Refusal(what, fix=fix, code=ExitCode.USAGE)


def _override(data: dict[str, Any], where: dict[str, str], text: str) -> None:
    dotted, equals, value = text.partition("=")
    origin = f"override '{text}'"
    if not equals:
        raise _usage(f"{origin} has no '='.", "write KEY=VALUE, such as optimizer.learning_rate=1e-3.")
    path = tuple(dotted.split("."))
    if not config_problems.accepts(Config, path):
        what, fix = config_problems.unknown_key(Config, path)
        raise _usage(f"{origin}: {what}", fix)
    is_section = config_problems.field_model(Config, path) is not None
    if is_section and value != "null":
        raise _usage(f"{origin}: {dotted} is a section.", f"set {dotted}.KEY=VALUE, or {dotted}=null to remove it.")
    if not value:
        raise _usage(f"{origin} has no value.", f"write {dotted}=VALUE ({dotted}=null for none).")
    section = data
    for k, name in enumerate(path[:-1], 1):
        words = not isinstance(below := section.get(name), dict | None)
        if words and config_problems.field_model(Config, path[:k]) is not None:
            return  # a mistake in the file, which validation reports
        section[name] = {} if words else dict(below or {})
        section = section[name]
    section[path[-1]] = yaml_text.parse(value, origin).data
    where[dotted] = origin
    if is_section:
        del section[path[-1]]
    # One duration replaces the other: `steps=20` on the command line shortens a run given in epochs.
    other = {"epochs": "steps", "steps": "epochs"}.get(dotted)
    if other and section[dotted] is not None and not where.get(other, "").startswith("override"):
        section.pop(other, None)


def _absolute(data: dict[str, Any], dotted: str, where: Mapping[str, str]) -> None:
    """Make the path at `dotted` in `data` absolute, if it is given; the sections around it are copied."""
    *sections, key = dotted.split(".")
    for name in sections:
        if not isinstance(data.get(name), dict):
            return
        data[name] = dict(data[name])
        data = data[name]
    text = data.get(key)
    if not isinstance(text, str) or not text:
        return
    if dotted == "model.weights" and (not text.endswith(WEIGHTS_FILES) or text.startswith("hf://")):
        return
    try:
        data[key] = str(Path(text).expanduser().absolute())
    except RuntimeError:
        place = config_problems.place(tuple(dotted.split(".")), where)
        what = f"{place}: {dotted} begins with '{Path(text).parts[0]}', a home directory that cannot be determined."
        raise _usage(what, "write the whole path, beginning with '/'.") from None


def tuples(value: Any) -> Any:
    """Replace lists by tuples, as strict validation requires."""
    if isinstance(value, Mapping):
        return {key: tuples(item) for key, item in value.items()}
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value
