"""The manifest of a feature set, checked as a whole before any file that it names is read, written or removed."""

import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, Self
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from tl_dist.files import limits
from tl_dist.files.atomic import children
from tl_dist.files.foreign import read_file

MANIFEST = "manifest.json"

Count = Annotated[int, Field(ge=1, lt=1 << 48)]
Format = Literal["float16", "bfloat16", "float32", "float64"]
Text = Annotated[str, Field(max_length=500)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class Shard(_Part):
    """One file of rows."""

    file: Annotated[str, StringConstraints(pattern=r"^shard-[0-9]{4,6}\.npy$")]
    """a name that we give, and never a path"""
    rows: Count
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class Facts(_Part):
    """What the rows were computed from, for users to read; other keys are allowed."""

    model_config = ConfigDict(extra="allow")

    backbone: Text | None = None
    cut: Text | None = None
    image_size: Count | None = None
    crop_fraction: float | None = None
    interpolation: Text | None = None
    views: Annotated[list[Text], Field(max_length=100)] = []


class Manifest(_Part):
    """The description of a whole feature set."""

    dtype: Format  # the number format in which the rows are stored
    computed: Format  # the number format in which they were computed
    shape: Annotated[list[Count], Field(max_length=8)]  # of one row
    shards: Annotated[list[Shard], Field(min_length=1, max_length=limits.SHARDS)]
    """the files, in the order of their rows"""
    facts: Facts

    @model_validator(mode="after")
    def _each_file_once(self) -> Self:
        if len({shard.file for shard in self.shards}) < len(self.shards):
            raise ValueError("names a file twice")
        return self

    @property
    def rows(self) -> int:
        """Return the number of rows in all shards."""
        return sum(shard.rows for shard in self.shards)

    def encoded(self) -> bytes:
        """Return the content of the file."""
        return self.model_dump_json(indent=1, exclude_unset=True).encode()


def read(directory: Path) -> Manifest:
    """Return the manifest in the directory of a set; raise OSError or ValueError if it is not valid."""
    return Manifest.model_validate_json(read_file(directory / MANIFEST, max_bytes=limits.FEATURE_MANIFEST))


_OURS = re.compile(r"manifest\.json|owner\.json|shard-[0-9]{4,}\.npy|\.tmp-.+-[0-9a-f]{32}")


def foreign_in(directory: Path) -> list[str]:
    """Return the names in a set's directory that this package does not write, and so must not remove."""
    return sorted(path.name for path in children(directory) if not _OURS.fullmatch(path.name) or path.is_dir())


def discard(directory: Path) -> None:
    """Remove a set: it is renamed first, so that a reader finds it whole or not at all. Foreign files stay in there."""
    removed = directory.with_name(f".tmp-removed-{uuid4().hex}")
    with suppress(FileNotFoundError):  # another process was quicker
        directory.rename(removed)
        if not foreign_in(removed):
            shutil.rmtree(removed, ignore_errors=True)
