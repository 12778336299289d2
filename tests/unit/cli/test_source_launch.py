"""A source task is trained first by whatever can train it, and refused in one line by launchers that cannot."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.unit.cli.conftest import Became, become, ranks, said
from tl_dist.config import Config
from tl_dist.config import file as config_file
from tl_dist.launcher import task, train, under_launcher
from tl_dist.launcher.train import Request
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir

CONFIG = """\
steps: 2
data: {name: synthetic}
model: {backbone: tiny, weights: random, train_from: block3}
optimizer: {learning_rate: 0.1}
source:
  data: {name: synthetic, num_classes: 3}
  steps: 4
"""
COMPUTED = ("model.train_from=head", "steps=1", "classifier.name=logistic")


def finish(run: RunDir) -> None:
    """Leave what a finished run leaves, as far as launchers look at it."""
    (run.checkpoints / "step-00000004").mkdir(parents=True, exist_ok=True)
    run.mark_done({})


def reached(run: RunDir) -> NoReturn:
    raise Refusal(f"reached {run.path}", fix="none.", code=ExitCode.PEER_LOST)


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that were trained to the end; workers are only pretended, those of the target never start."""
    monkeypatch.chdir(tmp_path)
    Path("src.yaml").write_text(CONFIG)
    names: list[str] = []

    def supervise(run: RunDir, cfg: Config, *_: Any, **__: Any) -> ExitCode:
        if not run.name.endswith("source"):
            reached(run)
        names.append(run.name)
        finish(run)
        return ExitCode.DONE

    monkeypatch.setattr(train, "supervise", supervise)
    monkeypatch.setattr(train, "show_end", lambda run, console: None)
    monkeypatch.setattr(task, "run_task", lambda run, *_, **__: reached(run))
    return names


@pytest.mark.parametrize(
    ("command", "run", "source"),
    [
        (("train", "src.yaml"), "src", "src-source"),
        (("features", "extract", "src.yaml", "runtime.prefix_cache=on"), "src", "src-source"),
        (("tune", "src.yaml", *COMPUTED), "src-tune", "src-source"),
        (("cv", "src.yaml", *COMPUTED), "src-cv", "src-source"),
        (("cv", "src.yaml", "--seeds", "1"), "src-cv-0-0", "src-cv-0-source"),
        (("cv", "src.yaml", "--seeds", "1", "source.name=mine-source"), "src-cv-0-0", "src-cv-0-source"),
    ],
)
def test_the_source_task_comes_first_and_once(
    trained: list[str], capsys: pytest.CaptureFixture[str], command: tuple[str, ...], run: str, source: str
) -> None:
    for _ in range(2):
        code, _, err = said(capsys, *command)
        assert (code, err) == (ExitCode.PEER_LOST, f"error: reached runs/{run} Fix: none.\n")
    assert trained == [source]
    found = config_file.load(f"runs/{run}/config.yaml").source
    assert found is not None and Path(found.run or "").name == source


def test_tuning_writes_a_config_that_starts_from_the_trained_source(
    trained: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = (
        '[{"classifier": {"name": "nearest_mean", "scaling": "none"}, "model": {"layers": ["block3"], '
        '"pooling": "average"}, "folds": 5, "accuracy": 0.5, "log_loss": 1.0}]'
    )
    monkeypatch.setattr(task, "run_task", lambda run, *_, **__: (run.path / "tuning.json").write_text(found))
    chosen = ("classifier.l2=auto", "classifier.layers=auto", "model.layers=[block2, block3]")
    code, _, err = said(capsys, "tune", "src.yaml", *COMPUTED, *chosen)
    assert (code, err) == (0, "")
    best = config_file.load("runs/src-tune/best.yaml")
    assert best.source is not None and Path(best.source.run or "").name == "src-source"
    assert best.classifier.name == "nearest_mean" and not best.classifier.chosen
    assert best.model.layers == ("block3",)


def submitted(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code, _, err = said(capsys, "submit", "src.yaml", "--nodes", "2", "--dry-run")
    return code, err


def joined(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    try:
        under_launcher.join(Request(Path("src.yaml")), ranks(1)[0], become=become)
    except Refusal as refusal:
        return refusal.code, f"error: {refusal}\n"
    except Became:
        return 0, ""


@pytest.mark.parametrize("launch", [submitted, joined])
def test_a_launcher_of_one_run_refuses_a_source_task_that_is_not_done(
    trained: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    launch: Callable[[Any], tuple[int, str]],
) -> None:
    monkeypatch.setattr(under_launcher, "require_package", lambda cfg: None)
    code, err = launch(capsys)
    assert code == ExitCode.USAGE and err.count("\n") == 1
    assert "the source task of 'src' has not been trained: runs/src-source is not done. Fix: " in err
    assert "'source: {run: runs/src-source}'" in err
    assert not Path("runs/src").exists()
    said(capsys, "train", "src.yaml")
    assert trained == ["src-source"]
    code, err = launch(capsys)
    assert (code, err) == (0, "")
