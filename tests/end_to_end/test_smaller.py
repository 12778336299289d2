"""A teacher's run and a smaller one: taught, pruned, on any number of workers, and as resumable as any other."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tl_dist as tl
from tests.end_to_end.harness import Workspace, bits, losses, records
from tl_dist.data.resize import resize
from tl_dist.features.stored import FeatureSet
from tl_dist.models import pruning
from tl_dist.runs.directory import RunDir
from tl_dist.runs.heartbeats import Heartbeats
from tl_dist.tools.prune.command import pruned
from tl_dist.trainer import attempt, distillation
from tl_dist.trainer import refit as worker_refit
from tl_dist.trainer.run_writer import RunWriter

CONFIG = """\
steps: 12
global_batch: 10
precision: float32
data: {name: synthetic, num_examples: 64, num_classes: 5, image_size: 16, augment: [flip]}
model: {backbone: tiny, weights: random, train_from: all, pooling: both}
optimizer: {name: sgd, learning_rate: 0.05}
report: {tensorboard: false, every_steps: 1}
checkpoint: {every_steps: 4}
safety: {max_restarts: 0}
runtime: {threads: 1}
"""
TAUGHT = ("distill.teacher=runs/teacher", "distill.temperature=2", "distill.weight=0.8", "seed=1")
PRUNED = (
    "source.run=runs/teacher",
    "source.head=true",
    "source.refit=true",
    "model.prune=0.5",
    "optimizer.learning_rate=0.001",
    *TAUGHT,
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("smaller"), CONFIG)
    # It has learnt its images by heart, as they are: what it says of their mirror images is something else.
    by_heart = ("optimizer.name=adam", "optimizer.learning_rate=0.01", "steps=60", "data.augment=[]")
    made.train_here("teacher", "optimizer.ema=0.5", *by_heart)
    return made


@pytest.fixture(autouse=True)
def _there(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.directory)


def stopped_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run in this process is asked to stop after this step."""
    report = RunWriter.report

    def then_stop(self: RunWriter, found: Any) -> None:
        report(self, found)
        if found.step == step:
            self.run.request_stop()

    monkeypatch.setattr(RunWriter, "report", then_stop)


def refusal(workspace: Workspace, name: str, *overrides: str) -> str:
    with pytest.raises(tl.Refusal) as caught:
        workspace.train_here(name, *overrides)
    assert "\n" not in str(caught.value) and " Fix: " in str(caught.value)
    return str(caught.value)


def test_two_workers_share_the_teachers_work_and_one_reads_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The curves of two workers and of one are the same, and not those of a run without a teacher.

    So are the layers that they fit together, and begin with.
    """
    phases: list[str] = []
    beat = Heartbeats.beat

    def noted(self: Heartbeats, rank: int, phase: str, *facts: Any) -> None:
        phases.append(phase)
        beat(self, rank, phase, *facts)

    monkeypatch.setattr(Heartbeats, "beat", noted)
    said = workspace.train("two", *PRUNED, "strategy=horovod", "workers=2")
    num_views = 2 * tl.open_dataset(tl.Run("runs/two").config)["train"].num_examples
    assert f"features of train by the teacher {num_views}/{num_views}" in said, said
    one = workspace.train_here("one", *PRUNED)
    assert not records(one, "extraction")
    assert any("3 layers fitted to" in record["text"] for record in records(one, "note"))
    found, expected = losses(workspace.run("two")), losses(one)
    assert found.keys() == expected.keys() and len(found) == 12
    np.testing.assert_allclose([*found.values()], [*expected.values()], rtol=1e-4)
    # Whoever has more of the images says no more often how far it is: by that the supervisor tells who waits for whom.
    in_groups = phases.count("fitting layers")
    monkeypatch.setattr(worker_refit, "_GROUP_BYTES", 1)
    workspace.train_here("image-by-image", *PRUNED)
    assert phases.count("fitting layers") == 2 * in_groups > 0
    unfitted = losses(workspace.train_here("unfitted", *PRUNED, "source.refit=false", "steps=1"))
    assert expected[1] < 0.8 * unfitted[1]
    alone = losses(workspace.train_here("alone", "seed=1"))
    assert np.abs(np.subtract([*alone.values()], [*expected.values()])).max() > 0.05


def test_what_is_kept_is_what_the_teacher_says_in_the_step(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the very view that the step sees: the teacher is given the augmented images instead."""
    kept = workspace.train_here("kept", *TAUGHT)
    for module in (attempt, distillation):
        monkeypatch.setattr(module, "taught_in_steps", lambda cfg: True)
    seen = workspace.train_here("seen", *TAUGHT)
    notes = [" ".join(record["text"] for record in records(run, "note")) for run in (kept, seen)]
    assert "from its kept outputs" in notes[0] and "in each step" in notes[1]
    (key,) = kept.features_referred_to()
    said = FeatureSet.open(Path("runs/features") / key, 2).array()
    assert np.abs(said[:, 0] - said[:, 1]).mean() > 0.1  # else any view would do
    np.testing.assert_allclose([*losses(kept).values()], [*losses(seen).values()], rtol=1e-4)


def test_mixed_images_are_shown_to_the_teacher_as_they_are(workspace: Workspace) -> None:
    run = workspace.train_here("mixed", *TAUGHT, "data.augmentation.mixup=0.4", "data.augment=[pad_crop]", "steps=2")
    assert "in each step" in " ".join(record["text"] for record in records(run, "note"))
    assert run.done and len(losses(run)) == 2


def test_a_stop_changes_no_bit_and_a_teacher_that_is_moved_or_changed_is_named(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = workspace.train_here("whole", *PRUNED)
    with monkeypatch.context() as patch:
        solve = pruning.Fit.solve

        def then_stop(self: pruning.Fit, *sums: Any) -> None:
            solve(self, *sums)
            workspace.run("cut").request_stop()

        patch.setattr(pruning.Fit, "solve", then_stop)
        workspace.train_here("cut", *PRUNED)
    assert workspace.run("cut").done is None and not losses(workspace.run("cut"))
    with monkeypatch.context() as patch:
        stopped_after(5, patch)
        workspace.train_here("cut", *PRUNED)
    assert workspace.run("cut").done is None
    Path("runs/teacher").rename("runs/elsewhere")
    try:
        said = refusal(workspace, "cut", *PRUNED[:-4], "source.run=runs/elsewhere", *TAUGHT)
        assert "runs/teacher is not a run. Fix: say where it lies now" in said
        workspace.train_here("other", "seed=5", "steps=4")
        said = refusal(workspace, "cut", *PRUNED, "source.run=runs/elsewhere", "distill.teacher=runs/other")
        assert "runs/other is not what" in said and "cut began with" in said
        workspace.train_here("cut", *PRUNED, "source.run=runs/elsewhere", "distill.teacher=runs/elsewhere")
    finally:
        Path("runs/elsewhere").rename("runs/teacher")
    assert bits(workspace.run("cut")) == bits(whole) and len(losses(whole)) == 12
    identity = json.loads(whole.identity_file.read_text())
    assert identity["trajectory"]["distill"]["teacher"] == "run" and len(identity["teacher_sha256"]) == 64


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras, as it saves
def test_a_pruned_run_is_a_run_of_a_smaller_network(workspace: Workspace) -> None:
    """As `tl-dist prune` has it: it starts at what is left of the averaged teacher, which goes on teaching it.

    It is loaded, predicts and is exported by itself.
    """
    cfg = pruned(workspace.run("teacher"), 0.5, ["epochs=2"])
    tl.train(cfg, runs=workspace.directory / "runs", here=True)
    run = tl.Run(workspace.run("teacher-pruned-0.5").path)
    note = "pruned: 6,032 of the backbone's 23,584 parameters"
    said = " ".join(record["text"] for record in run.history("note"))
    assert note in said and "taught by tiny of" in said
    model = run.keras_model()
    assert [layer.filters for layer in model.get_layer("tiny").layers if layer.weights] == [8, 16, 32]
    kept = run.predictions("test")
    source = tl.open_dataset(run.config)["test"]
    images = resize(source.read(tf.range(source.num_examples, dtype=tf.int64))[0], 16).numpy()
    np.testing.assert_allclose(model(images).numpy(), kept.probabilities, atol=1e-5)
    exported = run.export("keras", workspace.directory / "exported")
    assert exported["num_agreeing"] == exported["num_examples"] == len(images)


def test_the_head_is_carried_and_the_start_is_the_source(workspace: Workspace) -> None:
    """With a rate of nearly 0 and no share to prune, the figures are those of the source, bit for bit."""
    run = workspace.train_here(
        "again", "source.run=runs/teacher", "source.head=true", "optimizer.learning_rate=1e-30", "steps=1"
    )
    found, expected = (tl.Run(one.path).predictions("test") for one in (run, workspace.run("teacher")))
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)


def test_what_does_not_fit_is_refused(workspace: Workspace) -> None:
    shutil.copytree("runs/teacher", "runs/renamed")
    identity = RunDir("runs/renamed").identity_file
    names = json.loads(identity.read_text())
    names["class_names"][0] = "unheard of"
    identity.write_text(json.dumps(names))
    other = refusal(workspace, "x", *TAUGHT, "distill.teacher=runs/renamed")
    assert "has other classes: 'unheard of' there alone" in other
    head = refusal(workspace, "y", "source.run=runs/renamed", "source.head=true")
    assert head.startswith("source.run") and "has other classes" in head
    shutil.copytree("runs/teacher", "runs/unfinished")
    RunDir("runs/unfinished").done_file.unlink()
    assert "has not ended" in refusal(workspace, "x", *TAUGHT, "distill.teacher=runs/unfinished")
    said = refusal(workspace, "x", *TAUGHT, "data.image_size=24", "data.augment=[pad_crop]")
    assert "write 'image_size: 16'" in said
    said = refusal(workspace, "x", "source.run=runs/teacher", "source.head=true", "model.pooling=average")
    assert 'model.pooling is "both"' in said
