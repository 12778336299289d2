"""Record what became of the batch-norm layers of a run, as measured on every worker, not as configured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tl_dist.models.batch_norm import is_batch_norm
from tl_dist.models.classifier import MOVING, Classifier
from tl_dist.parallel import DataParallel


def statistics(model: Classifier) -> dict[str, np.ndarray]:
    """Return a host copy of the moving statistics of every batch-norm layer, by path."""
    variables = {**model.moving, **model.frozen}
    return {path: np.array(v.numpy()) for path, v in variables.items() if path.endswith(MOVING)}


def batch_norm(
    model: Classifier, policy: str, start: Mapping[str, np.ndarray], parallel: DataParallel
) -> dict[str, Any] | None:
    """Return a record of every batch-norm layer, the same on every worker; None where there is none. Blocks.

    `model` trains what any stage trains; `start` is the result of `statistics` before the first step. The record tells
    for each layer whether its scale or offset is trained, how it normalizes in training, whether its statistics
    moved, and the largest absolute difference of a worker's statistics from the mean over all workers.
    """
    now = statistics(model)
    if not now:
        return None
    mean = {path: total / parallel.world_size for path, total in parallel.total(now).items()}
    spread = np.zeros((parallel.world_size, len(now)))
    spread[parallel.rank] = [float(np.abs(value - mean[path]).max()) for path, value in now.items()]
    spreads = dict(zip(now, parallel.total({"spread": spread})["spread"].max(axis=0).tolist(), strict=True))
    moving = "sync" if policy == "auto" else policy
    layers = []
    for layer in filter(is_batch_norm, model.network.layers):
        path = f"backbone/{layer.name}"
        own = [path + end for end in MOVING]
        layers.append(
            {
                "layer": layer.name,
                "trainable": any(f"{path}/{name}" in model.trainable for name in ("gamma", "beta")),
                "mode": moving if any(p in model.statistics for p in own) else "inference",
                "statistics_moved": any(not np.array_equal(now[p], start[p]) for p in own),
                "spread": max(spreads[p] for p in own),
            }
        )
    return {"event": "batch_norm", "policy": policy, "layers": layers}
