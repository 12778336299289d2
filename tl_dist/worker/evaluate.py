"""Exact figures of a held-out split, over all workers: in training, and of a checkpoint on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.config import stages
from tl_dist.data import pipeline
from tl_dist.datasets import Source
from tl_dist.features.views import views_of
from tl_dist.files.failpoint import failpoint
from tl_dist.parallel import rows_of
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.checkpoint_format import Checkpoint
from tl_dist.scores import calibration, figures, predictions
from tl_dist.scores.evaluation import Evaluation
from tl_dist.training import evaluation
from tl_dist.training.step import Objective
from tl_dist.worker.precise_statistics import PreciseStatistics
from tl_dist.worker.setup import Setup, restore, take
from tl_dist.worker.stage_input import StageInput, from_images

EvaluateBatch = Callable[[Any], dict[str, Any]]


def compiled_evaluation(setup: Setup, given: StageInput) -> EvaluateBatch:
    """The evaluation step of a stage's model: `evaluation.evaluation_step`."""
    return evaluation.evaluation_step(
        given.model,
        Objective(setup.splits["train"].num_classes, setup.cfg.global_batch),
        setup.parallel,
        global_batch=setup.cfg.evaluation_batch,
        views=views_of(setup.cfg.evaluation.views),
    )


def evaluate(
    setup: Setup,
    given: StageInput,
    split: str,
    evaluate_batch: EvaluateBatch,
    precise: PreciseStatistics,
    temperature: float | None = None,
) -> Evaluation | None:
    """Figures over every example of a split, over all workers; None when asked to stop before the end.

    They are those of the averaged weights where the run keeps an average, and of statistics that fit the weights.
    `temperature`: that of a calibrated run, for what it changes.
    """
    source = setup.splits[split]
    result = counted(setup, given, split, evaluate_batch, precise)
    setup.beat(f"writing the figures of {split}", alone=True)
    if result is None or not setup.is_first:
        return result
    failpoint("evaluation.figures")
    return predictions.with_figures(
        result,
        setup.run.path,
        step=setup.state.step,
        ids=source.ids,
        labels=source.labels,
        class_names=source.class_names,
        types=source.annotations.types,
        temperature=temperature,
    )


def counted(
    setup: Setup, given: StageInput, split: str, evaluate_batch: EvaluateBatch, precise: PreciseStatistics
) -> Evaluation | None:
    """What `evaluate` gives, with the logits and without the figures."""
    source, parallel, batch = setup.splits[split], setup.parallel, setup.cfg.evaluation_batch
    batches = pipeline.evaluation_batches(
        given.read[split],
        source.num_examples,
        rows=rows_of(parallel.rank, parallel.world_size, batch),
        global_batch=batch,
        threads=setup.threads,
    )
    with (
        setup.optimizer.averaged(given.stage.number),
        precise.in_force(),
        setup.examples.naming_bad(split, lambda: range(source.num_examples)),
    ):
        return evaluation.evaluate(
            split,
            source.num_examples,
            -(-source.num_examples // batch),
            parallel.feed(batches),
            evaluate_batch,
            parallel,
            stop_requested=partial(setup.stop_requested, f"evaluating {split}"),
        )


def evaluate_checkpoint(setup: Setup, split: str, at: str = "") -> Evaluation:
    """Figures of a checkpoint on a split: `at` as in `checkpoint.find`. Trains nothing."""
    split_of(setup, split)
    saved = restored(setup, at)
    temperature = _temperature(setup, saved, setup.cfg.evaluation.views)
    given, step, precise = of_state(setup)
    return stopped_refused(evaluate(setup, given, split, step, precise, temperature))


def probabilities(setup: Setup, split: str, saved: Checkpoint) -> NDArray[np.float64]:
    """[examples, classes] of a checkpoint, on this process alone; calibrated where the run is. Writes nothing."""
    split_of(setup, split)
    take(setup, saved)
    temperature = _temperature(setup, saved)
    given, step, precise = of_state(setup)
    result = stopped_refused(counted(setup, given, split, step, precise))
    return figures.Softmax(kept_logits(result, "compared"), temperature or 1.0)[:]


def of_state(setup: Setup) -> tuple[StageInput, EvaluateBatch, PreciseStatistics]:
    """What evaluates the weights that the state was set to: the stage of its step, its compiled step and statistics."""
    given = from_images(setup, stages.at(setup.stages, setup.state.step))
    return given, compiled_evaluation(setup, given), PreciseStatistics(setup, given, lambda record: None)


def kept_logits(result: Evaluation, what: str) -> NDArray[np.float32]:
    """Those of each example on rank 0; refuses (64) a split that is too large for them to be `what`, one by one."""
    if result.logits is None:
        raise Refusal(
            f"split '{result.split}' has too many examples and classes to be {what} one by one.",
            fix="name a smaller split.",
            code=ExitCode.USAGE,
        )
    return result.logits


def _temperature(setup: Setup, saved: Checkpoint, views: Sequence[str] | None = None) -> float | None:
    """Of a checkpoint, where one was fitted in these views; None: in any."""
    found = calibration.of_checkpoint(setup.run.path, saved.sha256, views)
    return None if found is None else found.temperature


def split_of(setup: Setup, split: str) -> Source:
    """A split by its name; refuses (64) one that is not there."""
    if split not in setup.splits:
        raise Refusal(
            f"'{setup.cfg.data.name}' has no split '{split}' under this config.",
            fix=f"use one of {', '.join(setup.splits)}.",
            code=ExitCode.USAGE,
        )
    return setup.splits[split]


def restored(setup: Setup, at: str) -> Checkpoint:
    """Set the state to a checkpoint, `at` as in `checkpoint.find`; refuses (64) a run that has none."""
    saved = restore(setup, lambda text: None, at)
    if saved is None:
        raise Refusal(
            f"{setup.run.path} has no checkpoint to evaluate.",
            fix="train it first: tl-dist train CONFIG.",
            code=ExitCode.USAGE,
        )
    return saved


def stopped_refused(result: Evaluation | None) -> Evaluation:
    """The evaluation, where it was not stopped."""
    if result is None:
        raise Refusal("the evaluation was stopped.", fix="run the same command again.", code=ExitCode.REQUEUE)
    return result
