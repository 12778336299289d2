"""Labels of next to no weight teach nothing: neither a run, nor what `cv`, `tune` and `rank` compute from features."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from keras.utils import set_random_seed
from PIL import Image
from safetensors.numpy import save_file
from sklearn.datasets import load_digits

from tests.end_to_end.harness import SMALL, TL_DIST, Workspace
from tl_dist.config import registry
from tl_dist.runs.directory import RunDir
from tl_dist.scores import predictions

CONFIG = (
    SMALL
    + """\
data: {name: csv, path: weighted.csv, image_size: 16}
model: {backbone: tiny, weights: tiny.safetensors, pooling: both, layers: [block1, block2, block3]}
classifier: {name: logistic}
"""
)
WRONG = 0.45
ROWS = "path,label,split,site"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """Threes and eights: of the training labels many are wrong and weigh a millionth; those of the test are right."""
    made = Workspace(tmp_path_factory.mktemp("example-weights"), CONFIG)
    set_random_seed(0)
    network = registry.backbone("tiny").build((16, 16, 3))
    save_file({v.path: v.numpy() for v in network.weights}, made.directory / "tiny.safetensors")
    digits = load_digits()
    places = np.flatnonzero(np.isin(digits.target, (3, 8)))
    rng = np.random.default_rng(0)
    lines = {True: [f"{ROWS},weight"], False: [ROWS]}
    for n, k in enumerate(places):
        image = Image.fromarray((digits.images[k] * 15).astype(np.uint8)).resize((16, 16))
        image.convert("RGB").save(made.directory / f"{k:04}.png")
        trained = n % 4 != 0
        wrong = trained and rng.random() < WRONG
        label = 11 - digits.target[k] if wrong else digits.target[k]
        row = f"{k:04}.png,{label},{'train' if trained else 'test'},{'ABC'[n % 3]}"
        lines[False].append(row)
        lines[True].append(f"{row},{1e-6 if wrong else 1}")
    for weighted, text in lines.items():
        name = "weighted" if weighted else "plain"
        (made.directory / f"{name}.csv").write_text("\n".join(text) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.directory)
        yield made


def tl_dist(workspace: Workspace, *arguments: str) -> str:
    process = workspace.start([TL_DIST, *arguments])
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def accuracy(run: RunDir) -> float:
    said = predictions.load(predictions.file_of(run.path, "test"))
    return float((said.probabilities.argmax(axis=1) == said.labels).mean())


HEAD = ("classifier.name=head", "model.normalize=true", "steps=100", "global_batch=32", "optimizer.name=adam")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("logistic", ("classifier.l2=0.03",)),
        ("chosen", ("classifier.l2=auto", "loss.class_weights=balanced", "data.augment=[flip]")),
        ("nearest", ("classifier.name=nearest_mean",)),
        ("head", (*HEAD, "optimizer.learning_rate=0.01", "loss.class_weights=balanced")),
    ],
)
def test_a_run_learns_from_what_weighs(workspace: Workspace, name: str, settings: tuple[str, ...]) -> None:
    weighted = accuracy(workspace.train_here(name, *settings))
    plain = accuracy(workspace.train_here(f"{name}-plain", *settings, "data.path=plain.csv"))
    # Means of so many wrong labels are drawn together, which leaves the nearest one where it was.
    assert weighted > 0.85 and weighted > plain + (-0.05 if name == "nearest" else 0.1), (weighted, plain)
    kept = (predictions.file_of(workspace.run(one).path, "test") for one in (name, f"{name}-plain"))
    first, second = (predictions.load(file).probabilities for file in kept)
    assert np.abs(first - second).max() > 0.02


def test_cross_validation_trains_by_the_weights_and_its_figures_count_each_example_alike(
    workspace: Workspace,
) -> None:
    tl_dist(workspace, "cv", "trial.yaml", "name=one", "classifier.name=logistic", "--folds", "3", "--seeds", "1")
    with np.load("runs/one-cv/predictions/out_of_fold.npz") as kept:
        said, labels = kept["probabilities"][0].argmax(axis=1), kept["labels"]
        truth = np.array([load_digits().target[int(name[:4])] == 8 for name in kept["ids"]])
    assert (said == truth).mean() > 0.85
    done = RunDir("runs/one-cv").done or {}
    assert done["cross_validation"]["seed_accuracies"] == [pytest.approx((said == labels).mean())]


def test_tuning_ranks_and_rank_probes_by_the_weights(workspace: Workspace) -> None:
    tl_dist(workspace, "tune", "trial.yaml", "name=one")
    (best, *_) = json.loads(Path("runs/one-tune/tuning.json").read_text())
    assert best["accuracy"] < 0.7  # as `eval` counts them: of labels of which so many are wrong
    said = tl_dist(workspace, "rank", "trial.yaml", "--candidates", "tiny,tiny:block2", "--json")
    row, _ = json.loads(said[said.index("\n{\n") :])["candidates"]
    assert row["linear_probe"] > 0.85 and row["weighted"]
    assert "each with its weight; the other scores are unweighted" in said
