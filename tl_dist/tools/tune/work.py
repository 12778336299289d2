"""Search for a classifier on cached features: one extraction by all workers, then rank 0 tries settings."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np

from tl_dist.datasets import pool_of, strata_of
from tl_dist.datasets.split import folds_of
from tl_dist.features import extraction
from tl_dist.files.atomic import write_atomically
from tl_dist.refusal import ExitCode
from tl_dist.runs.directory import RunDir
from tl_dist.tools.tune import Request, search
from tl_dist.trainer import cached
from tl_dist.trainer.setup import Setup
from tl_dist.trainer.stage_input import from_images
from tl_dist.trainer.task import on_features


def run(run: RunDir, request: Request, cores: int) -> ExitCode:
    """Leave the settings in tuning.json, best first; returns REQUEUE if a stop was requested."""
    tried = None
    with on_features(run, "trying settings", cores, alone=True) as (setup, stop_requested, say):
        tried = tune(setup, request.folds, stop_requested, say)
    if tried:
        settings = [
            {**one.setting.overrides, **{key: getattr(one, key) for key in ("folds", "accuracy", "log_loss")}}
            for one in tried
        ]
        write_atomically(run.path / "tuning.json", json.dumps(settings, indent=1).encode())
    return ExitCode.REQUEUE if run.stop_requested() else ExitCode.DONE


def tune(
    setup: Setup, folds: int, stop_requested: Callable[[], bool], say: extraction.Say
) -> list[search.Tried] | None:
    """Classifiers on the cached features, best first, evaluated within the training examples; None on other ranks.

    By the validation split where there is one, else by `folds` folds of the training split. When asked to stop before
    the end, None or `Stopped`.
    """
    cfg, splits = setup.cfg, setup.splits
    given = cached.from_features(setup, from_images(setup, setup.stages[0]), stop_requested, say)
    if given is None or not setup.is_first:
        return None
    assert given.features is not None
    built, found, rows = given.model, given.features.found, given.features.rows
    train = splits["train"]
    source = train if rows is None else pool_of(train)[0]
    rows = np.arange(train.num_examples) if rows is None else rows
    fold = folds_of(strata_of(train), folds, cfg.data.split_seed, train.annotations.groups)
    if "validation" in splits:
        pool, held_out = pool_of(splits["validation"])
        if pool is source:
            fold = np.concatenate([np.full(len(rows), -1), np.zeros(len(held_out), np.int64)])
            rows = np.concatenate([rows, held_out])
    examples = cached.examples_of(source.subset(rows), found.array()[rows], cfg)
    candidates = search.settings(built.stage_names, built.stage_channels, cfg.model.pooling)
    say({"event": "note", "text": f"{len(candidates)} settings, {fold.max() + 1} folds"})
    return search.search(candidates, cached.classifier_of(setup, given, stop_requested), examples, fold)
