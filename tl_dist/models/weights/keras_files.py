"""Arrays from Keras's files: HDF5 in either of its two layouts, and `.keras` archives of it. Layers go by their order.

A file may hold more than the network, such as a head; one in which the network fits in two places is refused.
"""

import errno
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tl_dist.files import atomic, limits
from tl_dist.files.packages import DAMAGE, check_members
from tl_dist.models.backbones import Arrays
from tl_dist.models.weights import hdf5
from tl_dist.models.weights.hdf5 import Contents
from tl_dist.refusal import ExitCode, Refusal

_MEMBER = "model.weights.h5"
_NO_LAYER = re.compile(r"(?:^|/)(?:optimizer|\w*metrics?\w*|seed_generator)/")
"""groups that Keras 3 stores beside the weights of layers"""


def of_archive(path: Path, network: Any) -> tuple[Arrays, list[str]]:
    """Return the network's arrays in a `.keras` archive, and its other layers; raises ValueError as `arrays_of` does.

    One member is read and no other, since its config.json may name any code; it is unpacked beside the archive and
    removed again. Refuses (78) an unsafe or damaged archive.
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
        what = f"weights file {path.name} is refused: {str(error) or type(error).__name__}."
        fix = "use a file that Keras's model.save wrote, from a source that you trust."
        raise Refusal(what, fix=fix, code=ExitCode.UNSAFE) from error
    try:
        return arrays_of(hdf5.read(weights), network)
    finally:
        weights.unlink()


def arrays_of(contents: Contents, network: Any) -> tuple[Arrays, list[str]]:
    """Return the arrays of a Keras file under the variable paths of `network`, and the file's other layers.

    Raises ValueError, with a reason to show, if the file has neither layout, does not hold the network with
    the shapes of its variables, or holds it more than once.
    """
    for group in ("", "model_weights"):
        layers = contents.names(group, "layer_names")
        if layers is not None:
            return _by_layer(contents, f"{group}/" if group else "", layers, network)
    roots = sorted({path[: at.start(1)] for path in contents.arrays for at in _LAYERS.finditer(path)})
    if roots:
        return _by_class(contents.arrays, roots, network)
    raise ValueError("it has the layout of neither .weights.h5 nor the older .h5 files of Keras")


def _only_place(fits: Iterable[str], network: Any, content: str) -> str:
    """Return the one place that the network `fits`; raise ValueError with the file's `content` if there is not one."""
    places = list(fits)
    if len(places) == 1:
        return places[0]
    if places:
        raise ValueError(f"it fits in {len(places)} places: {', '.join(place or 'its layers' for place in places)}")
    wanted = sum(bool(layer.weights) for layer in network.layers)
    raise ValueError(f"it has {content}, where the network's {wanted} do not all fit by order, name and shape")


# ----------------------------------------------------------------------------------------------- Keras 3

_LAYERS = re.compile(r"(?:^|/)(layers/)")


def _by_class(arrays: Mapping[str, Any], roots: Sequence[str], network: Any) -> tuple[Arrays, list[str]]:
    """Match `layers/CLASS_N/vars/I`, where N counts the layers of a class; in a layer that is a model, again from 0."""
    places = dict(_places(network.layers, "layers"))
    shapes = {place: tuple(variable.shape) for place, variable in places.items()}
    num_fitting = {
        root: sum(root + place in arrays and arrays[root + place].shape == shapes[place] for place in places)
        for root in roots
    }
    layers = {path.partition("/vars/")[0] for path in arrays if not _NO_LAYER.search(path)}
    most = f"{len(layers)} layers with weights and at most {max(num_fitting.values())} of {len(places)} arrays"
    root = _only_place((root for root in roots if num_fitting[root] == len(places)), network, most)
    refuse_one_too_many(
        {place.replace("/vars/", "/"): shape for place, shape in shapes.items()},
        {path.removeprefix(root).replace("/vars/", "/"): array.shape for path, array in arrays.items()},
    )
    others = layers - {(root + place).partition("/vars/")[0] for place in places}
    of_network = {variable.path: arrays[root + place] for place, variable in places.items()}
    return of_network, sorted(layer.removeprefix("layers/") for layer in others)


def _places(layers: Sequence[Any], prefix: str) -> Iterator[tuple[str, Any]]:
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
                yield f"{place}/vars/{index}", variable


# ---------------------------------------------------------------------------- before Keras 3, and its .h5 files


def _by_layer(contents: Contents, prefix: str, layers: Sequence[str], network: Any) -> tuple[Arrays, list[str]]:
    """Match the layers that have weights, in order; the trainable weights of each come first."""
    stored: dict[str, Arrays] = {}
    for layer in layers:
        names = contents.names(f"{prefix}{layer}", "weight_names") or []
        missing = [name for name in names if f"{prefix}{layer}/{name}" not in contents.arrays]
        if missing:
            raise ValueError(f"it lacks {len(missing)} arrays that it lists, first '{layer}/{missing[0]}'")
        if names:
            stored[layer] = {name: contents.arrays[f"{prefix}{layer}/{name}"] for name in names}
    fits = dict(_in_a_row(stored, network))
    rows = [used for _, used in fits.values()]  # a network of one layer fits in both ways
    fits |= {place: fit for place, fit in _in_one_layer(stored, network) if fit[1] not in rows}
    place = _only_place(fits, network, f"{len(stored)} layers with weights")
    of_network, used = fits[place]
    others: list[str] = []
    for layer, weights in stored.items():
        left = [name for name in weights if (layer, name) not in used]
        others += [layer] if len(left) == len(weights) else dict.fromkeys(n.rpartition("/")[0] for n in left)
    return of_network, others


Fit = tuple[str, tuple[dict[str, Any], set[tuple[str, str]]]]
"""where the network lies in the file, its arrays, and their layers and names there"""


def _in_a_row(stored: Mapping[str, Mapping[str, Any]], network: Any) -> Iterator[Fit]:
    """Yield each run of consecutive layers with the shapes of the network's."""
    wanted = [[*layer.trainable_weights, *layer.non_trainable_weights] for layer in network.layers if layer.weights]
    names = list(stored)
    shapes = [[array.shape for array in stored[name].values()] for name in names]
    own = [[tuple(variable.shape) for variable in variables] for variables in wanted]
    for start in range(len(names) - len(own) + 1):
        row = names[start : start + len(own)]
        if shapes[start : start + len(own)] == own:
            variables = [variable.path for layer in wanted for variable in layer]
            used = [(layer, name) for layer in row for name in stored[layer]]
            arrays = {v: stored[layer][name] for v, (layer, name) in zip(variables, used, strict=True)}
            yield f"layers from '{row[0]}' on", (arrays, set(used))


def _in_one_layer(stored: Mapping[str, Mapping[str, Any]], network: Any) -> Iterator[Fit]:
    """Yield each layer that is the network, matched by names: order depends on which of its weights were trained."""
    own = counted_from_zero(variable.path for variable in network.weights)
    for layer, weights in stored.items():
        names = {counted: name for name, counted in counted_from_zero(weights).items()}
        wanted = {own[v.path]: tuple(v.shape) for v in network.weights}
        available = {counted: weights[name].shape for counted, name in names.items()}
        if wanted.items() <= available.items() and len(names) == len(weights):
            refuse_one_too_many(wanted, available)
            used = {path: names[counted] for path, counted in own.items()}
            arrays = {path: weights[name] for path, name in used.items()}
            yield f"layer '{layer}'", (arrays, {(layer, name) for name in used.values()})


def counted_from_zero(paths: Iterable[str]) -> dict[str, str]:
    """Return each path `LAYER/VARIABLE` with its layer numbered among these paths alone, from 0.

    Keras numbers layers that were given no name over the whole process: `conv2d_7` may be a network's first.
    """
    parts = {path: _NUMBERED.fullmatch(path) for path in paths}
    numbers = {(part[1], int(part[2] or 0)) for part in parts.values() if part is not None}
    ranks: dict[tuple[str, int], int] = {}
    used: Counter[str] = Counter()
    for kind, number in sorted(numbers):
        ranks[kind, number] = used[kind]
        used[kind] += 1
    counted = {}
    for path, part in parts.items():
        if part is None:
            counted[path] = path
            continue
        variable = part[3]
        # Keras 2's name for the kernel of a depthwise convolution; a separable one still has it.
        if variable == "depthwise_kernel" and path.replace("/depthwise_", "/pointwise_") not in parts:
            variable = "kernel"
        counted[path] = f"{part[1]}_{ranks[part[1], int(part[2] or 0)]}/{variable}"
    return counted


def refuse_one_too_many(wanted: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError if one more layer of a kind `KIND_N/VARIABLE` is stored than the network has, all of one shape.

    An extra layer shifts the numbers of those after it. If shapes differ, these no longer fit, and it is refused.
    """
    kinds: Any = defaultdict(lambda: defaultdict(dict))
    for path, shape in wanted.items():
        part = _NUMBERED.fullmatch(path)
        if part is not None:
            kinds[part[1]][int(part[2] or 0)][part[3]] = shape
    for kind, layers in kinds.items():
        variables = next(iter(layers.values()))
        extra = {name: stored.get(f"{kind}_{len(layers)}/{name}") for name in variables}
        if all(layer == extra for layer in layers.values()):
            raise ValueError(
                f"it has a layer '{kind.removeprefix('layers/')}' more than the network, of the same shape: "
                "nothing tells which is the network's"
            )


_NUMBERED = re.compile(r"(.+?)(?:_(\d{1,9}))?/([^/]+?)(?::0)?")
