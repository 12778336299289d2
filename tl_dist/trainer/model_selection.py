"""Decide by figures of the validation split, the same on all workers: early stop, learning rate, final weights.

Rank 0 alone knows all figures, and sends the others those that decide; then each worker feeds its own monitor, so that
all monitors have the same state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tl_dist.config import Config
from tl_dist.config.model_selection import SPLIT, figure_of, metrics_of
from tl_dist.config.stages import Stage
from tl_dist.datasets import Splits, pool_of
from tl_dist.files.failpoint import failpoint
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs import checkpoint
from tl_dist.scores.evaluation import Evaluation
from tl_dist.trainer.recorder import Recorder
from tl_dist.trainer.setup import Setup
from tl_dist.training.evaluation import MAX_LOGITS
from tl_dist.training.monitor import Monitor, better


def refuse_undecidable(cfg: Config, splits: Splits) -> None:
    """Refuse a metric that decides something which the validation split cannot tell, or must not decide."""
    for path, metric in metrics_of(cfg).items():
        problem = _problem(cfg, splits, figure_of(metric))
        if problem is not None:
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
    if figure == "roc_auc" and len(np.unique(source.labels)) < source.num_classes:
        return "a class has no validation example", f"write 'metric: {SPLIT}.macro_f1'."
    if figure != "accuracy" and source.num_examples * source.num_classes > MAX_LOGITS:
        what = f"of {source.num_examples:,} examples of {source.num_classes:,} classes only the accuracy is computed"
        return what, f"write 'metric: {SPLIT}.accuracy'."
    return None


class ModelSelection:
    """Select the model of one stage in one attempt; decide nothing where the config names no metric."""

    def __init__(self, setup: Setup, stage: Stage, recorder: Recorder) -> None:
        self._setup, self._stage, self._recorder = setup, stage, recorder
        self._monitor: Monitor | None = None
        self._kept_step = -1
        if metrics_of(setup.cfg):
            self._monitor = Monitor(setup.cfg, stage, setup.state.history)
            setup.optimizer.lower_rate(self._monitor.factor)

    @property
    def factor(self) -> float:
        """The factor of schedule 'plateau' on the learning rate."""
        return self._monitor.factor if self._monitor else 1.0

    @property
    def stopped(self) -> bool:
        """Whether the stage ends at this step."""
        return self._monitor is not None and self._monitor.stopped

    @property
    def best(self) -> list[tuple[int, float]]:
        """The best steps of the stage with their figures, the best first; none where no best is kept."""
        return self._monitor.best if self._monitor else []

    @property
    def keeps_step(self) -> bool:
        """Whether the state of this step is to be saved, since it is among the best."""
        return self._kept_step == self._setup.state.step

    def is_open(self, *, due: bool) -> bool:
        """Return whether this step is yet to be decided on: an evaluation is `due`, or the stage ends."""
        step = self._setup.state.step
        if self._monitor is None or self.stopped or not self._stage.first_step < step:
            return False
        return self._monitor.step < step and (due or step == self._stage.end)

    def decide(self, result: Evaluation) -> None:
        """Decide by the figures of an evaluation, and record what follows from them."""
        if self._monitor is None or result.split != SPLIT:
            return
        step, monitor = self._setup.state.step, self._monitor
        if step <= monitor.step:
            return
        decision = monitor.feed(step, self._shared(result))
        failpoint("selection.decided")
        if decision.among_best:
            self._kept_step = step
        self._setup.optimizer.lower_rate(monitor.factor)
        for text in self._messages(lowered=decision.lowered):
            self._recorder.tell({"event": "note", "step": step, "text": text})

    def averages(self) -> bool:
        """Set the weights to the mean of the best steps, on all workers; return False if there are too few for a mean.

        The rest of the state stays as it is at the best step. Moving averages become the same mean, since they are
        evaluated.
        """
        steps, setup = [step for step, _ in self.best], self._setup
        if setup.cfg.checkpoint.average is None or len(steps) < 2:
            return False
        setup.beat("averaging checkpoints", alone=True)
        if setup.is_first:
            for path, value in mean_of(self._evaluated(step) for step in steps).items():
                for name in {path, _average_of(path)} & setup.state.variables.keys():
                    setup.state.variables[name].assign(value)
        setup.parallel.broadcast(list(setup.state.variables.values()))
        return True

    def value_of(self, result: Evaluation) -> float:
        """Return the figure by which the best is chosen."""
        return self._shared(result)[figure_of(self._metric)]

    def is_better(self, value: float) -> bool:
        """Return whether a figure is better than the best."""
        return better(figure_of(self._metric), value, self.best[0][1])

    def ending(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        """Record a note on the weights that the run ends with; return their entry for the run's summary."""
        average, best = choice["average_of"], (choice["step"], choice["value"])
        text = f"ends with the best: {described(best, self._metric)}"
        if self._setup.cfg.checkpoint.average is not None:
            of = ", ".join(f"{step:,}" for step in average)
            text += f", the mean of steps {of}" if average else ", which no mean of the best improves"
        self._recorder.tell({"event": "note", "step": choice["step"], "text": text})
        return {**choice, "metric": f"{SPLIT}.{figure_of(self._metric)}"}

    @property
    def _metric(self) -> str:
        best = self._setup.cfg.checkpoint.best
        assert best is not None
        return best.metric

    def _evaluated(self, step: int) -> dict[str, np.ndarray]:
        """Return the weights that were evaluated at a step: the averaged ones, where the run keeps an average."""
        setup = self._setup
        arrays = checkpoint.read(setup.run, step, expected=setup.state.layout).arrays
        return {path: arrays.get(_average_of(path), arrays[path]) for path in setup.model.moving}

    def _shared(self, result: Evaluation) -> dict[str, float]:
        """Return the figures that decide, as rank 0 has them; NaN where one is undefined."""
        names = sorted({figure_of(metric) for metric in metrics_of(self._setup.cfg).values()})
        figures = {**result.figures, "accuracy": result.accuracy} if self._setup.is_first else {}
        mine = [0.0 if not figures else math.nan if figures[n] is None else float(figures[n]) for n in names]
        total = self._setup.parallel.total({"figures": np.array(mine)})["figures"]
        return dict(zip(names, total.tolist(), strict=True))

    def _messages(self, *, lowered: bool) -> Iterator[str]:
        """Yield what the user wants to know of the decision."""
        cfg, monitor = self._setup.cfg, self._monitor
        assert monitor is not None
        if cfg.checkpoint.best is not None and monitor.best:
            yield f"best so far: {described(self.best[0], self._metric)}"
        if lowered:
            schedule = self._stage.optimizer.schedule
            rate = self._stage.optimizer.learning_rate * monitor.factor
            yield (
                f"{SPLIT} {figure_of(schedule.metric or '')} has not improved in {schedule.patience} evaluations: "
                f"the learning rate is {rate:.2g} from here on"
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


def mean_of(weights: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the mean of several sets of arrays, summed in float64 one set after another, in the arrays' own types."""
    sums: dict[str, np.ndarray] = {}
    dtypes: dict[str, Any] = {}
    number = 0
    for arrays in weights:
        number += 1
        for path, array in arrays.items():
            dtypes[path] = array.dtype
            sums[path] = sums.get(path, 0.0) + array.astype(np.float64)
    return {path: (total / number).astype(dtypes[path]) for path, total in sums.items()}


def _average_of(path: str) -> str:
    """Return the path of a variable's moving average in the state."""
    return f"optimizer/ema/{path}"
