"""`tl-dist prune`: the config of a run, for a network with fewer channels that the run teaches."""

from pathlib import Path

import pytest

from tl_dist.cli.main import main
from tl_dist.config import Config
from tl_dist.config import file as config_file
from tl_dist.runs.directory import RunDir
from tl_dist.tools.prune.command import pruned

TEXT = """\
name: whole
data: {name: digits, validation_fraction: 0.2}
model: {backbone: vgg16, pooling: both}
loss: {label_smoothing: 0.1}
optimizer: {name: sgd, learning_rate: 0.1, layer_decay: 0.5}
stages: [{train_from: all, steps: 4}, {train_from: block5, steps: 4}]
runtime: {prefix_cache: "on"}
"""


@pytest.fixture(autouse=True)
def _in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run_of(*overrides: str) -> RunDir:
    Path("trial.yaml").write_text(TEXT)
    cfg = config_file.load("trial.yaml", overrides)
    return RunDir.create(Path("runs"), cfg)


def changes(before: Config, after: Config) -> set[str]:
    """Keys, or sections, that differ."""
    return {key for key in Config.model_fields if getattr(before, key) != getattr(after, key)}


def test_what_trained_the_run_is_left_out_and_all_else_is_kept() -> None:
    run = run_of("runtime.prefix_cache=off", "checkpoint.best.metric=accuracy")
    before, cfg = config_file.load(run.config_file), pruned(run, 0.5)
    assert changes(before, cfg) == {"name", "epochs", "stages", "model", "optimizer", "source", "distill"}
    assert (cfg.name, cfg.epochs, cfg.stages) == ("whole-pruned-0.5", 10.0, ())
    assert cfg.model == before.model.model_copy(update={"prune": 0.5, "train_from": "all"})
    assert (cfg.optimizer.name, cfg.optimizer.layer_decay) == ("adamw", 1.0)
    assert cfg.source is not None and cfg.source.head and cfg.source.refit and cfg.distill is not None
    assert cfg.source.run == cfg.distill.teacher == str(run.path.absolute())
    assert cfg == pruned(run, 0.5)  # so the same command resumes


def test_a_classifier_that_was_computed_is_trained_by_steps_now() -> None:
    text = (
        "classifier.name=logistic",
        "classifier.l2=1.0",
        "features.dtype=bfloat16",
        "model.train_from=head",
    )
    idle = ("stages=[]", "loss.label_smoothing=0", "optimizer.layer_decay=1")
    cfg = pruned(run_of(*text, *idle), 0.5)
    assert not cfg.classifier.computed and cfg.runtime.prefix_cache == "off"


def test_of_a_pruned_run_the_channels_that_it_has_count() -> None:
    run = run_of("model.prune=0.5", "source.run=x", "runtime.prefix_cache=off")
    assert pruned(run, 0.5).model.prune == 0.75


def test_what_the_command_line_says_takes_precedence(capsys: pytest.CaptureFixture[str]) -> None:
    cfg = pruned(run_of("runtime.prefix_cache=off"), 0.25, ["name=other", "steps=7", "distill.weight=0.5"])
    assert cfg.distill is not None and (cfg.name, cfg.epochs, cfg.steps) == ("other", None, 7)
    assert (cfg.model.prune, cfg.distill.weight) == (0.25, 0.5)
    assert main(["prune", "runs/whole", "epoch=3"]) == 64
    assert "override 'epoch=3': epoch is not a key of a config. Fix: write 'epochs'." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["runs/nowhere"], "runs/nowhere is not a run"),
        (["runs/whole", "--by", "1.5"], "'--by'"),
        (["runs/whole"], "runs/whole has no checkpoint. Fix: train it first"),
    ],
)
def test_what_cannot_be_pruned_is_refused_in_a_line(
    arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of("runtime.prefix_cache=off")
    assert main(["prune", *arguments]) == 64
    said = capsys.readouterr().err
    assert what in said and said.count("\n") == 1 and "Fix:" in said
    assert not Path("runs/whole-pruned-0.5").exists()
