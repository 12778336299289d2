"""Compute the frozen part of a stage's model once, and read its outputs, the features, instead of images.

From the features the last layer can be computed instead of trained; tools work on them as well (`on_features`).
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist import tasks
from tl_dist.config import Config, registry
from tl_dist.config.rules.training import endless_augmentations
from tl_dist.datasets import Source, pool_of, strata_of
from tl_dist.features import extraction, nested
from tl_dist.features import views as feature_views
from tl_dist.features.classifiers import Stopped, watching
from tl_dist.features.stored import FeatureSet
from tl_dist.files.failpoint import failpoint
from tl_dist.models import heads
from tl_dist.parallel import rows_of
from tl_dist.runs.directory import RunDir
from tl_dist.runs.records import append_to
from tl_dist.trainer import board
from tl_dist.trainer.setup import Setup, StageInput, StopRequested, TrainFeatures, setup

PHASE = "extracting features"  # of heartbeats while features are computed
LARGEST_ROW = 8  # times the bytes of its image: reading a larger row is not much faster than computing it


@contextmanager
def on_features(
    run: RunDir, phase: str, cores: int, *, alone: bool
) -> Iterator[tuple[Setup, Callable[[], bool], extraction.Say]]:
    """Open a run for a tool that works on its features. Yields its setup, a check for a stop, a writer of records.

    `Stopped` and `StopRequested`, raised where a stop was requested, end the body.
    """
    run_setup = setup(run, cores=cores)

    def say(record: Mapping[str, Any]) -> None:
        lines.write(json.dumps(record) + "\n")

    with (
        append_to(run.metrics_file) as lines,
        run_setup.parallel.naming_lost_peers(),
        suppress(Stopped, StopRequested),
    ):
        yield run_setup, partial(run_setup.stop_requested, phase, alone=alone), say


def finder(
    setup: Setup, prefix: extraction.Prefix, stop_requested: Callable[[], bool], say: extraction.Say
) -> Callable[..., FeatureSet]:
    """Return the extraction of `prefix` as a function of source, augmentations and split.

    It raises StopRequested where a stop was requested, and records in the run directory that the run reads the set.
    """

    def find(source: Source, *, augmentations: Sequence[str], split: str) -> FeatureSet:
        todo = extraction.Extraction(
            source,
            prefix=prefix,
            augmentations=augmentations,
            root=setup.run.path.parent / "features",
            split=split,
            parallel=setup.parallel,
            stop_requested=stop_requested,
            say=say,
            threads=setup.threads,
        )
        try:
            features = todo.features()
        except Stopped:
            raise StopRequested from None
        if setup.is_first:
            setup.run.refer_to_features(features.directory.name)
        return features

    return find


def normalized(setup: Setup, stage_input: StageInput, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return features as the head gets them."""
    if not setup.cfg.model.normalize:
        return values
    features: NDArray[np.float32] = stage_input.model.normalized(tf.constant(values)).numpy()
    return features


def use_features(setup: Setup, stage_input: StageInput, say: extraction.Say) -> StageInput:
    """Return the same stage reading features instead of images, where that is wanted, else as it is.

    Where `prefix_cache: auto` decides, `say` is told why, on rank 0.
    """
    mode = setup.cfg.runtime.prefix_cache
    wanted = setup.cfg.classifier.computed or (mode == "on" and stage_input.stage.train_from != "all")
    if not wanted and not (mode == "auto" and _pays(setup, stage_input, say)):
        return stage_input
    return from_features(setup, stage_input, partial(setup.stop_requested, PHASE), say)


def from_features(
    setup: Setup, stage_input: StageInput, stop_requested: Callable[[], bool], say: extraction.Say
) -> StageInput:
    """Return the same stage with all splits read from the outputs of its frozen part, which are computed if missing."""
    find = finder(setup, prefix_of(setup, stage_input), stop_requested, say)
    evaluated = setup.cfg.evaluation.views
    on_features = replace(stage_input, model=stage_input.model.on_features())
    read = dict(stage_input.read)
    for names, source, views in _sets(setup):
        share = rows_of(setup.parallel.rank, setup.parallel.world_size, source.num_examples)
        # A whole pool is kept only where no example is bad, so a bad one belongs to a set of a single split.
        with setup.examples.naming_bad(names[0], partial(iter, share)):
            features = find(source, augmentations=views, split=" and ".join(names))
        for name in names:
            split = setup.splits[name]
            rows = None if source is split else pool_of(split)[1]
            if name == "train":
                if setup.is_first and setup.cfg.report.tensorboard:
                    board.show_points(setup.run.tensorboard, split, features, rows)
                on_features = replace(
                    on_features,
                    features=TrainFeatures(features, rows),
                    read_train=feature_views.reader(features, split, views, setup.cfg.seed, rows),
                )
            if views == evaluated or not evaluated:
                every = None if evaluated else ()
                read[name] = feature_views.reader(features, split, every, setup.cfg.seed, rows)
    return replace(on_features, read=read)


def prefix_of(setup: Setup, stage_input: StageInput) -> extraction.Prefix:
    """Return the frozen part of a stage's model, and what determines its outputs."""
    network = setup.cfg.network
    facts: dict[str, Any] = {
        "backbone": registry.without_folder(network),
        "cut": stage_input.model.cut_at,
        "frozen_sha256": stage_input.model.prefix_digest(),
        "precision": setup.precision,
    }
    if code := registry.code_of_network(network):
        facts["code"] = code["code"]
    return extraction.Prefix(
        stage_input.model.prefix,
        setup.image_size,
        facts,
        setup.cfg.features.dtype,
        setup.cfg.data.square,
        stage_input.model.prefix_shape,
    )


def _sets(setup: Setup) -> Iterator[tuple[list[str], Source, tuple[str, ...]]]:
    """Yield the splits that share a feature set, the source of its rows, and the views in which they are kept.

    Splits of one pool share a set of the whole pool, which can be reused however the pool is divided. Where training
    needs other views than evaluation, each split has its own set, with two exceptions. If evaluation needs the plain
    view alone and other divisions are likely, the pool is kept in the views of training. A fold is certainly one of
    many divisions: if its views differ, the pool is kept once for training and once for the rest.
    """
    augment, evaluated = setup.cfg.data.augment, setup.cfg.evaluation.views
    is_fold, bad = setup.cfg.data.folds is not None, setup.examples.bad
    shared = augment == evaluated or ((setup.cfg.classifier.computed or is_fold) and not evaluated)
    pools: dict[int, list[str]] = {}
    for name, source in setup.splits.items():
        pools.setdefault(id(pool_of(source)[0]), []).append(name)
    for names in pools.values():
        parts = [[name] for name in names]
        if not bad and shared:
            parts = [names]
        elif not bad and is_fold:
            parts = [part for part in (["train"], [n for n in names if n != "train"]) if part and part[0] in names]
        for part in parts:
            source = setup.splits[part[0]]
            whole = not bad and (shared or is_fold)
            yield part, pool_of(source)[0] if whole else source, augment if "train" in part else evaluated


def _pays(setup: Setup, stage_input: StageInput, say: extraction.Say) -> bool:
    """Return whether caching saves time, by a rule on sizes and counts alone, so that a run always decides the same."""
    cfg = setup.cfg
    endless = [*endless_augmentations(cfg), *(["mixing"] if cfg.data.augmentation.mixes else [])]
    if endless:
        on, why = False, f"{endless[0]} makes images that cannot be cached"
    elif stage_input.stage.train_from == "all" or not stage_input.model.has_prefix:
        on, why = False, "no frozen part"
    else:
        assert stage_input.model.prefix_shape is not None  # there is a frozen part
        free = float(shutil.disk_usage(setup.run.path.parent).free) if setup.is_first else 0.0
        on, why = choose(
            passes=_passes(setup, stage_input),
            missing=_missing(setup, stage_input),
            row_bytes=prod(stage_input.model.prefix_shape) * (4 if setup.precision == "float32" else 2),
            image_bytes=3 * setup.image_size**2,
            free_bytes=int(setup.parallel.total({"free": free})["free"]),  # on the disk that rank 0 sees
        )
    if setup.is_first:
        say({"event": "note", "text": f"prefix cache: {'on' if on else 'off'}: {why}"})
    return on


def choose(*, passes: float, missing: int, row_bytes: int, image_bytes: int, free_bytes: int) -> tuple[bool, str]:
    """Return whether to cache, and why: the frozen part takes `passes` images without a cache, `missing` with one."""
    size = missing * row_bytes
    if missing and passes < 2 * missing:
        why = f"{passes:,.0f} images go through the frozen part, {missing:,} would have to for the cache"
    elif row_bytes > LARGEST_ROW * image_bytes:
        why = f"its output is {row_bytes / image_bytes:.0f} times as large as an image"
    elif 2 * size > free_bytes:
        why = f"{size / 1e6:,.1f} MB do not fit into half of the {free_bytes / 1e6:,.1f} MB that are free"
    else:
        saved = f"{missing:,} images go through the frozen part instead of {passes:,.0f}"
        return True, f"{saved}; {size / 1e6:,.1f} MB"
    return False, why


def _passes(setup: Setup, stage_input: StageInput) -> float:
    """Return how many images the rest of the stage passes through the frozen part, evaluation included."""
    cfg, stage = setup.cfg, stage_input.stage
    steps = stage.end - max(setup.state.step, stage.first_step)
    evaluations = steps / max(1, round(cfg.evaluation.every_epochs * setup.steps_per_epoch))
    held_out = {name: source.num_examples for name, source in setup.splits.items() if name != "train"}
    evaluated = evaluations * held_out.get("validation", 0)
    if stage is setup.stages[-1]:
        evaluated += sum(held_out.values())
    return steps * cfg.global_batch + evaluated * feature_views.views_of(cfg.evaluation.views)


def _missing(setup: Setup, stage_input: StageInput) -> int:
    """Return how many views of images have no features yet; the same on all workers."""
    prefix, root = prefix_of(setup, stage_input), setup.run.path.parent / "features"
    missing = 0
    for _, source, views in _sets(setup):
        is_kept = extraction.is_kept(source, prefix, views, root)
        if setup.parallel.total({"kept": float(is_kept)})["kept"] < setup.parallel.world_size:
            missing += source.num_examples * feature_views.views_of(views)
    return missing


def classifier_of(setup: Setup, stage_input: StageInput, stop_requested: Callable[[], bool]) -> nested.Nested:
    """Return the config's classifier, to be fitted to features of this stage; a fit raises `Stopped` on a stop."""
    cfg, model, train = setup.cfg, stage_input.model, setup.splits["train"]
    widths = [channels * (2 if cfg.model.pooling == "both" else 1) for channels in model.stage_channels]
    return nested.Nested(
        cfg.classifier,
        train.num_classes,
        nested.columns_of(model.stage_names, widths),
        # Counted over the fitted examples alone: held-out labels must not influence the fit.
        setup.class_weights,
        cfg.data.split_seed,
        watching(stop_requested),
        tasks.of(cfg).loss,
    )


def examples_of(source: Source, values: NDArray[np.float32], cfg: Config) -> nested.Examples:
    """Return the examples of `source` with their features, `values` [examples, views, features].

    They are evaluated in all these views if evaluation has the same views, else in the plain view alone.
    """
    evaluated = values if cfg.evaluation.views == cfg.data.augment else values[:, :1]
    annotations = source.annotations
    return nested.Examples(values, evaluated, source.truth, strata_of(source), annotations.groups, annotations.weights)


def fit_head(setup: Setup, stage_input: StageInput, say: extraction.Say) -> StageInput:
    """Compute the last layer from the features of every training example in every view: the one step of the run.

    Rank 0 computes it, and tells `say` what was fitted and chosen; all workers get the result. A stop changes nothing.
    Where the config's head is trained, or this step is done, there is nothing to compute.
    """
    if not setup.cfg.classifier.computed or setup.state.step:
        return stage_input
    setup.beat("fitting the classifier", alone=True)  # the only beat of the fit: the other workers just wait
    stopped = False
    if setup.is_first:
        try:
            say(_fit_head(setup, stage_input))
        except Stopped:
            stopped = True
    if setup.parallel.total({"stopped": float(stopped)})["stopped"]:
        raise StopRequested
    setup.parallel.broadcast(list(setup.state.variables.values()))
    setup.state.advance(1)
    return stage_input


def _fit_head(setup: Setup, stage_input: StageInput) -> dict[str, Any]:
    """Set the last layer to the fitted one and return the record; keep what was chosen in the state's history."""
    began, settings = time.monotonic(), setup.cfg.classifier
    failpoint("classifier.fit")
    assert stage_input.features is not None
    values = normalized(setup, stage_input, stage_input.features.values())
    classifier = classifier_of(setup, stage_input, setup.run.stop_requested)
    head, choice = classifier.fit(examples_of(setup.splits["train"], values, setup.cfg))
    for path, value in heads.standardized(stage_input.model.scale, head.kernel, head.bias).items():
        stage_input.model.trainable[path].assign(value.astype(np.float32))
    how = f" after {head.iterations} iterations" if head.iterations else ""
    text = f"{settings.name}: {'fitted' if head.converged else 'NOT converged'}{how}"
    facts: dict[str, Any] = {}
    if choice is not None:
        text += f", {nested.described(choice, settings)}"
        facts = {"l2": choice.l2, "layers": choice.layers, "edge": choice.edge}
        setup.state.history["classifier"] = facts
    return {"event": "note", "text": f"{text}, {time.monotonic() - began:.1f} s", **facts}
