"""Feature-based transfer: the frozen part of a session's model computed once, and heads computed from its outputs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist import classifiers, model
from tl_dist.classifiers import nested, selection
from tl_dist.config import Config
from tl_dist.config import rules as config_rules
from tl_dist.datasets import Source, pool_of, strata_of
from tl_dist.durable import write_file
from tl_dist.failpoint import failpoint
from tl_dist.features import cache_cost, extraction
from tl_dist.features import views as feature_views
from tl_dist.features.stored import FeatureSet
from tl_dist.files.private import make_private
from tl_dist.parallel import rows_of
from tl_dist.session import Session

MEASURED_BATCHES = 3
MEASURED_BYTES = 8 << 20


def take_prefix(session: Session) -> extraction.Prefix:
    """The frozen part and what determines its outputs; from here on the model takes these in place of images."""
    return _prefix(session, session.model.take_prefix())


def _prefix(session: Session, compute: Callable[[Any], Any]) -> extraction.Prefix:
    facts = {
        "backbone": session.cfg.model.backbone,
        "cut": session.model.cut_at,
        "frozen_sha256": session.model.frozen_digest(),
        "precision": session.precision,
    }
    dtype = session.cfg.features.dtype
    shape = session.model.prefix_shape
    return extraction.Prefix(compute, session.image_size, facts, dtype, session.crop_fraction, shape)


def cache_prefix(session: Session, stop_requested: Callable[[], bool], say: extraction.Say) -> bool:
    """Compute the frozen part once, or find it computed; all splits are read from there.

    False when asked to stop before the end.
    """
    find = partial(
        extraction.cached,
        prefix=take_prefix(session),
        root=session.run.path.parent / "features",
        parallel=session.parallel,
        stop_requested=stop_requested,
        say=say,
    )
    for names, source in _sets(session):
        judged = session.cfg.evaluation.views
        views = _views(session, names)
        share = rows_of(session.parallel.rank, session.parallel.world_size, source.num_examples)
        # A pool is read only where all of it can be read: only a split of its own can hold a bad example.
        with session.naming_bad_examples(names[0], partial(iter, share)):
            found = find(source, augmentations=views, split=" and ".join(names))
        if found is None:
            return False
        refer(session, found)
        for name in names:
            split = session.splits[name]
            rows = None if source is split else pool_of(split)[1]
            if name == "train":
                session.train_features = found, rows
                session.read_train = feature_views.reader(found, split, views, session.cfg.seed, rows)
            if judged and views == judged:
                session.read[name] = feature_views.reader_of_views(found, split, rows)
            elif not judged:
                session.read[name] = feature_views.reader(found, split, (), session.cfg.seed, rows)
    return True


def refer(session: Session, found: FeatureSet) -> None:
    """Note in the run directory that the run reads this set."""
    if session.parallel.rank == 0:
        session.run.refer_to_features(found.directory.name)


def _sets(session: Session) -> Iterator[tuple[list[str], Source]]:
    """Which splits are kept in one feature set, and the source of its rows.

    Splits of one pool share a set of the whole pool, which serves again however it is divided another time. Not where
    the training split needs other views than the rest, unless that is the plain one alone and many divisions are
    likely: then the others would be computed in all views as well. A fold is one of many divisions for certain: where
    its views differ, the pool is kept once for training and once for the rest.
    """
    augment, judged = session.cfg.data.augment, session.cfg.evaluation.views
    is_fold = session.cfg.data.folds is not None
    shared = augment == judged or ((session.cfg.classifier.computed or is_fold) and not judged)
    pools: dict[int, list[str]] = {}
    for name, source in session.splits.items():
        pools.setdefault(id(pool_of(source)[0]), []).append(name)
    for names in pools.values():
        if not session.bad and shared:
            yield names, pool_of(session.splits[names[0]])[0]
        elif not session.bad and is_fold:
            for some in (["train"], [name for name in names if name != "train"]):
                if set(some) <= set(names) and some:
                    yield some, pool_of(session.splits[some[0]])[0]
        else:
            yield from (([name], session.splits[name]) for name in names)


def _views(session: Session, names: list[str]) -> tuple[str, ...]:
    """In which views the examples of these splits are kept."""
    return session.cfg.data.augment if "train" in names else session.cfg.evaluation.views


def prefix_cache_pays(session: Session, say: extraction.Say) -> bool:
    """Whether caching the frozen part of this stage saves time, by a measurement; `say` is told why, on rank 0."""
    cfg, parallel = session.cfg, session.parallel
    cannot = [*config_rules.endless_augmentations(cfg), *(["mixing"] if cfg.data.augmentation.mixes else [])]
    if session.stage.train_from == "all" or not session.model.has_prefix or cannot:
        why = f"{cannot[0]} makes images that cannot be cached" if cannot else "no frozen part"
        choice = cache_cost.Choice(False, f"prefix cache: off: {why}")
    else:
        choice = cache_cost.choose(_measured(session), passes=_passes(session), missing=_missing(session))
    if parallel.rank == 0:
        say({"event": "note", "text": choice.text})
    return choice.on


def _passes(session: Session) -> float:
    """Images that go through the frozen part in what is left of the stage, evaluation included."""
    cfg, stage = session.cfg, session.stage
    steps = stage.end - max(session.state.step, stage.first_step)
    evaluations = steps / max(1, round(cfg.evaluation.every_epochs * session.steps_per_epoch))
    held_out = {name: source.num_examples for name, source in session.splits.items() if name != "train"}
    judged = evaluations * held_out.get("validation", 0)
    if stage is session.stages[-1]:
        judged += sum(held_out.values())
    return steps * cfg.global_batch + judged * session.num_evaluation_views


def _missing(session: Session) -> int:
    """Images, in all their views, whose features are not kept yet; the same on all workers."""
    prefix, root = _prefix(session, session.model.prefix), session.run.path.parent / "features"
    missing = 0
    for names, source in _sets(session):
        views = _views(session, names)
        kept = extraction.is_kept(source, prefix, views, root)
        if session.parallel.total({"kept": float(kept)})["kept"] < session.parallel.world_size:
            missing += source.num_examples * feature_views.views_of(views)
    return missing


def _measured(session: Session) -> cache_cost.Measured:
    """A few batches through the frozen part, and a few megabytes to where features are kept; equal on all workers."""
    parallel, size = session.parallel, session.image_size
    compute = tf.function(session.model.prefix, autograph=False)
    images = tf.zeros([extraction.ROWS_AT_ONCE, size, size, 3], tf.uint8)
    output = compute(images)
    began = time.monotonic()
    for _ in range(MEASURED_BATCHES):
        output = compute(images)
        output.numpy()
    image_s = (time.monotonic() - began) / MEASURED_BATCHES / extraction.ROWS_AT_ONCE
    disk = np.zeros(2)
    if parallel.rank == 0:
        root = session.run.path.parent / "features"
        make_private(root)
        disk[:] = _disk_speed(root), shutil.disk_usage(root).free
    totals = parallel.total({"image_s": image_s, "disk": disk})
    speed, free = (float(value) for value in totals["disk"])
    row_bytes = int(np.prod(output.shape[1:])) * output.dtype.size
    return cache_cost.Measured(float(totals["image_s"]) / parallel.world_size**2, row_bytes, speed, int(free))


def _disk_speed(directory: Path) -> float:
    """Bytes per second of one file that is written and made durable."""
    file = directory / f".tmp-speed-{uuid4().hex[:12]}"
    began = time.monotonic()
    try:
        write_file(file, [bytes(MEASURED_BYTES)])
        return MEASURED_BYTES / (time.monotonic() - began)
    except OSError:
        return 1.0  # cannot be written: nothing will pay
    finally:
        file.unlink(missing_ok=True)


def classifier_of(session: Session) -> nested.Nested:
    """How the classifier that the config describes is fitted to features of this session's model."""
    cfg, built, train = session.cfg, session.model, session.splits["train"]
    widths = [channels * (2 if cfg.model.pooling == "both" else 1) for channels in built.stage_channels]
    balanced = cfg.loss.class_weights == "balanced"
    return nested.Nested(
        cfg.classifier,
        train.num_classes,
        selection.columns_of(built.stage_names, widths),
        # By the examples that are fitted: those that are held out may not even be counted.
        lambda labels: (
            model.balanced_class_weights(labels, train.num_classes) if balanced else session.class_weights()
        ),
        cfg.data.split_seed,
    )


def examples_of(source: Source, values: NDArray[np.float32], cfg: Config) -> nested.Examples:
    """The examples of `source` with their features, values [examples, views, features].

    They are judged in all these views where evaluation takes the same, else in the plain one.
    """
    judged = values if cfg.evaluation.views == cfg.data.augment else values[:, :1]
    groups = getattr(source, "groups", None)
    return nested.Examples(values, judged, np.asarray(source.labels), strata_of(source), groups)


def fit_head(session: Session) -> tuple[classifiers.Linear, selection.Choice | None] | None:
    """Compute the last layer from the cached features of every training example in every view; on all workers.

    What was fitted and chosen on rank 0, None elsewhere. The state is then that after the one step.
    """
    fitted = None
    if session.parallel.rank == 0:
        failpoint("classifier.fit")
        cfg, train = session.cfg, session.splits["train"]
        found, rows = session.train_features
        values = found.array() if rows is None else found.array()[rows]
        if cfg.model.normalize:
            values = session.model.normalized(tf.constant(values)).numpy()
        fitted = classifier_of(session).fit(examples_of(train, values, cfg))
        session.model.trainable["head/logits/kernel"].assign(fitted[0].kernel.astype(np.float32))
        session.model.trainable["head/logits/bias"].assign(fitted[0].bias.astype(np.float32))
    session.parallel.broadcast(list(session.state.variables.values()))
    session.state.step = 1
    return fitted
