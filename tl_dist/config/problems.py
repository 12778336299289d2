"""Error messages of a config, in one line: where, which key, what it must be, and how to fix it."""

import json
import re
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from tl_dist.config.data import FUNCTION
from tl_dist.config.registry import nearest
from tl_dist.refusal import ExitCode, Refusal

Path = tuple[str, ...]


class Broken(NamedTuple):
    """A rule that a config breaks: the key to look at, what is wrong and how to fix it."""

    path: Path
    what: str
    fix: str


_DIGITS = 18  # most digits of a number: with more it is text even without quotes

# Names of the same keys in other tools. Values are leaf names of the schema.
SYNONYMS = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "bs": "global_batch",
    "batch": "global_batch",
    "batch_size": "global_batch",
    "num_epochs": "epochs",
    "max_steps": "steps",
    "num_workers": "workers",
    "num_gpus": "workers",
    "gpus": "workers",
    "architecture": "backbone",
    "augmentation": "augment",
    "img_size": "image_size",
    "input_size": "image_size",
    "amp": "precision",
    "mixed_precision": "precision",
    "freeze": "train_from",
    "val_fraction": "validation_fraction",
    "jit_compile": "xla",
}


def refusal(error: ValidationError, model: type[BaseModel], where: Mapping[str, str]) -> Refusal:
    """Turn the first problem into a refusal that counts the others.

    `where` maps a dotted path to the place that set it ("x.yaml:4"); "" is the file. An unknown key comes before and
    instead of a missing one of its section, because a misspelt key is both.
    """
    problems: dict[Path, Any] = {}
    for entry in error.errors(include_url=False):
        path = _schema_path(model, entry["loc"])
        problems.setdefault(path, entry)
    for path in [p for p in problems if any(q[: len(p)] == p != q for q in problems)]:
        del problems[path]  # that a section is none of the words that may stand there
    typos = {path[:-1] for path, entry in problems.items() if entry["type"] == "extra_forbidden"}
    for path in [p for p, entry in problems.items() if entry["type"] == "missing" and p[:-1] in typos]:
        del problems[path]
    path, entry = min(problems.items(), key=lambda item: (item[0][:-1] not in typos, _line(item[0], where)))
    path = tuple(entry["ctx"]["path"]) if entry["type"] == "rule" else path
    what, fix = _sentence(model, path, entry)
    others = len(problems) - 1
    if others:
        what += f" ({others} more problem{'s' if others > 1 else ''} after this one.)"
    return Refusal(f"{place(path, where)}: {what}", fix=fix, code=ExitCode.USAGE)


def place(path: Path, where: Mapping[str, str]) -> str:
    """Return where the value at `path`, or the innermost section around it that was written, stands."""
    for end in range(len(path), -1, -1):
        if ".".join(path[:end]) in where:
            return where[".".join(path[:end])]
    return where[""]


def unknown_key(model: type[BaseModel], path: Path) -> tuple[str, str]:
    """Return the message about a key that the schema does not have, and its fix."""
    *parents, key = path
    section = _section_in(_type_at(model, tuple(parents))) or model
    known = SYNONYMS.get(key, key)
    homes = [home for home in _all_paths(model) if home[-1] == known and home[:-1] != tuple(parents)]
    homes = [home for home in homes if home[1:] not in homes]  # the source task repeats whole sections
    guess = known if known in section.model_fields else None
    if guess is None and not homes:
        guess = nearest(key, list(section.model_fields))
    if guess is not None:
        fix = f"write '{'.'.join((*parents, guess))}'."
    elif homes:
        level = "one key below its section" if homes[0][:-1] else "at the top level"
        fix = f"write {' or '.join(repr('.'.join(home)) for home in homes[:3])} ({level})."
    else:
        fix = f"use one of {', '.join(section.model_fields)}."
    return f"{'.'.join(path)} is not a key of a config.", fix


def key_paths(model: type[BaseModel]) -> list[Path]:
    """Return the path of every value that a config can hold, in schema order; sections are not values."""
    return [path for path in _all_paths(model) if field_model(model, path) is None]


def field_model(model: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """Return the section at `path`, or None. An item of a list of sections is a section; the list is not."""
    current = _type_at(model, path)
    return current if _is_section(current) else None


def _type_at(model: type[BaseModel], path: Path) -> Any:
    current: Any = model
    for name in path:
        current = _below(current, name)
    return current


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a value of this type is, or that it may be instead of a word."""
    arms = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else [annotation]
    return next(filter(_is_section, arms), None)


def _below(annotation: Any, name: str) -> Any:
    """Return the type of the key or item `name` of a value of this type; None if it is unknown."""
    section = _section_in(annotation)
    if section is not None:
        field = section.model_fields.get(name)
        annotation = field.annotation if field else None
        arms = [a for a in get_args(annotation) if a is not NoneType]
        return arms[0] if get_origin(annotation) in (Union, UnionType) and len(arms) == 1 else annotation
    if get_origin(annotation) is tuple and name.isdigit():
        return get_args(annotation)[0]
    return None


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def field_at(model: type[BaseModel], path: Path) -> FieldInfo | None:
    """Return the schema of the key at `path`, or None if it is unknown."""
    section = _section_in(_type_at(model, path[:-1])) if path else None
    return section.model_fields.get(path[-1]) if section else None


def accepts(model: type[BaseModel], path: Path) -> bool:
    """Return whether there may be a key at `path`: anything below a free section, such as `data.options`, may be."""
    above = (field_at(model, path[:k]) for k in range(1, len(path)))
    free = any(field is not None and get_origin(field.annotation) is dict for field in above)
    return free or field_at(model, path) is not None


def expects(field: FieldInfo) -> str:
    """Describe what a key holds, such as "a whole number above 0"."""
    words, can_be_null = _words(field.annotation, tuple(field.metadata))
    return words + (" or null" if can_be_null else "")


def shown(value: Any) -> str:
    """Write a value as YAML spells it, cut to fit a line."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 50 else text[:47] + "..."


def _all_paths(model: type[BaseModel], prefix: Path = ()) -> Iterator[Path]:
    for name in model.model_fields:
        yield (*prefix, name)
        section = _section_in(_below(model, name))
        if section is not None:
            yield from _all_paths(section, (*prefix, name))


def _schema_path(model: type[BaseModel], location: tuple[Any, ...]) -> Path:
    """Remove pydantic's names for the arms of a union from its location."""
    path: list[str] = []
    current: Any = model
    for part in location:
        if current is None:
            if isinstance(part, int):
                path.append(str(part))
            continue
        section = _section_in(current)
        if section is not current and section is not None:  # pydantic names the arm of the union
            current = section if part == section.__name__ else None
            continue
        path.append(str(part))
        nested = _below(current, str(part))
        sections = _section_in(nested) is not None or (
            get_origin(nested) is tuple and any(_is_section(arm) for arm in get_args(nested))
        )
        current = nested if sections else None
    return tuple(path)


def _line(path: Path, where: Mapping[str, str]) -> int:
    number = place(path, where).rpartition(":")[2]
    return int(number) if number.isdigit() else -1


def _sentence(model: type[BaseModel], path: Path, entry: Any) -> tuple[str, str]:
    dotted, value = ".".join(path), entry["input"]
    if entry["type"] == "extra_forbidden":
        return unknown_key(model, path)
    if entry["type"] == "rule":
        return entry["msg"], entry["ctx"]["fix"]
    if entry["type"] == "missing":
        return f"{dotted} is missing.", _add(path, field_at(model, path))
    verb = "is"
    if path and path[-1].isdigit():  # an item of a list: the list's field says what it may be
        path, verb = path[:-1], "holds"
        dotted = ".".join(path)
    field = field_at(model, path)
    if field is None:
        return f"{dotted or 'the file'} is {shown(value)}.", f"{entry['msg']}."
    if field_model(model, path) is not None:
        what = f"{dotted} is {shown(value)}, but it is a section."
        return what, f"put its keys below '{path[-1]}:'."
    words = expects(field)
    what = f"{dotted} {verb} {shown(value)}, but must be {words}."
    return what, _fix(path[-1], field, value, words)


def _fix(key: str, field: FieldInfo, value: Any, words: str) -> str:
    bare = words.removesuffix(" or null")
    guess = _nearest_literal(field.annotation, value)
    if guess is not None:
        return f"write '{key}: [{guess}]'." if bare.startswith("a list") else f"write '{key}: {guess}'."
    if isinstance(value, str) and len(value) <= _DIGITS and _is_number(value) and "number" in words:
        return f"remove the quotes around {value.strip()}."
    if bare == "true or false" and str(value).lower() in ("yes", "no", "on", "off"):
        return f"write '{key}: {'true' if str(value).lower() in ('yes', 'on') else 'false'}'."
    if bare.startswith("text") and isinstance(value, int | float):
        return f"put it in quotes: '{key}: \"{value}\"'."
    if "that matches" in bare and isinstance(value, str):
        corrected = re.sub(r"[^A-Za-z0-9._-]+", "-", value).strip("-")
        if any(re.fullmatch(m.pattern, corrected) for m in field.metadata if getattr(m, "pattern", None)):
            return f"write '{key}: {corrected}'."
    default = field.get_default(call_default_factory=True)
    if not field.is_required() and isinstance(default, int | float | str):
        return f"write '{key}: {default if isinstance(default, str) else shown(default)}' (the default)."
    return f"give {bare}."


def _add(path: Path, field: FieldInfo | None) -> str:
    *parents, key = path
    below = f" below '{parents[-1]}:'" if parents else ""
    words = expects(field) if field is not None else "a value"
    return f"add '{key}:'{below}" + ("." if words == "a section" else f" with {words}.")


def _nearest_literal(annotation: Any, value: Any) -> str | None:
    words = [str(v) for v in _literals(annotation)]
    return nearest(value, words) if words and isinstance(value, str) else None


def _literals(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for part in get_args(annotation):
            yield from _literals(part)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _words(annotation: Any, metadata: tuple[Any, ...] = ()) -> tuple[str, bool]:
    """Describe a type, and return whether null is allowed."""
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *more = get_args(annotation)
        bounds = [m for entry in more for m in getattr(entry, "metadata", [entry])]  # Field(gt=0) holds a Gt
        if any(getattr(bound, "pattern", None) == FUNCTION for bound in bounds):
            return "a function, FILE.py:NAME", False
        return _words(base, (*bounds, *metadata))
    if origin in (Union, UnionType):
        arms = [a for a in get_args(annotation) if a is not NoneType]
        kinds = (f"{{{', '.join(a.model_fields)}}}" if _is_section(a) else _words(a, metadata)[0] for a in arms)
        return " or ".join(kinds), NoneType in get_args(annotation)
    if origin is Literal:
        names = [str(a) for a in get_args(annotation)]
        return (f"one of {', '.join(names)}" if len(names) > 1 else f"'{names[0]}'"), False
    if origin is tuple:
        item = _words(get_args(annotation)[0])[0]
        return "a list of " + item.replace("one of ", "").replace("a number", "numbers").replace(
            "a section", "sections"
        ), False
    if origin is dict or _is_section(annotation):
        return "a section", False
    names_of = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    words = names_of.get(annotation, str(annotation))
    return words + _bounds(metadata), False


def _bounds(metadata: tuple[Any, ...]) -> str:
    parts = []
    for entry in metadata:
        if isinstance(entry, Gt):
            parts.append(f"above {entry.gt}")
        elif isinstance(entry, Ge):
            parts.append(f"from {entry.ge} up")
        elif isinstance(entry, Lt):
            parts.append(f"below {entry.lt}")
        elif isinstance(entry, Le):
            parts.append(f"at most {entry.le}")
        elif getattr(entry, "pattern", None):
            parts.append(f"that matches {entry.pattern}")
    return "".join(f" {part}" if k == 0 else f" and {part}" for k, part in enumerate(parts))
