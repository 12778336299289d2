"""The best checkpoint, an early stop, the plateau and the average are decided alike, whatever interrupts the run."""

import json
import os
import signal
import subprocess
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file

import tl_dist as tl
from tests.end_to_end.harness import TL_DIST, Workspace, bits, losses, records, wait_for
from tl_dist.data.order import Order
from tl_dist.data.pipeline import plain, train_batches
from tl_dist.data.resize import resize
from tl_dist.refusal import ExitCode
from tl_dist.runs.directory import RunDir, steps_in

# Smoothed labels have a best fit, around which a high rate goes back and forth: the figures get better, then worse.
CONFIG = """\
steps: 80
global_batch: 15
precision: float32
data: {name: synthetic, num_examples: 240, num_classes: 4, image_size: 16, validation_fraction: 0.25}
model: {backbone: tiny, weights: random, train_from: block3}
loss: {label_smoothing: 0.3}
optimizer:
  name: adam
  learning_rate: 0.03
  schedule: {name: plateau, metric: log_loss, patience: 2, drop_factor: 0.5}
evaluation: {every_epochs: 0.25}
early_stopping: {metric: log_loss, patience: 4}
checkpoint: {best: {metric: validation.log_loss}, average: 3, keep: 1}
report: {tensorboard: false, every_steps: 1}
safety: {max_restarts: 0}
runtime: {threads: 1}
"""
STOPPED, BEST, AVERAGED = 21, 9, [9, 12, 21]
RATES = [0.03] * 15 + [0.015] * 6
BEST_FILE = "checkpoints/best/state.safetensors"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("selection"), CONFIG)
    made.train("clean")
    return made


def best_of(run: RunDir) -> dict[str, Any]:
    return dict((run.done or {})["best"])


def figures(run: RunDir) -> dict[tuple[str, int], float]:
    """The log loss of each evaluation; of those that were done again the last."""
    return {(r["split"], r["step"]): r["figures"]["log_loss"] for r in records(run, "evaluation")}


def rates(run: RunDir) -> list[float]:
    return list({record["step"]: record["learning_rate"] for record in records(run, "train")}.values())


def test_the_rate_drops_the_run_stops_and_ends_with_the_mean_of_the_best(workspace: Workspace) -> None:
    run = workspace.run("clean")
    np.testing.assert_allclose(rates(run), RATES, rtol=1e-6)
    assert best_of(run)["step"] == BEST and best_of(run)["average_of"] == AVERAGED
    evaluations = records(run, "evaluation")
    validated = {r["step"]: r["figures"]["log_loss"] for r in evaluations[:-2]}
    assert min(validated, key=lambda step: validated[step]) == BEST
    assert sorted(validated, key=lambda step: validated[step])[:3] == AVERAGED
    assert best_of(run)["value"] == evaluations[-2]["figures"]["log_loss"] < validated[BEST]
    assert [(r["split"], r["step"]) for r in evaluations[-2:]] == [("validation", BEST), ("test", BEST)]
    notes = [record["text"] for record in records(run, "note")]
    assert (
        f"stops early: 4 evaluations in a row were no better than step 9, validation log_loss {validated[9]:.4g}"
        in notes
    )
    assert notes[-1].endswith("the mean of steps 9, 12, 21")


def test_its_steps_are_those_of_a_schedule_that_drops_the_rate_there(workspace: Workspace) -> None:
    per_epoch = STOPPED / records(workspace.run("clean"), "train")[-1]["epoch"]
    cfg = tl.load_config(
        workspace.directory / "trial.yaml", "name=step", f"steps={STOPPED}", "optimizer.schedule.name=step",
        f"optimizer.schedule.drop_at_epochs=[{14.5 / per_epoch}]", "optimizer.schedule.metric=null",
        "optimizer.schedule.patience=3",
    )  # fmt: skip
    run = tl.train(cfg, runs=workspace.directory / "runs", here=True)
    expected = {record["step"]: record["loss"] for record in run.history()}
    found = losses(workspace.run("clean"))
    assert found.keys() == expected.keys() and len(found) == STOPPED
    np.testing.assert_allclose([*found.values()], [*expected.values()], rtol=1e-5)


def test_what_is_averaged_is_kept_beside_the_newest_and_its_mean_is_numpys(workspace: Workspace) -> None:
    run = workspace.run("clean")
    assert [step for step, _ in steps_in(run.checkpoints)] == AVERAGED[::-1]  # keep: 1
    parts = [load_file(path / "state.safetensors") for _, path in steps_in(run.checkpoints)]
    found = load_file(run.path / BEST_FILE)
    for path in (p for p in found if p.startswith(("head/", "backbone/"))):
        mean = np.mean([part[path].astype(np.float64) for part in parts], axis=0)
        np.testing.assert_array_equal(found[path], mean.astype(np.float32))


def said_by(run: tl.Run, at: str = "") -> np.ndarray:
    """What a model of the run says of the test split."""
    source, model = tl.open_dataset(run.config)["test"], run.keras_model(at)
    images, _ = source.read(tf.range(source.num_examples, dtype=tf.int64))
    said: np.ndarray = model(resize(images, model.input_shape[1])).numpy()
    return said


def evaluated(workspace: Workspace, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [TL_DIST, "eval", "runs/clean", *arguments], cwd=workspace.directory, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads((workspace.run("clean").path / "evaluations" / "test.json").read_text()))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras, as it saves
def test_eval_the_keras_model_and_exports_take_the_best_unless_told(workspace: Workspace) -> None:
    run = tl.Run(workspace.run("clean").path)
    last = evaluated(workspace, "--at", "last")
    assert last["step"] == STOPPED
    best = evaluated(workspace)
    assert best["step"] == BEST and best["figures"] == {
        key: value for key, value in run.scores["test"].items() if key in best["figures"]
    }
    assert best["loss"] != last["loss"]
    np.testing.assert_allclose(said_by(run), run.predictions("test").probabilities, atol=1e-5)
    assert np.abs(said_by(run, "last") - said_by(run)).max() > 1e-3
    exported = run.export("keras", workspace.directory / "best")
    assert exported["step"] == BEST and exported["num_agreeing"] == exported["num_examples"]
    assert run.export("keras", workspace.directory / "last", check="none", at="last")["step"] == STOPPED
    for at, fix in (("5", "9, 12, 21"), ("newest", "best, last or the number of a step")):
        with pytest.raises(tl.Refusal, match=f"Fix: .*{fix}"):
            run.keras_model(at)


def test_stopped_and_killed_before_in_and_after_what_decides_it_ends_with_the_same_bits(
    workspace: Workspace,
) -> None:
    """One after another: stopped after step 9, killed as that is evaluated at last, with the decision on step 12 not
    saved, with it saved, and as the average is evaluated."""
    run, clean = workspace.run("killed"), workspace.run("clean")
    process, worker = workspace.start_up_to("killed", 9, rank=0, program=TL_DIST)
    process.send_signal(signal.SIGINT)
    wait_for(run.stop_file.exists, "the stop")
    os.kill(worker, signal.SIGCONT)
    process.communicate(timeout=120)
    assert process.returncode == ExitCode.REQUEUE
    assert steps_in(run.checkpoints)[0][0] == 9 not in {r["step"] for r in records(run, "evaluation")}
    for place in (
        "evaluation.figures:1", "selection.decided:2", "checkpoint.after_rename:1", "evaluation.figures:4"
    ):  # fmt: skip
        process = workspace.start(workspace.argv("killed"), TL_FAILPOINT=f"{place}=kill", TL_ALLOW_FAILPOINTS="1")
        said, _ = process.communicate(timeout=240)
        assert process.returncode not in (0, ExitCode.USAGE) and run.done is None, (place, said)
    workspace.train("killed")
    assert bits(run) == bits(clean)
    assert (run.path / BEST_FILE).read_bytes() == (clean.path / BEST_FILE).read_bytes()
    assert best_of(run) == best_of(clean)
    assert figures(run) == figures(clean) and losses(run) == losses(clean)
    assert rates(run) == rates(clean)


def test_two_replicas_decide_as_one_worker_and_three_workers_of_another_strategy_go_on_alike(
    workspace: Workspace,
) -> None:
    run, clean = workspace.run("moved"), workspace.run("clean")
    process = workspace.start(
        workspace.argv("moved", "--strategy=mirrored", "-n2"),
        TL_FAILPOINT="evaluation.figures:5=kill",
        TL_ALLOW_FAILPOINTS="1",
    )
    said, _ = process.communicate(timeout=240)
    assert process.returncode != 0 and [r["step"] for r in records(run, "evaluation")] == [3, 6, 9, 12], said
    workspace.train("moved", "--strategy=horovod", "-n3")
    for key in ("step", "average_of", "metric"):
        assert best_of(run)[key] == best_of(clean)[key]
    np.testing.assert_allclose(rates(run), RATES, rtol=1e-6)
    assert figures(run).keys() == figures(clean).keys()
    np.testing.assert_allclose([*figures(run).values()], [*figures(clean).values()], rtol=1e-3)


def test_a_stage_that_stops_early_hands_its_best_to_the_next(workspace: Workspace) -> None:
    """What the second stage keeps frozen is what the first had at its best, not at its end; averages among it."""
    workspace.train(
        "stages",
        "steps=null",
        "model.train_from=head",
        "stages=[{train_from: block3, steps: 40}, {train_from: head, steps: 12, learning_rate: 0.003}]",
        "optimizer.schedule.name=constant",
        "optimizer.schedule.metric=null",
        "optimizer.schedule.patience=3",
        "optimizer.ema=0.5",
        "checkpoint.every_steps=1",
        "checkpoint.keep=60",
        "checkpoint.average=null",
    )
    run = workspace.run("stages")
    trained = [record["step"] for record in records(run, "train")]
    first = [step for step in trained if step <= 40]
    validated = {r["step"]: r["figures"]["log_loss"] for r in records(run, "evaluation") if r["step"] in first}
    best = min(validated, key=lambda step: validated[step])
    assert best < first[-1] < 40 and trained[len(first)] == 41
    state = {step: load_file(path / "state.safetensors") for step, path in steps_in(run.checkpoints)}
    path = "backbone/block3_conv1/kernel"
    np.testing.assert_array_equal(state[41][path], state[best][path])
    assert not np.array_equal(state[first[-1]][path], state[best][path])
    assert 40 < best_of(run)["step"] <= trained[-1] == 52


@pytest.mark.parametrize("average", ["null", "2"])
def test_statistics_of_batch_norm_are_those_of_the_weights_that_it_ends_with(
    workspace: Workspace, average: str
) -> None:
    """Of momentum 0.999 none has moved: as the checkpoint of a step has them, they would give other predictions."""
    cfg = tl.load_config(
        workspace.directory / "trial.yaml", f"name=norm-{average}", "steps=8", "data.image_size=32",
        "model.backbone=tests.normalised:NORMALISED", "model.train_from=all", "model.batch_norm=sync",
        "model.batch_norm_momentum=0.999", "evaluation.every_epochs=0.2", "checkpoint.best.metric=ece",
        f"checkpoint.average={average}",
    )  # fmt: skip
    run = tl.train(cfg, runs=workspace.directory / "runs", here=True)
    best = best_of(RunDir(run.path))
    assert best["step"] < 8
    said = said_by(run)
    np.testing.assert_allclose(said, run.predictions("test").probabilities, atol=1e-5)
    assert np.abs(said_by(run, str(best["step"])) - said).max() > 1e-2


def test_an_average_with_batch_norm_is_taken_with_statistics_of_its_own(workspace: Workspace) -> None:
    """By NumPy, of the layer that no other one normalizes for: those of the training images that come next."""
    cfg = tl.load_config(
        workspace.directory / "trial.yaml", "name=norm-averaged", "steps=24", "data.image_size=32",
        "model.backbone=tests.normalised:NORMALISED", "model.train_from=all", "model.batch_norm=sync",
        "optimizer.learning_rate=0.1", "early_stopping.patience=40",
    )  # fmt: skip
    run = RunDir(tl.train(cfg, runs=workspace.directory / "runs", here=True).path)
    best = best_of(run)
    assert len(best["average_of"]) == 3  # else there would be nothing to see
    found = load_file(run.path / BEST_FILE)
    train = tl.open_dataset(cfg)["train"]
    number = -(-min(1024, train.num_examples) // cfg.global_batch)
    batches = train_batches(
        plain(train, 32), Order(cfg.seed, train.num_examples, cfg.global_batch), rows=range(cfg.global_batch),
        steps=range(best["step"], best["step"] + number),
    )  # fmt: skip
    images = np.concatenate([batch.images for batch in batches]).astype(np.float64) / 127.5 - 1
    kernel, bias = (found[f"backbone/conv1/{name}"].astype(np.float64) for name in ("kernel", "bias"))
    seen = np.lib.stride_tricks.sliding_window_view(images, (3, 3), axis=(1, 2))[:, ::2, ::2]
    outputs = np.einsum("nhwcij,ijco->nhwo", seen, kernel) + bias
    for name, value in (("mean", outputs.mean(axis=(0, 1, 2))), ("variance", outputs.var(axis=(0, 1, 2)))):
        np.testing.assert_allclose(found[f"backbone/norm1/moving_{name}"], value, rtol=1e-3, atol=1e-5)


def test_without_a_validation_split_it_is_refused(workspace: Workspace) -> None:
    said = workspace.train("none", "data.validation_fraction=0", expect=ExitCode.USAGE)
    assert "no validation split" in said and "Fix: write 'validation_fraction: 0.1'" in said
    assert not (workspace.run("none").path / "run.json").exists()


def test_other_settings_of_what_decides_are_another_run(workspace: Workspace) -> None:
    said = workspace.train("clean", "early_stopping.patience=9", expect=ExitCode.UNSAFE)
    assert "early_stopping.patience: 4 -> 9" in said
    said = workspace.train("clean", "evaluation.every_epochs=1", expect=ExitCode.UNSAFE)
    assert "evaluation.every_epochs: 0.25 -> 1" in said
