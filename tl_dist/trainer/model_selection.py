"""Decide by figures of the validation split, the same on all workers: early stop, learning rate, final weights.

Rank 0 alone knows all figures, and sends the others those that decide; then each worker feeds its own monitor, so that
all monitors have the same state.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tl_dist.config import Config
from tl_dist.config.model_selection import SPLIT, figure_of, metrics_of
from tl_dist.config.stages import Stage
from tl_dist.datasets import Splits, pool_of
from tl_dist.files.failpoint import failpoint
from tl_dist.parallel import DataParallel
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs import checkpoint
from tl_dist.scores.evaluation import Evaluation
from tl_dist.trainer.setup import Setup
from tl_dist.training.evaluation import MAX_LOGITS
from tl_dist.training.monitor import Monitor, better
from tl_dist.training.optim import Optimizer
from tl_dist.training.state import TrainState


def refuse_undecidable(cfg: Config, splits: Splits) -> None:
    """Refuse a metric that decides something which the validation split cannot tell, or must not decide."""
    for path, metric in metrics_of(cfg).items():
        if (problem := _problem(cfg, splits, figure_of(metric))) is not None:
            what, fix = problem
            raise Refusal(f"{'.'.join(path)} is '{metric}', but {what}.", fix=fix, code=ExitCode.USAGE)


def _problem(cfg: Config, splits: Splits, figure: str) -> tuple[str, str] | None:
    source, test = splits.get(SPLIT), splits.get("test")
    if source is None:
        what = f"'{cfg.data.name}' has no validation split under this config"
        return what, "write 'validation_fraction: 0.1' below 'data:'."
    if cfg.data.folds is not None and test is not None and pool_of(test)[0] is not pool_of(source)[0]:
        # The fold's figures are the result of the run: choosing by them would bias them upwards.
        what = "the validation split is the fold that is held out, since the test split is official"
        return what, "remove it, or 'folds' and 'fold'."
    if figure == "roc_auc" and source.truth.ndim == 1 and len(np.unique(source.labels)) < source.num_classes:
        return "a class has no validation example", f"write 'metric: {SPLIT}.macro_f1'."
    if figure != "accuracy" and source.num_examples * source.num_classes > MAX_LOGITS:
        what = f"of {source.num_examples:,} examples of {source.num_classes:,} classes only the accuracy is computed"
        return what, f"write 'metric: {SPLIT}.accuracy'."
    return None


@dataclass
class ModelSelection:
    """Select the model of one stage in one attempt; decide nothing where the config names no metric."""

    cfg: Config
    stage: Stage
    state: TrainState
    optimizer: Optimizer
    parallel: DataParallel
    tell: Callable[[Mapping[str, Any]], None]

    def __post_init__(self) -> None:
        self._decides = bool(metrics_of(self.cfg))
        self._kept_step = -1
        self.monitor = Monitor(self.cfg, self.stage, self.state.history if self._decides else {})
        self.optimizer.lower_rate(self.monitor.factor)

    @property
    def keeps_step(self) -> bool:
        """Whether the state of this step is to be saved, since it is among the best."""
        return self._kept_step == self.state.step

    def is_open(self, *, due: bool) -> bool:
        """Return whether this step is yet to be decided on: an evaluation is `due`, or the stage ends."""
        step, monitor = self.state.step, self.monitor
        if not self._decides or monitor.stopped or not self.stage.first_step < step:
            return False
        return monitor.step < step and (due or step == self.stage.end)

    def decide(self, result: Evaluation) -> None:
        """Decide by the figures of an evaluation, and record what follows from them."""
        step, monitor = self.state.step, self.monitor
        if not self._decides or result.split != SPLIT or step <= monitor.step:
            return
        decision = monitor.feed(step, self._shared(result))
        failpoint("selection.decided")
        if decision.among_best:
            self._kept_step = step
        self.optimizer.lower_rate(monitor.factor)
        for text in self._messages(lowered=decision.lowered):
            self.tell({"event": "note", "step": step, "text": text})

    def improved(self, result: Evaluation) -> float | None:
        """Return the figure by which the best is chosen, if it is better than the best."""
        figure = figure_of(self._metric)
        value = self._shared(result)[figure]
        return value if better(figure, value, self.monitor.best[0][1]) else None

    def ending(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        """Record a note on the weights that the run ends with; return their entry for the run's summary."""
        average, best = choice["average_of"], (choice["step"], choice["value"])
        text = f"ends with the best: {described(best, self._metric)}"
        if self.cfg.checkpoint.average is not None:
            of = ", ".join(f"{step:,}" for step in average)
            text += f", the mean of steps {of}" if average else ", which no mean of the best improves"
        self.tell({"event": "note", "step": choice["step"], "text": text})
        return {**choice, "metric": f"{SPLIT}.{figure_of(self._metric)}"}

    @property
    def _metric(self) -> str:
        best = self.cfg.checkpoint.best
        assert best is not None
        return best.metric

    def _shared(self, result: Evaluation) -> dict[str, float]:
        """Return the figures that decide, as rank 0 has them; NaN where one is undefined."""
        names = sorted({figure_of(metric) for metric in metrics_of(self.cfg).values()})
        mine = np.zeros(len(names))
        if self.parallel.rank == 0:
            figures = {**result.figures, "accuracy": result.accuracy}
            mine[:] = [math.nan if figures[name] is None else figures[name] for name in names]
        total = self.parallel.total({"figures": mine})["figures"]
        return dict(zip(names, total.tolist(), strict=True))

    def _messages(self, *, lowered: bool) -> Iterator[str]:
        """Yield what the user wants to know of the decision."""
        cfg, settings, monitor = self.cfg, self.stage.optimizer, self.monitor
        if cfg.checkpoint.best is not None and monitor.best:
            yield f"best so far: {described(monitor.best[0], self._metric)}"
        if lowered:
            yield (
                f"{SPLIT} {figure_of(settings.schedule.metric or '')} has not improved in "
                f"{settings.schedule.patience} evaluations: the learning rate is "
                f"{settings.learning_rate * monitor.factor:.2g} from here on"
            )
        if monitor.stopped:
            assert cfg.early_stopping is not None
            to_beat = described(monitor.to_beat, cfg.early_stopping.metric)
            yield f"stops early: {monitor.waited} evaluations in a row were no better than {to_beat}"


def described(best: tuple[int, float | None], metric: str) -> str:
    """Return the step and its figure as text: `step 120, validation macro_f1 0.873`."""
    step, value = best
    if value is None:
        return f"a {SPLIT} {figure_of(metric)} that is no number"
    return f"step {step:,}, {SPLIT} {figure_of(metric)} {value:.4g}"


def go_back(setup: Setup, step: int) -> None:
    """Set the variables and the step to those of an earlier checkpoint, on all workers; the history stays."""
    state = setup.state
    setup.beat("loading a checkpoint", alone=True)
    if setup.is_first:
        saved = checkpoint.read(setup.run, step, expected=state.layout)
        state.resume(saved.arrays, step=step, history=state.history)
    setup.parallel.broadcast(list(state.variables.values()))
    state.agree_on(step, state.history)


def average(setup: Setup, steps: Sequence[int]) -> None:
    """Set the weights to the mean of those that were evaluated at several steps, on all workers.

    The rest of the state stays as it is. Moving averages of the weights become the same mean, since they are evaluated.
    """
    state = setup.state
    setup.beat("averaging checkpoints", alone=True)
    if setup.is_first:
        sums: dict[str, Any] = {}
        for step in steps:  # in float64, one after another, so that two are in memory
            arrays = checkpoint.read(setup.run, step, expected=state.layout).arrays
            for path in setup.model.moving:
                value = arrays.get(f"optimizer/ema/{path}", arrays[path])
                sums[path] = sums.get(path, 0.0) + value.astype(np.float64)
        for path, total in sums.items():
            for name in {path, f"optimizer/ema/{path}"} & state.variables.keys():
                variable = state.variables[name]
                variable.assign((total / len(steps)).astype(variable.dtype.as_numpy_dtype))
    setup.parallel.broadcast(list(state.variables.values()))
