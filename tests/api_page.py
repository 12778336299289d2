"""Write the page with every name of `import tl_dist`: `python -m tests.api_page > docs/pages/api.md`."""

import ast
import inspect
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from textwrap import dedent
from typing import Any

import tl_dist

_HEAD = """\
# Python API

Every name of `import tl_dist as tl`, from its signature and docstring. Each does what a command of `tl-dist` does, and
raises `tl.Refusal` for everything that the user can fix. How they go together: [From Python](python.md).

"""
_WIDTH = 100
_ELSEWHERE = {
    "Config": "What a run is told. `Config.model_validate(dict)` makes one without a file; every key is in the "
    "[Configuration reference](reference.md).",
}
"""what is said of a name in place of its members"""


def page() -> str:
    """Return the page as Markdown: functions first, then classes with their members."""
    names = sorted(tl_dist.__all__, key=lambda name: (inspect.isclass(getattr(tl_dist, name)), name))
    return _HEAD + "\n".join(line for name in names for line in _section(name, getattr(tl_dist, name)))


def _section(name: str, thing: Any) -> Iterator[str]:
    yield f"## {name}\n"
    if name in _ELSEWHERE:
        yield f"{_ELSEWHERE[name]}\n"
        return
    if not inspect.isclass(thing):
        yield _described(f"tl.{name}", thing)
        return
    yield f"{inspect.cleandoc(thing.__doc__ or '')}\n"
    if is_dataclass(thing):
        yield _fields(thing)
        return
    for member, value in vars(thing).items():
        if member == "__init__" and value.__doc__:
            yield _described(f"tl.{name}", value)
        elif not member.startswith("_") and isinstance(value, property):
            returned = ast.unparse(_definition(value.fget).returns)
            yield f"### {name}.{member}\n\n```python\nrun.{member}: {returned}\n```\n\n{inspect.getdoc(value)}\n"
        elif not member.startswith("_"):
            yield f"### {name}.{member}\n\n{_described(f'run.{member}', value)}"


def _definition(thing: Any) -> Any:
    return ast.parse(dedent(inspect.getsource(thing))).body[0]


def _described(name: str, function: Any) -> str:
    """Return the signature as it is written in the source, on several lines if it is long, and the docstring."""
    definition = _definition(function)
    of, returned = definition.args, definition.returns
    defaults = [None] * (len(of.args) - len(of.defaults)) + of.defaults
    parts = [_parameter(*each) for each in zip(of.args, defaults, strict=True) if each[0].arg != "self"]
    parts += [f"*{ast.unparse(of.vararg)}"] if of.vararg else ["*"] * bool(of.kwonlyargs)
    parts += [_parameter(*each) for each in zip(of.kwonlyargs, of.kw_defaults, strict=True)]
    end = "" if definition.name == "__init__" else f" -> {ast.unparse(returned)}"
    text = f"{name}({', '.join(parts)}){end}"
    if len(text) > _WIDTH:
        text = f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){end}"
    return f"```python\n{text}\n```\n\n{inspect.getdoc(function)}\n"


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    value = "" if default is None else " = " + ast.unparse(default).replace("'", '"')
    return ast.unparse(argument) + value


def _fields(thing: type) -> str:
    """Return a table of the fields of a dataclass, each with the docstring below it."""
    rows, body = ["| field | type | meaning |", "|--|--|--|"], _definition(thing).body
    for k, node in enumerate(body):
        if isinstance(node, ast.AnnAssign):
            after = body[k + 1] if k + 1 < len(body) else None
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            rows.append(
                f"| `{ast.unparse(node.target)}` | `{ast.unparse(node.annotation)}` | {' '.join(str(text).split())} |"
            )
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
