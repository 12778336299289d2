"""Predict images with the model of a run, over all workers.

Batches have the shape and order of the run's evaluation, and go through the same compiled step: the same files give the
same bits.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_dist import tasks
from tl_dist.data import pipeline
from tl_dist.data.undecodable import READ_ERRORS, naming_machine_faults, undecodable
from tl_dist.datasets import Source, quarantine
from tl_dist.datasets.files import unlabelled, unusable
from tl_dist.features.views import in_views, views_of
from tl_dist.parallel import rows_of
from tl_dist.scores.predictions import Predicted
from tl_dist.trainer.load_model import Loaded
from tl_dist.training.evaluation import PIECE_BYTES, evaluation_step, objective_of, put_together

ROUND_S = 1.0  # how often the workers exchange results, and rank 0 yields them

_iterators: list[object] = []  # keeps iterators that a fault has ended until the process ends, as in `stage`


class Found(NamedTuple):
    """Some examples of a source, each yielded once: their logits, or why they cannot be decoded."""

    examples: NDArray[np.int64]
    logits: NDArray[np.float32]  # [examples, classes] on rank 0 alone
    faults: Mapping[int, str]  # the reason by example, for examples without logits
    features: NDArray[np.float32]  # [examples, features] on rank 0 alone; no columns unless asked for


def predict(model: Loaded, source: Source, *, features: bool = False) -> Iterator[Found]:
    """Yield every example of `source`, those of about ROUND_S at a time; all workers call it, and have the same rounds.

    An example that cannot be decoded counts as absent: the ones after it move up, as in an evaluation of a source
    without it. Examples with logits come in the order of the source.
    """
    step = evaluation_step(
        model.model,
        objective_of(model.cfg, model.model, len(model.class_names)),
        model.parallel,
        global_batch=model.cfg.evaluation_batch,
        views=views_of(model.cfg.evaluation.views),
        features=features,
        labelled=False,
    )
    widths = [len(model.class_names), model.model.num_features if features else 0]
    left = np.arange(source.num_examples)
    with model.parallel.naming_lost_peers(), naming_machine_faults("an image"):
        while left.size:
            members = left
            part = source if left.size == source.num_examples else source.subset(left)
            for rows, values, faults in _rounds(model, part, step, sum(widths)):
                logits, wide = np.split(values[: left.size], widths[:1], axis=1)
                if faults:
                    lost = members[list(faults)]
                    yield Found(lost, logits, dict(zip(lost.tolist(), faults.values(), strict=True)), wide)
                    left = left[~np.isin(left, lost)]
                else:
                    yield Found(left[:rows], np.ascontiguousarray(logits), {}, wide)
                    left = left[rows:]


def _rounds(
    model: Loaded, source: Source, step: Callable[[Any], dict[str, Any]], width: int
) -> Iterator[tuple[int, NDArray[np.float32], dict[int, str]]]:
    """Yield a number of examples, their logits and features [examples, width] on rank 0; or faults, and then end."""
    parallel, batch = model.parallel, model.cfg.evaluation_batch
    mine = rows_of(parallel.rank, parallel.world_size, batch)
    batches = parallel.feed(_batches(model, source, mine))
    num_batches = -(-source.num_examples // batch)
    most = max(1, PIECE_BYTES // (4 * batch * width))
    done, at_once = 0, 1
    while done < num_batches:
        at_once = min(at_once, num_batches - done)
        began = time.monotonic()
        own: list[NDArray[np.float32]] = []
        reasons: dict[int, str] = {}
        try:
            for _ in range(at_once):
                outputs = step(batches)
                wide = [outputs[name].numpy() for name in ("logits", "features") if name in outputs]
                own.append(np.concatenate(wide, axis=1)[mine.start : mine.stop])
        except READ_ERRORS:
            to_come = (k * batch + row for k in range(done, num_batches) for row in mine)
            left = (index for index in to_come if index < source.num_examples)
            reasons = {k: fault.reason for k, fault in undecodable(source, left, model.threads).items()}
            if not reasons:
                raise
        report = {"took_s": time.monotonic() - began, "reasons": reasons}
        reports = [json.loads(text) for text in parallel.gather(json.dumps(report).encode())]
        faults = {int(k): reason for each in reports for k, reason in each["reasons"].items()}
        if faults:
            _iterators.append(batches)
            yield 0, np.empty((0, width), np.float32), dict(sorted(faults.items()))
            return
        shares = parallel.gather(np.stack(own).tobytes())
        values = np.empty((at_once if parallel.rank == 0 else 0, batch, width), np.float32)
        if parallel.rank == 0:
            put_together(shares, values)
        yield at_once * batch, values.reshape(-1, width), {}
        done += at_once
        slowest = max(each["took_s"] for each in reports)
        at_once = min(most, max(1, int(at_once * ROUND_S / max(slowest, 1e-3))))


def _batches(model: Loaded, source: Source, rows: range) -> Any:
    data, views = model.cfg.data, model.cfg.evaluation.views
    return pipeline.evaluation_batches(
        in_views(pipeline.plain(source, model.image_size, data.square), views),
        source.num_examples,
        rows=rows,
        global_batch=model.cfg.evaluation_batch,
        threads=model.threads,
    )


def predicted(model: Loaded, paths: Sequence[str], known: Mapping[int, str]) -> Predicted:
    """Predict files in this process alone; `known` has the reason for each file that cannot be decoded."""
    errors, answers = {paths[k]: reason for k, reason in known.items()}, tasks.of(model.cfg).answers
    good = [path for k, path in enumerate(paths) if k not in known]
    source = unlabelled(good, model.class_names)
    rows = [np.empty((0, len(model.class_names)), np.float32)]
    examples = [np.empty(0, np.int64)]
    for part in predict(model, source):
        errors |= {good[k]: reason for k, reason in part.faults.items()}
        if not part.faults:
            rows.append(answers(part.logits, model.temperature).astype(np.float32, copy=False))
            examples.append(part.examples)
    ids = np.array([good[k] for k in np.concatenate(examples)], np.str_)
    return Predicted(ids, np.concatenate(rows), np.array(model.class_names), model.step, errors)


def predict_decodable(
    model: Loaded,
    source: Source,
    faults: dict[str, str],
    *,
    cache: Path,
    path: Path | None = None,
    features: bool = False,
) -> Iterator[Found]:
    """Yield the examples of `source` that can be decoded, and put the reasons of the others into `faults`, by id.

    Headers are checked first, and the result is kept in the directory `cache`. Refuse (65) more undecodable images than
    the run allows; `path` is the folder that they are in.
    """
    splits = {"test": source}
    screened = quarantine.screen(splits, cache=cache, parallel=model.parallel)
    faults |= {bad.id: bad.reason for bad in screened}
    good = source
    examples = np.flatnonzero([name not in faults for name in source.ids])
    if faults:
        good = good.subset(examples)

    def refuse_beyond_budget() -> None:
        most = quarantine.budget(model.cfg.data.max_bad, splits)
        if len(faults) > most:
            name, reason = next(iter(faults.items()))
            of = path or f"run '{model.run.name}'"
            what = f"{len(faults)} images of {of} cannot be decoded, more than data.max_bad = {most}: {name} {reason}"
            raise unusable(what, f"restore or delete what 'tl-dist data verify {path or 'DATA'}' names")

    refuse_beyond_budget()
    for piece in predict(model, good, features=features):
        if piece.faults:
            faults |= {good.ids[k]: reason for k, reason in piece.faults.items()}
        else:
            yield piece._replace(examples=examples[piece.examples])
    refuse_beyond_budget()
