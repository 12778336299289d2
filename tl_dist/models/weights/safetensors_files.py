"""Arrays from a safetensors file, whose names must be the network's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tl_dist.models.backbones import Arrays
from tl_dist.models.weights.sources import compare, shapes
from tl_dist.refusal import ExitCode, Refusal


def arrays_of(path: Path, source: Path, network: Any) -> Arrays:
    """Return the arrays of the file at `path`, none of which is read before all have the shapes of the network's.

    Refuses (78) other names or shapes, calling the file `source`, and (65) a file that cannot be read.
    """
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as stored:
            available = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118 (no dict)
            compare(source, network, shapes(network), available)
            return {name: stored.get_tensor(name) for name in available}
    except (safetensors.SafetensorError, TypeError, ValueError) as error:
        raise Refusal(
            f"weights file {path.name} cannot be read: {error}.",
            fix="obtain the file again, with its arrays in float32.",
            code=ExitCode.DATA,
        ) from error
