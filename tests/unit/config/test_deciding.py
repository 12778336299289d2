"""What figures may decide is checked before a run, and bound to it; a config in which none decides is as it was."""

from pathlib import Path

import pytest

from tests.doubles import array_source
from tl_dist.config import Config, DataConfig
from tl_dist.config import file as config_file
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.trainer import model_selection

CONFIG = """\
epochs: 4
data: {name: digits, validation_fraction: 0.2}
model: {backbone: tiny, weights: random, train_from: all}
optimizer: {learning_rate: 0.1}
"""
PLATEAU = ("optimizer.schedule.name=plateau", "optimizer.schedule.metric=mcc")


@pytest.fixture(autouse=True)
def _in_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(CONFIG)


def load(*overrides: str) -> Config:
    return config_file.load("x.yaml", overrides)


@pytest.mark.parametrize(
    ("overrides", "what", "fix"),
    [
        (["checkpoint.best.metric=test.accuracy"], "test split must not decide", "validation.accuracy"),
        (["checkpoint.best.metric=train.mcc"], "only the validation split decides", "validation.mcc"),
        (["early_stopping.metric=loss"], "not a figure of an evaluation", "validation.log_loss"),
        (["checkpoint.best.metric=macrof1"], "not a figure of an evaluation", "validation.macro_f1"),
        (["checkpoint.best.metric=x"], "not a figure of an evaluation", "use one of accuracy,"),
        (["checkpoint.average=3"], "says which weights are best", "best: {metric"),
        (["checkpoint.best.metric=mcc", "checkpoint.best.mode=min"], "worst mcc", "mode: auto"),
        (["optimizer.schedule.name=plateau"], "needs a metric", "validation.log_loss"),
        (["optimizer.schedule.patience=2"], "has no effect with schedule 'constant'", "name: plateau"),
        ([*PLATEAU, "optimizer.schedule.min_rate=0.1"], "which would never drop", "write a lower one"),
        (
            ["checkpoint.best.metric=mcc", "classifier.name=logistic", "model.train_from=head", "steps=1",
             "model.weights=imagenet", "model.backbone=vgg16"],
            "nothing to decide",
            "remove 'best'",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_fix(overrides: list[str], what: str, fix: str) -> None:
    with pytest.raises(Refusal) as refused:
        load(*overrides)
    assert refused.value.code == ExitCode.USAGE
    before, _, after = str(refused.value).partition("Fix: ")
    assert what in before and fix in after


def test_what_decides_is_part_of_the_trajectory_and_else_it_is_not() -> None:
    plain = config_file.trajectory(load())
    assert plain.keys() == {*config_file.TRAJECTORY, "runtime"}
    assert config_file.trajectory(load("evaluation.every_epochs=2", "checkpoint.keep=9")) == plain
    for overrides in (["checkpoint.best.metric=mcc"], ["early_stopping.metric=mcc"], [*PLATEAU]):
        found = config_file.trajectory(load(*overrides))
        assert found["evaluation"] == {"every_epochs": 1.0, "views": [], "metrics": {}}
        assert found["checkpoint"].keys() == {"best", "average"}
        assert config_file.trajectory(load(*overrides, "checkpoint.keep=9")) == found
        assert config_file.trajectory(load(*overrides, "evaluation.every_epochs=2")) != found


def test_a_metric_with_its_split_is_the_one_without() -> None:
    from tl_dist.config.model_selection import figure_of

    assert figure_of("validation.mcc") == figure_of("mcc") == "mcc"


def test_a_split_that_cannot_or_must_not_decide_is_refused() -> None:
    pool, official = array_source(60), array_source(30)
    part = {"train": pool.subset(range(40)), "validation": pool.subset(range(40, 60))}
    one_class = {**part, "validation": pool.subset(range(0, 60, 3))}
    folds = {"data": DataConfig(name="digits", folds=3, fold=0)}

    def refusal(splits: object, metric: str = "roc_auc", **changes: object) -> str:
        cfg = load(f"checkpoint.best.metric={metric}").model_copy(update=changes)
        try:
            model_selection.refuse_undecidable(cfg, splits)  # type: ignore[arg-type]
        except Refusal as refused:
            return str(refused)
        return ""

    assert refusal(part) == ""
    assert refusal({**part, "test": official}) == refusal({**part, "test": pool.subset(range(9))}, **folds) == ""
    assert "has no validation split" in refusal({"train": pool})
    assert "a class has no validation example" in refusal(one_class)
    assert refusal(one_class, "mcc") == ""
    assert "is the fold that is held out" in refusal({**part, "test": official}, **folds)
    model_selection.refuse_undecidable(load(), {"train": pool})  # where nothing is decided nothing is needed
