"""Arrays from files that others have written: safetensors, Keras's HDF5 and `.keras`, TensorFlow's checkpoints.

Nothing is built from a file, no configuration in it is read, and no code in it is run: only arrays and their names are
taken. Each format has its reader in a file beside this one.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tl_dist.files import atomic, limits
from tl_dist.files.foreign import open_regular
from tl_dist.models.backbones import Arrays, Backbone
from tl_dist.models.weights import hdf5, keras_archives, keras_files, safetensors_files, tf_checkpoints
from tl_dist.models.weights.sources import CheckDigest, fit_to_network, mismatch
from tl_dist.refusal import ExitCode, Refusal

KINDS = "the path of a .safetensors, .h5 or .keras file, or of the .index of a TensorFlow checkpoint"


def files_of(path: Path) -> list[Path]:
    """Return `path` and, for an index, its data files; OSError if one is missing or not a regular file."""
    files = [path]
    if path.suffix == ".index":
        files += sorted(path.parent.glob(f"{glob.escape(path.stem)}.data-?????-of-?????"))
    for file in files:
        if not stat.S_ISREG(file.stat().st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(file))
    return files


def read(
    files: Sequence[Path], backbone: Backbone, check_digest: CheckDigest, scratch: Path
) -> tuple[Arrays, str, tuple[str, ...]]:
    """Return the backbone's arrays in `files` of `files_of`, their digest, and the names of their other layers.

    The digest of several files is of all their bytes in this order. To parse exactly what was hashed, the files are
    copied into `scratch` first.
    """
    source = files[0]
    with _private_copies(files, scratch) as (copy, digest):
        check_digest(digest)
        network = backbone.build((backbone.min_size, backbone.min_size, 3))
        try:
            arrays, others = _arrays_of(copy, source, network)
        except ValueError as error:
            raise mismatch(source, network, str(error)) from error
    if copy.suffix != ".safetensors":
        arrays = backbone.adapt(arrays)
    return fit_to_network(arrays, network, source), digest, tuple(others)


@contextmanager
def _private_copies(files: Sequence[Path], scratch: Path) -> Iterator[tuple[Path, str]]:
    """Copy the files into `scratch`; yield the first copy and the digest of all bytes."""
    digest = hashlib.sha256()
    left = limits.WEIGHTS
    for path in files:
        try:
            file = os.fdopen(open_regular(path), "rb")
        except OSError as error:
            raise Refusal(
                f"weights file {path} cannot be read: {atomic.reason(error)}.",
                fix="make it readable, or correct model.weights.",
                code=ExitCode.DATA,
            ) from error
        with file:
            left -= os.fstat(file.fileno()).st_size
            if left < 0:
                raise Refusal(
                    f"weights file {path} is larger than {limits.WEIGHTS} bytes.",
                    fix="use a file with the weights of the network alone.",
                    code=ExitCode.UNSAFE,
                )
            atomic.write_file(scratch / path.name, _hashed(file, digest), sync=False)
    try:
        yield scratch / files[0].name, digest.hexdigest()
    finally:
        for path in files:
            (scratch / path.name).unlink()


def _hashed(file: Any, digest: Any) -> Iterator[bytes]:
    while piece := file.read(atomic.CHUNK_BYTES):
        digest.update(piece)
        yield piece


def _arrays_of(path: Path, source: Path, network: Any) -> tuple[Arrays, list[str]]:
    """Return the network's arrays in a file, by the reader of its format, and the file's other layers."""
    if path.suffix == ".safetensors":
        return safetensors_files.arrays_of(path, source, network), []
    if path.suffix == ".keras":
        return keras_archives.arrays_of(path, network)
    if path.suffix == ".index":
        return tf_checkpoints.arrays_of(path.with_suffix(""), network)
    return keras_files.arrays_of(hdf5.read(path), network)
