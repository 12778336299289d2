"""An exported model against the run that it came from: the same answers, and how fast."""

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
from tl_dist.models.export.runtime import Predict
from tl_dist.runs.checkpoint_format import Checkpoint
from tl_dist.scores import figures
from tl_dist.trainer import evaluate
from tl_dist.trainer.setup import Setup

BATCH = 32
ENCODED_EXAMPLES = 100
"""of which a SavedModel's own decoding is compared"""
_DECODED = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # how JPEG and PNG begin: what a SavedModel decodes
_TIMED_S, _MOST_CALLS = 3.0, 200  # for each size of batch


def compared(setup: Setup, split: str, saved: Checkpoint, predict: Predict) -> dict[str, Any]:
    """How far the export is from the checkpoint on each image of a split, and how long it takes for 1 and 32."""
    expected = evaluate.probabilities(setup, split, saved)
    found = np.concatenate([predict(images) for images in images_of(setup, split)])
    first = next(images_of(setup, split))
    source = setup.splits[split]
    labels = np.asarray(source.labels)
    return {
        "split": split,
        "num_examples": len(labels),
        "num_agreeing": int((found.argmax(axis=1) == expected.argmax(axis=1)).sum()),
        "largest_difference": float(np.abs(found - expected).max()),
        "paired": figures.paired(labels, expected, found, groups_of(source, setup.cfg.data)),
        "latency_ms": {
            str(rows): _latency(predict, np.resize(first, (rows, *first.shape[1:]))) for rows in (1, BATCH)
        },
    }


def images_of(
    setup: Setup, split: str, chosen: NDArray[np.int64] | None = None
) -> Iterator[NDArray[np.uint8]]:
    """The images of a split, or the chosen ones, as the run evaluates them: uint8 [up to BATCH, size, size, 3]."""
    source = setup.splits[split] if chosen is None else setup.splits[split].subset(chosen)
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
    """A SavedModel's own decoding of JPEG and PNG files against that of the run; empty for a split without any."""
    source = setup.splits[split]
    some = range(min(ENCODED_EXAMPLES, source.num_examples)) if source.is_encoded else range(0)
    files = {k: encoded for k in some if (encoded := source.encoded_bytes(k)).startswith(_DECODED)}
    if not files:
        return {}
    loaded = tf.saved_model.load(str(file))
    encoded = tf.constant(list(files.values()))
    found = loaded.signatures["encoded"](encoded=encoded)["probabilities"].numpy()
    images = images_of(setup, split, np.array(list(files), np.int64))
    expected = np.concatenate([predict(batch) for batch in images])
    return {
        "encoded": {
            "num_examples": len(files),
            "num_agreeing": int((found.argmax(axis=1) == expected.argmax(axis=1)).sum()),
            "largest_difference": float(np.abs(found - expected).max()),
        }
    }


def _latency(predict: Predict, images: NDArray[np.uint8]) -> dict[str, float]:
    """Milliseconds of a call: the median and the slow end; the first two, which compile, do not count."""
    for _ in range(2):
        predict(images)
    took: list[float] = []
    end = time.perf_counter() + _TIMED_S
    while len(took) < _MOST_CALLS and (time.perf_counter() < end or len(took) < 5):
        start = time.perf_counter()
        predict(images)
        took.append(1e3 * (time.perf_counter() - start))
    return {f"p{q}": float(np.percentile(took, q)) for q in (50, 90, 99)}
