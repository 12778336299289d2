"""Exact figures of a held-out split, over all workers: in training, and of a commit on its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tl_dist import loop, step
from tl_dist.data import pipeline
from tl_dist.datasets import types_of
from tl_dist.failpoint import failpoint
from tl_dist.figures import predictions
from tl_dist.parallel import rows_of
from tl_dist.precise_statistics import PreciseStatistics
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.session import Session
from tl_dist.stages import at
from tl_dist.state import Evaluation


def evaluate(
    session: Session, split: str, evaluate_batch: Callable[[Any], dict[str, Any]], precise: PreciseStatistics
) -> Evaluation | None:
    """Figures over every example of a split, over all workers; None when asked to stop before the end.

    They are those of the averaged weights where the run keeps an average, and of statistics that fit the weights.
    """
    source, parallel = session.splits[split], session.parallel
    batch = session.evaluation_batch
    batches = pipeline.evaluation_batches(
        session.read[split],
        source.num_examples,
        rows=rows_of(parallel.rank, parallel.world_size, batch),
        global_batch=batch,
        threads=session.threads,
    )
    with (
        session.optimizer.averaged(session.stage.number),
        precise.in_force(),
        session.naming_bad_examples(split, lambda: range(source.num_examples)),
    ):
        result = loop.evaluate(
            split,
            source.num_examples,
            -(-source.num_examples // batch),
            parallel.feed(batches),
            evaluate_batch,
            parallel,
            stop_requested=partial(session.stop_requested, f"evaluating {split}"),
        )
    session.beat(f"writing the figures of {split}", alone=True)
    if result is None or parallel.rank != 0:
        return result
    failpoint("evaluation.figures")
    return predictions.with_figures(
        result,
        session.run.path,
        step=session.state.step,
        ids=source.ids,
        labels=source.labels,
        class_names=source.class_names,
        groups=types_of(source),
    )


def evaluate_commit(session: Session, split: str) -> Evaluation:
    """Figures of the newest commit on a split. Trains and writes nothing."""
    if split not in session.splits:
        raise Refusal(
            f"'{session.cfg.data.name}' has no split '{split}' under this config.",
            fix=f"use one of {', '.join(session.splits)}.",
            code=ExitCode.USAGE,
        )
    if session.restore(lambda text: None) is None:
        raise Refusal(
            f"{session.run.path} has no checkpoint to evaluate.",
            fix="train it first: tl-dist train CONFIG.",
            code=ExitCode.USAGE,
        )
    session.enter(at(session.stages, session.state.step))
    source = session.splits[split]
    objective = step.Objective(source.num_classes, session.cfg.global_batch)
    evaluate_batch = step.evaluation_step(
        session.model,
        objective,
        session.parallel,
        global_batch=session.evaluation_batch,
        views=session.num_evaluation_views,
    )
    result = evaluate(session, split, evaluate_batch, PreciseStatistics(session, lambda record: None))
    if result is None:
        raise Refusal("the evaluation was stopped.", fix="run the same command again.", code=ExitCode.REQUEUE)
    return result
