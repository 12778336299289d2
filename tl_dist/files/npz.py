"""Arrays in .npz files as `numpy.savez` writes them: neither compressed nor pickled."""

from __future__ import annotations

import zipfile
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read_npz(file: IO[bytes]) -> dict[str, NDArray[Any]]:
    """The arrays by name, in no more memory than the file has bytes. A damaged file can raise nearly anything."""
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
