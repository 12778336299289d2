"""Cross-validate a classifier on cached features: one extraction, then every fold of every seed in one process."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist import tasks
from tl_dist.datasets import pool_of
from tl_dist.datasets.division import groups_of, one_fold_each
from tl_dist.datasets.split import folds_of
from tl_dist.features import extraction
from tl_dist.features.nested import Examples, Nested, described
from tl_dist.refusal import ExitCode
from tl_dist.runs.directory import RunDir
from tl_dist.scores import text as shown
from tl_dist.scores.cross_validation import OUT_OF_FOLD, OutOfFold, summary
from tl_dist.tools.cross_validate import Request
from tl_dist.trainer import cached
from tl_dist.trainer.setup import Setup, from_images


def run(run: RunDir, request: Request, cores: int) -> ExitCode:
    """Save the out-of-fold predictions in the run and mark it done. Returns REQUEUE if a stop was requested."""
    with cached.on_features(run, "cross-validating", cores, alone=True) as (setup, stop_requested, say):
        predicted = cross_validate(setup, request.folds, request.seeds, stop_requested, say, by=request.by)
        if predicted is not None:
            predicted.save(run.path / OUT_OF_FOLD)
            run.mark_done({"cross_validation": summary(predicted, tasks.of(setup.cfg).figures)})
    return ExitCode.REQUEUE if run.stop_requested() else ExitCode.DONE


def cross_validate(
    setup: Setup,
    folds: int,
    seeds: int,
    stop_requested: Callable[[], bool],
    say: extraction.Say,
    *,
    by: str | None = None,
) -> OutOfFold | None:
    """Predict every example outside an official test split, out of fold.

    Each classifier is fitted to all views of the training folds; an example's probabilities are the mean over
    `evaluation.views`. With `by`, each group of that kind is a fold, once. Returns None on ranks other than 0; if a
    stop is requested before the end, raises `Stopped` or `StopRequested`.
    """
    cfg, pool = setup.cfg, pool_of(setup.splits["train"])[0]
    group, names = (None, ()) if by is None else one_fold_each(pool, by)
    stage_input = from_images(setup, setup.stages[0])
    find = cached.finder(setup, cached.prefix_of(setup, stage_input), stop_requested, say)
    views = dict.fromkeys((cfg.data.augment, cfg.evaluation.views or cfg.data.augment))
    sets = [find(pool, augmentations=augmentations, split="all examples") for augmentations in views]
    if not setup.is_first:  # only rank 0 holds the features in memory
        return None
    values = [cached.normalized(setup, stage_input, features.array()) for features in sets]
    examples = cached.examples_of(pool, values[0], cfg)
    if len(values) > 1:
        examples = replace(examples, evaluated=values[1])
    classifier = cached.classifier_of(setup, stage_input, stop_requested)
    if group is None:
        fold = np.stack([folds_of(examples.strata, folds, seed, examples.groups) for seed in range(seeds)])
        return _out_of_fold(setup, classifier, examples, fold, say)
    if len(names) > 2:  # with one of two groups held out, the other cannot be divided by group
        examples = replace(examples, groups=[names[k] for k in group])
    out_of_fold = _out_of_fold(setup, classifier, examples, group[None], say)
    return replace(out_of_fold, held_out=(by or "", names))


def _out_of_fold(
    setup: Setup, classifier: Nested, examples: Examples, fold: NDArray[np.int64], say: extraction.Say
) -> OutOfFold:
    """Hold out each fold in turn; `fold` [seeds, examples] is the number of the fold that holds an example."""
    pool, task = pool_of(setup.splits["train"])[0], tasks.of(setup.cfg)
    seeds, folds = len(fold), int(fold.max()) + 1
    probabilities = np.zeros((seeds, pool.num_examples, pool.num_classes))
    chosen: list[list[dict[str, Any]]] = [[] for _ in range(seeds)]
    for seed, k in np.ndindex(seeds, folds):
        held_out = fold[seed] == k
        predicted, fitted, choice = classifier.predict(examples, held_out)
        probabilities[seed, held_out] = predicted
        figures = task.figures(examples.labels[held_out], predicted)
        main = figures.get("main", "accuracy")
        text = f"seed {seed} fold {k}: {shown.FIGURES.get(main, main)} {shown.figure(figures[main], 4)}"
        text += "" if fitted.converged else ", NOT converged"
        if choice is not None:
            text += f", {described(choice, setup.cfg.classifier)}"
            chosen[seed].append({"l2": choice.l2, "layers": choice.layers, "edge": choice.edge})
        say({"event": "note", "text": text})
    return OutOfFold(
        np.array(pool.ids),
        pool.labels,
        np.array(pool.annotations.types, np.str_),
        np.array(pool.class_names),
        fold,
        probabilities,
        chosen if setup.cfg.classifier.chosen else None,
        groups=np.array(groups_of(pool, setup.cfg.data), np.str_),
        targets=np.empty((0, 0), np.float32) if pool.truth.ndim == 1 else pool.truth,
    )
