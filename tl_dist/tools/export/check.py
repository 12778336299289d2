"""Compare an exported model with the run that it came from: the same predictions, and how fast."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist.data import pipeline
from tl_dist.datasets.division import groups_of
from tl_dist.models.export import Predict
from tl_dist.runs.checkpoint_format import Checkpoint
from tl_dist.scores import figures
from tl_dist.trainer import evaluate
from tl_dist.trainer.setup import Setup

BATCH = 32
ENCODED_EXAMPLES = 100
"""examples on which a SavedModel's own decoding is compared"""
_DECODED = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # how JPEG and PNG begin: what a SavedModel decodes
_TIMED_S, _MOST_CALLS = 3.0, 200  # for each size of batch


def compared(setup: Setup, split: str, saved: Checkpoint, predict: Predict) -> dict[str, Any]:
    """Return how far the export is from the checkpoint on a split, and its latency for batches of 1 and BATCH."""
    expected = evaluate.probabilities(setup, split, saved)
    exported = np.concatenate([predict(images) for images in images_of(setup, split)])
    first = next(images_of(setup, split))
    source = setup.splits[split]
    labels = np.asarray(source.labels)
    return {
        "split": split,
        **_difference(expected, exported),
        "paired": figures.paired(labels, expected, exported, groups_of(source, setup.cfg.data)),
        "latency_ms": {
            str(rows): _latency(predict, np.resize(first, (rows, *first.shape[1:]))) for rows in (1, BATCH)
        },
    }


def _difference(expected: NDArray[np.floating], exported: NDArray[np.floating]) -> dict[str, Any]:
    return {
        "num_examples": len(expected),
        "num_agreeing": int((exported.argmax(axis=1) == expected.argmax(axis=1)).sum()),
        "largest_difference": float(np.abs(exported - expected).max()),
    }


def images_of(
    setup: Setup, split: str, examples: NDArray[np.int64] | None = None
) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of a split, or some examples, as the run evaluates them: uint8 [up to BATCH, size, size, 3]."""
    source = setup.splits[split] if examples is None else setup.splits[split].subset(examples)
    batches = pipeline.evaluation_batches(
        pipeline.plain(source, setup.built.image_size, setup.cfg.data.kept_fraction),
        source.num_examples,
        rows=range(BATCH),
        global_batch=BATCH,
        threads=setup.threads,
    )
    with setup.examples.naming_bad(split, lambda: range(setup.splits[split].num_examples)):
        for batch in batches:
            yield batch.images.numpy()[batch.weights.numpy() > 0]


def encoded_compared(setup: Setup, split: str, file: Path, predict: Predict) -> dict[str, Any]:
    """Compare a SavedModel's own decoding of JPEG and PNG files with the run's; empty for a split without any."""
    source = setup.splits[split]
    examples = range(min(ENCODED_EXAMPLES, source.num_examples)) if source.is_encoded else range(0)
    files = {k: encoded for k in examples if (encoded := source.encoded_bytes(k)).startswith(_DECODED)}
    if not files:
        return {}
    signature = tf.saved_model.load(str(file)).signatures["encoded"]
    exported = signature(encoded=tf.constant(list(files.values())))["probabilities"].numpy()
    images = images_of(setup, split, np.array(list(files), np.int64))
    expected = np.concatenate([predict(batch) for batch in images])
    return {"encoded": _difference(expected, exported)}


def _latency(predict: Predict, images: NDArray[np.uint8]) -> dict[str, float]:
    """Return the median and high percentiles of a call in milliseconds, without the first two calls, which compile."""
    for _ in range(2):
        predict(images)
    times: list[float] = []
    end = time.perf_counter() + _TIMED_S
    while len(times) < _MOST_CALLS and (time.perf_counter() < end or len(times) < 5):
        start = time.perf_counter()
        predict(images)
        times.append(1e3 * (time.perf_counter() - start))
    return {f"p{q}": float(np.percentile(times, q)) for q in (50, 90, 99)}
