"""`task: ordinal`: grades are learnt, and every tool takes them; killed, a run of any loss ends with the same bits."""

import csv
import json
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import tl_dist as tl
from tests.end_to_end.harness import EVERY_STEP, ONE_WORKER, TL_DIST, Workspace, bits, losses, records
from tl_dist.config import registry
from tl_dist.refusal import ExitCode
from tl_dist.runs.directory import RunDir
from tl_dist.scores.cross_validation import OUT_OF_FOLD
from tl_dist.tools.serve.requests import Answers
from tl_dist.tools.serve.served import of_export, of_run

GRADES = ("none", "mild", "severe", "total")
CONFIG = (
    EVERY_STEP
    + f"""\
task: ordinal
global_batch: 15
steps: 30
data:
  name: image_folder
  path: cells
  image_size: 16
  grades: [{", ".join(GRADES)}]
  validation_fraction: 0.2
model: {{backbone: tiny, weights: random, train_from: all}}
optimizer: {{name: adam, learning_rate: 0.01}}
checkpoint: {{best: {{metric: quadratic_kappa}}}}
evaluation: {{every_epochs: 1}}
"""
)


def tl_dist(workspace: Workspace, *arguments: str, expect: int = 0) -> str:
    process = workspace.start([TL_DIST, *arguments])
    said, _ = process.communicate(timeout=240)
    assert process.returncode == expect, said
    return " ".join(said.split())


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """Pictures that are the darker the higher their grade, with noise; one worker has trained on them."""
    made = Workspace(tmp_path_factory.mktemp("ordinal"), CONFIG)
    draws = np.random.default_rng(0)
    for k in range(240):
        grade = k % 4
        pixels = np.clip(draws.normal(200 - 45 * grade + draws.normal(0, 12), 20, (16, 16, 3)), 0, 255)
        (made.directory / "cells" / GRADES[grade]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(made.directory / "cells" / GRADES[grade] / f"{k:03d}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.directory)
        made.train_here("coral", "loss.name=coral")
        yield made


LOSSES = [pytest.param("corn", marks=pytest.mark.full), "coral"]


@pytest.mark.parametrize("loss", LOSSES)
def test_grades_are_learnt_in_their_order_and_mistakes_are_near(workspace: Workspace, loss: str) -> None:
    workspace.train_here(loss, f"loss.name={loss}")
    run = tl.Run(f"runs/{loss}")
    test = run.predictions("test")
    assert tuple(test.class_names) == GRADES
    figures = run.scores["test"]
    assert figures["quadratic_kappa"] > 0.8 and figures["mae"] < 0.6
    low, high = figures["quadratic_kappa_interval"]
    assert low < figures["quadratic_kappa"] <= high
    kept = records(RunDir(run.path), "done")[-1]["best"]
    assert kept["metric"] == "validation.quadratic_kappa"


@pytest.mark.parametrize("loss", LOSSES)
def test_two_workers_train_as_one_does(workspace: Workspace, loss: str) -> None:
    workspace.train_here(loss, f"loss.name={loss}")
    workspace.train(f"{loss}-2", f"loss.name={loss}", "strategy=horovod", "workers=2", "steps=8")
    pair = [list(losses(workspace.run(name)).values())[:8] for name in (loss, f"{loss}-2")]
    np.testing.assert_allclose(*pair, rtol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        ("loss.name=coral", "data.augmentation.mixup=0.3"),
        pytest.param(
            ("task=classification", "loss.name=focal", "data.balance=true", "checkpoint.best.metric=macro_f1"),
            marks=pytest.mark.full,
        ),
        pytest.param(
            ("task=classification", "loss.name=logit_adjusted", "checkpoint.best.metric=log_loss"),
            marks=pytest.mark.full,
        ),
    ],
    ids=["coral", "focal", "logit_adjusted"],
)
def test_killed_it_ends_with_the_same_bits(workspace: Workspace, settings: tuple[str, ...]) -> None:
    name = settings[0].removeprefix("task=") if len(settings) < 3 else settings[1]
    name = name.removeprefix("loss.name=")
    short = (*settings, "steps=9", "evaluation.every_epochs=0.5", "checkpoint.every_steps=4")
    workspace.train(f"{name}-whole", *short, *ONE_WORKER)
    process = workspace.start(
        workspace.argv(f"{name}-killed", *short, *ONE_WORKER),
        TL_FAILPOINT="train.chunk_done:7=kill",
        TL_ALLOW_FAILPOINTS="1",
    )
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert records(workspace.run(f"{name}-killed"), "resumed"), said
    assert bits(workspace.run(f"{name}-killed")) == bits(workspace.run(f"{name}-whole"))


@pytest.mark.parametrize("loss", LOSSES)
def test_predict_serve_and_export_give_the_grades_of_the_evaluation(workspace: Workspace, loss: str) -> None:
    workspace.train_here(loss, f"loss.name={loss}")
    run = tl.Run(f"runs/{loss}")
    test = run.predictions("test")
    paths = [f"cells/{name}" for name in test.ids.tolist()]
    tl_dist(workspace, "predict", f"runs/{loss}", *paths, "--top", "4", "--out", f"{loss}.csv")
    rows = list(csv.DictReader((workspace.directory / f"{loss}.csv").read_text().splitlines()))
    for row, own in zip(rows, test.probabilities, strict=True):
        assert row["class"] == GRADES[own.argmax()]
        assert float(row["probability"]) == pytest.approx(own.max(), abs=1e-5)
    sent = [(path, (workspace.directory / path).read_bytes()) for path in paths]
    tl_dist(workspace, "export", f"runs/{loss}", "--to", "onnx", "--out", f"{loss}-onnx")
    assert "MAE 0." in (workspace.directory / f"{loss}-onnx/MODEL_CARD.md").read_text()
    for model in (
        of_run(RunDir.open(run.path), "", cores=None),
        of_export(workspace.directory / f"{loss}-onnx", cores=1),
    ):
        answers = Answers(model, cores=1).to_files(sent)["predictions"]
        assert [answer["class"] for answer in answers] == [row["class"] for row in rows]
    keras_model = run.keras_model()
    images = np.stack([np.asarray(Image.open(workspace.directory / path)) for path in paths[:8]])
    np.testing.assert_allclose(keras_model(images), test.probabilities[:8], atol=1e-5)


def test_calibrate_sets_and_report_take_grades(workspace: Workspace) -> None:
    run = tl.Run("runs/coral")
    assert run.calibrate().temperature > 0
    said = tl_dist(workspace, "eval", "runs/coral")
    assert "quadratic kappa" in said and "MAE 0." in said and "calibrated, temperature" in said
    tl_dist(workspace, "report", "runs/coral", "--out", "page.html")
    page = (workspace.directory / "page.html").read_text()
    assert "quadratic kappa" in page and "mean distance from the right grade" in page


def test_cross_validation_of_a_computed_classifier_has_the_figures(workspace: Workspace) -> None:
    of_head = CONFIG.replace("train_from: all", "train_from: head").replace("steps: 30", "steps: 1")
    of_head = of_head.replace("weights: random", "weights: tiny.safetensors")
    lines = of_head.partition("checkpoint:")[0] + "classifier: {name: logistic}\n"
    (workspace.directory / "folds.yaml").write_text(lines)
    network = registry.backbone("tiny").build((16, 16, 3))
    save_file({v.path: v.numpy() for v in network.weights}, workspace.directory / "tiny.safetensors")
    tl_dist(workspace, "cv", "folds.yaml", "--folds", "3", "--seeds", "2")
    summary = json.loads((workspace.directory / "runs/folds-cv/DONE").read_text())["cross_validation"]
    with np.load(workspace.directory / "runs/folds-cv" / OUT_OF_FOLD) as kept:
        distances = np.abs(kept["probabilities"].argmax(axis=-1) - kept["labels"])  # [seeds, examples]
        of_folds = [distances[s][of == k].mean() for s, of in enumerate(kept["fold"]) for k in range(3)]
    assert summary["figures"]["mae"] == pytest.approx(np.mean(of_folds))


def test_what_is_no_order_is_one_line(workspace: Workspace) -> None:
    head = "source.run=runs/coral", "source.head=true", "source.allow_seen=true"
    for settings, why in (
        (("data.grades=[]",), "the order of the grades mild, none, severe, total is unknown. Fix: write them"),
        (("data.grades=[none, mild, severe]",), "but the classes are mild, none, severe, total. Fix: write each"),
        (("task=classification",), "is no figure of task 'classification'. Fix: write 'task: ordinal'"),
        (("loss.name=corn", *head), "whose task, loss or order of grades is another one. Fix: remove 'head'"),
        (("loss.name=coral", "data.grades=[total, severe, mild, none]", *head), "loss or order of grades is another"),
        (("loss.name=coral", "loss.label_smoothing=0.1"), "label_smoothing has no effect with loss 'coral'"),
        (("loss.name=coral", "task=classification", "checkpoint.best.metric=mcc"), "does not belong to task"),
    ):
        process = workspace.start(workspace.argv("wrong", *settings, *ONE_WORKER))
        said, _ = process.communicate(timeout=60)
        assert process.returncode == ExitCode.USAGE and why in " ".join(said.split()), said


def test_labels_that_look_like_another_task_are_named_before_training(workspace: Workspace) -> None:
    rows = [f"cells/{GRADES[k % 4]}/{k:03d}.png,{('cat;furry', 'dog', 'furry', 'Dog')[k % 4]}" for k in range(240)]
    (workspace.directory / "odd.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    several = "look at the labels: labels such as 'cat;furry' look like several labels of one image"
    twice = "look at the labels: 'Dog' and 'dog' are 2 classes, and may be meant as one"
    found = tl_dist(workspace, "data", "inspect", "odd.csv")
    assert several in found and twice in found
    assert several in tl_dist(workspace, "init", "odd.csv", "--out", "odd.yaml")
    grades = ("data.name=csv", "data.path=odd.csv", "data.grades=[dog, Dog, furry]")
    process = workspace.start(workspace.argv("wrong", *grades, *ONE_WORKER))
    said, _ = process.communicate(timeout=60)
    why = "odd.csv:2: 'cat;furry' is none of data.grades: dog, Dog, furry. Fix: correct the label"
    assert why in " ".join(said.split())
    odd = ("task=classification", "loss.name=cross_entropy", "data.name=csv", "data.path=odd.csv", "data.grades=[]")
    said = workspace.train("odd", *odd, "checkpoint.best.metric=mcc", "steps=2", *ONE_WORKER)
    assert several in " ".join(said.split()) and twice in " ".join(said.split())
