"""Cross-validation of a classifier on cached features: one extraction, then every fold of every seed in one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist import transfer
from tl_dist.classifiers import nested, tuning
from tl_dist.datasets import Source, Subset, pool_of, strata_of, types_of
from tl_dist.datasets.split import folds_of
from tl_dist.features import extraction
from tl_dist.figures.cross_validation import OutOfFold
from tl_dist.session import Session


def tune(
    session: Session, folds: int, stop_requested: Callable[[], bool], say: extraction.Say
) -> list[tuning.Tried] | None:
    """Classifiers on the cached features, best first, judged within the training examples; None on other ranks.

    By the validation split where there is one, else by `folds` folds of the training split.
    """
    cfg, splits = session.cfg, session.splits
    built = session.model
    if not transfer.cache_prefix(session, stop_requested, say):
        return None
    if session.parallel.rank != 0:
        return None
    found, rows = session.train_features
    train = splits["train"]
    source = train if rows is None else pool_of(train)[0]
    rows = np.arange(train.num_examples) if rows is None else rows
    fold = folds_of(strata_of(train), folds, cfg.data.split_seed, getattr(train, "groups", None))
    if "validation" in splits:
        pool, held_out = pool_of(splits["validation"])
        if pool is source:
            fold = np.concatenate([np.full(len(rows), -1), np.zeros(len(held_out), np.int64)])
            rows = np.concatenate([rows, held_out])
    examples = transfer.examples_of(Subset(source, rows), found.array()[rows], cfg)
    candidates = tuning.settings(built.stage_names, built.stage_channels, cfg.model.pooling)
    say({"event": "note", "text": f"{len(candidates)} settings, {fold.max() + 1} folds"})
    return tuning.search(
        candidates, transfer.classifier_of(session), examples, fold, stop_requested=stop_requested
    )


def cross_validate(
    session: Session, folds: int, seeds: int, stop_requested: Callable[[], bool], say: extraction.Say
) -> OutOfFold | None:
    """Out-of-fold predictions of every example that is not in an official test split; None on ranks other than 0.

    A classifier is fitted to all views of the training folds; the probabilities of an example are the mean over
    evaluation.views. None also when asked to stop before the end.
    """
    cfg, pool = session.cfg, pool_of(session.splits["train"])[0]
    prefix = transfer.take_prefix(session)

    def in_views(views: tuple[str, ...]) -> NDArray[np.float32] | None:
        """[examples, views, features], on every worker."""
        found = extraction.cached(
            pool,
            prefix,
            views,
            root=session.run.path.parent / "features",
            split="all examples",
            parallel=session.parallel,
            stop_requested=stop_requested,
            say=say,
        )
        if found is None:
            return None
        transfer.refer(session, found)
        values = found.array()
        return session.model.normalized(tf.constant(values)).numpy() if cfg.model.normalize else values

    values = in_views(cfg.data.augment)
    if values is None:
        return None
    examples = transfer.examples_of(pool, values, cfg)
    if cfg.evaluation.views not in ((), cfg.data.augment):
        judged = in_views(cfg.evaluation.views)
        if judged is None:
            return None
        examples = replace(examples, judged=judged)
    if session.parallel.rank != 0:
        return None
    fold = np.stack([folds_of(examples.strata, folds, seed, examples.groups) for seed in range(seeds)])
    return _out_of_fold(session, pool, examples, fold, stop_requested, say)


def _out_of_fold(
    session: Session,
    pool: Source,
    examples: nested.Examples,
    fold: NDArray[np.int64],
    stop_requested: Callable[[], bool],
    say: extraction.Say,
) -> OutOfFold | None:
    """Every fold [seeds, examples] in turn; None when asked to stop."""
    labels, classifier = examples.labels, transfer.classifier_of(session)
    seeds, folds = len(fold), int(fold.max()) + 1
    probabilities = np.zeros((seeds, pool.num_examples, pool.num_classes))
    chosen: list[list[dict[str, Any]]] = [[] for _ in range(seeds)]
    for seed, k in np.ndindex(seeds, folds):
        if stop_requested():
            return None
        held_out = fold[seed] == k
        said, fitted, choice = classifier.judge(examples, held_out)
        probabilities[seed, held_out] = said
        accuracy = float((said.argmax(axis=1) == labels[held_out]).mean())
        text = f"seed {seed} fold {k}: accuracy {accuracy:.4f}"
        text += "" if fitted.converged else ", NOT converged"
        if choice is not None:
            text += f", {nested.said_of(choice, session.cfg.classifier)}"
            chosen[seed].append({"l2": choice.l2, "layers": choice.layers, "edge": choice.edge})
        say({"event": "note", "text": text})
    return OutOfFold(
        np.array(pool.ids),
        labels,
        np.array(types_of(pool), np.str_),
        np.array(pool.class_names),
        fold,
        probabilities,
        chosen if session.cfg.classifier.chosen else None,
    )
