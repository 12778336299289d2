"""What the model of a run says of images, over all workers.

Batches have the shape and the order of those of the run's evaluation, and go through the same compiled step: on the
same files the bits are the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_dist.data import pipeline
from tl_dist.data.undecodable import READ_ERRORS, naming_machine_faults, undecodable
from tl_dist.datasets import Source
from tl_dist.datasets.files import unlabelled
from tl_dist.features.views import in_views, views_of
from tl_dist.parallel import rows_of
from tl_dist.scores import figures, outbox
from tl_dist.scores.predictions import Predicted
from tl_dist.training.evaluation import PIECE_BYTES, evaluation_step, put_together
from tl_dist.training.step import Objective
from tl_dist.worker.loaded import Loaded

ROUND_S = 1.0
"""how often the workers meet, and rank 0 hands on what there is"""

_kept: list[object] = []
"""iterators that a fault has ended, until the process ends: as in `stage`"""


class Found(NamedTuple):
    """The next examples of a source, each once: their logits, or why they cannot be decoded."""

    examples: NDArray[np.int64]
    logits: NDArray[np.float32]
    """[examples, classes] on rank 0 alone"""
    faults: Mapping[int, str]
    """in place of logits: the reason by example"""


def predict(model: Loaded, source: Source) -> Iterator[Found]:
    """Of every example of `source`, about ROUND_S at a time; call it on all workers, where the rounds are the same.

    An example that cannot be decoded is as if it had never been there: those after it move up, as in an evaluation
    that knows of it. Those with logits come in the order of the source.
    """
    step = evaluation_step(
        model.model,
        Objective(len(model.class_names), model.cfg.global_batch),
        model.parallel,
        global_batch=model.evaluation_batch,
        views=views_of(model.cfg.evaluation.views),
    )
    left = np.arange(source.num_examples)
    with model.parallel.naming_lost_peers(), naming_machine_faults("an image"):
        while left.size:
            members = left
            part = source if left.size == source.num_examples else source.subset(left)
            for rows, logits, faults in _rounds(model, part, step):
                if faults:
                    lost = members[list(faults)]
                    yield Found(lost, logits, dict(zip(lost.tolist(), faults.values(), strict=True)))
                    left = left[~np.isin(left, lost)]
                else:
                    yield Found(left[:rows], logits[: left.size], {})
                    left = left[rows:]


def _rounds(
    model: Loaded, source: Source, step: Callable[[Any], dict[str, Any]]
) -> Iterator[tuple[int, NDArray[np.float32], dict[int, str]]]:
    """Of so many examples the logits, on rank 0; or, as the last, the examples that end it, and why."""
    parallel, batch, num_classes = model.parallel, model.evaluation_batch, len(model.class_names)
    mine = rows_of(parallel.rank, parallel.world_size, batch)
    batches = parallel.feed(_batches(model, source, mine))
    num_batches = -(-source.num_examples // batch)
    most = max(1, PIECE_BYTES // (4 * batch * num_classes))
    done, at_once = 0, 1
    while done < num_batches:
        at_once = min(at_once, num_batches - done)
        began = time.monotonic()
        own: list[NDArray[np.float32]] = []
        reasons: dict[int, str] = {}
        try:
            own = [step(batches)["logits"].numpy()[mine.start : mine.stop] for _ in range(at_once)]
        except READ_ERRORS:
            to_come = (k * batch + row for k in range(done, num_batches) for row in mine)
            left = (index for index in to_come if index < source.num_examples)
            reasons = {k: fault.reason for k, fault in undecodable(source, left, model.threads).items()}
            if not reasons:
                raise
        report = {"took_s": time.monotonic() - began, "reasons": reasons}
        reports = [json.loads(text) for text in parallel.gather(json.dumps(report).encode())]
        faults = {int(k): reason for one in reports for k, reason in one["reasons"].items()}
        if faults:
            _kept.append(batches)
            yield 0, np.empty((0, num_classes), np.float32), dict(sorted(faults.items()))
            return
        everyone = parallel.gather(np.stack(own).tobytes())
        logits = np.empty((at_once if parallel.rank == 0 else 0, batch, num_classes), np.float32)
        if parallel.rank == 0:
            put_together(everyone, logits)
        yield at_once * batch, logits.reshape(-1, num_classes), {}
        done += at_once
        slowest = max(one["took_s"] for one in reports)
        at_once = min(most, max(1, int(at_once * ROUND_S / max(slowest, 1e-3))))


def _batches(model: Loaded, source: Source, rows: range) -> Any:
    data, views = model.cfg.data, model.cfg.evaluation.views
    return pipeline.evaluation_batches(
        in_views(pipeline.plain(source, model.image_size, data.kept_fraction), views),
        source.num_examples,
        rows=rows,
        global_batch=model.evaluation_batch,
        threads=model.threads,
    )


def predicted(model: Loaded, paths: Sequence[str], known: Mapping[int, str]) -> Predicted:
    """All at once, in this process alone; `known` has the reason for each file that is not worth an attempt."""
    errors = {paths[k]: reason for k, reason in known.items()}
    good = [path for k, path in enumerate(paths) if k not in known]
    source = unlabelled(good, model.class_names, model.decoding)
    rows = [np.empty((0, len(model.class_names)), np.float32)]
    examples = [np.empty(0, np.int64)]
    for found in predict(model, source):
        errors |= {good[k]: reason for k, reason in found.faults.items()}
        if not found.faults:
            rows.append(figures.Softmax(found.logits).in_place())
            examples.append(found.examples)
    ids = np.array([good[k] for k in np.concatenate(examples)], np.str_)
    return Predicted(ids, np.concatenate(rows), np.array(model.class_names), model.step, errors)


def answer(model: Loaded, directory: Path, top: int) -> None:
    """Have the files that `directory` lists predicted; rank 0 leaves the `top` classes of each there."""
    source = unlabelled(outbox.asked(directory), model.class_names, model.decoding)
    if model.parallel.rank == 0:
        outbox.put_facts(directory, step=model.step, moving_statistics=model.moving_statistics)
    for number, found in enumerate(predict(model, source)):
        if model.parallel.rank == 0:
            classes, probabilities = figures.largest(figures.Softmax(found.logits).in_place(), top)
            piece = outbox.Piece(found.examples, classes, probabilities, found.faults)
            outbox.put(directory, number, piece)
