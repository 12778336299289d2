"""`distill:` and `model.prune` in a config: part of a run where they are set, refused where they would do nothing."""

from pathlib import Path

import pytest

from tl_dist.config import Config
from tl_dist.config import file as config_file
from tl_dist.config import source as config_source
from tl_dist.launcher.train import Request
from tl_dist.refusal import Refusal
from tl_dist.terminal.console import Console
from tl_dist.tools.cross_validate import command as cross_validation

TEXT = """\
data: {name: digits}
model: {backbone: tiny, weights: random, train_from: all}
optimizer: {learning_rate: 0.1}
epochs: 2
"""
TAUGHT = "distill.teacher=runs/teacher"
REFITTED = ("source.run=x", "source.head=true", "source.refit=true", "model.prune=0.5")


@pytest.fixture(autouse=True)
def _in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("trial.yaml").write_text(TEXT)


def load(*overrides: str) -> Config:
    return config_file.load("trial.yaml", overrides)


def test_a_teacher_decides_the_weights_and_where_it_lies_does_not() -> None:
    taught = load(TAUGHT)
    assert taught.distill is not None and taught.distill.teacher == str(Path("runs/teacher").absolute())
    found = config_file.trajectory(taught)
    assert found["distill"] == {"teacher": "run", "temperature": 4.0, "weight": 0.9}
    assert config_file.trajectory(load("distill.teacher=elsewhere")) == found
    assert config_file.trajectory(load(TAUGHT, "distill.temperature=3")) != found
    Path("again.yaml").write_text(config_file.dump(taught))
    assert config_file.load("again.yaml") == taught


def test_the_share_to_prune_decides_the_weights() -> None:
    halved = config_file.trajectory(load("source.run=runs/x", "model.prune=0.5"))
    assert halved["model"]["prune"] == 0.5 and halved["source"] == "run"
    assert config_file.trajectory(load(*REFITTED))["source"] != "run"


def test_the_source_task_is_neither_taught_nor_pruned() -> None:
    cfg = load(TAUGHT, "source.data.name=digits", "source.steps=3", "model.prune=0.5")
    task = config_source.of_source(cfg)
    assert task.distill is None and task.model.prune == 0


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["model.prune=0.5"], "but the config has no source. Fix: train the whole network first"),
        (["model.prune=1"], "from 0 up and below 1"),
        (["model.prune=0.5", "source.run=x", "model.backbone=xception"], "xception has few of them"),
        (["source.data.name=digits", "source.steps=3", "source.head=true"], "has its own classes"),
        ([TAUGHT, "distill.temperature=0"], "above 0"),
        (["source.run=x", "source.head=true", "source.refit=true"], "it has no effect without model.prune"),
        ([*REFITTED, "source.head=false"], "must come from the source. Fix: write 'head: true' below 'source:'"),
        ([*REFITTED, "model.train_from=block2"], "would be frozen. Fix: write 'train_from: all'"),
        ([*REFITTED, "optimizer.l2_sp=0.1"], "l2_sp would pull toward the weights before"),
        ([TAUGHT, "distill.weight=1", "loss.label_smoothing=0.1"], "label_smoothing has no effect"),
        ([TAUGHT, "distill.weight=1", "loss.class_weights=balanced"], "class_weights has no effect"),
        (
            [TAUGHT, "classifier.name=logistic", "model.train_from=head", "model.weights=imagenet", "source.run=x",
             "epochs=null", "steps=1"],
            "so a teacher has no effect",
        ),
    ],
)  # fmt: skip
def test_what_would_do_nothing_is_refused(overrides: list[str], what: str) -> None:
    with pytest.raises(Refusal) as caught:
        load(*overrides)
    assert what in str(caught.value) and "\n" not in str(caught.value)


def test_a_teacher_that_is_no_run_is_refused_as_such_by_folds() -> None:
    request = Request(Path("trial.yaml"), (TAUGHT,))
    with pytest.raises(Refusal, match=r"is not a run\. Fix: "):
        cross_validation.cross_validate(request, 2, 1, Console())
