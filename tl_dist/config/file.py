"""How a file and the command line become a config, and a config a file, a trajectory and a digest.

The text of a YAML file, with its lines, is read by `yaml_text`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tl_dist.config import Config, DataConfig, batch_norm, options, registry, yaml_text
from tl_dist.config import problems as config_problems
from tl_dist.config import rules as config_rules
from tl_dist.config.model_selection import metrics_of
from tl_dist.config.rules.model import WEIGHTS_FILES
from tl_dist.config.training import PLATEAU
from tl_dist.refusal import ExitCode, Refusal

TRAJECTORY = (
    "seed",
    "global_batch",
    "epochs",
    "steps",
    "precision",
    "data",
    "model",
    "classifier",
    "features",
    "loss",
    "optimizer",
    "stages",
    "source",
    "distill",
)
"""Keys that decide the weights: a run directory is continued only when these are unchanged.

The others (strategy, workers, accumulate, evaluation, checkpoint, report, safety, runtime) may change between
attempts, but for the keys of `ROUNDING`, and of `DECIDING` where figures of the validation split decide something.
"""

ROUNDING = {"wire": "auto", "tf32": True}
"""keys of `runtime` by which numbers are rounded, with their defaults, which older runs mean that do not have them"""

DECIDING = {
    "early_stopping": None,
    "checkpoint": {"best", "average"},
    "evaluation": {"every_epochs", "views"},
}
"""keys that decide the weights where figures of the validation split decide, and what of their sections does"""

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
"""(data, what a file says) -> values, nested as in the file, for keys that it leaves out"""


def load(
    path: str | Path, overrides: Sequence[str] = (), *, choose: Choose | None = None, imports: bool = True
) -> Config:
    """The config in a YAML file, with `overrides` ("optimizer.learning_rate=1e-3") put over it.

    Any problem is one Refusal that names the file and line, the key, and how to fix it. Relative paths in
    `data.path`, `data.split` and `model.weights` are taken from the working directory and made absolute.
    `choose` gives the values that `recipe: auto` fills in. Without `imports`, for who only looks at a config or a run,
    no code is imported that it names of other packages, and the rules that would need it are left out.
    """
    path = Path(path)
    document = yaml_text.read(path)
    if document.data is None:
        raise _usage(f"{path} is empty.", "start from one of the files in configs/.")
    if not isinstance(document.data, dict):
        kind = "list" if isinstance(document.data, list) else "single value"
        raise _usage(f"{path}:1: the file is a {kind}, not keys with values.", "write 'key: value' lines.")
    where = {"": str(path)} | {key: f"{path}:{line}" for key, line in document.lines.items() if key}
    data = {"name": path.name.removesuffix(path.suffix)} | document.data
    return _checked(data, where, overrides, choose, imports=imports)


def changed(cfg: Config, overrides: Sequence[str]) -> Config:
    """`cfg` with `overrides` put over it, and then checked as that of a file is."""
    return _checked(cfg.model_dump(mode="json"), {"": f"the config of '{cfg.name}'"}, overrides)


def _checked(
    data: dict[str, Any],
    where: dict[str, str],
    overrides: Sequence[str],
    choose: Choose | None = None,
    *,
    imports: bool = True,
) -> Config:
    for text in overrides:
        _override(data, where, text)
    for dotted in _PATHS:
        _absolute(data, dotted, where)
    if data.get("recipe") == "auto" and choose is not None:
        with suppress(ValidationError):  # of the data section: named below, with all else
            found = DataConfig.model_validate(_tuples(section(data, "data")), strict=True)
            if not imports and found.name not in registry.DATASETS:
                what = (
                    f"{where['']}: recipe 'auto' opens dataset '{found.name}', which would run its code here."
                )
                raise _usage(what, "see runs/NAME/config.yaml of a run of it, which has all values.")
            data = filled(data, choose(found, data))
    try:
        cfg = Config.model_validate(_tuples(data), strict=True)
    except ValidationError as error:
        raise config_problems.refusal(error, Config, data, where) from None
    for rule in config_rules.broken(cfg, imports=imports):
        raise _usage(f"{config_problems.place(rule.path, where)}: {rule.what}", rule.fix)
    options.refuse_wrong(cfg, where, imports=imports)
    return cfg


def section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of an unchecked config; empty where it is not there or none."""
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def filled(written: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`written` with the `values` of those keys that it leaves out."""
    result = dict(written)
    for key, value in values.items():
        if isinstance(value, Mapping):
            result[key] = filled(section(result, key), value)
        else:
            result.setdefault(key, value)
    return result


def dump(cfg: Config) -> str:
    """The resolved config as YAML, every default written out; `load` of it gives `cfg` again. Imports nothing."""
    text = yaml_text.dump(cfg.model_dump(mode="json"))
    if cfg.model.backbone not in registry.BACKBONES:
        return text
    return text.replace("  batch_norm: auto\n", f"  batch_norm: auto  # {batch_norm.explained(cfg)}\n", 1)


def trajectory(cfg: Config) -> dict[str, Any]:
    """The values that decide the weights, as plain data; where the data's files lie is not one of them."""
    values = cfg.model_dump(mode="json", include=set(TRAJECTORY))
    for section in (values["optimizer"], *values["stages"]):
        if section["schedule"] is not None and section["schedule"]["name"] != "plateau":
            for key in PLATEAU:  # which runs have that began before there was one
                del section["schedule"][key]
    if cfg.optimizer.name != "lars":
        del values["optimizer"]["trust_coefficient"]  # which decides nothing, and older runs do not have
    if metrics_of(cfg):
        values |= cfg.model_dump(mode="json", include={key: kept or True for key, kept in DECIDING.items()})
    rounding = {key: getattr(cfg.runtime, key) for key in ROUNDING}
    if chosen := {key: value for key, value in rounding.items() if value != ROUNDING[key]}:
        values["runtime"] = chosen
    for key in ("path", "split", "max_bad"):
        del values["data"][key]
    if not values["data"]["options"]:
        del values["data"]["options"]  # as in runs that are older than this key
    if not values["model"]["prune"]:
        del values["model"]["prune"]  # likewise
    if values["source"] is not None:
        # Whose weights those are is said by their digest, in the run's identity.
        values["source"] = "run, refitted" if values["source"]["refit"] else "run"
    if values["distill"] is None:
        del values["distill"]  # as above
    else:
        values["distill"]["teacher"] = "run"  # likewise
        del values["distill"]["allow_seen"]  # which decides what is refused
    return values


def flat(cfg: Config) -> dict[str, Any]:
    """Every value of the config by its dotted key, as plain data."""

    def below(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, Mapping):
                yield from below(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return dict(below(cfg.model_dump(mode="json"), ""))


def digest(cfg: Config) -> str:
    """A name for `trajectory(cfg)`: sha256 of its canonical JSON."""
    text = json.dumps(trajectory(cfg), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def schema() -> dict[str, Any]:
    """The JSON schema of a config file, for editors."""
    found = Config.model_json_schema()
    found["required"].remove("name")  # `load` takes the file's
    return found


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
    if config_problems.field_model(Config, path) is not None:
        raise _usage(f"{origin}: {dotted} is a section.", f"set one of its keys, such as {dotted}.KEY=VALUE.")
    if not value:
        raise _usage(f"{origin} has no value.", f"write {dotted}=VALUE ({dotted}=null for none).")
    section = data
    for name in path[:-1]:
        below = section.get(name)
        if below is not None and not isinstance(below, dict):
            return  # the file's own mistake, which validation names
        section[name] = dict(below or {})
        section = section[name]
    section[path[-1]] = yaml_text.parse(value, origin).data
    where[dotted] = origin
    # One duration replaces the other: `steps=20` on the command line shortens a run that is given in epochs.
    if dotted in ("epochs", "steps") and section[dotted] is not None:
        other = "steps" if dotted == "epochs" else "epochs"
        if not where.get(other, "").startswith("override"):
            section.pop(other, None)


def _absolute(data: dict[str, Any], dotted: str, where: Mapping[str, str]) -> None:
    """Make one of the paths in `data` absolute, where it is given; sections on the way there are copied."""
    *sections, key = dotted.split(".")
    for name in sections:
        if not isinstance(data.get(name), dict):
            return
        data[name] = dict(data[name])
        data = data[name]
    text = data.get(key)
    if not isinstance(text, str) or not text:
        return
    if dotted == "model.weights" and not text.endswith(WEIGHTS_FILES):
        return
    try:
        data[key] = str(Path(text).expanduser().absolute())
    except RuntimeError:
        place = config_problems.place(tuple(dotted.split(".")), where)
        what = (
            f"{place}: {dotted} begins with the home directory '{Path(text).parts[0]}', which is not known."
        )
        raise _usage(what, "write the whole path, from '/' on.") from None


def _tuples(value: Any) -> Any:
    """The same data with lists as tuples, which is what strict validation wants for them."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
