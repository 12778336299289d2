"""The weights of an earlier run: its best or newest checkpoint over what it kept frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tl_dist.config import Config
from tl_dist.models import pruning, weights
from tl_dist.models.digest import digest
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs import checkpoint, init_from
from tl_dist.runs.checkpoint_format import Checkpoint
from tl_dist.runs.directory import RunDir
from tl_dist.runs.identity import columns
from tl_dist.trainer.networks import network_of


def carry(network: Any, variables: Mapping[str, Any], cfg: Config, class_names: Sequence[str] = ()) -> str:
    """Give `network` the backbone of `cfg.source.run`, or what `model.prune` keeps of it; the digest of all of it.

    `variables` are those of the network by path, `backbone/LAYER/VARIABLE`, and of the head of these classes where it
    is to be carried as well. Refuses what `restore` refuses, and a head of other classes.
    """
    run, found = init_from.opened(cfg)
    heads = [path for path in variables if path.startswith("head/logits/")]
    places = columns(run, class_names, "source.run") if heads else []
    if found.model.prune == cfg.model.prune:
        restore(run, found, network, variables)
    else:
        whole = network_of(run, found)
        restore(run, found, whole.network, {**whole.moving, **whole.frozen})
        kept = pruning.kept(whole, network)
        for path, variable in variables.items():
            variable.assign(kept[path])
    for path in heads:
        variables[path].assign(variables[path].numpy()[..., places])
    return digest({path: v.numpy() for path, v in variables.items()})


def restore(run: RunDir, cfg: Config, network: Any, variables: Mapping[str, Any], at: str = "") -> Checkpoint:
    """Set `variables`, those of `network` and perhaps of a head by path, to a checkpoint of `run`, of this config.

    To what it ended with, or `at` as in `checkpoint.find`; returns what was read. Averages are taken where the
    run kept them: the weights that it evaluated (`Optimizer.begin`). Refuses a run without a valid checkpoint, and one
    whose frozen weights are not to be had as they were.
    """
    saved = checkpoint.find(run, at)
    if saved is None:
        raise Refusal(
            f"{run.path} has no checkpoint.", fix="train it first: tl-dist train CONFIG.", code=ExitCode.USAGE
        )
    if not variables.keys() <= saved.arrays.keys():  # what a run trains as a whole, it keeps as a whole
        _load_start(network, variables, cfg)
    for path, variable in variables.items():
        value = saved.arrays.get(f"optimizer/ema/{path}", saved.arrays.get(path))
        if value is not None:
            variable.assign(value)
    frozen = {path: v.numpy() for path, v in variables.items() if path not in saved.arrays}
    if digest(frozen) != (run.read_identity() or {}).get("frozen_sha256"):
        raise Refusal(
            f"run {run.path} kept weights frozen that are not those of '{cfg.model.weights}' here.",
            fix="bring back the file of its weights, or name another run.",
            code=ExitCode.UNSAFE,
        )
    return saved


def _load_start(network: Any, variables: Mapping[str, Any], cfg: Config) -> None:
    """Give `network` the backbone that a run of this config begins with."""
    if cfg.source is not None:
        carry(network, {path: v for path, v in variables.items() if path.startswith("backbone/")}, cfg)
    else:
        file = weights.resolve(cfg.model.weights, cfg.model.backbone, sha256=cfg.model.weights_sha256)
        if file is not None:
            weights.load(network, file)
