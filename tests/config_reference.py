"""Write the page with every key of a config: `python -m tests.config_reference > docs/pages/reference.md`."""

import re
import sys
from itertools import groupby

from pydantic import BaseModel

from tl_dist.config import Config, DataConfig, OptimizerConfig, StageConfig, problems
from tl_dist.config.reference import Row, rows

_HEAD = """\
# Configuration reference

Every key that a config may hold. `tl-dist config schema` shows the same in a terminal, `tl-dist config schema --json`
as a JSON schema for editors, and `tl-dist config show CONFIG` prints a config with its defaults filled in. A key that
is not listed here is refused. How to choose them: [Settings](settings.md).

"""
_REPEATED = {DataConfig: "data", OptimizerConfig: "optimizer"}
"""sections that other sections may hold as well"""


def page() -> str:
    """Return the reference as Markdown, with a table for each section."""
    own = [row for row in rows() if _repeats(row.path) is None]
    sections = {name: list(of_it) for name, of_it in groupby(own, lambda r: r.path[0] if r.path[1:] else "")}
    text = _HEAD + _table("The run", Config, [row for row in own if not row.path[1:]])
    for name, of_it in sections.items():
        section = problems.field_model(Config, (name,)) if name else None
        if section is not None:
            again = {p[:2]: _repeats(p) for p in problems.key_paths(Config) if p[0] == name and _repeats(p)}
            text += _table(f"`{name}`", section, of_it)
            text += "".join(f"`{'.'.join(path)}` holds the keys of `{other}`.\n\n" for path, other in again.items())
    return (text + _table("Each of `stages`", StageConfig, list(rows(StageConfig)))).rstrip() + "\n"


def _repeats(path: tuple[str, ...]) -> str | None:
    """Return the section that is repeated at this path, as `data` is at `source.data`."""
    section = problems.field_model(Config, path[:2]) if path[2:] else None
    return _REPEATED.get(section) if section is not None else None


def _table(title: str, section: type[BaseModel], of_it: list[Row]) -> str:
    what = " ".join((section.__doc__ or "").split())
    lines = [
        f"## {title}\n",
        *([what + "\n"] if what else []),
        "| key | default | holds | meaning |",
        "|--|--|--|--|",
    ]
    for row in of_it:
        meaning = _escaped(row.meaning).replace("\n", "<br>")
        lines.append(f"| `{row.key}` | `{row.default}` | {_escaped(row.holds)} | {meaning} |")
    return "\n".join(lines) + "\n\n"


def _escaped(text: str) -> str:
    return re.sub(r"([|*<\[\]])", r"\\\1", text)


if __name__ == "__main__":
    sys.stdout.write(page())
