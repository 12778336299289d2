"""Feature-based transfer: extracted once, by all workers; any classifier is then fitted without reading an image."""

import json
from pathlib import Path

import numpy as np
import pytest

import tl_dist as tl
from tests.end_to_end.harness import SMALL, Workspace, records
from tl_dist.features import classifiers
from tl_dist.scores import predictions

LOGISTIC = (
    SMALL
    + """\
data: {name: synthetic, num_examples: 96, num_classes: 3, image_size: 16, validation_fraction: 0.25, augment: [flip]}
model: {backbone: tiny, weights: random, pooling: both, layers: [block1, block3]}
classifier: {name: logistic, l2: 0.05}
"""
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("feature-based"), LOGISTIC)
    made.train_here("one")
    return made


def probabilities(workspace: Workspace, name: str, split: str) -> np.ndarray:
    return predictions.load(predictions.file_of(workspace.run(name).path, split)).probabilities


def sets(workspace: Workspace) -> dict[str, Path]:
    return {path.name: path for path in (workspace.directory / "runs" / "features").iterdir()}


def test_the_run_predicts_what_scikit_learn_does_on_the_same_rows(workspace: Workspace) -> None:
    """The head that was set, run by TensorFlow, is the classifier that was fitted on the rows of the cache."""
    found = {len(np.load(path / "shard-0000.npy")): path for path in sets(workspace).values()}
    rows = np.load(found[2 * 96] / "shard-0000.npy").reshape(96, 2, -1)
    assert rows.shape[-1] == 2 * (16 + 64)
    validation = predictions.load(predictions.file_of(workspace.run("one").path, "validation"))
    held_out = np.array([int(name.partition(":")[2]) for name in validation.ids])
    trained = np.setdiff1d(np.arange(96), held_out)
    fitted = classifiers.fit(
        "logistic",
        rows[trained].reshape(-1, rows.shape[-1]),
        np.repeat(trained % 3, 2).astype(np.int32),
        3,
        l2=0.05,
    )
    np.testing.assert_allclose(validation.probabilities, fitted.probabilities(rows[held_out, 0]), atol=1e-4)


def test_another_classifier_and_another_split_read_no_image(
    workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sets(workspace).keys()
    workspace.train_here("means", "classifier.name=nearest_mean")
    workspace.train_here("other-split", "data.split_seed=5", "classifier.l2=auto", "classifier.layers=auto")
    said = capfd.readouterr().out
    (chosen,) = [r for r in records(workspace.run("other-split"), "note") if "l2" in r]
    assert f"l2 {chosen['l2']:g}, layers {chosen['layers']} by folds of the training examples" in said
    done = workspace.run("other-split").done or {}
    assert done["classifier"] == {key: chosen[key] for key in ("l2", "layers", "edge")}
    assert sets(workspace).keys() == before
    for name in ("means", "other-split"):
        assert not records(workspace.run(name), "extraction")
    a, b = (predictions.load(predictions.file_of(workspace.run(n).path, "validation")) for n in ("one", "other-split"))
    assert set(a.ids) != set(b.ids)


def test_two_workers_extract_the_same_rows_and_predict_the_same(workspace: Workspace) -> None:
    expected = probabilities(workspace, "one", "test")
    (workspace.directory / "runs" / "features").rename(workspace.directory / "features-of-one")
    workspace.train("two", "--strategy=horovod", "-n2")
    assert sum((path / "shard-0001.npy").exists() for path in sets(workspace).values()) == 2
    np.testing.assert_allclose(probabilities(workspace, "two", "test"), expected, atol=1e-4)


def test_an_evaluation_from_images_says_the_same(workspace: Workspace) -> None:
    expected = probabilities(workspace, "one", "test")
    process = workspace.start([*workspace.argv("x")[:1], "eval", "runs/one"])
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "one split: 95 % interval" in said
    np.testing.assert_allclose(probabilities(workspace, "one", "test"), expected, atol=1e-4)


def test_cross_validation_shares_the_features_and_predicts_every_example(workspace: Workspace) -> None:
    before = sets(workspace).keys()
    process = workspace.start(
        [
            *workspace.argv("x")[:1],
            "cv",
            "trial.yaml",
            "--folds",
            "3",
            "--seeds",
            "2",
            "name=one",
            "classifier.l2=auto",
        ]
    )
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "mean of 3 folds x 2 seeds of 96 examples | 95 % interval" in said
    assert "chosen within the training folds: l2 " in said
    assert sets(workspace).keys() == before
    with np.load(workspace.run("one-cv").path / "predictions" / "out_of_fold.npz") as found:
        assert len(set(found["ids"])) == 96
        assert found["l2"].shape == (2, 3)
        np.testing.assert_allclose(found["probabilities"].sum(axis=-1), 1, rtol=1e-5)


def test_tuning_writes_a_config_that_trains_and_reads_no_image(workspace: Workspace) -> None:
    """The best one's run has the figures by which it was chosen, whatever the order in which layers are written."""
    before = sets(workspace).keys()
    program = workspace.argv("x")[0]
    changed = ["loss.class_weights=balanced", "model.layers=[block3, block1]"]
    process = workspace.start([program, "tune", "trial.yaml", "name=one", *changed])
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "best of 72" in said
    assert sets(workspace).keys() == before
    runs = workspace.directory / "runs"
    assert tl.train(tl.load_config(runs / "one-tune" / "best.yaml"), runs=runs, here=True).done
    (best, *_) = json.loads((workspace.run("one-tune").path / "tuning.json").read_text())
    assert best["model"]["layers"] in (["block3"], ["block1", "block3"])
    (judged,) = [one for one in records(workspace.run("one-best"), "evaluation") if one["split"] == "validation"]
    assert judged["accuracy"] == best["accuracy"]
    assert judged["figures"]["log_loss"] == pytest.approx(best["log_loss"], rel=1e-4)
