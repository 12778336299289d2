"""Arrays from a TensorFlow checkpoint, `PREFIX.index` and `PREFIX.data-*`, by the names of its variables.

Keys depend on what else was saved, names do not. A damaged file may crash TensorFlow's reader: a child converts.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tl_dist.files import limits
from tl_dist.models.weights.keras_files import counted_from_zero, refuse_one_too_many
from tl_dist.refusal import ExitCode, Refusal

_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_OF_LAYERS = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")
"""how the names of layers' variables end, and most optimizers' do not"""


def arrays_of(prefix: Path, network: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the arrays of a checkpoint under the variable paths of `network`, and its other layers.

    No array is read unless the checkpoint has all variables of the network, each once and in its shape; otherwise
    raises ValueError with a reason to show. Refuses (65) a checkpoint that TensorFlow cannot read.
    """
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    try:
        reader = tf.train.load_checkpoint(str(prefix))
        shapes = {key: tuple(shape) for key, shape in reader.get_variable_to_shape_map().items()}
        keys = _keys(reader) if _GRAPH in shapes else {name: [name] for name in shapes}
        chosen = _choose(keys, shapes, network)
        arrays = {path: reader.get_tensor(key) for path, key in chosen.items()}
    except (tf.errors.OpError, RuntimeError, LookupError, MemoryError, DecodeError) as error:
        what = f"TensorFlow checkpoint {prefix.name} cannot be read: {str(error)[:300]}."
        fix = "copy its .index and all of its .data-* files again, into one directory."
        raise Refusal(what, fix=fix, code=ExitCode.DATA) from error
    # `m/dense/kernel` is an optimizer's for `dense/kernel`.
    of_layers = (name for name in keys if name.endswith(_OF_LAYERS) and name.partition("/")[2] not in keys)
    used = set(chosen.values())
    return arrays, sorted({name.rpartition("/")[0] for name in of_layers if used.isdisjoint(keys[name])})


def _keys(reader: Any) -> dict[str, list[str]]:
    """Return the keys of the variables of each name, from the graph of objects."""
    from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

    encoded = reader.get_tensor(_GRAPH)
    if not isinstance(encoded, bytes) or len(encoded) > limits.CHECKPOINT_GRAPH:
        raise ValueError(f"its graph of objects is no text of at most {limits.CHECKPOINT_GRAPH:,} bytes")
    keys: dict[str, list[str]] = {}
    for node in TrackableObjectGraph.FromString(encoded).nodes:
        for attribute in node.attributes:
            keys.setdefault(attribute.full_name, []).append(attribute.checkpoint_key)
    return keys


def _choose(keys: Mapping[str, list[str]], shapes: Mapping[str, tuple[int, ...]], network: Any) -> dict[str, str]:
    """Return the key of each variable of the network."""
    stored: defaultdict[str, list[str]] = defaultdict(list)
    for name, counted in counted_from_zero(keys).items():
        stored[counted] += keys[name]
    chosen = {}
    own = counted_from_zero(v.path for v in network.weights)
    for path, counted in own.items():
        fits = stored.get(counted, [])
        if len(fits) > 1:
            raise ValueError(f"it holds '{path}' {len(fits)} times")
        if fits:
            chosen[path] = fits[0]
    wanted = {v.path: tuple(v.shape) for v in network.weights}
    wrong = [path for path in wanted if shapes.get(chosen.get(path, "")) != wanted[path]]
    if wrong:
        has = shapes.get(chosen.get(wrong[0], ""), "no such variable")
        raise ValueError(
            f"of {len(wanted)} variables it has {len(wanted) - len(wrong)} by name and shape; "
            f"of '{wrong[0]}' {wanted[wrong[0]]} it has {has}"
        )
    stored_shapes = {counted: shapes.get(same_name[0], ()) for counted, same_name in stored.items()}
    refuse_one_too_many({own[path]: shape for path, shape in wanted.items()}, stored_shapes)
    return chosen
