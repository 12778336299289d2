"""`source:` in a config: the task that is trained first, the run that is carried over, and what neither can be."""

import re
from pathlib import Path

import pytest

from tl_dist.config import ClassifierConfig, Config, LossConfig, OptimizerConfig
from tl_dist.config import file as config_file
from tl_dist.config import source as config_source
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs import init_from
from tl_dist.runs.directory import RunDir

TARGET = """\
data: {name: digits}
model: {backbone: tiny, weights: random, reinitialize: block3}
loss: {label_smoothing: 0.1}
optimizer: {learning_rate: 0.1, layer_decay: 0.5, head_weight_decay: 0.2}
evaluation: {views: [flip]}
runtime: {prefix_cache: "on", threads: 1}
stages: [{train_from: block3, steps: 3}, {train_from: block2, steps: 4}]
"""
TASK = "source: {data: {name: synthetic, num_examples: 40}, steps: 20}\n"


def load(text: str, *overrides: str) -> Config:
    Path("trial.yaml").write_text(text)
    return config_file.load("trial.yaml", overrides)


@pytest.fixture(autouse=True)
def _in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(text: str, *overrides: str) -> str:
    with pytest.raises(Refusal) as caught:
        load(text, *overrides)
    assert caught.value.code == ExitCode.USAGE and "\n" not in str(caught.value)
    return str(caught.value)


def test_the_source_task_has_its_own_data_and_length_and_nothing_of_the_target_alone() -> None:
    target = load(TARGET + TASK, "optimizer.l2_sp=0.01")
    task = config_source.of_source(target)
    assert (task.name, task.data.name, task.steps, task.epochs) == ("trial-source", "synthetic", 20, None)
    assert (task.model.train_from, task.model.reinitialize, task.model.backbone) == ("all", None, "tiny")
    assert task.optimizer == target.optimizer.model_copy(update={"l2_sp": 0.0, "layer_decay": 1.0})
    assert (task.stages, task.source, task.loss, task.classifier) == (
        (),
        None,
        LossConfig(),
        ClassifierConfig(),
    )
    assert (task.evaluation.views, task.runtime.prefix_cache, task.runtime.threads) == ((), "off", 1)
    # It is a config like any other.
    Path("again.yaml").write_text(config_file.dump(task))
    assert config_file.load("again.yaml") == task


def test_a_source_task_may_have_its_own_name_part_and_optimizer() -> None:
    own = "source: {data: {name: synthetic}, epochs: 2, name: first, train_from: block3, "
    own += "optimizer: {learning_rate: 0.7}}\n"
    task = config_source.of_source(load(TARGET + own))
    assert (task.name, task.epochs, task.steps, task.model.train_from) == ("first", 2, None, "block3")
    assert task.optimizer == OptimizerConfig(learning_rate=0.7)


def test_after_its_task_a_run_is_carried_over_from_any_directory(tmp_path: Path) -> None:
    target = load(TARGET + TASK)
    after = config_source.after_source(target, Path("runs") / "trial-source")
    assert after.source is not None and after.source.data is None
    assert after.source.run == str(tmp_path / "runs" / "trial-source")
    assert after.model_copy(update={"source": None}) == target.model_copy(update={"source": None})
    assert config_source.of_source(after) is None


SIMPLE = "data: {name: digits}\nmodel: {backbone: tiny, weights: random}\noptimizer: {learning_rate: 0.1}\nsteps: 4\n"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{}", "neither is given"),
        ("{run: runs/x, data: {name: synthetic}, steps: 3}", "both are given"),
        ("{run: runs/x, steps: 3}", r"source\.steps is for a task that is trained first"),
        ("{data: {name: synthetic}}", "needs exactly one of epochs and steps"),
        ("{data: {name: synthetic}, steps: 3, epochs: 1}", "needs exactly one of epochs and steps"),
        ("{data: {name: csv}, steps: 3}", r"source task: dataset 'csv' needs data\.path"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused(source: str, why: str) -> None:
    assert re.search(why, refused(f"{SIMPLE}source: {source}\n"))


def made_run(name: str, *overrides: str) -> RunDir:
    cfg = load(SIMPLE, f"name={name}", "model.train_from=all", *overrides)
    return RunDir.create("runs", cfg)


def test_only_a_run_of_the_same_backbone_with_a_commit_is_carried_over() -> None:
    run = made_run("earlier")
    later = load(f"{SIMPLE}source: {{run: runs/earlier}}\n")

    def why(cfg: Config) -> str:
        with pytest.raises(Refusal) as caught:
            init_from.opened(cfg)
        assert caught.value.code == ExitCode.USAGE
        return str(caught.value)

    assert "has no checkpoint" in why(later)
    (run.checkpoints / "step-00000004").mkdir()
    found, its_config = init_from.opened(later)
    assert found.path == run.path.absolute() and its_config.name == "earlier"
    other = load(f"{SIMPLE}source: {{run: runs/earlier}}\n", "model.backbone=vgg16", "data.image_size=32")
    assert "trained tiny, but model.backbone is vgg16" in why(other)
    assert "the source task of 'trial' has not been trained" in why(load(SIMPLE + TASK))


def test_what_may_have_been_seen_decides_no_weights_and_survives_the_source_task() -> None:
    target = load(TARGET + TASK, "source.allow_seen=true")
    after = config_source.after_source(target, Path("runs") / "trial-source")
    assert after.source is not None and after.source.allow_seen
    taught = [
        load(SIMPLE, "model.train_from=all", "distill.teacher=runs/x", f"distill.allow_seen={word}")
        for word in ("true", "false")
    ]
    first, second = map(config_file.trajectory, taught)
    assert first == second and "allow_seen" not in first["distill"]  # as in runs that are older than the key
