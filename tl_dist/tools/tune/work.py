"""Search for a classifier on cached features: one extraction by all workers, then rank 0 tries settings."""

import json
from collections.abc import Callable

import numpy as np

from tl_dist.config import registry
from tl_dist.datasets import pool_of, strata_of
from tl_dist.datasets.split import folds_of
from tl_dist.features import extraction
from tl_dist.files.atomic import write_atomically
from tl_dist.models.backbones import Backbone
from tl_dist.refusal import ExitCode
from tl_dist.runs.directory import RunDir
from tl_dist.tools.tune import Request, search
from tl_dist.trainer import cached
from tl_dist.trainer.setup import Setup, from_images


def run(run: RunDir, request: Request, cores: int) -> ExitCode:
    """Write the settings to tuning.json, best first. Returns REQUEUE if a stop was requested."""
    with cached.on_features(run, "trying settings", cores, alone=True) as (setup, stop_requested, say):
        if ranking := tune(setup, request.folds, stop_requested, say):
            settings = [
                tried.setting.overrides | {"folds": tried.folds, "accuracy": tried.accuracy, "log_loss": tried.log_loss}
                for tried in ranking
            ]
            write_atomically(run.path / "tuning.json", json.dumps(settings, indent=1).encode())
    return ExitCode.REQUEUE if run.stop_requested() else ExitCode.DONE


def tune(
    setup: Setup, folds: int, stop_requested: Callable[[], bool], say: extraction.Say
) -> list[search.Tried] | None:
    """Rank classifiers on the cached features, best first.

    Scored on the validation split if there is one, else on `folds` folds of the training split. Returns None on ranks
    other than 0; if a stop is requested before the end, raises `Stopped` or `StopRequested`.
    """
    cfg, splits = setup.cfg, setup.splits
    stage_input = cached.from_features(setup, from_images(setup, setup.stages[0]), stop_requested, say)
    if not setup.is_first:
        return None
    assert stage_input.features is not None
    built, stored, rows = stage_input.model, stage_input.features.found, stage_input.features.rows
    train = splits["train"]
    source, rows = (train, np.arange(train.num_examples)) if rows is None else (pool_of(train)[0], rows)
    fold = folds_of(strata_of(train), folds, cfg.data.split_seed, train.annotations.groups)
    if "validation" in splits:
        pool, held_out = pool_of(splits["validation"])
        if pool is source:
            fold = np.concatenate([np.full(len(rows), -1), np.zeros(len(held_out), np.int64)])
            rows = np.concatenate([rows, held_out])
    examples = cached.examples_of(source.subset(rows), stored.array()[rows], cfg)
    record, pooling = registry.backbone(cfg.network), cfg.model.pooling
    parts = [parts_of(record, stage, pooling) for stage in built.stage_names]
    candidates = search.settings(built.stage_names, built.stage_channels, pooling, parts)
    say({"event": "note", "text": f"{len(candidates)} settings, {fold.max() + 1} folds"})
    return search.search(candidates, cached.classifier_of(setup, stage_input, stop_requested), examples, fold)


def parts_of(backbone: Backbone, stage: str, kind: str) -> tuple[str, ...]:
    """Return the kinds of pooling whose features `kind` joins for a stage, in their order."""
    attends, (*_, last) = backbone.attention_pool is not None, backbone.stages
    if kind != "both":
        return (kind,)
    if not backbone.leading_tokens or (attends and stage != last):
        return "average", "maximum"
    return "attention" if attends else "token", "average"
