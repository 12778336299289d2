"""Evaluate a checkpoint on corrupted images of a split, with figures as exact as for the split itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tl_dist.data import corruptions, pipeline
from tl_dist.data.batch import Batch
from tl_dist.data.pipeline import Read
from tl_dist.datasets.division import groups_of
from tl_dist.features.views import in_views
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.scores import robustness
from tl_dist.scores.robustness import Hits
from tl_dist.trainer import evaluate
from tl_dist.trainer.setup import Setup


def evaluate_corrupted(
    setup: Setup, split: str, names: list[str], severities: list[int], at: str = ""
) -> dict[str, Any]:
    """Return the record of a checkpoint under each corruption and severity; rank 0 saves what was correct.

    Images are corrupted at the size of the model, seeded by their place in the split: the same on any number of
    workers. Refuse (64) a model whose images are too small to be corrupted.
    """
    source, size, cfg = evaluate.split_of(setup, split), setup.built.image_size, setup.cfg
    if size < corruptions.LEAST_SIDE:
        raise Refusal(
            f"the model takes images of {size} pixels; the corruptions are made for {corruptions.LEAST_SIDE} or more.",
            fix="evaluate a run with a larger data.image_size.",
            code=ExitCode.USAGE,
        )
    corruptions.prepare(names)
    evaluator, _ = evaluate.of_checkpoint(setup, split, at)
    plain = pipeline.plain(source, size, cfg.data.kept_fraction)

    def hits(read: Read) -> np.ndarray:
        """Return which examples are classified correctly: bool [examples], complete on rank 0."""
        result = evaluator.counted(split, in_views(read, cfg.evaluation.views))
        if not setup.is_first:
            return np.zeros(source.num_examples, bool)
        logits = evaluate.kept_logits(result, "kept")
        return np.asarray(logits.argmax(axis=1) == source.labels)

    clean = hits(plain)
    right = np.stack(
        [np.stack([hits(corrupted(plain, name, severity)) for severity in severities]) for name in names]
    )
    result = Hits(
        ids=np.array(source.ids, np.str_),
        names=np.array(names, np.str_),
        severities=np.array(severities, np.int64),
        clean=clean,
        right=right,
        step=setup.state.step,
        image_size=size,
        groups=np.array(groups_of(source, cfg.data), np.str_),
    )
    if setup.is_first:
        result.save(robustness.file_of(setup.run.path, split))
    return {"split": split, **robustness.record(result)}


def corrupted(read: Read, name: str, severity: int) -> Read:
    """Return a read of the same images, each corrupted with its position as the seed."""

    def corrupt(images: np.ndarray, positions: np.ndarray) -> np.ndarray:
        pairs = zip(images, positions.tolist(), strict=True)
        return np.stack([corruptions.corrupted(image, name, severity, position) for image, position in pairs])

    def corrupt_rows(batch: Batch) -> Batch:
        images = tf.numpy_function(corrupt, [batch.images, batch.positions], tf.uint8)
        return batch._replace(images=tf.ensure_shape(images, batch.images.shape))

    return read.then(corrupt_rows)
