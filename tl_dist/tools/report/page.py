"""Render sections with Jinja2 into one HTML file that loads nothing and runs no script but its own."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from tl_dist.refusal import printable, shortened
from tl_dist.scores.clusters import by_design_effect
from tl_dist.scores.text import figure, percent, points

_TEMPLATES = Path(__file__).with_name("templates")
MARK = b"<!-- report of tl_dist -->"
"""follows the doctype of every report: only a file with this mark is replaced"""


class Section(NamedTuple):
    """A part of the page: templates/sections/TEMPLATE.html.j2 with `content` as its variable `it`."""

    anchor: str
    title: str
    template: str
    content: Mapping[str, Any] | None  # None leaves the part out


def render(title: str, kind: str, sections: Sequence[Section], data: Mapping[str, Any]) -> bytes:
    """Return a whole page of HTML in UTF-8. `data` is what its script shows: see templates/page.js.

    All text is escaped, and control characters are written out.
    """
    import jinja2
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        is_text = isinstance(value, str) and not isinstance(value, Markup)
        return printable(value, lines=True) if is_text else value

    def read(name: str) -> Markup:
        return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        finalize=shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({each.__name__: each for each in (figure, percent, points, shortened)})
    environment.globals["by_design_effect"] = by_design_effect
    script = read("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest())
    text = environment.get_template("page.html.j2").render(
        title=title,
        kind=kind,
        sections=[section for section in sections if section.content is not None],
        data=printed(data),
        style=read("page.css"),
        script=script,
        script_digest=f"sha256-{digest.decode()}",
        version=version("tl_dist"),
    )
    first, rest = text.split("\n", 1)
    return f"{first}\n{MARK.decode()}\n{rest}".encode("utf-8", "replace")


def card(name: str, image: str, facts: Sequence[Sequence[str]], **shown: Any) -> dict[str, Any]:
    """Return what the page's script shows of an example: its id, its picture, names with values, and `shown`."""
    return {"id": name, "image": image, "facts": facts, "right": True, "classes": [0, 0], "heat": None, **shown}


def printed(value: Any) -> Any:
    """Return a copy of nested data in which all text is printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {key: printed(item) for key, item in value.items()}
    return [printed(item) for item in value] if isinstance(value, list | tuple) else value
