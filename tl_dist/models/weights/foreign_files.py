"""Arrays out of the files that people have: safetensors, Keras's HDF5 and `.keras`, TensorFlow's checkpoints.

Nothing is built from a file, no configuration in it is read, and no code of it is run: arrays and their names are all
that is taken.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import stat
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tl_dist.files import atomic, limits
from tl_dist.files.foreign import open_regular
from tl_dist.files.packages import DAMAGE, check_members
from tl_dist.models.backbones import Arrays, Backbone
from tl_dist.models.weights.sources import CheckDigest, compare, does_not_hold, fitted, shapes
from tl_dist.refusal import ExitCode, Refusal

KINDS = "the path of a .safetensors, .h5 or .keras file, or of the .index of a TensorFlow checkpoint"
_KERAS_MEMBER = "model.weights.h5"


class Held(NamedTuple):
    """What a file has of a network."""

    arrays: Arrays
    """by the paths of the network's variables"""
    others: Sequence[str]
    """layers with weights that are no part of the network"""


def files_of(path: Path) -> list[Path]:
    """The regular files of the weights at `path`: itself, and those with the data of an index; OSError where not."""
    files = [path]
    if path.suffix == ".index":
        files += sorted(path.parent.glob(f"{glob.escape(path.stem)}.data-?????-of-?????"))
    for file in files:
        if not stat.S_ISREG(file.stat().st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(file))
    return files


def read(
    files: Sequence[Path], backbone: Backbone, check_digest: CheckDigest, scratch: Path
) -> tuple[Held, str]:
    """What `files` of `files_of` hold of the backbone, and their digest: of several, of all bytes in this order.

    What was hashed is what is parsed: private copies below `scratch`.
    """
    source = files[0]
    with _private_copies(files, scratch) as (copy, digest):
        check_digest(digest)
        network = backbone.build((backbone.min_size, backbone.min_size, 3))
        try:
            held = _READERS.get(copy.suffix, _read_hdf5)(copy, source, network)
        except ValueError as error:
            raise does_not_hold(source, network, str(error)) from error
    arrays = held.arrays if copy.suffix == ".safetensors" else backbone.adapt(held.arrays)
    return held._replace(arrays=fitted(arrays, network, source)), digest


@contextmanager
def _private_copies(files: Sequence[Path], scratch: Path) -> Iterator[tuple[Path, str]]:
    """Copies of the files, of which the first is given, and the digest of their bytes."""
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


def _read_safetensors(path: Path, source: Path, network: Any) -> Held:
    """The arrays, of which none is read before all have the shapes of the network's."""
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as stored:
            found = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118 (no dict)
            compare(source, network, shapes(network), found)
            return Held({name: stored.get_tensor(name) for name in found}, ())
    except (safetensors.SafetensorError, TypeError, ValueError) as error:
        raise Refusal(
            f"weights file {path.name} cannot be read: {error}.",
            fix="obtain the file again, with its arrays in float32.",
            code=ExitCode.DATA,
        ) from error


def _read_hdf5(path: Path, source: Path, network: Any) -> Held:
    from tl_dist.models.weights import hdf5, keras_files

    return Held(*keras_files.arrays_of(hdf5.read(path), network))


def _read_keras(path: Path, source: Path, network: Any) -> Held:
    """The member with the weights, and nothing else of the archive: its config.json may name any code."""
    weights = path.with_name(f"{path.name}:{_KERAS_MEMBER}")
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(archive.infolist(), limits.WEIGHTS)
            member = next((m for m in archive.infolist() if m.filename == _KERAS_MEMBER), None)
            # As Keras writes it. So what is unpacked cannot be larger than the archive.
            if member is None or member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                raise ValueError(f"it has no {_KERAS_MEMBER} that is neither compressed nor encrypted")
            with archive.open(member) as file:
                atomic.write_file(weights, iter(lambda: file.read(atomic.CHUNK_BYTES), b""), sync=False)
    except (*DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        # EINVAL: a place before the begin of the archive
        weights.unlink(missing_ok=True)
        raise Refusal(
            f"weights file {path.name} is refused: {str(error) or type(error).__name__}.",
            fix="use a file that Keras's model.save wrote, from a source that you trust.",
            code=ExitCode.UNSAFE,
        ) from error
    try:
        return _read_hdf5(weights, source, network)
    finally:
        weights.unlink()


def _read_checkpoint(path: Path, source: Path, network: Any) -> Held:
    from tl_dist.models.weights import tf_checkpoints

    return Held(*tf_checkpoints.arrays_of(path.with_suffix(""), network))


_READERS = {".safetensors": _read_safetensors, ".keras": _read_keras, ".index": _read_checkpoint}
