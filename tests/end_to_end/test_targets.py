"""`task: multilabel` and `task: regression`: learnt, the same on two workers and after a kill, and every tool takes
their answers or says in one line why it does not."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import tl_dist as tl
from tests.end_to_end.harness import EVERY_STEP, ONE_WORKER, TL_DIST, Workspace, bits, losses, newest, records
from tl_dist.config import registry
from tl_dist.refusal import ExitCode
from tl_dist.runs.directory import RunDir
from tl_dist.scores import cross_validation
from tl_dist.scores.cross_validation import OUT_OF_FOLD
from tl_dist.tools.serve.requests import Answers
from tl_dist.tools.serve.served import of_export, of_run

NUM = 240
CONFIG = (
    EVERY_STEP
    + """\
task: multilabel
global_batch: 15
steps: 60
data: {name: csv, path: labels.csv, image_size: 16, validation_fraction: 0.2}
model: {backbone: tiny, weights: random, train_from: all}
optimizer: {name: adam, learning_rate: 0.01}
evaluation: {every_epochs: 1}
"""
)
NUMBERS = ("task=regression", "data.path=numbers.csv", "data.target=[red, year]", "checkpoint.best.metric=rmse")
HEAD = ("model.train_from=head", "model.weights=tiny.safetensors")
HEAD_OF_NUMBERS = ("source.run=runs/numbers", "source.head=true", "source.allow_seen=true")
BOARD = "report.tensorboard=true"
TASKS = {"labels": ("checkpoint.best.metric=map", BOARD), "numbers": (*NUMBERS, BOARD)}


def tl_dist(workspace: Workspace, *arguments: str, expect: int = 0) -> str:
    process = workspace.start([TL_DIST, *arguments])
    said, _ = process.communicate(timeout=240)
    assert process.returncode == expect, said
    return " ".join(said.split())


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """Images with bright channels: their names are the labels; how red they are, and a year that follows, the numbers.

    One worker has trained on both.
    """
    made = Workspace(tmp_path_factory.mktemp("targets"), CONFIG)
    draws = np.random.default_rng(0)
    lines: dict[str, list[str]] = {"labels": ["path,label"], "numbers": ["path,red,year"]}
    (made.directory / "images").mkdir()
    for k in range(NUM):
        has = draws.random(3) < (0.5, 0.4, 0.2)
        has[k % 3] |= not has.any()
        pixels = draws.normal(70, 25, (16, 16, 3)) + has * draws.uniform(60, 140)
        pixels = np.clip(pixels, 0, 255).astype(np.uint8)
        path = f"images/{k:03d}.png"
        Image.fromarray(pixels).save(made.directory / path)
        lines["labels"].append(f"{path},{';'.join(np.array(['red', 'green', 'blue'])[has])}")
        red = pixels[..., 0].mean() / 255
        lines["numbers"].append(f"{path},{red:.5f},{1900 + 100 * red + draws.normal(0, 3):.3f}")
    for name, rows in lines.items():
        (made.directory / f"{name}.csv").write_text("\n".join(rows) + "\n")
    network = registry.backbone("tiny").build((16, 16, 3))
    save_file({v.path: v.numpy() for v in network.weights}, made.directory / "tiny.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.directory)
        for name, settings in TASKS.items():
            made.train_here(name, *settings)
        yield made


def images_of(workspace: Workspace, ids: Any) -> np.ndarray:
    return np.stack([np.asarray(Image.open(workspace.directory / str(name))) for name in ids])


def test_labels_and_numbers_are_learnt(workspace: Workspace) -> None:
    labels, numbers = (tl.Run(f"runs/{name}").scores["test"] for name in TASKS)
    assert labels["map"] > 0.9 and labels["micro_f1"] > 0.8 and labels["main"] == "map"
    low, high = labels["map_interval"]
    assert low <= labels["map"] <= high
    assert numbers["r2"] > 0.8 and numbers["main"] == "rmse" and len(numbers["targets"]) == 2
    assert numbers["targets"][1]["rmse"] < 15  # of a year that varies by some 25 years
    for name, metric in (("labels", "map"), ("numbers", "rmse")):
        kept = records(workspace.run(name), "done")[-1]["best"]
        assert kept["metric"] == f"validation.{metric}"
        assert any(workspace.run(name).tensorboard.glob("*tfevents*"))
        assert not any("no picture" in record["text"] for record in records(workspace.run(name), "note"))
    said = tl_dist(workspace, "runs")
    assert "test 0." in said or "test 1" in said
    assert all(record["accuracy"] is None for record in records(workspace.run("numbers"), "train"))


@pytest.mark.parametrize("name", ["labels", pytest.param("numbers", marks=pytest.mark.full)])
def test_two_workers_train_as_one_does(workspace: Workspace, name: str) -> None:
    workspace.train(f"{name}-2", *TASKS[name], "steps=8", "strategy=horovod", "workers=2")
    one, two = (list(losses(workspace.run(each)).values())[:8] for each in (name, f"{name}-2"))
    np.testing.assert_allclose(two, one, rtol=1e-3)


@pytest.mark.parametrize("name", [pytest.param("labels", marks=pytest.mark.full), "numbers"])
def test_killed_it_ends_with_the_same_bits(workspace: Workspace, name: str) -> None:
    """With mixed images, averages of the weights, and the decisions of the validation split."""
    more = "data.augmentation.mixup=0.3", "optimizer.ema=0.9", "evaluation.every_epochs=0.5"
    short = (*TASKS[name], *more, "report.tensorboard=false", "steps=9", "checkpoint.every_steps=4")
    workspace.train(f"{name}-whole", *short, *ONE_WORKER)
    process = workspace.start(
        workspace.argv(f"{name}-killed", *short, *ONE_WORKER),
        TL_FAILPOINT="train.chunk_done:7=kill",
        TL_ALLOW_FAILPOINTS="1",
    )
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and records(workspace.run(f"{name}-killed"), "resumed"), said
    assert bits(workspace.run(f"{name}-killed")) == bits(workspace.run(f"{name}-whole"))


def test_held_out_labels_and_numbers_reach_no_weight(workspace: Workspace) -> None:
    """All of the test split turned around: the newest state keeps its bits; those of training move it."""
    for name, settings in TASKS.items():
        ids = {split: set(tl.Run(f"runs/{name}").predictions(split).ids.tolist()) for split in ("test", "validation")}
        header, *rows = (workspace.directory / f"{name}.csv").read_text().splitlines()
        splits = {path: next((s for s in ids if path in ids[s]), "train") for path in (r.split(",")[0] for r in rows)}
        states = []
        for turned in ("nothing", "test", "train"):
            changed = []
            for k, row in enumerate(rows):
                path, *values = row.split(",")
                if splits[path] == turned:
                    values = [("green", "red;blue")[k % 2]] if name == "labels" else [f"{k % 7}", f"{k % 5}"]
                changed.append(",".join([path, *values, splits[path]]))
            (workspace.directory / "turned.csv").write_text("\n".join([f"{header},split", *changed]) + "\n")
            official = "data.path=turned.csv", "data.validation_fraction=0", "steps=4", "report.tensorboard=false"
            states.append(newest(workspace.train_here(f"{name}-{turned}", *settings, *official)).read_bytes())
        assert states[0] == states[1] != states[2], name


def test_predict_serve_and_export_give_the_answers_of_the_evaluation(
    workspace: Workspace, pytestconfig: pytest.Config
) -> None:
    tl_dist(workspace, "threshold", "runs/labels", "--f1")
    for name in TASKS:
        run = tl.Run(f"runs/{name}")
        test = run.predictions("test")
        paths = [str(path) for path in test.ids[:20]]
        tl_dist(workspace, "predict", f"runs/{name}", *paths, "--out", f"{name}.out.csv")
        rows = list(csv.DictReader((workspace.directory / f"{name}.out.csv").read_text().splitlines()))
        said = np.array([[float(row[key]) for key in test.class_names] for row in rows])
        np.testing.assert_allclose(said, test.probabilities[:20], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(run.predict(paths).probabilities, test.probabilities[:20], rtol=1e-5, atol=1e-6)
        sent = [(path, (workspace.directory / path).read_bytes()) for path in paths]
        models = [of_run(RunDir.open(run.path), "", cores=None)]
        for to in ("onnx", "savedmodel") if pytestconfig.option.full or name == "numbers" else ("onnx",):
            told = tl_dist(workspace, "export", f"runs/{name}", "--to", to, "--out", f"{name}-{to}")
            num = len(test.ids)
            assert f"{num} of {num} images of 'test' have the answer that the run gives them" in told
            models.append(of_export(workspace.directory / f"{name}-{to}", cores=1))
        card = (workspace.directory / f"{name}-onnx/MODEL_CARD.md").read_text()
        assert ("An image tagger of 3 labels" if name == "labels" else "estimates 2 numbers") in card
        for model in models:
            answers = Answers(model, cores=1).to_files(sent)["predictions"]
            for answer, row, own in zip(answers, rows, test.probabilities, strict=False):
                if name == "labels":
                    assert answer["labels"] == [n for n in row["labels"].split("|") if n]
                    np.testing.assert_allclose(answer["probabilities"], own, atol=1e-5)
                else:
                    np.testing.assert_allclose([*answer["values"].values()], own, rtol=1e-5)
        keras_model = run.keras_model()
        np.testing.assert_allclose(
            keras_model(images_of(workspace, paths)), test.probabilities[:20], rtol=1e-4, atol=1e-5
        )


def test_thresholds_of_labels_are_obeyed_and_their_effect_is_shown(workspace: Workspace) -> None:
    said = tl_dist(workspace, "threshold", "runs/labels", "--recall", "0.9")
    rule = tl.Run("runs/labels").decision
    assert rule is not None and len(rule.thresholds) == 3 and "recall at least 0.9 of each label" in said
    validation = tl.Run("runs/labels").predictions("validation")
    for has, scores, least in zip(validation.targets.T, validation.probabilities.T, rule.thresholds, strict=True):
        assert (scores[has > 0.5] >= least).mean() >= 0.9
    test = tl.Run("runs/labels").predictions("test")
    tl_dist(workspace, "predict", "runs/labels", *map(str, test.ids), "--out", "rule.csv")
    rows = list(csv.DictReader((workspace.directory / "rule.csv").read_text().splitlines()))
    given = [[n for n in row["labels"].split("|") if n] for row in rows]
    expected = test.probabilities >= np.array(rule.thresholds)
    assert given == [[str(n) for n in test.class_names[row]] for row in expected]
    evaluated = tl_dist(workspace, "eval", "runs/labels")
    assert "recall at least 0.9 of each label: recall" in evaluated and "without the rule" in evaluated
    assert "label images recall" in evaluated.replace("┃", " ")


def test_calibrate_keeps_distances_and_predict_makes_intervals_of_them(workspace: Workspace) -> None:
    said = tl_dist(workspace, "calibrate", "runs/numbers")
    assert "kept how far its numbers are from the truth on 48 images" in said
    run = tl.Run("runs/numbers")
    test, validation = run.predictions("test"), run.predictions("validation")
    tl_dist(workspace, "predict", "runs/numbers", *map(str, test.ids), "--coverage", "0.8", "--out", "ends.csv")
    rows = list(csv.DictReader((workspace.directory / "ends.csv").read_text().splitlines()))
    for k, name in enumerate(test.class_names):
        half = np.sort(np.abs(validation.probabilities - validation.targets)[:, k])[int(np.ceil(49 * 0.8)) - 1]
        for row, value in zip(rows, test.probabilities[:, k], strict=True):
            assert float(row[f"{name}_low"]) == pytest.approx(value - half, rel=1e-4)
            assert float(row[f"{name}_high"]) == pytest.approx(value + half, rel=1e-4)
    shown = tl_dist(workspace, "predict", "runs/numbers", str(test.ids[0]), "--coverage", "0.8")
    assert " (" in shown and " to " in shown


def test_reports_show_residuals_and_labels(workspace: Workspace) -> None:
    for name, words in (
        ("numbers", ("Residuals", "answer less truth", "RMSE")),
        ("labels", ("Labels", "average precision")),
    ):
        tl_dist(workspace, "report", f"runs/{name}", "--out", f"{name}.html")
        page = (workspace.directory / f"{name}.html").read_text()
        assert all(word in page for word in (*words, "Largest errors", "data:image/webp"))


@pytest.mark.parametrize(
    ("name", "classifier"), [pytest.param("labels", "logistic", marks=pytest.mark.full), ("numbers", "ridge")]
)
def test_cross_validation_of_a_computed_classifier(workspace: Workspace, name: str, classifier: str) -> None:
    of_head = CONFIG.replace("train_from: all", "train_from: head").replace(
        "weights: random", "weights: tiny.safetensors"
    )
    lines = [line for line in of_head.splitlines() if not line.startswith(("optimizer:", "evaluation:", "steps:"))]
    text = "\n".join([*lines, f"classifier: {{name: {classifier}, l2: auto}}"])
    (workspace.directory / "folds.yaml").write_text(text)
    settings = [setting for setting in TASKS[name] if not setting.startswith("checkpoint")]
    said = tl_dist(workspace, "cv", "folds.yaml", *settings, f"name={name}", "--folds", "3", "--seeds", "2")
    run = workspace.directory / f"runs/{cross_validation.name_of(name)}"
    summary = json.loads((run / "DONE").read_text())["cross_validation"]
    out_of_fold = cross_validation.load(run / OUT_OF_FOLD)
    truth, answers = out_of_fold.truth, out_of_fold.probabilities
    assert truth.shape == answers.shape[1:] == (NUM, 3 if name == "labels" else 2)
    main = summary["main"]
    assert ("mAP" if main == "map" else "RMSE") in said
    if main == "rmse":
        errors = [
            np.sqrt(((answers[seed][of == k] - truth[of == k]) ** 2).mean(axis=0)).mean()
            for seed, of in enumerate(out_of_fold.fold)
            for k in range(3)
        ]
        assert summary["rmse"] == pytest.approx(np.mean(errors), rel=1e-5)
    low, high = summary["interval"]
    assert low < summary[main] < high or low == summary[main] == high
    page = tl_dist(workspace, "report", str(run), "--out", "folds.html")
    assert "folds.html" in page


def test_folds_of_trained_runs_are_merged(workspace: Workspace) -> None:
    settings = ("name=merged", "task=regression", "data.path=numbers.csv", "data.target=year", "steps=4")
    (workspace.directory / "merged.yaml").write_text(
        CONFIG.replace("validation_fraction: 0.2", "validation_fraction: 0")
    )
    tl_dist(workspace, "cv", "merged.yaml", *settings, "--folds", "2", "--seeds", "1")
    kept = cross_validation.load(workspace.directory / "runs/merged-cv" / OUT_OF_FOLD)
    assert kept.truth.shape == (NUM, 1) and (kept.truth[:, 0] > 1900).all()


def test_views_are_averaged_as_probabilities_and_as_numbers(workspace: Workspace) -> None:
    for name in TASKS:
        run = tl.Run(f"runs/{name}")
        tl_dist(workspace, "eval", f"runs/{name}", "--split", "validation", "--views", "flip")
        merged, model = run.predictions("validation"), run.keras_model()
        images = images_of(workspace, merged.ids)
        both = np.mean([model(images), model(images[:, :, ::-1])], axis=0)
        np.testing.assert_allclose(merged.probabilities, both, rtol=1e-4, atol=1e-5)
        tl_dist(workspace, "eval", f"runs/{name}", "--split", "validation")


def test_numbers_that_are_all_0_and_1_are_numbers_and_names_may_begin_alike(workspace: Workspace) -> None:
    """Of the task, not of its values: no labels in the report, no threshold. `red` does not hide `red_low`."""
    rows = [line.split(",")[0] for line in (workspace.directory / "numbers.csv").read_text().splitlines()[1:]]
    table = "".join(f"{path},{k % 2},{k % 3 % 2}\n" for k, path in enumerate(rows))
    (workspace.directory / "alike.csv").write_text("path,red,red_low\n" + table)
    columns = "data.path=alike.csv", "steps=2", BOARD
    workspace.train_here("binary", *NUMBERS, "data.target=[red, red_low]", *columns)
    workspace.train_here("alike", "data.separator=null", "data.label_columns=[red, red_low]", *columns)
    tl_dist(workspace, "report", "runs/binary")
    page = (workspace.run("binary").path / "report.html").read_text()
    assert "Residuals" in page and 'id="thresholds"' not in page and 'id="classes"' not in page
    assert "numbers have no threshold" in tl_dist(workspace, "threshold", "runs/binary", "--f1", expect=64)
    image = str(Path("images") / Path(rows[0]).name)
    assert ", red_low " in tl_dist(workspace, "predict", "runs/binary", image)
    assert ", red_low " in tl_dist(workspace, "predict", "runs/alike", image)
    tl_dist(workspace, "calibrate", "runs/binary")
    wide = tl_dist(workspace, "predict", "runs/binary", image, "--coverage", "0.9")
    assert wide.count(" to ") == 2
    refused = tl_dist(workspace, "predict", "runs/binary", image, "--coverage", "0.9", "--out", "a.csv", expect=64)
    assert "two columns 'red_low'" in refused and not Path("a.csv").exists()


def test_what_does_not_fit_a_task_is_one_line(workspace: Workspace) -> None:
    rows = [line.split(",")[0] for line in (workspace.directory / "numbers.csv").read_text().splitlines()[1:]]
    both = "".join(f"{path},{k % 2},{k % 3 % 2}\n" for k, path in enumerate(rows))
    (workspace.directory / "both.csv").write_text("path,red,year\n" + both)
    for settings, why in (
        (("loss.name=focal",), "loss 'focal' does not belong to task 'multilabel'. Fix: write 'task: classification'"),
        (("task=regression", "data.path=numbers.csv"), "there is no column 'label', only path, red, year"),
        # A class for each combination, with a remark.
        (("task=classification", "data.separator=null", "loss.name=cross_entropy"), None),
        (("data.balance=true",), "data.balance needs one class for each image, which task 'multilabel' has not"),
        (("loss.class_weights=balanced",), "Fix: remove it (loss.pos_weight weighs labels)"),
        (("loss.pos_weight=[1, 2]",), "loss.pos_weight has 2 numbers for 3 labels. Fix: give one for each of"),
        (("checkpoint.best.metric=rmse",), "of task 'multilabel'. Fix: write 'task: regression', or use one of"),
        (("data.target=red",), "data.target has no effect with task 'multilabel'. Fix: write 'task: regression'"),
        (("data.name=image_folder", "data.path=images"), "dataset 'image_folder' has one class for each image"),
        (HEAD_OF_NUMBERS, "has other classes: 'year' there"),
        (
            ("data.path=both.csv", "data.separator=null", "data.label_columns=[red, year]", *HEAD_OF_NUMBERS),
            "whose task, loss or order of grades is another one",
        ),
        (("classifier.name=ridge", *HEAD), "classifier 'ridge' does not belong to task 'multilabel'"),
        ((*NUMBERS, "loss.delta=2"), "loss.delta has no effect without 'name: huber'"),
        ((*NUMBERS, "distill.teacher=runs/labels"), "distill needs one class for each image"),
    ):
        process = workspace.start(workspace.argv("wrong" if why else "classes", *settings, "steps=1", *ONE_WORKER))
        said, _ = process.communicate(timeout=120)
        words = " ".join(said.split())
        if why is None:
            assert process.returncode == 0, said
            assert "look like several labels of one image" in words
        else:
            assert why in words, said
            assert process.returncode in (ExitCode.USAGE, ExitCode.DATA) and why in words and "Traceback" not in said


def test_a_tool_that_needs_classes_says_so_in_one_line(workspace: Workspace) -> None:
    image, table = "images/000.png", (workspace.directory / "numbers.csv").read_text()
    (workspace.directory / "years.csv").write_text(table.replace("year", "label"))
    for arguments, why in (
        (
            ("calibrate", "runs/labels"),
            "which no single temperature calibrates. Fix: choose a threshold for each label",
        ),
        (("threshold", "runs/numbers", "--recall", "0.9"), "numbers have no threshold. Fix: leave it out"),
        (("threshold", "runs/labels", "--recall", "0.9", "--class", "red"), "each label gets a threshold of its own"),
        (("explain", "runs/labels", image), "run 'labels' is of task 'multilabel'. Fix: use it with task"),
        (("compare", "runs/labels", "runs/numbers"), "needs one class for each image"),
        (("report", "runs/labels", "runs/numbers"), "run 'labels' is of task 'multilabel'"),
        (("predict", "runs/labels", image, "--sort-into", "sorted"), "copies an image into the folder of its class"),
        (("predict", "runs/labels", image, "--coverage", "0.9"), "--coverage needs a calibration"),
        (("eval", "runs/numbers", "--data", "numbers.csv"), "--data matches classes by their names"),
        (("eval", "runs/numbers", "--corruptions", "noise"), "counts images with the right class"),
        (("eval", "runs/labels", "--by", "^(.)"), "figures by group are accuracies"),
        (("init", "numbers.csv"), "there is no column 'label', only path, red, year"),
        (
            ("init", "years.csv"),
            "as of a measured quantity; each is taken as a class of its own; to estimate them write",
        ),
        (("tune", "trial.yaml"), "tune ranks classifiers by accuracy"),
        (("rank", "trial.yaml"), "rank compares networks by how well they separate classes"),
        (("cv", "trial.yaml", "--by", "group"), "--by compares the accuracies of groups"),
    ):
        process = workspace.start([TL_DIST, *arguments])
        said, _ = process.communicate(timeout=120)
        words = " ".join(said.split())
        assert process.returncode in (ExitCode.USAGE, ExitCode.DATA) and why in words, (arguments, said)
        assert " Fix: " in words and "Traceback" not in said
    assert not Path(workspace.directory / "sorted").exists()
