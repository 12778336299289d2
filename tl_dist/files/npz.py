"""Arrays in .npz files as `numpy.savez` writes them: neither compressed nor pickled."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from tl_dist.files.atomic import reason, replacing
from tl_dist.files.foreign import open_regular
from tl_dist.refusal import ExitCode, Refusal

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")


def save_npz(path: Path, **arrays: Any) -> None:
    """Write arrays atomically, without a copy in memory; makes the directory."""
    import numpy as np

    path.parent.mkdir(mode=0o700, exist_ok=True)
    with replacing(path) as fd, os.fdopen(fd, "wb", closefd=False) as file:
        np.savez(file, **arrays)


def read_npz(file: IO[bytes]) -> dict[str, NDArray[Any]]:
    """Return the arrays by name, in no more memory than the size of the file; a damaged file can raise anything."""
    import numpy as np

    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("its arrays are compressed")
    if len({member.header_offset for member in members}) < len(members):
        raise ValueError("its arrays lie in the same place")
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def load_npz(path: Path, make: Callable[[dict[str, NDArray[Any]]], T], *, what: str, fix: str) -> T:
    """Return `make(arrays)` of a file; refuses (65) a file that is missing or holds no `what`."""
    try:
        with open(open_regular(path), "rb") as file:
            return make(read_npz(file))
    except Exception as error:  # a damaged archive can raise nearly anything
        raise Refusal(f"{path} holds no {what} ({reason(error)}).", fix=fix, code=ExitCode.DATA) from error
