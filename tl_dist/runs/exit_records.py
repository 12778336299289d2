"""Record how each worker of an attempt ended, in one small file each: its exit code and, if it knew it, the reason."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tl_dist.files import limits
from tl_dist.files.atomic import children, write_atomically
from tl_dist.files.foreign import read_file

_VARIABLE = "TL_DIST_EXIT_RECORDS"


class Exit(NamedTuple):
    """How one worker ended. `code` is 128 + N after signal N, as in a shell."""

    rank: int
    code: int
    what: str = ""  # why, if it could record that
    fix: str = ""
    asked: bool = False  # ended by its supervisor: a victim, never the cause


class ExitRecords:
    """The exit records of one attempt: files ATTEMPT.rank_0000 and so on, beside the attempt's own."""

    def __init__(self, attempt: Path) -> None:
        self._attempt = attempt

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> ExitRecords | None:
        """Return the records that this worker's launcher reads; None if it reads none."""
        return cls(Path(env[_VARIABLE])) if _VARIABLE in env else None

    @property
    def environment(self) -> dict[str, str]:
        """Return the variable that tells a worker where to write its record."""
        return {_VARIABLE: str(self._attempt)}

    def write(self, record: Exit) -> None:
        """Write a record; ignore a failure, so that it hides no other error."""
        with suppress(OSError):
            write_atomically(self._file(record.rank), json.dumps(record._asdict()).encode())

    def read(self, ranks: Collection[int]) -> list[Exit]:
        """Return the records of `ranks` that exist, in order of time by the file server's clock."""
        records = []
        names = {path.name for path in children(self._attempt.parent)}
        for path in (self._file(rank) for rank in ranks):
            if path.name in names:
                with suppress(OSError, ValueError, TypeError):  # a damaged record counts as none
                    record = Exit(**json.loads(read_file(path, max_bytes=limits.RUN_JSON)))
                    records.append((path.stat().st_mtime_ns, record))
        return [record for _, record in sorted(records)]

    def clear(self) -> None:
        """Remove all records of this attempt."""
        for path in children(self._attempt.parent):
            if path.name.startswith(f"{self._attempt.name}.rank_"):
                path.unlink(missing_ok=True)

    def _file(self, rank: int) -> Path:
        return self._attempt.with_name(f"{self._attempt.name}.rank_{rank:04d}")
