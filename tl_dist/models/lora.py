"""Low-rank adapters (LoRA; Hu et al., arXiv 2106.09685): a layer computes with kernel + alpha / rank * A B.

A and B alone are trained. A reads what the kernel reads and B gives what it gives: in a convolution A is one of the
same size to `rank` channels, and B one of 1 x 1. This is PEFT's form. Keras's `enable_lora` has it in convolutions and
dense layers, but in attention an A for each head; and it rounds A B to the 16 bits in which a layer may compute before
it adds them to the kernel. The sum is in float32 here, and is what `merge` writes.
"""

import re
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tl_dist.config.lora import LoraConfig
from tl_dist.models.network import backbone_path, is_convolution
from tl_dist.refusal import ExitCode, Refusal

NAMES = ("/lora_a", "/lora_b")  # how the paths of A and B end


def add(layers: Iterable[Any], config: LoraConfig | str, seed: int) -> dict[str, dict[str, Any]]:
    """Give the chosen kernels of these layers, the trained ones, adapters; return A and B by layer and path.

    The network still computes what it did: B is 0. A is drawn by `seed` as in the authors' code (`loralib/layers.py` of
    github.com/microsoft/LoRA). Keras does not track them: they are no weights of the network. To be called in the
    strategy's scope. Refuses (64) a choice of no kernel, and a rank at which no adapter is smaller than its kernel.
    Without LoRA, where `model.adapt` is a word, there are none.
    """
    if isinstance(config, str):
        return {}
    kernels = {}
    for layer in layers:
        for inner in layer._flatten_layers():  # attention has its dense layers inside
            if matrix := _matrix(inner):
                path = backbone_path(layer, inner.kernel).removesuffix("/kernel")
                kernels[path] = layer.name, inner, *matrix
    chosen = {path: k for path, k in kernels.items() if re.search(config.layers, path.removeprefix("backbone/"))}
    largest = max(((rows * columns - 1) // (rows + columns) for *_, rows, columns in chosen.values()), default=0)
    if largest < config.lora:
        raise _refusal(config, [path.removeprefix("backbone/") for path in kernels], len(chosen), largest)
    random = np.random.default_rng(seed)
    adapters: dict[str, dict[str, Any]] = {}
    for path, (name, inner, rows, columns) in chosen.items():
        if config.lora * (rows + columns) < rows * columns:
            bound = rows**-0.5
            a = tf.Variable(random.uniform(-bound, bound, (rows, config.lora)).astype(np.float32), name="lora_a")
            b = tf.Variable(tf.zeros((config.lora, columns)), name="lora_b")
            _attach(inner, a, b, config.factor)
            adapters.setdefault(name, {}).update(zip((path + end for end in NAMES), (a, b), strict=True))
    return adapters


def merge(variables: Mapping[str, Any], arrays: Mapping[str, np.ndarray], config: LoraConfig) -> None:
    """Add to each kernel among `variables`, by path, what its adapter among `arrays` has learnt."""
    for path, variable in variables.items():
        a, b = (arrays.get(path.removesuffix("/kernel") + end) for end in NAMES)
        if a is not None and b is not None and path.endswith("/kernel"):
            variable.assign(_merged(variable, a, b, config.factor))


def _merged(kernel: Any, a: Any, b: Any, factor: float) -> Any:
    return kernel + factor * tf.reshape(tf.matmul(a, b), kernel.shape)


def _attach(layer: Any, a: Any, b: Any, factor: float) -> None:
    own, kernel = type(layer), layer.kernel.value
    merged = property(lambda self: tf.cast(_merged(kernel, a, b, factor), self.compute_dtype))
    layer.__class__ = type(own.__name__, (own,), {"kernel": merged})


def _matrix(layer: Any) -> tuple[int, int] | None:
    """Return how many inputs and outputs the kernel has as a matrix; None for a layer that has none."""
    inputs = -1  # number of axes
    if isinstance(layer, keras.layers.EinsumDense):
        reads, axes, gives = re.split(",|->", layer.equation)
        inputs = sum(axis not in gives for axis in axes)
        if {*axes[:inputs]} & {*gives} or {*axes[inputs:]} & {*reads}:
            return None
    elif not (isinstance(layer, keras.layers.Dense) or is_convolution(layer)):
        return None
    shape = layer.kernel.shape
    return prod(shape[:inputs]), prod(shape[inputs:])


def _refusal(config: LoraConfig, names: list[str], num_chosen: int, largest: int) -> Refusal:
    if largest:
        what = f"model.adapt.lora is {config.lora}, at which no adapter would be smaller than its kernel."
        fix = f"write 'lora: {largest}' or less."
    elif names and not num_chosen:
        what = f"model.adapt.layers '{config.layers}' matches no layer that is trained and can have an adapter."
        fix = f"write a part of their names, which are {', '.join(names[:3])}{' ...' * (len(names) > 3)}."
    else:
        what = "model.adapt: no layer that is trained has a kernel for which LoRA has an adapter."
        fix = "train more of the backbone with model.train_from, or remove 'adapt'."
    return Refusal(what, fix=fix, code=ExitCode.USAGE)
