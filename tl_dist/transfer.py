"""Feature-based transfer: the frozen part of a session's model computed once, and heads computed from its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import tensorflow as tf

from tl_dist import classifiers, features, model
from tl_dist.datasets import Source, pool_of
from tl_dist.parallel import rows_of
from tl_dist.session import Session


def take_prefix(session: Session) -> features.Prefix:
    """The frozen part and what determines its outputs; from here on the model takes these in place of images."""
    facts = {
        "backbone": session.cfg.model.backbone,
        "cut": session.model.cut_at,
        "frozen_sha256": session.model.frozen_digest(),
        "precision": session.precision,
    }
    return features.Prefix(session.model.take_prefix(), session.image_size, facts)


def cache_prefix(session: Session, stop_requested: Callable[[], bool], say: features.Say) -> bool:
    """Compute the frozen part once, or find it computed; all splits are read from there.

    False when asked to stop before the end.
    """
    find = partial(
        features.cached,
        prefix=take_prefix(session),
        root=session.run.path.parent / "features",
        parallel=session.parallel,
        stop_requested=stop_requested,
        say=say,
    )
    for names, source in _sets(session):
        views = session.cfg.data.augment if "train" in names else ()
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
                session.read_train = features.reader(found, split, views, session.cfg.seed, rows)
            session.read[name] = features.reader(found, split, (), session.cfg.seed, rows)
    return True


def refer(session: Session, found: features.FeatureSet) -> None:
    """Note in the run directory that the run reads this set."""
    if session.parallel.rank == 0:
        session.run.refer_to_features(found.directory.name)


def _sets(session: Session) -> Iterator[tuple[list[str], Source]]:
    """Which splits are kept in one feature set, and the source of its rows.

    Splits of one pool share a set of the whole pool, which serves again however it is divided another time. Not where
    only the training split needs more than the plain view: then the others would be computed in all views as well.
    """
    pools: dict[int, list[str]] = {}
    for name, source in session.splits.items():
        pools.setdefault(id(pool_of(source)[0]), []).append(name)
    for names in pools.values():
        if not session.bad and (session.cfg.classifier.computed or not session.cfg.data.augment):
            yield names, pool_of(session.splits[names[0]])[0]
        else:
            yield from (([name], session.splits[name]) for name in names)


def fit_head(session: Session) -> classifiers.Linear | None:
    """Compute the last layer from the cached features of every training example in every view; on all workers.

    What was fitted on rank 0, None elsewhere. The state is then that after the one step.
    """
    fitted = None
    if session.parallel.rank == 0:
        found, rows = session.train_features
        train = session.splits["train"]
        values = found.array() if rows is None else found.array()[rows]
        inputs = values.reshape(-1, *found.shape)
        settings = session.cfg.classifier
        fitted = classifiers.fit(
            settings.name,
            model.normalize(tf.constant(inputs)).numpy() if session.cfg.model.normalize else inputs,
            np.repeat(train.labels, found.num_views),
            train.num_classes,
            l2=settings.l2,
            scaling=settings.scaling,
            class_weights=session.class_weights(),
        )
        session.model.trainable["head/logits/kernel"].assign(fitted.kernel.astype(np.float32))
        session.model.trainable["head/logits/bias"].assign(fitted.bias.astype(np.float32))
    session.parallel.broadcast(list(session.state.variables.values()))
    session.state.step = 1
    return fitted
