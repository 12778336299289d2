"""What `tl_dist.train` calls while a run is trained, and what it says to the arguments of Keras's `fit`."""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tl_dist.config import Config
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir


@dataclass(frozen=True)
class StepReport:
    """Describe the steps since the last report."""

    step: int
    total_steps: int
    epoch: float
    loss: float
    accuracy: float | None
    learning_rate: float
    examples_per_s: float


@dataclass(frozen=True)
class EvaluationReport:
    """Hold the figures of a split; those of own metrics are among `figures`."""

    step: int
    split: str
    loss: float
    accuracy: float | None
    figures: Mapping[str, Any]


@dataclass(frozen=True)
class CheckpointReport:
    """Name a checkpoint that is on disk."""

    step: int


_KINDS: Mapping[str, tuple[str, Any]] = {
    "train": ("on_report", StepReport),
    "evaluation": ("on_evaluation", EvaluationReport),
    "checkpoint": ("on_checkpoint", CheckpointReport),
}
_INSTEAD = {
    "epochs": "write 'epochs' in the config",
    "batch_size": "write 'global_batch' in the config: the batch of all workers together",
    "callbacks": "give on_report, on_evaluation or on_checkpoint; 'checkpoint' and 'early_stopping' are of the config",
    "validation_data": "give data={'train': ..., 'validation': ...}",
    "validation_split": "write 'validation_fraction' below 'data:' in the config",
    "class_weight": "write 'class_weights' below 'loss:' in the config",
    "sample_weight": "write a column of weights into a CSV data set",
    "optimizer": "write 'optimizer' in the config",
    "shuffle": "leave it out: each epoch is shuffled, by 'seed' of the config",
    "initial_epoch": "leave it out: the same call resumes a run by itself",
    "steps_per_epoch": "write 'steps' in the config: steps in all",
    "verbose": "write 'every_s' below 'report:' in the config",
    "x": "give data=(images, labels)",
    "y": "give data=(images, labels)",
}


def refuse_idioms(arguments: Mapping[str, Any]) -> None:
    """Refuse (64) arguments that `tl_dist.train` has not, saying where those of Keras's `fit` belong."""
    for name in arguments:
        fix = _INSTEAD.get(name, "see help(tl_dist.train)")
        raise Refusal(f"tl_dist.train takes no argument '{name}'.", fix=f"{fix}.", code=ExitCode.USAGE)


def with_workers(cfg: Config, workers: int | None, strategy: str | None) -> Config:
    """Return the config with another number of workers or strategy; several workers need one that has several."""
    if strategy is None and (workers or 1) > 1 and cfg.strategy == "single":
        strategy = "auto"
    changes = {"workers": workers, "strategy": strategy}
    return cfg.model_copy(update={key: value for key, value in changes.items() if value is not None})


class Listener:
    """Call the user's functions with the records of a run; the first that raises stops the run, and is refused then."""

    def __init__(self, run: Path, *functions: Callable[[Any], None] | None) -> None:
        self._run, self._error = run, ""
        self._functions = dict(zip(_KINDS, functions, strict=True))

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Call what is for this kind of record."""
        function = self._functions.get(record["event"])
        if function is None or self._error:
            return
        name, kind = _KINDS[record["event"]]
        try:
            function(kind(**{field.name: record[field.name] for field in fields(kind)}))
        except Exception as error:
            line = traceback.extract_tb(error.__traceback__)[-1].lineno
            self._error = f"{name} raised {type(error).__name__} in line {line}: {error}"
            run = RunDir.open(self._run)
            with (run.logs / "callbacks.log").open("a") as log:
                traceback.print_exc(file=log)
            run.request_stop()

    def raise_refusal(self) -> None:
        """Refuse (64) what a function has raised."""
        if self._error:
            fix = f"correct it, and train again: the run resumes. See {self._run / 'logs' / 'callbacks.log'}."
            raise Refusal(f"{self._error}; the run was stopped.", fix=fix, code=ExitCode.USAGE)
