"""Pool feature maps and tokens, for each image to one vector of features."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops


def as_maps(values: Any, patches: int) -> Any:
    """Return feature maps as they are, and tokens [rows, n, c], whose last or all are `patches`, as maps of these."""
    if len(values.shape) == 4:
        return values
    side = math.isqrt(patches or values.shape[1])  # images are square
    return ops.reshape(values[:, -side * side :], (-1, side, side, values.shape[-1]))


def pool(maps: Any, kind: str, patches: int = 0) -> Any:
    """Pool one feature map [rows, h, w, c] or a nest of several and join the results: [rows, features].

    A map gives c features, 2c for both, h*w*c for flatten. So do tokens [rows, n, c], of which the last `patches` are
    of patches, or all if it is 0. If there are others, both are the first of these and the average, and token and
    attention the first; if not, tokens are pooled as a map is, attention as average.
    """
    pooled = [_pool(feature_map, kind, patches) for feature_map in keras.tree.flatten(maps)]
    return ops.concatenate(pooled, axis=-1) if len(pooled) > 1 else pooled[0]


def _pool(features: Any, kind: str, patches: int) -> Any:
    if len(features.shape) == 2:  # outputs of a head
        return features
    if kind == "flatten":
        return ops.reshape(features, (-1, int(np.prod(features.shape[1:]))))
    are_tokens = len(features.shape) == 3
    leading = features.shape[1] - patches if are_tokens and patches else 0
    if leading:
        token, features = features[:, 0], features[:, leading:]
        if kind in ("token", "attention"):
            return token
        if kind == "both":
            return ops.concatenate([token, ops.mean(features, axis=1)], axis=-1)
    kinds = {"maximum": [ops.max], "both": [ops.mean, ops.max]}.get(kind, [ops.mean])
    pooled = [reduce(features, axis=1 if are_tokens else (1, 2)) for reduce in kinds]
    return ops.concatenate(pooled, axis=-1) if len(pooled) > 1 else pooled[0]


def normalize(features: Any) -> Any:
    """Give each row mean 0 and variance 1, in float32 (Ba et al., arXiv 1607.06450, without gain and bias).

    Pooled features of a network without batch norm can be in the hundreds, where no learning rate fits both the head
    and the backbone.
    """
    wide = ops.cast(features, "float32")
    mean, variance = ops.moments(wide, axes=[-1], keepdims=True)
    return ops.cast((wide - mean) * ops.rsqrt(variance + 1e-6), features.dtype)
