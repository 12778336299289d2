"""A backbone carried over from an earlier run: its newest commit over the weights that it kept frozen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tl_dist.config import Config
from tl_dist.models import classifier
from tl_dist.models.backbones import weights
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs import checkpoint, origin


def carry(network: Any, variables: Mapping[str, Any], cfg: Config) -> str:
    """Give `network` the backbone of `cfg.source.run`; the digest of all of it.

    `variables` are those of the network by path, `backbone/LAYER/VARIABLE`. Averages are taken where the run kept
    them: the weights that it evaluated (`Optimizer.begin`). Refuses a run whose frozen weights are not to be had as
    they were.
    """
    run, found = origin.opened(cfg)
    if found.source is not None:
        carry(network, variables, found)
    else:
        file = weights.resolve(found.model.weights, found.model.backbone, sha256=found.model.weights_sha256)
        if file is not None:
            weights.load(network, file)
    commit = checkpoint.restore(run)
    assert commit is not None  # `opened` has seen one, and the newest valid one is never removed
    for path, variable in variables.items():
        value = commit.arrays.get(f"optimizer/ema/{path}", commit.arrays.get(path))
        if value is not None:
            variable.assign(value)
    frozen = {path: v.numpy() for path, v in variables.items() if path not in commit.arrays}
    if classifier.digest(frozen) != (run.read_identity() or {}).get("frozen_sha256"):
        raise Refusal(
            f"source.run {run.path} kept weights frozen that are not those of '{found.model.weights}' here.",
            fix="bring back the file of its weights, or name another run.",
            code=ExitCode.UNSAFE,
        )
    return classifier.digest({path: v.numpy() for path, v in variables.items()})
