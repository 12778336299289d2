"""Which channels of a network a narrower one keeps, and their weights.

Li et al., arXiv 1608.08710: the filters of a convolution with the smallest L1 norm are removed, and with each the slice
of the next layer that read it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tl_dist.models.backbones import seam
from tl_dist.models.classifier import Classifier
from tl_dist.models.narrow import inputs_of, is_convolution


def channels(wide: Classifier, network: Any) -> dict[int, np.ndarray]:
    """Return which channels of `wide` each tensor of a narrower `network` of the same layers has, by tensor id.

    `network` determines how many channels of each convolution stay, the weights of `wide` which.
    """
    chosen: dict[int, np.ndarray] = {}
    for old, new in zip(wide.network.operations, network.operations, strict=True):
        indices = np.arange(old.output.shape[-1])
        if new.output.shape[-1] < len(indices):
            indices = chosen[id(inputs_of(new)[0])]
            if is_convolution(new):
                norms = np.abs(old.kernel.numpy()).sum(axis=(0, 1, 2), dtype=np.float64)
                indices = np.sort(np.argsort(-norms, kind="stable")[: new.filters])
        chosen[id(new.output)] = indices
    return chosen


def kept(wide: Classifier, network: Any) -> dict[str, np.ndarray]:
    """Return the weights that a narrower `network` of the same layers, and its head, take over from `wide`, by path."""
    arrays = {path: v.numpy() for path, v in {**wide.moving, **wide.frozen}.items()}
    chosen = channels(wide, network)
    for new in network.operations:
        indices = chosen[id(new.output)]
        for variable in getattr(new, "weights", ()):
            path = f"backbone/{new.name}/{variable.name}"
            if variable.name == "kernel" and is_convolution(new):
                arrays[path] = arrays[path][:, :, chosen[id(new.input)]][..., indices]
            else:  # [channels], or [height, width, channels, 1] in a depthwise convolution
                arrays[path] = arrays[path].take(indices, axis=2 if len(variable.shape) == 4 else 0)
    rows, first = [], 0
    for end, width, num_channels in zip(wide.stage_ends, wide.stage_widths, wide.stage_channels, strict=True):
        # However a map is pooled, channels are the last axis of the result.
        of_map = (first + np.arange(width)).reshape(-1, num_channels)
        rows.append(of_map[:, chosen[id(seam(network, end))]].ravel())
        first += width
    kernel = f"head/{wide.first_of_head.name}/kernel"
    arrays[kernel] = arrays[kernel][np.concatenate(rows)]
    return arrays
