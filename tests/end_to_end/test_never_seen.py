"""A class that no training example has is named wherever it is judged, and decides no log loss and no temperature."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from keras.utils import set_random_seed
from PIL import Image
from safetensors.numpy import save_file
from scipy import stats
from sklearn.metrics import log_loss

from tests.end_to_end.harness import SMALL, TL_DIST, Workspace, records
from tl_dist.config import registry
from tl_dist.scores import calibration, predictions

CONFIG = (
    SMALL
    + """\
data: {name: csv, path: parted.csv, image_size: 16}
model: {backbone: tiny, weights: tiny.safetensors}
classifier: {name: logistic, l2: 0.01}
"""
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """Of dark, light and red pictures no red one is for training, and all red ones are of one site."""
    made = Workspace(tmp_path_factory.mktemp("never-seen"), CONFIG)
    set_random_seed(0)
    network = registry.backbone("tiny").build((16, 16, 3))
    save_file({v.path: v.numpy() for v in network.weights}, made.directory / "tiny.safetensors")
    rng = np.random.default_rng(0)
    parted, sites = ["path,label,split"], ["path,label,site"]
    for k in range(96):
        label = ("dark", "light", "red")[k % 3]
        part = ("train", "validation", "test")[k // 3 % 3]
        level = rng.normal({"dark": 70, "light": 130, "red": 100}[label], 20)
        pixels = rng.normal(level, 30, (16, 16, 3)) + np.array([60 * (label == "red"), 0, 0])
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(made.directory / f"{k:02}.png")
        if label != "red" or part != "train":
            parted.append(f"{k:02}.png,{label},{part}")
        sites.append(f"{k:02}.png,{label},{'north' if label == 'red' else ('north', 'south', 'west')[k // 3 % 3]}")
    (made.directory / "parted.csv").write_text("\n".join(parted) + "\n")
    (made.directory / "sites.csv").write_text("\n".join(sites) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.directory)
        made.train_here("one")
        yield made


def tl_dist(workspace: Workspace, *arguments: str) -> str:
    process = workspace.start([TL_DIST, *arguments])
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def test_a_run_its_evaluation_and_its_report_name_the_class(workspace: Workspace) -> None:
    run = workspace.run("one")
    said = predictions.load(predictions.file_of(run.path, "test"))
    num = int((said.labels == 2).sum())
    found = (run.done or {})["figures"]["test"]
    assert found["never_seen"] == [{"class": "red", "num_examples": num}]
    wide = said.probabilities.astype(np.float64)
    expected = log_loss(said.labels, wide / wide.sum(axis=1, keepdims=True), labels=[0, 1, 2])
    assert found["log_loss"] == pytest.approx(expected, rel=1e-4) and expected > 36 * num / len(said.labels)
    (record,) = [one for one in records(run, "evaluation") if one["split"] == "test"]
    assert record["loss"] == pytest.approx(expected, rel=1e-4)
    line = f"never seen in training: red ({num} images)"
    assert line in tl_dist(workspace, "eval", "runs/one")
    tl_dist(workspace, "report", "runs/one")
    assert f"N{line[1:]}" in Path("runs/one/report.html").read_text()


def test_a_calibration_is_that_of_the_classes_that_were_trained_on(workspace: Workspace) -> None:
    assert "; the temperature was fitted on the other classes" in tl_dist(workspace, "calibrate", "runs/one")
    run = workspace.run("one")
    kept = calibration.load(run.path)
    said = predictions.load(predictions.file_of(run.path, "validation"))
    known = said.labels != 2
    logits = np.log(np.maximum(said.probabilities[known][:, :2], 1e-30)).astype(np.float32)
    assert kept is not None and kept.temperature < calibration.MOST / 2
    assert kept.temperature == pytest.approx(calibration.fitted(said.labels[known], logits), rel=1e-2)
    assert len(kept.labels) == len(said.labels)  # conformal sets hold the others to their word


def test_cross_validation_names_the_class_and_the_group(workspace: Workspace) -> None:
    told = tl_dist(workspace, "cv", "trial.yaml", "data.path=sites.csv", "--by", "site", "name=by")
    line = "north: never seen in training of this fold: red (32 images)"
    assert line in told
    run = workspace.run("by-cv-by-site")
    result = (run.done or {})["cross_validation"]
    assert result["never_seen"] == [{"fold": "north", "classes": [{"class": "red", "num_examples": 32}]}]
    assert result["figures"]["log_loss"] < 36
    tl_dist(workspace, "report", "runs/by-cv-by-site")
    assert f"N{line[1:]}" in Path("runs/by-cv-by-site/report.html").read_text()


@pytest.mark.full
def test_folds_with_a_validation_split_have_the_interval_of_what_they_were_trained_on(
    workspace: Workspace,
) -> None:
    argv = ["cv", "trial.yaml", "name=few", "data.path=sites.csv", "--folds", "3", "--seeds", "1", "steps=2"]
    argv += ["classifier.name=head", "optimizer.name=adam", "optimizer.learning_rate=0.01", "global_batch=8"]
    tl_dist(workspace, *argv, "data.validation_fraction=0.25")
    result = (workspace.run("few-cv").done or {})["cross_validation"]
    ratios = []
    for k in range(3):
        splits = json.loads((workspace.run(f"few-cv-0-{k}").path / "split.json").read_text())["splits"]
        sizes = {name: len(one["ids"]) for name, one in splits.items()}
        assert sizes == {"train": 40, "validation": 24, "test": 32}
        ratios.append(sizes["test"] / sizes["train"])
    values = np.ravel(result["fold_accuracies"])
    half = stats.t.ppf(0.975, 2) * np.sqrt((1 / 3 + np.mean(ratios)) * values.var(ddof=1))
    expected = [max(0.0, values.mean() - half), min(1.0, values.mean() + half)]
    assert result["interval"] == pytest.approx(expected, abs=1e-9)
