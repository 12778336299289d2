"""Record the run on rank 0, which alone writes: metrics, checkpoints, the DONE marker."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self, cast

from tl_dist.config import file as config_file
from tl_dist.runs import checkpoint_format
from tl_dist.runs.checkpoint import Checkpointer
from tl_dist.scores import predictions
from tl_dist.scores.evaluation import Evaluation
from tl_dist.trainer import agreement
from tl_dist.trainer.metrics import MAX_CHARTS, Metrics
from tl_dist.trainer.setup import Setup
from tl_dist.training import monitor
from tl_dist.training.state import Report

Listen = Callable[[Mapping[str, Any]], None]


class Silent:
    """Ignore whatever a Recorder is told: the recorder of every rank but 0."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def recorder_of(
    setup: Setup, checkpointer: Checkpointer | None, notes: Sequence[str], listen: Listen | None
) -> Recorder:
    """Return the recorder of this worker; rank 0, which alone has a checkpointer, first records `notes`."""
    if checkpointer is None:
        return cast(Recorder, Silent())
    return Recorder(setup, checkpointer, notes, listen)


class Recorder:
    """Record a run on rank 0. Saves when told, and between steps `checkpoint.every_s` after the last save.

    A failed save is a note; only several in a row are an error.
    """

    def __init__(
        self, setup: Setup, checkpointer: Checkpointer, notes: Sequence[str], listen: Listen | None
    ) -> None:
        cfg, state, train = setup.cfg, setup.state, setup.splits["train"]
        self._run, self._checkpointer, self._state = setup.run, checkpointer, state
        self._metrics = Metrics(
            setup.run,
            from_step=state.step,
            total_steps=setup.total_steps,
            steps_per_epoch=setup.steps_per_epoch,
            epochs=cfg.epochs or setup.total_steps / setup.steps_per_epoch,
            num_workers=setup.parallel.num_replicas,
            class_names=train.class_names,
            tensorboard=cfg.report.tensorboard,
            listen=listen,
        )
        if state.step == 0:
            self._metrics.hyperparameters(config_file.flat(cfg))
        for note in notes:
            self._metrics.note(note)
        self._meta = {"versions": agreement.versions(cfg), "precision": setup.precision}
        self._save_every_s = cfg.checkpoint.every_s
        self._charts = cfg.report.tensorboard and train.num_classes <= MAX_CHARTS
        self._last_save = self._began = time.monotonic()
        self._saved_step: int | None = state.step or None
        self._announced: int | None = checkpointer.last_checkpoint
        self._figures: dict[str, Any] = {}
        self._best: dict[str, Any] = {}
        self.blocked_s = 0.0  # seconds that training has waited for snapshots, and for earlier saves
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        # In this order: closing the checkpointer ends the last save, which is then recorded.
        self._stack.callback(self._metrics.close)
        self._stack.callback(self._settle)
        self._stack.enter_context(self._checkpointer)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def report(self, report: Report) -> None:
        """Record a chunk of steps, and what the background writer has saved meanwhile."""
        self._metrics.train(report)
        self._settle()

    def evaluated(self, result: Evaluation) -> None:
        """Record an evaluation; keep its figures for the summary."""
        self._metrics.evaluation(self._state.step, result)
        self._figures[result.split] = {
            "accuracy": result.accuracy,
            "loss": result.mean_loss,
            "num_correct": result.num_correct,
            "num_examples": result.num_examples,
            **{key: value for key, value in result.figures.items() if key != "accuracy"},
        }
        # The best of a test split would be a selection by it.
        best = self._state.history.get("best_validation")
        if result.split == "validation" and (best is None or result.accuracy > best["accuracy"]):
            self._state.history["best_validation"] = {"accuracy": result.accuracy, "step": self._state.step}

    def images(self, images: Any, labels: Any) -> None:
        """Show the first training images, as the network sees them, in TensorBoard."""
        self._metrics.images(self._state.step, images, labels)

    def tell(self, record: Mapping[str, Any]) -> None:
        """Write a record to metrics.jsonl."""
        self._metrics.tell(record)

    def save(self, *, wait: bool = False) -> None:
        """Save the state of this step unless it is saved; `wait` until it is on disk."""
        if self._saved_step != self._state.step:
            start = time.monotonic()
            self._checkpointer.wait()  # the snapshot is written over the one before
            self._checkpointer.save(self._state.step, self._state.arrays(), self._facts())
            self.blocked_s += time.monotonic() - start
            self._saved_step, self._last_save = self._state.step, time.monotonic()
        if wait:
            self._checkpointer.wait()
            self._settle()

    def save_if(self, due: bool) -> None:
        """Save between two steps, where that is due or `checkpoint.every_s` have passed since the last save."""
        if due or time.monotonic() - self._last_save >= self._save_every_s:
            self.save()

    def nothing_to_save(self) -> None:
        """Take the state of this step as saved: it was read from a checkpoint."""
        self._saved_step = self._state.step

    def ends_with(self, best: Mapping[str, Any], *, save: bool) -> None:
        """Keep `best` for the summary; `save` the state as the best, where no checkpoint holds it."""
        self._best = {"best": dict(best)}
        if save:
            self._checkpointer.save_best(self._state.step, self._state.arrays(), self._facts())

    def _facts(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside the arrays."""
        history = self._state.history
        needs = {checkpoint_format.NEEDS: monitor.best_steps(history)} if monitor.KEY in history else {}
        return {**self._meta, "history": history, **needs}

    def done(self) -> None:
        """Write the summary and the DONE marker."""
        summary = {
            "step": self._state.step,
            "figures": self._figures,
            **{key: self._state.history.get(key) for key in ("best_validation", "classifier")},
            **self._best,
            "seconds": time.monotonic() - self._began,
            "checkpoint_blocked_s": self.blocked_s,
        }
        for split in self._figures:
            file = predictions.file_of(self._run.path, split)
            if self._charts and file.exists():
                self._metrics.predicted(split, predictions.load(file))
        self._metrics.tell({"event": "done", **summary})
        self._run.mark_done(summary)

    def _settle(self) -> None:
        """Record what the background writer has done since the last call."""
        for message in self._checkpointer.poll():
            self._metrics.note(message)
        saved = self._checkpointer.last_checkpoint
        if saved is not None and saved != self._announced:
            self._announced = saved
            self._metrics.tell({"event": "checkpoint", "step": saved})
