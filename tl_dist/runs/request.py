"""Write what workers are to do with a run, other than train, as one JSON file that each of them reads."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tl_dist.files.atomic import write_atomically


@dataclass(frozen=True, kw_only=True)
class Request:
    """Base of the `Request` of each package `tl_dist.tools.TOOL`, whose `work.run` answers it on the workers."""

    at: str = ""
    """the checkpoint, as in `checkpoint.find`"""
    overrides: Sequence[str] = ()
    """KEY=VALUE over the config of the run"""
    into: str | None = None
    """directory of the answer and of the stop file, if the run is only read; default: the run itself"""

    def save(self, file: Path) -> None:
        """Write the request, with the name of its tool."""
        tool = type(self).__module__.rpartition(".")[2]
        write_atomically(file, json.dumps({"tool": tool, **asdict(self)}).encode())
