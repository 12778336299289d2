"""`cv` of a config that is trained: each fold, or with `--by` each group, is held out by one run alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tl_dist.config import Config
from tl_dist.datasets.division import groups_of, open_splits
from tl_dist.files.npz import save_npz
from tl_dist.launcher.train import Request
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.scores import cross_validation, predictions
from tl_dist.scores.cross_validation import OUT_OF_FOLD
from tl_dist.tasks import classification
from tl_dist.terminal.console import Console
from tl_dist.tools.cross_validate import command
from tl_dist.tools.cross_validate.command import _fold_request, _folds_by_group, _merge
from tl_dist.tools.curate.split import split as divide_table

CONFIG = """\
data: {name: csv, path: table.csv, image_size: 16, validation_fraction: 0.25}
model: {backbone: tiny, weights: random, train_from: all}
optimizer: {learning_rate: 0.1}
steps: 2
global_batch: 4
"""


@pytest.fixture
def request_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    monkeypatch.chdir(tmp_path)
    rows = ["path,label,group,camera"]
    for k in range(48):
        Image.fromarray(np.full((16, 16, 3), k, np.uint8)).save(f"{k:02d}.png")
        rows.append(f"{k:02d}.png,{'ab'[k % 2]},patient{k // 4},{'xyz'[k // 2 % 3]}")
    Path("table.csv").write_text("\n".join(rows) + "\n")
    Path("trial.yaml").write_text(CONFIG)
    return Request(Path("trial.yaml"), (), runs=Path("runs"))


def test_each_group_is_the_test_split_of_one_run(request_: Request) -> None:
    cfg = request_.load()
    manifest, names = _folds_by_group(request_, cfg, "trial-cv-by", "camera")
    assert names == ["x", "y", "z"]
    for fold, name in enumerate(names):
        one = _fold_request(request_, cfg, "trial-cv-by", 3, 0, fold, manifest).load()
        assert one.name == f"trial-cv-by-0-{fold}"
        splits = open_splits(one.data)[0]
        assert {"xyz"[int(i[:2]) // 2 % 3] for i in splits["test"].ids} == {name}
        assert splits["test"].num_examples == 16
        assert splits["train"].num_examples + splits["validation"].num_examples == 32
        # The groups of the data set stay whole within what is left.
        patients = [{int(i[:2]) // 4 for i in splits[part].ids} for part in ("train", "validation")]
        assert not patients[0] & patients[1]


def test_the_groups_of_an_evaluation_are_those_that_the_data_were_divided_by(request_: Request) -> None:
    """A column or expression that the manifest was made with; else the data set's own."""
    own = request_.load().data
    train = open_splits(own)[0]["train"]
    assert set(groups_of(train, own)) <= {f"patient{k}" for k in range(12)}
    divide_table(Path("table.csv"), Path("by.json"), group="camera", test=0.4, validation=0.0, folds=None, seed=0)
    divided = own.model_copy(update={"split": "by.json", "validation_fraction": 0.0})
    test = open_splits(divided)[0]["test"]
    assert set(groups_of(test, divided)) < set("xyz")
    divide_table(Path("table.csv"), Path("plain.json"), test=0.4, validation=0.0, folds=None, seed=0)
    assert "patient" in groups_of(test, divided.model_copy(update={"split": "plain.json"}))[0]


def test_what_has_no_such_groups_is_refused(request_: Request) -> None:
    with pytest.raises(Refusal, match=r"has no type for its examples\. Fix: name a column") as caught:
        _folds_by_group(request_, request_.load(), "x", "type")
    assert caught.value.code == ExitCode.DATA
    with pytest.raises(Refusal, match="group 'kamera' is no column of"):
        _folds_by_group(request_, request_.load(), "x", "kamera")
    with pytest.raises(Refusal, match=r"all 48 examples are of one group, '\.png'"):
        _folds_by_group(request_, request_.load(), "x", r"\.png")
    with pytest.raises(Refusal, match="each class is in one group alone"):
        _folds_by_group(request_, request_.load(), "x", "label")


@pytest.mark.parametrize("official", [False, True])
def test_the_folds_are_what_is_merged_whatever_other_split_a_run_has(request_: Request, official: bool) -> None:
    """Beside the fold there is a validation split of the config, or the official test split: neither is a fold."""
    folds, seeds, labels = 2, 2, np.arange(12, dtype=np.int32) % 2
    wrong = {(0, 3), (1, 5), (1, 8)}  # (seed, example)
    fold = np.stack([np.arange(12) // (2 + seed) % folds for seed in range(seeds)])
    for seed, k in np.ndindex(seeds, folds):
        directory = request_.runs / f"trial-cv-{seed}-{k}"
        directory.mkdir(parents=True)
        inside = np.flatnonzero(fold[seed] == k)
        others = np.array([20, 21]) if official else np.flatnonzero(fold[seed] != k)[seed : seed + 3]
        train = {"ids": [f"{n:02d}" for n in np.flatnonzero(fold[seed] != k) if n not in others]}
        (directory / "split.json").write_text(json.dumps({"splits": {"train": train}}))
        for split, examples in zip(("validation", "test")[:: 1 if official else -1], (inside, others), strict=True):
            said = [(n + ((seed, n) in wrong)) % 2 for n in examples.tolist()]
            save_npz(
                predictions.file_of(directory, split),
                ids=np.array([f"{n:02d}" for n in examples]),
                labels=(examples % 2).astype(np.int32),
                probabilities=np.eye(2, dtype=np.float32)[said],
                class_names=np.array(["a", "b"]),
                step=2,
                types=np.array([], np.str_),
                groups=np.array([], np.str_),
            )
    (request_.runs / "trial-cv").mkdir()
    found = _merge(request_, "trial-cv", folds, seeds, None, classification)
    kept = cross_validation.load(request_.runs / "trial-cv" / OUT_OF_FOLD)
    assert kept.ids.tolist() == [f"{n:02d}" for n in range(12)] and (kept.fold == fold).all()
    assert (kept.labels == labels).all()
    assert found["num_examples"] == 12 and found["seed_accuracies"] == pytest.approx([11 / 12, 10 / 12])


def test_a_stop_is_a_refusal_that_says_how_to_go_on(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of a config as Python has it, without a file: its folds are those of the file."""
    names: list[str] = []

    def stopped(cfg: Config, *_: Any, **__: Any) -> ExitCode:
        names.append(cfg.name)
        return ExitCode.REQUEUE

    monkeypatch.setattr(command.train, "train_config", stopped)
    for each in (request_, Request(request_.load(), runs=request_.runs)):
        with pytest.raises(Refusal, match=r"the cross-validation was stopped\. Fix: run the same") as caught:
            command.cross_validate(each, 2, 1, Console())
        assert caught.value.code == ExitCode.REQUEUE
    assert names == ["trial-cv-0-0"] * 2
