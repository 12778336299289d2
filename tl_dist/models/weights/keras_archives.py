"""Arrays from a `.keras` archive: one member is read and no other, since its config.json may name any code."""

from __future__ import annotations

import errno
import zipfile
from pathlib import Path
from typing import Any

from tl_dist.files import atomic, limits
from tl_dist.files.packages import DAMAGE, check_members
from tl_dist.models.backbones import Arrays
from tl_dist.models.weights import hdf5, keras_files
from tl_dist.refusal import ExitCode, Refusal

_MEMBER = "model.weights.h5"


def arrays_of(path: Path, network: Any) -> tuple[Arrays, list[str]]:
    """Return the network's arrays in the archive at `path`, and the archive's other layers.

    The member with the weights is unpacked beside the archive and removed again. Refuses (78) an unsafe or damaged
    archive; raises ValueError as `keras_files.arrays_of` does.
    """
    weights = path.with_name(f"{path.name}:{_MEMBER}")
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(archive.infolist(), limits.WEIGHTS)
            member = next((m for m in archive.infolist() if m.filename == _MEMBER), None)
            # Keras neither compresses nor encrypts it. So it cannot become larger than the archive.
            if member is None or member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                raise ValueError(f"it has no {_MEMBER} that is neither compressed nor encrypted")
            with archive.open(member) as file:
                atomic.write_file(weights, iter(lambda: file.read(atomic.CHUNK_BYTES), b""), sync=False)
    except (*DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        # EINVAL: an offset before the start of the archive
        weights.unlink(missing_ok=True)
        raise Refusal(
            f"weights file {path.name} is refused: {str(error) or type(error).__name__}.",
            fix="use a file that Keras's model.save wrote, from a source that you trust.",
            code=ExitCode.UNSAFE,
        ) from error
    try:
        return keras_files.arrays_of(hdf5.read(weights), network)
    finally:
        weights.unlink()
