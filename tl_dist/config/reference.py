"""Every key of a config, for `tl-dist config schema` and for the page that tests/config_reference.py writes."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from pydantic import BaseModel

from tl_dist.config import Config, problems

_NAMED = re.compile(r"\n(\w+) {2,}")  # a line of a description that begins with a value of the key


class Row(NamedTuple):
    """A key, its default, what it holds and what it means; `meaning` may have a line for each value."""

    path: tuple[str, ...]
    default: str
    holds: str
    meaning: str

    @property
    def key(self) -> str:
        """Return the dotted key, as in an override."""
        return ".".join(self.path)


def rows(model: type[BaseModel] = Config) -> Iterator[Row]:
    """Yield the keys of a section and of the sections below it, in the order of the schema."""
    for path in problems.key_paths(model):
        field = problems.field_at(model, path)
        assert field is not None
        default = "required" if field.is_required() else problems.shown(field.default).strip('"')
        if path == ("name",) and model is Config:
            default = "name of the file"
        parts = _NAMED.sub("\0\\1: ", field.description or "").split("\0")
        yield Row(path, default, problems.expects(field), "\n".join(" ".join(part.split()) for part in parts))
