"""YAML as a config needs it: plain data, the line of every key, and a one-line error for anything wrong.

Differs from `yaml.safe_load` on purpose: `1e-4` is a number, `yes`, `no`, `on` and `off` are text, and tags, duplicate
keys, huge files and alias bombs are refused. Environment variables are never expanded.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tl_dist.config.registry import nearest
from tl_dist.files import limits
from tl_dist.files.foreign import read_file
from tl_dist.refusal import ExitCode, Refusal, is_printable

# Written as an escape such as "\\0": PyYAML itself refuses the bare characters. No path or name needs one.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_STR = "tag:yaml.org,2002:str"
# The YAML 1.2 core schema without octal, hexadecimal, infinity and not-a-number. Digits are limited so that a
# digest that consists of digits remains text, and no number overflows.
_SCALARS: tuple[tuple[str, str, list[str], Callable[[str], Any]], ...] = (
    ("tag:yaml.org,2002:bool", "true|false", list("tf"), "true".__eq__),
    ("tag:yaml.org,2002:null", "null|~|", ["n", "~", ""], lambda text: None),
    ("tag:yaml.org,2002:int", "[-+]?[0-9]{1,18}", list("-+0123456789"), int),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:[0-9]{1,40}\.[0-9]{0,40}|\.[0-9]{1,40}|[0-9]{1,40}(?=[eE]))(?:[eE][-+]?[0-9]{1,3})?",
        list("-+.0123456789"),
        float,
    ),
)
"""tag, form, first characters, and what makes the value of the text"""
_CONSTRUCTORS = {_STR: str} | {tag: construct for tag, _, _, construct in _SCALARS}
_SYNTAX = (  # what PyYAML says, what is shown instead if anything, and the fix
    (r"'\\t'|^found a tab", "a tab where YAML wants spaces", "indent with spaces."),
    ("^found undefined alias", "", "quote text that begins with '*'."),
    ("but found another document", "a second document begins", "keep one document per file."),
    (
        "^mapping values are not allowed here$",
        "a ':' where no key can be",
        "check the indentation, or quote text that contains ': '.",
    ),
)


@dataclass(frozen=True)
class Document:
    """The data of a YAML text; `lines` maps a dotted path (`data.augment.0`) to its line, from 1."""

    data: Any
    lines: Mapping[str, int]


def read(path: Path) -> Document:
    """Read the document in a file; refuses one that is missing, not regular, too large or not UTF-8."""
    try:
        text = read_file(path, max_bytes=limits.CONFIG, links=True).decode("utf-8-sig")
    except FileNotFoundError:
        raise _no_file(path, "does not exist") from None
    except UnicodeDecodeError as error:
        what = f"{path}: byte {error.start} is not UTF-8."
        raise Refusal(what, fix="save the file as UTF-8.", code=ExitCode.USAGE) from None
    except OSError as error:
        if path.is_dir():
            raise _no_file(path, "is a directory, not a YAML file") from None
        why = str(error.strerror)
        raise _no_file(path, why if why.startswith("is ") else f"cannot be read: {why}") from None
    return parse(text, str(path))


def parse(text: str, source: str) -> Document:
    """Parse the document in `text`; `source` is its name in refusals."""
    if len(text) > limits.CONFIG:
        what = f"{source} has more than {limits.CONFIG:,} characters."
        raise Refusal(what, fix="shorten it.", code=ExitCode.USAGE)
    try:
        loader = _Loader(text, source)
        return loader.document()
    except yaml.MarkedYAMLError as error:
        raise _syntax(error, source) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"{source}:{line}: an unprintable character."
        raise Refusal(what, fix="remove it.", code=ExitCode.USAGE) from None
    except (ValueError, OverflowError):  # raised by PyYAML for numbers in escapes and in %YAML
        what = "an escape or a version with a number that is too large"
        raise _refused(source, loader.line + 1, what, "correct it.") from None


def dump(data: Any) -> str:
    """Return YAML text that `parse` reads back as `data`, in the same order; safe to print on a terminal."""
    options: Any = {"Dumper": _Dumper, "sort_keys": False, "width": 100}
    text: str = yaml.dump(data, allow_unicode=True, **options)
    return text if is_printable(text) else yaml.dump(data, allow_unicode=False, **options)


class _Loader(yaml.SafeLoader):
    """Builds plain data with lines. PyYAML's own constructors keep no lines, and accept duplicate keys."""

    yaml_implicit_resolvers: Any = {}  # noqa: RUF012 (declared so by PyYAML)

    def __init__(self, text: str, source: str) -> None:
        super().__init__(text)
        self._source = source
        self._aliases = self._depth = self._nodes = self._values = 0
        self._lines: dict[str, int] = {}

    def document(self) -> Document:
        root = self.get_single_node()
        return Document(None if root is None else self._value(root, "", 1), self._lines)

    def compose_node(self, parent: Any, index: Any) -> Any:
        # Limits are checked while composing: PyYAML recurses here, and a deep file would exhaust the stack first.
        event: Any = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            self._aliases += 1
            if self._aliases > limits.CONFIG_ALIASES:
                what = f"more than {limits.CONFIG_ALIASES} aliases"
                raise _refused(self._source, line, what, "write the values out.")
        elif event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")[:60]
            raise _refused(self._source, line, f"the tag '{tag}' is not allowed", "use plain values.")
        self._nodes += 1
        self._depth += 1
        self._limit(line, self._nodes // 2, self._depth)  # each value has a key
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.ScalarNode) and _UNPRINTABLE.search(node.value):
            what = f"an unprintable character in '{node.value[:40]}'"
            raise _refused(self._source, line, what, "remove it.")
        return node

    def _limit(self, line: int, values: int, depth: int) -> None:
        if values > limits.CONFIG_VALUES:
            what = f"more than {limits.CONFIG_VALUES:,} values"
            raise _refused(self._source, line, what, "shorten the file.")
        if depth > limits.CONFIG_DEPTH:
            what = f"nested deeper than {limits.CONFIG_DEPTH} levels"
            raise _refused(self._source, line, what, "a config has three.")

    def _value(self, node: yaml.Node, path: str, depth: int) -> Any:
        line = node.start_mark.line + 1
        self._lines.setdefault(path, line)
        self._values += 1
        self._limit(line, self._values, depth)  # again: with aliases, also one to its own parent
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, _join(path, str(k)), depth + 1) for k, item in enumerate(node.value)]
        return _CONSTRUCTORS[node.tag](node.value)

    def _mapping(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, Any]:
        data: dict[str, Any] = {}
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            line, key = key_node.start_mark.line + 1, key_node.value
            if key_node.tag != _STR:
                short = key[:40] if isinstance(key, str) else type(key).__name__
                raise _refused(self._source, line, f"the key '{short}' is not text", "use names as keys.")
            here = _join(path, key)
            if key in seen:
                what = f"{here} is given twice (first on line {seen[key]})"
                raise _refused(self._source, line, what, "keep one of them.")
            seen[key] = self._lines[here] = line
            data[key] = self._value(value_node, here, depth + 1)
        return data


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: Any = {}  # noqa: RUF012 (declared so by PyYAML)

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _form, _first, _ in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(f"^(?:{_form})$"), _first)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _refused(source: str, line: int, what: str, fix: str) -> Refusal:
    return Refusal(f"{source}:{line}: {what}.", fix=fix, code=ExitCode.USAGE)


def _syntax(error: yaml.MarkedYAMLError, source: str) -> Refusal:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    problem = error.problem or "not YAML"
    known = next((known for pattern, *known in _SYNTAX if re.search(pattern, problem)), None)
    what, fix = known or (f"not valid YAML: {problem}", "check indentation, brackets and quotes.")
    return _refused(source, line, what or problem.removeprefix("found "), fix)


def _no_file(path: Path, what: str) -> Refusal:
    folder = path if path.is_dir() else path.parent
    files = sorted(p.name for p in folder.glob("*.y*ml") if p.name != path.name) if folder.is_dir() else []
    guess = nearest(path.name, files) if not path.is_dir() else (files[0] if files else None)
    fix = f"use '{folder / guess}'." if guess else "give the path of a YAML file."
    return Refusal(f"{path} {what}.", fix=fix, code=ExitCode.USAGE)
