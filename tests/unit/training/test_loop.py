"""What is due when; a stop reaches all workers at the same step; an evaluation that missed an example is refused."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tl_dist.config import Config, DataConfig, ModelConfig, OptimizerConfig
from tl_dist.parallel.single import SingleDevice
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.training import evaluation, loop
from tl_dist.training.chunk import SUMS
from tl_dist.training.evaluation import example_hash
from tl_dist.training.state import TrainState

CONFIG = Config(
    name="x", steps=1, data=DataConfig(name="digits"), model=ModelConfig(backbone="tiny"),
    optimizer=OptimizerConfig(learning_rate=0.1),
)  # fmt: skip
PARALLEL = SingleDevice(CONFIG)


def fake_steps(calls: list[tuple[int, int]]) -> Any:
    def run_steps(batches: Any, step: Any, n: Any) -> dict[str, Any]:
        calls.append((int(step), int(n)))
        return {key: tf.constant(float(n)) for key in SUMS}

    return run_steps


def train(periods: list[int], total_steps: int, *, from_step: int = 0, stop_after: int = 10**9) -> Any:
    calls: list[tuple[int, int]] = []
    state = TrainState({}, step=from_step)
    reports = loop.train(
        state, iter(()), fake_steps(calls), PARALLEL, cadence=loop.Cadence(periods, total_steps),
        rate=lambda step: float(step), stop_requested=lambda: len(calls) > stop_after,
    )  # fmt: skip
    return list(reports), calls, state


def test_chunks_end_at_every_event_and_at_the_end() -> None:
    reports, calls, state = train([4, 6], 15)
    ends = [step + n for step, n in calls]
    assert calls[0] == (0, 1)  # the first step alone: it compiles
    assert ends == [1, 4, 6, 8, 12, 15]
    assert state.step == 15
    assert [report.step for report in reports] == ends


def test_an_event_of_one_step_ends_a_chunk_there_alone() -> None:
    cadence = loop.Cadence([10], 30, once=(7, 12))
    assert [cadence.steps_to_next(step) for step in (0, 6, 7, 11, 12, 25)] == [7, 1, 3, 1, 8, 5]


def test_a_resumed_run_meets_the_same_events() -> None:
    _, calls, _ = train([4, 6], 15, from_step=7)
    assert [step + n for step, n in calls] == [8, 12, 15]


def test_a_stop_ends_after_the_chunk_in_which_it_came() -> None:
    reports, _, state = train([5], 100, stop_after=2)
    assert reports[-1].stop and not any(report.stop for report in reports[:-1])
    assert state.step == reports[-1].step == 10


@pytest.mark.parametrize(("step", "due"), [(0, False), (4, False), (5, True), (10, True)])
def test_is_due(step: int, due: bool) -> None:
    assert loop.is_due(step, 5) is due


def evaluate(indices: list[int], num_examples: int) -> Any:
    def evaluate_batch(batches: Any) -> dict[str, Any]:
        index = next(batches)
        return {
            "loss": tf.constant(0.5, tf.float64),
            "examples": tf.constant(1.0, tf.float64),
            "confusion": tf.constant([[1.0, 0.0], [0.0, 0.0]], tf.float64),
            "seen": tf.constant(float(example_hash(np.int64(index))), tf.float64),
            "logits": tf.constant([[float(index), 1.0]]),
        }

    return evaluation.evaluate(
        "test",
        num_examples,
        len(indices),
        iter(indices),
        evaluate_batch,
        PARALLEL,
        stop_requested=lambda: False,
    )


def test_evaluation_counts_what_it_saw() -> None:
    result = evaluate([0, 1, 2], 3)
    assert (result.num_examples, result.num_correct, result.mean_loss) == (3, 3, 0.5)
    np.testing.assert_array_equal(result.logits, [[0, 1], [1, 1], [2, 1]])


def test_logits_that_would_fill_the_memory_are_not_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "MAX_LOGITS", 5)
    result = evaluate([0, 1, 2], 3)
    assert result.logits is None and result.num_correct == 3


@pytest.mark.parametrize("indices", [[0, 1], [0, 1, 2, 2], [0, 1, 1]])
def test_evaluation_that_misses_or_repeats_an_example_is_refused(indices: list[int]) -> None:
    with pytest.raises(Refusal, match="of 3 examples") as caught:
        evaluate(indices, 3)
    assert caught.value.code == ExitCode.INTERNAL
