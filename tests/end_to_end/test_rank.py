"""`tl-dist rank`: networks by their features of the training examples, computed once; the best trains."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import tl_dist as tl
from tests.end_to_end.harness import SMALL, TL_DIST, Workspace, records
from tl_dist.config import file as config_file
from tl_dist.config import registry
from tl_dist.datasets import pool_of
from tl_dist.datasets.division import open_splits
from tl_dist.features import classifiers, nested
from tl_dist.features.stored import FeatureSet
from tl_dist.launcher.train import Request
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.terminal.console import Console
from tl_dist.tools.rank import command as ranking
from tl_dist.tools.rank import transferability

CONFIG = (
    SMALL
    + """\
data: {name: digits, image_size: 8, augment: [flip]}
model: {backbone: tiny, weights: tiny.safetensors}
optimizer: {name: adam, learning_rate: 0.01}
steps: 30
"""
)
CANDIDATES = """\
- tiny:block1
- {backbone: tiny, block: block3, accuracy: 0.5}
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("rank"), CONFIG)
    random.seed(0)
    network = registry.backbone("tiny").build((8, 8, 3))
    save_file({v.path: v.numpy() for v in network.weights}, made.directory / "tiny.safetensors")
    (made.directory / "candidates.yaml").write_text(CANDIDATES)
    argv = [TL_DIST, "rank", "trial.yaml", "--candidates", "candidates.yaml", "-n", "2", "--json"]
    process = made.start([*argv, "--strategy", "horovod"])
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    made.directory.joinpath("found.json").write_text(said[said.index("\n{\n") :])
    return made


@pytest.fixture(autouse=True)
def _there(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.directory)


def again(out: str = "trial_best.yaml", **more: Any) -> dict[str, Any]:
    """The same command once more, in this process."""
    request = Request(Path("trial.yaml"), strategy="horovod", workers=2)
    options = {"images": 5000, "out": Path(out), **more}
    return ranking.rank(request, "candidates.yaml", Console(stderr=True), **options)


def test_two_workers_score_the_training_examples_and_no_other(workspace: Workspace) -> None:
    found = json.loads(Path("found.json").read_text())
    assert [row["candidate"] for row in found["candidates"]] == ["tiny:block3", "tiny:block1"]
    splits = open_splits(tl.load_config("trial.yaml").data)[0]
    pool, rows = pool_of(splits["train"])
    labels = np.asarray(splits["train"].labels)
    for row, width, parameters in zip(found["candidates"], (64, 16), (23_584, 448), strict=True):
        (run,) = Path("runs").glob(f"trial-rank-tiny-{row['candidate'][5:]}-*")
        assert {record["total"] for record in records(RunDir(run), "extraction")} == {pool.num_examples}
        (key,) = RunDir(run).features_referred_to()
        values = FeatureSet.open(Path("runs/features") / key, 1).array()[rows, 0]
        assert (row["features"], row["parameters"], row["examples"]) == (width, parameters, len(rows))
        for name in ("logme", "h_score", "nleep", "nearest"):
            assert row[name] == pytest.approx(getattr(transferability, name)(values, labels), rel=1e-4), name
        settings = config_file.load(run / "config.yaml").classifier
        examples = nested.Examples(values[:, None], values[:, None], labels, labels)
        fold = nested.Nested(settings, 10, {}).folds(examples)
        accuracies = []
        for k in range(5):
            seen = fold != k
            fitted = classifiers.fit("logistic", values[seen], labels[seen], 10, l2=row["l2"])
            accuracies.append((fitted.logits(values[~seen]).argmax(axis=1) == labels[~seen]).mean())
        np.testing.assert_allclose(row["fold_accuracies"], accuracies, atol=0.008)  # two of 270
        assert row["linear_probe"] == pytest.approx(np.mean(row["fold_accuracies"]))


def test_what_is_known_is_not_computed_again(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a worker was to start")

    monkeypatch.setattr(ranking, "run_shown", refuse)
    assert again()["candidates"] == json.loads(Path("found.json").read_text())["candidates"]
    assert "first by published accuracy alone" in capfd.readouterr().err


def test_the_best_is_a_config_that_trains_and_replaces_no_file(workspace: Workspace) -> None:
    best = Path("trial_best.yaml").read_text()
    assert best.startswith("# tiny:block3, by tl-dist rank: linear probe 0.")
    cfg = tl.load_config("trial_best.yaml", "strategy=single", "workers=1")
    assert (cfg.name, cfg.model.layers, cfg.steps) == ("trial-best", ("block3",), 30)
    assert tl.train(cfg, here=True).done
    Path("mine.yaml").write_text("mine")
    with pytest.raises(Refusal, match=r"mine.yaml is there already.*Fix: name another file") as caught:
        again("mine.yaml")
    assert caught.value.code == ExitCode.CANNOT_CREATE and Path("mine.yaml").read_text() == "mine"
