"""How each worker of an attempt ended, in a small file of its own: its exit code and, where it could say so, why."""

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


class ExitRecord(NamedTuple):
    """The last word of one worker. `code` is 128 + N after signal N, as a shell has it."""

    rank: int
    code: int
    what: str = ""
    fix: str = ""


class ExitRecords:
    """Those of one attempt: the files ATTEMPT.rank_0000 and so on, which are beside the attempt's own."""

    def __init__(self, attempt: Path) -> None:
        self._attempt = attempt

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> ExitRecords | None:
        """Those that whoever started this worker reads; None where nobody does."""
        return cls(Path(env[_VARIABLE])) if _VARIABLE in env else None

    @property
    def environment(self) -> dict[str, str]:
        """What tells a worker where to write."""
        return {_VARIABLE: str(self._attempt)}

    def write(self, record: ExitRecord) -> None:
        """Leave it there; a disk that does not take it hides no other error."""
        with suppress(OSError):
            write_atomically(self._file(record.rank), json.dumps(record._asdict()).encode())

    def read(self, ranks: Collection[int]) -> list[ExitRecord]:
        """Those of `ranks` that are known, in the order of time by the file server's clock."""
        found = []
        there = {path.name for path in children(self._attempt.parent)}
        for path in (self._file(rank) for rank in ranks):
            if path.name in there:
                with suppress(OSError, ValueError, TypeError):  # damaged: as good as none
                    record = ExitRecord(**json.loads(read_file(path, max_bytes=limits.RUN_JSON)))
                    found.append((path.stat().st_mtime_ns, record))
        return [record for _, record in sorted(found)]

    def clear(self) -> None:
        """Remove them, once they are known."""
        for path in children(self._attempt.parent):
            if path.name.startswith(f"{self._attempt.name}.rank_"):
                path.unlink(missing_ok=True)

    def _file(self, rank: int) -> Path:
        return self._attempt.with_name(f"{self._attempt.name}.rank_{rank:04d}")
