"""Evaluate a held-out split exactly, over all workers: while training, or for a checkpoint on its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist import tasks
from tl_dist.config import code, stages
from tl_dist.data import pipeline
from tl_dist.datasets import Source
from tl_dist.datasets.division import groups_of
from tl_dist.features.views import views_of
from tl_dist.files.failpoint import failpoint
from tl_dist.parallel import rows_of
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.checkpoint_format import Checkpoint
from tl_dist.runs.identity import identity_of
from tl_dist.scores import calibration, decision, figures, own_metrics, predictions
from tl_dist.scores.decision import Decision
from tl_dist.scores.evaluation import Evaluation
from tl_dist.trainer.precise_statistics import PreciseStatistics
from tl_dist.trainer.setup import Setup, StageInput, StopRequested, from_images, restore
from tl_dist.training import evaluation


class Evaluator:
    """Evaluate a stage's model, compiled once. `tell` gets the record of `PreciseStatistics`."""

    def __init__(
        self,
        setup: Setup,
        stage_input: StageInput,
        tell: Callable[[Mapping[str, Any]], None] = lambda record: None,
    ) -> None:
        self._setup, self._stage_input = setup, stage_input
        self.precise = PreciseStatistics(setup, stage_input, tell)
        self._batches: dict[str, tf.data.Dataset] = {}
        self._evaluate_batch = evaluation.evaluation_step(
            stage_input.model,
            evaluation.objective_of(setup.cfg, stage_input.model, setup.splits["train"].num_classes),
            setup.parallel,
            global_batch=setup.cfg.evaluation_batch,
            views=views_of(setup.cfg.evaluation.views),
        )

    @classmethod
    def of_state(cls, setup: Setup) -> Evaluator:
        """Evaluate the weights that the state holds, in the stage of its step, from images."""
        return cls(setup, from_images(setup, stages.at(setup.stages, setup.state.step)))

    def evaluate(self, split: str, temperature: float | None = None, decision: Decision | None = None) -> Evaluation:
        """Return figures over every example of a split, over all workers; raise StopRequested if that was requested.

        The averaged weights are evaluated where the run keeps an average. `temperature` of a calibrated run: it divides
        the logits in the figures that depend on it. `decision`: the rule of `tl-dist threshold`, if the run has one.
        """
        setup, source = self._setup, self._setup.splits[split]
        result = self.counted(split)
        own = code.among(setup.cfg.evaluation.metrics.values())
        setup.beat(f"writing the figures of {split}{own}", alone=True)
        if not setup.is_first:
            return result
        failpoint("evaluation.figures")
        task = tasks.of(setup.cfg)
        return predictions.with_figures(
            result,
            setup.run.path,
            step=setup.state.step,
            ids=source.ids,
            truth=source.truth,
            class_names=source.class_names,
            types=source.annotations.types,
            groups=groups_of(source, setup.cfg.data),
            temperature=temperature,
            decision=decision,
            trained=setup.splits["train"].labels,
            judge=own_metrics.judge_with(task.figures, setup.cfg.evaluation.metrics),
            answers=task.answers,
        )

    def counted(self, split: str, read: pipeline.Read | None = None) -> Evaluation:
        """Return the evaluation with logits and without figures; `read` replaces the stage's own reader."""
        setup, source, parallel = self._setup, self._setup.splits[split], self._setup.parallel
        batch = setup.cfg.evaluation_batch
        batches = None if read else self._batches.get(split)
        if batches is None:
            batches = pipeline.evaluation_batches(
                read or self._stage_input.read[split],
                source.num_examples,
                rows=rows_of(parallel.rank, parallel.world_size, batch),
                global_batch=batch,
                threads=setup.threads,
            )
        if not read:  # traced once: that takes as long as evaluating some hundred images
            self._batches[split] = batches
        with (
            setup.optimizer.averaged(self._stage_input.stage.number),
            self.precise.in_force(),
            setup.examples.naming_bad(split, lambda: range(source.num_examples)),
        ):
            result = evaluation.evaluate(
                split,
                source.num_examples,
                -(-source.num_examples // batch),
                parallel.feed(batches),
                self._evaluate_batch,
                parallel,
                stop_requested=partial(setup.stop_requested, f"evaluating {split}"),
            )
        if result is None:
            raise StopRequested("the evaluation")
        return result


def evaluate_checkpoint(setup: Setup, split: str, at: str = "") -> Evaluation:
    """Return figures of a checkpoint on a split, `at` as in `checkpoint.find`; train nothing."""
    evaluator, saved = of_checkpoint(setup, split, at)
    fit = calibration.of_checkpoint(setup.run.path, saved.sha256, setup.cfg.evaluation.views)
    temperature = None if fit is None else fit.temperature
    num_classes = setup.splits["train"].num_classes
    rule = decision.of_checkpoint(setup.run.path, saved.sha256, temperature or 1.0, num_classes)
    return evaluator.evaluate(split, temperature, rule)


def probabilities(setup: Setup, split: str, saved: Checkpoint) -> NDArray[np.floating]:
    """Return a checkpoint's answers [examples, classes], calibrated if the run is; one process, no files."""
    split_of(setup, split)
    setup.state.resume(saved.arrays, step=saved.step, history=saved.meta["history"])
    fit = calibration.of_checkpoint(setup.run.path, saved.sha256)
    logits = kept_logits(Evaluator.of_state(setup).counted(split), "compared")
    if not tasks.one_class_each(setup.cfg):
        return tasks.of(setup.cfg).answers(logits)
    return figures.Softmax(logits, 1.0 if fit is None else fit.temperature)[:]


def kept_logits(result: Evaluation, what: str) -> NDArray[np.float32]:
    """Return the logits of each example on rank 0; refuse (64) a split that is too large for them to be `what`."""
    if result.logits is None:
        what = f"split '{result.split}' has too many examples and classes to be {what} one by one."
        raise Refusal(what, fix="name a smaller split.", code=ExitCode.USAGE)
    return result.logits


def split_of(setup: Setup, split: str) -> Source:
    """Return a split by its name; refuse (64) one that does not exist."""
    if split not in setup.splits:
        what = f"'{setup.cfg.data.name}' has no split '{split}' under this config."
        raise Refusal(what, fix=f"use one of {', '.join(setup.splits)}.", code=ExitCode.USAGE)
    return setup.splits[split]


def of_checkpoint(setup: Setup, split: str, at: str) -> tuple[Evaluator, Checkpoint]:
    """Set the state to a checkpoint, `at` as in `checkpoint.find`, and return its evaluator.

    Refuse (64) a split that does not exist, and a run without a checkpoint.
    """
    split_of(setup, split)
    saved = restore(setup, lambda text: None, at)
    if saved is None:
        identity_of(setup.run)  # a cross-validation will never have one
        what = f"{setup.run.path} has no checkpoint to evaluate."
        raise Refusal(what, fix="train it first: tl-dist train CONFIG.", code=ExitCode.USAGE)
    return Evaluator.of_state(setup), saved
