"""Build the network of a run and set its weights, from its directory alone, for another run or a tool to start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import keras

from tl_dist.config import Config, registry
from tl_dist.models import classifier, pruning, weights
from tl_dist.models.classifier import Classifier
from tl_dist.models.digest import digest
from tl_dist.parallel import DataParallel
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs import checkpoint, init_from
from tl_dist.runs.checkpoint_format import Checkpoint
from tl_dist.runs.differences import differences
from tl_dist.runs.directory import RunDir
from tl_dist.runs.identity import columns, identity_of


def refuse_changed_code(run: RunDir, cfg: Config) -> None:
    """Refuse a run if code of other packages, of its data set or backbone, has changed since the run began."""
    identity = run.read_identity()
    used = registry.code_of_others(cfg)
    changes = differences(identity or {}, {"extensions": used} if used else {}, ("extensions",))
    if identity is not None and changes:
        raise Refusal(
            f"{run.identity_file}: code of other packages has changed since the run began: {'; '.join(changes)}.",
            fix="install the version that it began with, or start a new run with another name=NAME.",
            code=ExitCode.UNSAFE,
        )


def image_size_of(cfg: Config) -> int:
    """Return the side in pixels of the square images that the network takes."""
    return cfg.data.image_size or int(registry.backbone(cfg.model.backbone).input_size)


def load_run(
    run: RunDir,
    cfg: Config,
    at: str = "",
    *,
    parallel: DataParallel | None = None,
    precision: str | None = None,
) -> tuple[Classifier, Checkpoint | None]:
    """Return the classifier of `run`, whose config is `cfg`, with the weights of a checkpoint, and the checkpoint.

    The checkpoint is the one that the run ended with, or `at` as in `checkpoint.find`. `precision` is set for the
    process; None keeps its own. With `parallel` the classifier is the same on all workers, and rank 0 alone reads and
    returns the checkpoint. Refuses a run without a valid checkpoint, and one whose frozen weights cannot be loaded.
    """
    refuse_changed_code(run, cfg)
    if precision is not None:
        keras.config.set_dtype_policy(precision)
    saved = None
    with nullcontext() if parallel is None else parallel.scope():
        built = classifier.build(
            registry.backbone(cfg.model.backbone),
            cfg.model,
            image_size=image_size_of(cfg),
            num_classes=len(identity_of(run)["class_names"]),
            seed=cfg.seed,
            carried=cfg.source is not None,
        )
        variables = {**built.moving, **built.frozen}
        if parallel is None or parallel.rank == 0:
            saved = _restore(run, cfg, built.network, variables, at)
    if parallel is not None:
        parallel.broadcast(list(variables.values()))
    return built, saved


def carry(network: Any, variables: Mapping[str, Any], cfg: Config, class_names: Sequence[str] = ()) -> str:
    """Give `network` the backbone of `cfg.source.run`, or what `model.prune` keeps of it; return the digest of all.

    `variables` are the network's by path, `backbone/LAYER/VARIABLE`, and the head's, of these classes, if it is to be
    carried as well. Refuses what `load_run` refuses, and a head of other classes.
    """
    run, source = init_from.opened(cfg)
    heads = [path for path in variables if path.startswith("head/logits/")]
    places = columns(run, class_names, "source.run") if heads else []
    if source.model.prune == cfg.model.prune:
        _restore(run, source, network, variables)
    else:
        weights_left = pruning.kept(load_run(run, source)[0], network)
        for path, variable in variables.items():
            variable.assign(weights_left[path])
    for path in heads:
        variables[path].assign(variables[path].numpy()[..., places])
    return digest({path: v.numpy() for path, v in variables.items()})


def _restore(
    run: RunDir, cfg: Config, network: Any, variables: Mapping[str, Any], at: str = ""
) -> Checkpoint:
    """Set `variables` by path, the network's and maybe the head's, to a checkpoint of `run`; return the checkpoint.

    Averaged weights are taken where the run kept them, since it evaluated these (`Optimizer.begin`).
    """
    saved = checkpoint.find(run, at)
    if saved is None:
        raise Refusal(
            f"{run.path} has no checkpoint.", fix="train it first: tl-dist train CONFIG.", code=ExitCode.USAGE
        )
    if not variables.keys() <= saved.arrays.keys():  # a run that trains all variables also saves all of them
        _load_start(network, variables, cfg)
    for path, variable in variables.items():
        value = saved.arrays.get(f"optimizer/ema/{path}", saved.arrays.get(path))
        if value is not None:
            variable.assign(value)
    frozen = {path: v.numpy() for path, v in variables.items() if path not in saved.arrays}
    if digest(frozen) != (run.read_identity() or {}).get("frozen_sha256"):
        raise Refusal(
            f"the weights that run {run.path} kept frozen differ from '{cfg.model.weights}' here.",
            fix="bring back the file of its weights, or name another run.",
            code=ExitCode.UNSAFE,
        )
    return saved


def _load_start(network: Any, variables: Mapping[str, Any], cfg: Config) -> None:
    """Give `network` the backbone with which a run of this config begins."""
    if cfg.source is not None:
        carry(network, {path: v for path, v in variables.items() if path.startswith("backbone/")}, cfg)
    else:
        file = weights.resolve(cfg.model.weights, cfg.model.backbone, sha256=cfg.model.weights_sha256)
        if file is not None:
            weights.load(network, file)
