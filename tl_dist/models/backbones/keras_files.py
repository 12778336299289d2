"""The two layouts in which Keras writes weights to HDF5, and the name that each array has in tl_dist.

The order of layers is what Keras itself goes by: names of layers without one of their own depend on the
process that wrote the file. Nothing is built from the file, and no configuration in it is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tl_dist.models.backbones.hdf5 import Contents

if TYPE_CHECKING:
    import numpy as np


def arrays_of(contents: Contents, network: Any) -> dict[str, np.ndarray]:
    """The arrays of a `.weights.h5` (Keras 3) or older `.h5` file under the variable paths of `network`.

    Raises ValueError, with a reason to show, when the file is of neither layout or does not fit the network
    layer by layer. Shapes are not compared here.
    """
    for group in ("", "model_weights"):
        layers = contents.names(group, "layer_names")
        if layers is not None:
            return _by_layer(contents, group, layers, network)
    if any(path.startswith("layers/") for path in contents.arrays):
        return _by_class(contents, network)
    raise ValueError("it has the layout of neither .weights.h5 nor the older .h5 files of Keras")


def _by_class(contents: Contents, network: Any) -> dict[str, np.ndarray]:
    """Keras 3: `layers/CLASS_N/vars/I`, where N counts the layers of a class in order."""
    places = dict(_places(network.layers, "layers"))
    # Outside of layers/ there may be the state of an optimizer or of metrics.
    found = {path for path in contents.arrays if path.startswith("layers/")}
    _compare(set(places), found)
    return {variable: contents.arrays[path] for path, variable in places.items()}


def _places(layers: Sequence[Any], prefix: str) -> Iterator[tuple[str, str]]:
    from keras.src.utils.naming import to_snake_case

    used: Counter[str] = Counter()
    for layer in layers:
        kind = to_snake_case(type(layer).__name__)
        place = f"{prefix}/{kind}_{used[kind]}" if used[kind] else f"{prefix}/{kind}"
        used[kind] += 1
        if hasattr(layer, "layers"):
            yield from _places(layer.layers, f"{place}/layers")
        else:
            for index, variable in enumerate(layer.weights):
                yield f"{place}/vars/{index}", variable.path


def _by_layer(contents: Contents, group: str, layers: list[str], network: Any) -> dict[str, np.ndarray]:
    """Before Keras 3: the layers that have weights, in order; of each, trainable weights first."""
    prefix = f"{group}/" if group else ""
    stored = []
    for layer in layers:
        weights = contents.names(f"{prefix}{layer}", "weight_names")
        if weights:
            stored.append([f"{prefix}{layer}/{weight}" for weight in weights])
    wanted = [layer for layer in network.layers if layer.weights]
    if len(stored) != len(wanted):
        raise ValueError(f"it has {len(stored)} layers with weights, the network has {len(wanted)}")
    arrays: dict[str, np.ndarray] = {}
    for layer, paths in zip(wanted, stored, strict=True):
        variables = [*layer.trainable_weights, *layer.non_trainable_weights]
        if len(paths) != len(variables):
            raise ValueError(
                f"it has {len(paths)} arrays for layer {layer.name!r}, which has {len(variables)}"
            )
        _compare(set(paths), set(paths) & set(contents.arrays))
        arrays |= {v.path: contents.arrays[path] for v, path in zip(variables, paths, strict=True)}
    return arrays


def _compare(wanted: set[str], found: set[str]) -> None:
    if wanted != found:
        missing, extra = sorted(wanted - found), sorted(found - wanted)
        raise ValueError(
            f"it lacks {len(missing)} arrays {missing[:2]} and has {len(extra)} others {extra[:2]}"
        )
