"""Calibrated probabilities, sets, alarms, corruptions and groups: by two workers as by one, of the right images."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tl_dist as tl
from tests.end_to_end.harness import SMALL, TL_DIST, Workspace
from tl_dist.datasets.files import unlabelled
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.scores import calibration, figures, neighbours, predictions, robustness
from tl_dist.tools.evaluate.work import evaluate_corrupted
from tl_dist.trainer.evaluate import evaluate_checkpoint
from tl_dist.trainer.load_model import loaded, process_as_it_was
from tl_dist.trainer.predict import predict
from tl_dist.trainer.setup import setup

CONFIG = (
    SMALL
    + """\
global_batch: 16
steps: 60
data: {name: csv, path: table.csv, image_size: 32, validation_fraction: 0.3, test_fraction: 0.3}
model: {backbone: tiny, weights: random, train_from: all}
optimizer: {name: adam, learning_rate: 0.01}
evaluation: {batch: 7, every_epochs: 100}
"""
)
COMPUTED = "classifier: {name: logistic}\nsource: {run: runs/elsewhere}"
CLASSES = ("dark", "light", "red")


def write(file: Path, number: int, label: str) -> None:
    """A noisy picture: its mean tells the class, though not always."""
    rng = np.random.default_rng(number)
    level = {"dark": 60, "light": 120, "red": 90}[label] + rng.normal(0, 18)
    pixels = rng.normal(level, 30, (32, 32, 3)) + np.array([40 if label == "red" else 0, 0, 0])
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    made = Workspace(tmp_path_factory.mktemp("trust"), CONFIG)
    rows = ["path,label,group,camera"]
    for k in range(180):
        label = CLASSES[k % 3]
        write(made.directory / f"{k:03d}.png", k, label)
        rows.append(f"{k:03d}.png,{label},site{k // 3 % 12:02d},{'AB'[k % 2]}")
    (made.directory / "table.csv").write_text("\n".join(rows) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.directory)
        made.train_here("one")
        yield made


def tl_dist(workspace: Workspace, *arguments: str, expect: int = 0) -> str:
    process = workspace.start([TL_DIST, *arguments])
    said, _ = process.communicate(timeout=240)
    assert process.returncode == expect, said
    return said


def without_validation(workspace: Workspace) -> tl.Run:
    """Another run, which has no validation split; trained once."""
    workspace.train_here("without", "data.validation_fraction=0", "steps=2")
    return tl.Run("runs/without")


def test_two_workers_calibrate_as_one_does_and_predict_says_so(workspace: Workspace) -> None:
    run = tl.Run("runs/one")
    identity = (run.path / "run.json").read_bytes()
    files = [f"{k:03d}.png" for k in range(0, 180, 7)]
    before = run.predict(files).probabilities
    alone = run.calibrate(unknown=True)
    kept = {name: (run.path / name).read_bytes() for name in (calibration.FILE, neighbours.FILE)}

    said = tl_dist(workspace, "calibrate", "runs/one", "--unknown", "-n2")
    assert f"temperature {alone.temperature:.3f}, fitted on {len(alone.labels)} validation images" in said
    assert {name: (run.path / name).read_bytes() for name in kept} == kept
    assert (run.path / "run.json").read_bytes() == identity

    # Not on the test split, and not on what was trained on.
    validation = run.predictions("validation")
    logits = np.log(validation.probabilities.astype(np.float64))
    assert alone.temperature == pytest.approx(calibration.fitted(validation.labels, logits), rel=1e-3)

    after = run.predict(files).probabilities
    expected = figures.softmax(np.log(before.astype(np.float64)) / alone.temperature)
    np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-6)
    assert abs(after - before).max() > 1e-3
    images = np.stack([np.asarray(Image.open(name)) for name in files])
    np.testing.assert_allclose(run.keras_model()(images).numpy(), after, rtol=1e-4, atol=1e-6)

    said = tl_dist(workspace, "explain", "runs/one", files[0], "--out", "maps")
    assert f"{files[0]}: {CLASSES[after[0].argmax()]} {after[0].max():.2f} | maps/" in said

    # Like nothing that was trained on.
    for k in range(3):
        Image.fromarray(np.full((32, 32, 3), 255 * np.eye(3)[k - 1], np.uint8)).save(f"strange{k}.png")
    strange = [f"strange{k}.png" for k in range(3)]
    options = ["--out", "said.csv", "--coverage", "0.9", "--unknown", "0.05", "--max-bad", "0"]
    said = tl_dist(workspace, "predict", "runs/one", *files, *strange, *options)
    assert f"calibrated: temperature {alone.temperature:.3f}" in said
    with open("said.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [np.float32(row["probability"]) for row in rows[: len(files)]] == after.max(axis=1).tolist()
    least = np.sort(alone.of_true)[len(alone.of_true) + 1 - int(np.ceil(round(0.9 * (len(alone.of_true) + 1), 9))) - 1]
    for row, p in zip(rows, after, strict=False):
        inside = [CLASSES[k] for k in np.argsort(-p, kind="stable") if p[k] >= least or p[k] == p.max()]
        assert row["set"] == "|".join(inside)
    with process_as_it_was():
        model = loaded(RunDir(run.path), cores=None)
        found = list(predict(model, unlabelled([*files, *strange], CLASSES), features=True))
    bank = neighbours.of_checkpoint(run.path, model.sha256)
    assert bank is not None and len(bank.of_known) == len(alone.labels)
    features = neighbours.normalised(np.concatenate([one.features for one in found]))
    for row, of_image in zip(rows, features, strict=True):
        distance = np.sort(np.linalg.norm(bank.features - of_image, axis=1))[4]  # the fifth nearest
        farther = [(1 + (bank.of_known >= distance * scale).sum()) / 61 for scale in (1.0001, 0.9999)]
        assert farther[0] - 1e-6 <= float(row["p_known"]) <= farther[1] + 1e-6
        assert (row["unknown"] == "True") == (float(row["p_known"]) <= 0.05)
    assert len({row["p_known"] for row in rows}) > 5


def test_sets_for_one_group_are_by_its_own_validation_images(workspace: Workspace) -> None:
    run = tl.Run("runs/one")
    found = run.calibrate()
    validation, files = run.predictions("validation"), [f"{k:03d}.png" for k in range(0, 180, 7)]
    site = np.array([f"site{int(name[:3]) // 3 % 12:02d}" for name in validation.ids])
    p = figures.softmax(np.log(validation.probabilities.astype(np.float64)) / found.temperature)
    of_true, expected = p[np.arange(len(p)), validation.labels], {}
    for name in np.unique(site):
        inside = np.sort(of_true[site == name])
        expected[name] = inside[len(inside) + 1 - int(np.ceil(round(0.93 * (len(inside) + 1), 9))) - 1]
    name = max(expected, key=lambda one: abs(expected[one] - np.quantile(of_true, 0.07)))
    asked = ("--coverage=0.93", "--out", "of_site.csv", "--type", name)
    said = tl_dist(workspace, "predict", "runs/one", *files, *asked)
    assert f"images of kind {name} like the validation images, at least 93 %" in said
    with open("of_site.csv", newline="") as lines:
        sizes = [row["set"].count("|") + 1 for row in csv.DictReader(lines)]
    probabilities = run.predict(files).probabilities
    assert sizes == np.maximum((probabilities >= expected[name] - 1e-6).sum(axis=1), 1).tolist()
    of_all = np.sort(of_true)[len(of_true) + 1 - int(np.ceil(round(0.93 * (len(of_true) + 1), 9))) - 1]
    assert sizes != np.maximum((probabilities >= of_all).sum(axis=1), 1).tolist()  # not by all of them
    asked = ("--coverage=0.93", "--type", "site99")
    said = tl_dist(workspace, "predict", "runs/one", "000.png", *asked, expect=ExitCode.USAGE)
    assert f"is of type or group 'site99'. Fix: use one of {', '.join(sorted(expected))}." in said


def test_evaluation_shows_before_and_after_and_groups(workspace: Workspace) -> None:
    run = tl.Run("runs/one")
    if not (run.path / calibration.FILE).exists():
        run.calibrate()
    earlier = run.predictions("test")
    said = tl_dist(workspace, "eval", "runs/one", "--by-group", "--by", "camera")
    assert "calibrated, temperature" in said and "worst group: site" in said and "worst camera: " in said
    record = json.loads((run.path / "evaluations" / "test.json").read_text())
    found = record["figures"]["calibration"]
    assert found["before"]["log_loss"] == pytest.approx(record["figures"]["log_loss"])
    assert found["after"]["log_loss"] != found["before"]["log_loss"]
    assert (run.path / "evaluations" / "test_reliability.png").read_bytes().startswith(b"\x89PNG")
    # What the run keeps of its test split is what the network says.
    assert (run.predictions("test").probabilities == earlier.probabilities).all()
    right = earlier.probabilities.argmax(axis=1) == earlier.labels
    camera = np.array(["AB"[int(name[:3]) % 2] for name in earlier.ids])
    assert {row["name"]: row["accuracy"] for row in record["groups"]["camera"]} == {
        name: pytest.approx(right[camera == name].mean()) for name in "AB"
    }
    assert sum(row["num_examples"] for row in record["groups"]["group"]) == len(right)


@pytest.mark.full
def test_two_workers_corrupt_as_one_does(workspace: Workspace) -> None:
    file = robustness.file_of(Path("runs/one"), "test")
    said = tl_dist(workspace, "eval", "runs/one", "--corruptions", "noise", "--severity=3", "-n2")
    assert "applied at the model's size, 32 pixels" in said and "mean corruption error" in said
    by_two = robustness.load(file)
    names = ["gaussian_noise", "shot_noise", "impulse_noise"]
    assert by_two.names.tolist() == names
    with process_as_it_was():
        record = evaluate_corrupted(setup(RunDir("runs/one"), cores=None), "test", names, [3])
    by_one = robustness.load(file)
    assert (by_one.right == by_two.right).all() and (by_one.clean == by_two.clean).all()
    clean = predictions.load(predictions.file_of(Path("runs/one"), "test"))
    assert (by_one.clean == (clean.probabilities.argmax(axis=1) == clean.labels)).all()
    assert not (by_one.right[0, 0] == by_one.clean).all()
    written = json.loads(Path("runs/one/evaluations/test_corruptions.json").read_text())
    assert written == record
    run = tl.Run("runs/one")
    assert run.evaluate(corruptions="noise", severity="3") == record
    both = tl.compare(run, run.path, corruptions=True)
    assert both["names"] == names and both["errors"][0] == both["errors"][1] and both["difference"] == 0


def test_what_cannot_be_done_is_refused(workspace: Workspace) -> None:
    run = without_validation(workspace)
    with pytest.raises(Refusal, match=r"no validation split.* Fix: train it with data\.validation_fraction") as caught:
        run.calibrate()
    assert caught.value.code == ExitCode.USAGE and not (run.path / calibration.FILE).exists()
    said = tl_dist(workspace, "predict", "runs/without", "000.png", "--coverage=0.9", expect=ExitCode.USAGE)
    assert "Fix: run tl-dist calibrate RUN" in said and said.count("\n") == 1


def test_a_checkpoint_that_was_not_calibrated_has_its_own_probabilities(workspace: Workspace) -> None:
    """The file is bound to the weights: of those of another run nothing is changed."""
    run = tl.Run("runs/one")
    if not (run.path / calibration.FILE).exists():
        run.calibrate()
    other = without_validation(workspace)
    before = other.predict("000.png").probabilities
    (other.path / calibration.FILE).write_bytes((run.path / calibration.FILE).read_bytes())
    assert (other.predict("000.png").probabilities == before).all()
    with process_as_it_was():
        result = evaluate_checkpoint(setup(RunDir(other.path), cores=None), "test")
    assert "calibration" not in result.figures


def test_each_group_is_left_out_once(workspace: Workspace) -> None:
    text = (workspace.directory / "table.csv").read_text().splitlines()
    # Of pictures of its own: the backbone of runs/one has been trained on some of every group.
    rows = ["path,label"]
    for k in range(60):
        write(workspace.directory / f"elsewhere{k}.png", 1000 + k, CLASSES[k % 3])
        rows.append(f"elsewhere{k}.png,{CLASSES[k % 3]}")
    Path("elsewhere.csv").write_text("\n".join(rows) + "\n")
    workspace.train_here("elsewhere", "data.path=elsewhere.csv", "steps=20")
    config = CONFIG.replace("steps: 60\n", "").replace("optimizer: {name: adam, learning_rate: 0.01}", COMPUTED)
    Path("sites.yaml").write_text(config.replace(", train_from: all", ""))
    leaking = ("--by", "camera", "source.run=runs/one")
    said = tl_dist(workspace, "cv", "sites.yaml", *leaking, expect=ExitCode.USAGE)
    assert "runs/one has seen 60 of the 180 held-out images" in said
    said = tl_dist(workspace, "cv", "sites.yaml", "--by", "camera")
    assert "each camera held out once" in said and "worst camera: " in said
    with np.load("runs/sites-cv-by-camera/predictions/out_of_fold.npz") as kept:
        camera = {line.split(",")[0]: line.split(",")[3] for line in text[1:]}
        assert [camera[name] for name in kept["ids"]] == ["AB"[k] for k in kept["fold"][0]]
    with pytest.raises(Refusal, match="is a cross-validation, which keeps no model") as caught:
        tl.Run("runs/sites-cv-by-camera").predict("000.png")
    assert caught.value.code == ExitCode.USAGE
