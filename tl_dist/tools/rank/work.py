"""Score one network for `tl-dist rank`: all workers extract its features, rank 0 computes the scores."""

from typing import Any

import numpy as np

from tl_dist.datasets import Source, pool_of
from tl_dist.datasets.split import hold_out
from tl_dist.features import nested
from tl_dist.refusal import ExitCode
from tl_dist.runs.directory import RunDir
from tl_dist.scores import figures
from tl_dist.tools.rank import Request, transferability
from tl_dist.trainer import cached
from tl_dist.trainer.setup import Setup, from_images


def run(run: RunDir, request: Request, cores: int) -> ExitCode:
    """Score at most `scored["images"]` training examples and mark the run done; returns REQUEUE on a stop."""
    with cached.on_features(run, "ranking", cores, alone=True) as (setup, stop_requested, say):
        source, rows = _examples(setup, request.scored["images"])
        stage_input = from_images(setup, setup.stages[0])
        find = cached.finder(setup, cached.prefix_of(setup, stage_input), stop_requested, say)
        features = find(source, augmentations=(), split="examples")
        if setup.is_first:
            values = cached.normalized(setup, stage_input, features.array()[rows])
            examples = cached.examples_of(source.subset(rows), values, setup.cfg)
            used = setup.model.network.layers[: max(setup.model.stage_ends)]
            scores = _scores(examples, cached.classifier_of(setup, stage_input, stop_requested)) | {
                "parameters": sum(int(np.prod(weight.shape)) for layer in used for weight in layer.weights),
                "features": int(values.shape[-1]),
                "examples": len(rows),
                "request": dict(request.scored),
            }
            run.mark_done({"ranking": scores})
    return ExitCode.REQUEUE if run.stop_requested() else ExitCode.DONE


def _examples(setup: Setup, most: int) -> tuple[Source, Any]:
    """Return the source to extract, and which of its rows are scored.

    With at most `most` training examples, the source is the pool they were split from, whose features other commands
    share; else it is a sample of them, stratified by class.
    """
    train = setup.splits["train"]
    if train.num_examples <= most:
        return pool_of(train)
    every, labels = np.arange(train.num_examples), np.asarray(train.labels)
    share = most / train.num_examples
    _, chosen = hold_out(every, labels, share, seed=setup.cfg.data.split_seed, key="--images")
    return train.subset(chosen), np.arange(len(chosen))


def _scores(examples: nested.Examples, probe: nested.Nested) -> dict[str, Any]:
    """Compute every score. Only the probe, which decides the order, weights the examples; the others cannot."""
    examples = examples.counting()
    rows, labels, fold = examples.values[:, 0], examples.labels, probe.folds(examples)
    choice, weights = nested.choose(examples, fold, watch=probe.watch), examples.counts
    right = nested.held_out_classes(examples, fold, choice.l2, probe.watch) == labels
    sizes = np.bincount(fold)
    accuracies = [float(np.average(right[fold == k], weights=weights[fold == k])) for k in range(len(sizes))]
    test_to_train = float((sizes / (len(labels) - sizes)).mean())
    scores: dict[str, Any] = {
        "linear_probe": float(np.mean(accuracies)),
        "interval": figures.accuracy_interval(accuracies, test_to_train),
        "fold_accuracies": accuracies,
        "test_to_train": test_to_train,
        "weighted": examples.weights is not None,
        "l2": choice.l2,
        "nearest": transferability.nearest(rows, labels, examples.groups),
    }
    for score in (transferability.logme, transferability.h_score, transferability.nleep):
        probe.watch()
        scores[score.__name__] = score(rows, labels)
    return scores
