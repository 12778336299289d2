"""`tl-dist eval` takes what this machine has, whatever the run was trained on, and says so."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tl_dist.config import Config
from tl_dist.launcher import task
from tl_dist.launcher.command import Command
from tl_dist.launcher.local import local_launch
from tl_dist.launcher.task import Computation
from tl_dist.refusal import Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.tools.evaluate import Request, command

RUN = {
    "name": "large", "strategy": "horovod", "workers": 64, "global_batch": 64, "epochs": 1,
    "data": {"name": "synthetic"}, "model": {"backbone": "tiny", "weights": "random"},
    "optimizer": {"learning_rate": 0.1},
}  # fmt: skip


Started = tuple[Sequence[Command], Request]


def config_of(**changes: Any) -> Config:
    return Config.model_validate(RUN | changes)


@pytest.mark.parametrize(
    ("run", "strategy", "workers", "gpus", "expected"),
    [
        (("horovod", 64), None, None, 0, ("single", 1)),
        (("horovod", 64), None, None, 1, ("single", 1)),
        (("horovod", 64), None, None, 8, ("horovod", 8)),
        (("horovod", 4), None, None, 8, ("horovod", 4)),
        (("horovod", None), None, None, 8, ("horovod", 8)),
        (("horovod", 64), None, 3, 0, ("horovod", 3)),
        (("horovod", 64), "mirrored", None, 8, ("mirrored", 8)),
        (("horovod", 64), "single", None, 8, ("single", 1)),
        (("horovod", 64), "horovod", 1, 8, ("horovod", 1)),
        (("mirrored", 4), None, None, 2, ("mirrored", 2)),
        (("mirrored", None), None, None, 8, ("mirrored", 8)),
        (("single", None), None, None, 8, ("single", 1)),
        (("single", None), None, 2, 0, ("horovod", 2)),
        (("collective", 4), None, 2, 0, ("collective", 2)),
        (("mirrored", 4), "auto", 1, 0, ("single", 1)),
    ],
)
def test_workers_are_those_that_this_machine_has_unless_told(
    run: tuple[str, int | None],
    strategy: str | None,
    workers: int | None,
    gpus: int,
    expected: tuple[str, int],
) -> None:
    cfg = config_of(strategy=run[0], workers=run[1])
    layout = task.workers_here(cfg, strategy, workers, gpus)
    assert layout == [f"strategy={expected[0]}", f"workers={expected[1]}"]


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Started]:
    """The commands and the request of each task that would have been run; it leaves a result."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cfg = config_of()
    run = RunDir.create(tmp_path, cfg)
    (run.path / "evaluations").mkdir()
    started: list[Started] = []

    def run_task(run: RunDir, cfg: Config, request: Request, **_: Any) -> None:
        with local_launch(cfg, run.path, run.path / "request") as commands:
            started.append((commands, request))
        (run.path / "evaluations" / "test.json").write_text('{"event": "evaluation"}')

    monkeypatch.setattr(command, "run_task", run_task)
    return started


def test_a_run_of_64_workers_is_evaluated_by_one_without_gpus(started: list[Started], tmp_path: Path) -> None:
    said: list[str] = []
    command.record_of(tmp_path / "large", "test", Computation(), say=said.append)
    ((commands, request),) = started
    assert len(commands) == 1 and "HOROVOD_RANK" not in commands[0].environment
    assert [*request.overrides] == ["strategy=single", "workers=1"]
    assert said == ["evaluating with strategy=single workers=1"]


def test_what_is_asked_for_is_started(started: list[Started], tmp_path: Path) -> None:
    how = Computation("best", workers=3, overrides=["evaluation.views=[flip]"])
    command.record_of(tmp_path / "large", "test", how)
    ((commands, request),) = started
    assert [command.environment["HOROVOD_SIZE"] for command in commands] == ["3"] * 3
    assert [*request.overrides] == ["evaluation.views=[flip]", "strategy=horovod", "workers=3"]
    assert (request.at, request.split) == ("best", "test")
    with pytest.raises(Refusal, match="'newest' names no checkpoint"):
        command.record_of(tmp_path / "large", "test", Computation("newest"))
    with pytest.raises(Refusal, match="'single' has one worker, not 3"):
        command.record_of(tmp_path / "large", "test", Computation(strategy="single", workers=3))
